//! Talking to the hub: what a repository holds at which commit, and bytes from a position on.
//!
//! Requests are made by `hf-hub`, which knows the addresses. Its own download is not used: it checks no checksum, and its look at
//! a file's size sends the token on to whatever host the hub redirects to. Here the token is a header of each request, which the client drops where a
//! redirect leads to another host or port.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use hf_hub::api::tokio::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use super::checksum::Sum;
use crate::config::HubSettings;

/// More than any repository's list has.
const LARGEST_LIST: usize = 16 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The request with the token. A macro, since `hf-hub` does not give its client's types a name.
macro_rules! signed {
    ($remote:expr, $request:expr) => {
        match &$remote.settings.token {
            Some(token) => $request.bearer_auth(token.expose()),
            None => $request,
        }
    };
}

/// Why nothing came.
#[derive(Debug)]
pub(super) enum Fault {
    /// Trying again may help.
    Passing(String),
    /// It will not.
    Lasting(String),
}

/// Asks until an answer comes, a lasting fault, or so many passing ones in a row.
pub(super) async fn patiently<T>(attempts: u32, mut ask: impl AsyncFnMut() -> Result<T, Fault>) -> Result<T, String> {
    let mut failures = 0;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(Fault::Lasting(reason)) => return Err(reason),
            Err(Fault::Passing(reason)) => {
                failures += 1;
                if failures >= attempts {
                    return Err(format!("{reason} ({attempts} attempts)"));
                }
                tokio::time::sleep(pause(failures)).await;
            }
        }
    }
}

/// How long to wait after so many failures in a row.
pub(super) fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(LONGEST_PAUSE)
}

/// What is asked for.
pub(super) struct Remote {
    api: Api,
    settings: HubSettings,
    /// `ORG/NAME`
    id: String,
    /// As asked for, or the commit once that is known.
    revision: String,
    patience: Duration,
}

/// A file of a repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) size: Option<u64>,
    pub(super) sum: Option<Sum>,
}

/// A file's bytes, or some of them.
pub(super) struct Answer {
    /// Position of the first byte.
    pub(super) start: u64,
    pub(super) body: BoxStream<'static, Result<Bytes, String>>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl From<Sibling> for RemoteFile {
    fn from(sibling: Sibling) -> Self {
        let Sibling { rfilename: name, size, blob_id, lfs } = sibling;
        match lfs {
            // The blob of such a file is a pointer to it.
            Some(lfs) => Self { name, size: lfs.size.or(size), sum: lfs.sha256.as_deref().and_then(Sum::parse) },
            None => Self { name, size, sum: blob_id.as_deref().and_then(Sum::parse) },
        }
    }
}

impl Remote {
    /// A repository `id` (`ORG/NAME`) at a revision; `patience`: longest silence.
    pub(super) fn new(settings: HubSettings, id: &str, revision: &str, patience: Duration) -> Result<Self, String> {
        // Nothing is put into this cache.
        let cache = Cache::new(settings.cache.clone().unwrap_or_default());
        let api = ApiBuilder::from_cache(cache)
            .with_endpoint(settings.endpoint.clone())
            .with_token(None)
            .with_user_agent("darkroom", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { api, settings, id: id.to_owned(), revision: revision.to_owned(), patience })
    }

    /// Where people read of it.
    pub(super) fn page(&self) -> String {
        format!("{}/{}", self.settings.endpoint, self.id)
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.settings.endpoint
    }

    /// The commit that the revision stands for, and the files at it. From now on everything is asked for at that commit.
    pub(super) async fn list(&mut self) -> Result<(String, Vec<RemoteFile>), Fault> {
        let request = self.api.repo(self.repo()).info_request().query(&[("blobs", "true")]);
        let request = signed!(self, request);
        let response = self.within(request.send()).await?.map_err(|error| failed(error.without_url()))?;
        let status = response.status().as_u16();
        if status != 200 {
            let code = header(response.headers().get("x-error-code").map(|value| value.as_bytes()));
            return Err(self.refused(status, code.as_deref(), None));
        }
        let mut body = response.bytes_stream();
        let mut text = Vec::new();
        while let Some(chunk) = self.within(body.next()).await? {
            text.extend_from_slice(&chunk.map_err(|error| failed(error.without_url()))?);
            if text.len() > LARGEST_LIST {
                return Err(Fault::Lasting(format!("its list of files has more than {LARGEST_LIST} bytes")));
            }
        }
        let info: Info = serde_json::from_slice(&text)
            .map_err(|error| Fault::Lasting(format!("{} does not answer as a hub: {error}", self.settings.endpoint)))?;
        if !(info.sha.len() == 40 && info.sha.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            return Err(Fault::Lasting(format!("{} does not tell the commit", self.settings.endpoint)));
        }
        self.revision.clone_from(&info.sha);
        Ok((info.sha, info.siblings.into_iter().map(RemoteFile::from).collect()))
    }

