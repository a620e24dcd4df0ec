//! Jobs of one identity, in SQL.

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::Result;
use super::sqlite_rows::record;
use crate::domain::{Job, JobId, Timestamp};

/// Leaves out jobs that another of their identity is, or will be, drawn for.
pub(super) fn first_of_its_identity(query: &mut QueryBuilder<Sqlite>) {
    query.push(
        " AND (identity IS NULL OR NOT EXISTS (SELECT 1 FROM jobs AS same WHERE same.identity = jobs.identity \
         AND (same.status = 'running' OR (same.status = 'queued' AND (same.rank_ms, same.id) < (jobs.rank_ms, jobs.id)))))",
    );
}

/// The latest that succeeded and is kept.
pub(super) async fn latest(connection: &mut SqliteConnection, identity: &str, now: Timestamp) -> Result<Option<Job>> {
    let text = "SELECT * FROM jobs WHERE identity = ? AND status = 'succeeded' AND expires_at_ms > ? \
                ORDER BY ended_at_ms DESC, id DESC LIMIT 1";
    let row = sqlx::query(text).bind(identity).bind(now.unix_ms()).fetch_optional(connection).await?;
    row.as_ref().map(|row| Ok(record(row)?.job)).transpose()
}

/// The column `reused_from`.
pub(super) fn reused_from(row: &SqliteRow) -> Result<Option<JobId>> {
    let bytes: Option<Vec<u8>> = row.try_get("reused_from")?;
    let told = |error: uuid::Error| super::Error::Storage(format!("column reused_from: {error}"));
    bytes.map(|bytes| Ok(uuid::Uuid::from_slice(&bytes).map_err(told)?.into())).transpose()
}
