//! Who asks, and which jobs are there for them.

use super::{Error, GenerationService, Result};
use crate::domain::{Job, JobId, OwnerId};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Anybody, of a server without keys: every job is there for them.
    Anybody,
    /// Who has an API key: their own jobs are there for them, everybody's for an administrator.
    KeyHolder {
        /// Whose the jobs are that they submit.
        owner: OwnerId,
        /// Sees everybody's jobs.
        is_admin: bool,
    },
}

impl Caller {
    /// Whose the jobs are that they submit.
    pub fn owner(&self) -> Option<&OwnerId> {
        match self {
            Self::Anybody => None,
            Self::KeyHolder { owner, .. } => Some(owner),
        }
    }

    /// Whose jobs alone are there for them; `None`: everybody's.
    pub(super) fn confined_to(&self) -> Option<&OwnerId> {
        match self {
            Self::KeyHolder { owner, is_admin: false } => Some(owner),
            Self::Anybody | Self::KeyHolder { is_admin: true, .. } => None,
        }
    }

    fn may_see(&self, job: &Job) -> bool {
        self.confined_to().is_none_or(|owner| job.owner.as_ref() == Some(owner))
    }
}

impl GenerationService {
    /// A job that is there for the caller. One of somebody else is told from one that never was by nothing.
    pub(super) async fn job(&self, caller: &Caller, id: JobId) -> Result<Job> {
        let job = self.parts.jobs.get(id).await?.filter(|job| caller.may_see(job));
        job.ok_or(Error::JobNotFound(id))
    }
}