    /// Size and checksum of a file by its headers, for hubs whose list has none.
    pub(super) async fn describe(&self, name: &str) -> Result<RemoteFile, Fault> {
        let request = self.api.client().head(self.url(name));
        let request = signed!(self, request);
        let response = self.within(request.send()).await?.map_err(|error| failed(error.without_url()))?;
        let text = |name: &str| header(response.headers().get(name).map(|value| value.as_bytes()));
        let status = response.status().as_u16();
        if status != 200 {
            return Err(self.refused(status, text("x-error-code").as_deref(), Some(name)));
        }
        // An etag that is no hash, as stores behind a hub make them up, tells nothing.
        let etag = text("x-linked-etag").or_else(|| text("etag"));
        let size = text("x-linked-size").or_else(|| text("content-length")).and_then(|size| size.parse().ok());
        Ok(RemoteFile { name: name.to_owned(), size, sum: etag.as_deref().and_then(Sum::parse) })
    }

    /// A file from the byte `from` on. A server that knows no ranges sends it from the start, and the answer says so.
    pub(super) async fn get(&self, name: &str, from: u64) -> Result<Answer, Fault> {
        let request = self.api.client().get(self.url(name)).header("accept-encoding", "identity");
        let request = signed!(self, request);
        let request = if from > 0 { request.header("range", format!("bytes={from}-")) } else { request };
        let response = self.within(request.send()).await?.map_err(|error| failed(error.without_url()))?;
        let text = |name: &str| header(response.headers().get(name).map(|value| value.as_bytes()));
        let start = match response.status().as_u16() {
            200 => 0,
            206 => {
                let range = text("content-range").unwrap_or_default();
                let start = range.strip_prefix("bytes ").and_then(|rest| rest.split('-').next()?.parse().ok());
                start.ok_or_else(|| Fault::Lasting(format!("`{name}`: the answer does not say which bytes it has")))?
            }
            status => return Err(self.refused(status, text("x-error-code").as_deref(), Some(name))),
        };
        let body = response.bytes_stream().map(|chunk| chunk.map_err(|error| chain(&error.without_url())));
        Ok(Answer { start, body: body.boxed() })
    }

    /// What comes before patience ends.
    pub(super) async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::time::timeout(self.patience, work)
            .await
            .map_err(|_| Fault::Passing(format!("nothing came for {} s", self.patience.as_secs())))
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, self.revision.clone())
    }

    fn url(&self, name: &str) -> String {
        self.api.repo(self.repo()).url(name)
    }

    /// What a status means for whoever asked. Nothing of the answer's body is repeated.
    fn refused(&self, status: u16, code: Option<&str>, file: Option<&str>) -> Fault {
        let (endpoint, page) = (&self.settings.endpoint, self.page());
        let asked = match file {
            Some(file) => format!("`{file}` of {}", self.id),
            None => format!("{} at `{}`", self.id, self.revision),
        };
        let token = match &self.settings.token {
            Some(_) => "the token that is set (HF_TOKEN) was refused or lacks the right".to_owned(),
            None => format!("no token is set: make one at {endpoint}/settings/tokens and set HF_TOKEN"),
        };
        match (status, code) {
            (401 | 403, Some("GatedRepo")) => Fault::Lasting(format!(
                "{asked} is gated ({status}): accept its licence at {page} with your account; {token}"
            )),
            (401 | 403, _) => Fault::Lasting(format!(
                "{asked} was refused ({status}): it does not exist, is private, or is gated; then accept its licence at {page}; {token}"
            )),
            (404, Some("RevisionNotFound")) => {
                Fault::Lasting(format!("there is no revision `{}` of {page}", self.revision))
            }
            (404, _) => Fault::Lasting(format!("there is no {asked} at {endpoint} (404)")),
            (408 | 429 | 500..=599, _) => Fault::Passing(format!("{asked}: {endpoint} answered {status}")),
            _ => Fault::Lasting(format!("{asked}: {endpoint} answered {status}")),
        }
    }
}

/// Everything about a failed exchange may be passing; addresses stay out of it, since a store's are signed.
fn failed(error: impl std::error::Error) -> Fault {
    Fault::Passing(chain(&error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(deeper) = source {
        text = format!("{text}: {deeper}");
        source = deeper.source();
    }
    text
}

fn header(value: Option<&[u8]>) -> Option<String> {
    Some(String::from_utf8_lossy(value?).trim().to_owned())
}
