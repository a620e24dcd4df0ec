//! A record as a row of the table `jobs` and back. Columns are read by name, so that an added column breaks nobody.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::record::{HeldLease, Record, pixel_steps};
use super::shares::Turn;
use super::sqlite_identical::reused_from;
use super::{Error, Idempotency, Result, WaitingWork};
use crate::domain::{Job, JobId, JobStatus, ModelId, OwnerId, QueuePlace, SizeKey, Timestamp, WorkerId};

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Storage(error.to_string())
    }
}

/// Reads a whole row.
pub(super) fn record(row: &SqliteRow) -> Result<Record> {
    let job = Job {
        id: job_id(row)?,
        owner: row.try_get::<Option<String>, _>("owner")?.map(OwnerId::new),
        status: status(row)?,
        request: json(row.try_get("request")?)?,
        created_at: Timestamp::from_unix_ms(row.try_get("created_at_ms")?),
        started_at: moment(row, "started_at_ms")?,
        ended_at: moment(row, "ended_at_ms")?,
        expires_at: moment(row, "expires_at_ms")?,
        attempts: row.try_get("attempts")?,
        cancel_requested: row.try_get("cancel_requested")?,
        images: json(row.try_get("images")?)?,
        timings: row.try_get::<Option<&str>, _>("timings")?.map(json).transpose()?,
        warnings: json(row.try_get("warnings")?)?,
        error: row.try_get::<Option<&str>, _>("error")?.map(json).transpose()?,
        identity: row.try_get("identity")?,
        reused_from: reused_from(row)?,
    };
    let place = QueuePlace { rank_ms: row.try_get("rank_ms")?, id: job.id };
    let turn = row.try_get::<Option<f64>, _>("turn_ms")?.zip(row.try_get("turn_cost_ms")?);
    let turn = turn.map(|(at, cost)| Turn { at, cost });
    Ok(Record { job, place, turn, lease: lease(row)?, idempotency: idempotency(row)? })
}

/// Reads a row of sums over waiting jobs of one size.
pub(super) fn waiting_work(row: &SqliteRow) -> Result<WaitingWork> {
    let model = ModelId::new(row.try_get::<String, _>("model")?);
    let size = SizeKey { model, width: row.try_get("width")?, height: row.try_get("height")? };
    let sum = |column: &str| Ok::<u64, Error>(row.try_get::<i64, _>(column)?.unsigned_abs());
    Ok(WaitingWork { size, jobs: sum("jobs")?, rows: sum("row_count")?, row_steps: sum("row_steps")? })
}

/// Adds a new record.
pub(super) async fn insert(connection: &mut SqliteConnection, record: &Record) -> Result<()> {
    let (job, request) = (&record.job, &record.job.request);
    sqlx::query(
        "INSERT INTO jobs (id, status, request, model, width, height, steps, row_count, pixel_steps, rank_ms, \
         created_at_ms, deadline_ms, idempotency_key, idempotency_fingerprint, owner, identity, \
         turn_ms, turn_cost_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(id_bytes(job.id))
    .bind(job.status.name())
    .bind(to_json(request)?)
    .bind(request.model().as_str())
    .bind(request.width())
    .bind(request.height())
    .bind(request.steps_taken())
    .bind(request.rows())
    .bind(pixel_steps(request) as i64)
    .bind(record.place.rank_ms)
    .bind(job.created_at.unix_ms())
    .bind(job.deadline().map(Timestamp::unix_ms))
    .bind(record.idempotency.as_ref().map(|idempotency| key_column(job.owner.as_ref(), &idempotency.key)))
    .bind(record.idempotency.as_ref().map(|idempotency| idempotency.fingerprint.as_str()))
    .bind(job.owner.as_ref().map(OwnerId::as_str))
    .bind(job.identity.as_deref())
    .bind(record.turn.map(|turn| turn.at))
    .bind(record.turn.map(|turn| turn.cost))
    .execute(&mut *connection)
    .await?;
    // What can change is there from the start where its pictures are.
    if job.status.is_terminal() { update(connection, record).await } else { Ok(()) }
}

/// Writes back what can change in a record.
pub(super) async fn update(connection: &mut SqliteConnection, record: &Record) -> Result<()> {
    let (job, lease) = (&record.job, record.lease.as_ref());
    sqlx::query(
        "UPDATE jobs SET status = ?, started_at_ms = ?, ended_at_ms = ?, expires_at_ms = ?, attempts = ?, \
         cancel_requested = ?, lease_worker = ?, lease_token = ?, lease_expires_at_ms = ?, images = ?, timings = ?, \
         warnings = ?, error = ?, deadline_ms = ?, identity = ?, reused_from = ? WHERE id = ?",
    )
    .bind(job.status.name())
    .bind(job.started_at.map(Timestamp::unix_ms))
    .bind(job.ended_at.map(Timestamp::unix_ms))
    .bind(job.expires_at.map(Timestamp::unix_ms))
    .bind(job.attempts)
    .bind(job.cancel_requested)
    .bind(lease.map(|lease| lease.worker.as_str()))
    .bind(lease.map(|lease| lease.token as i64))
    .bind(lease.map(|lease| lease.expires_at.unix_ms()))
    .bind(to_json(&job.images)?)
    .bind(job.timings.as_ref().map(to_json).transpose()?)
    .bind(to_json(&job.warnings)?)
    .bind(job.error.as_ref().map(to_json).transpose()?)
    .bind(job.deadline().map(Timestamp::unix_ms))
    .bind(job.identity.as_deref())
    .bind(job.reused_from.map(id_bytes))
    .bind(id_bytes(job.id))
    .execute(connection)
    .await?;
    Ok(())
}

/// An id as the 16 bytes that are stored.
pub(super) fn id_bytes(id: JobId) -> Vec<u8> {
    id.as_uuid().as_bytes().to_vec()
}

/// The column `id`.
pub(super) fn job_id(row: &SqliteRow) -> Result<JobId> {
    let uuid = Uuid::from_slice(row.try_get("id")?).map_err(|error| Error::Storage(format!("column id: {error}")))?;
    Ok(JobId::from(uuid))
}

fn status(row: &SqliteRow) -> Result<JobStatus> {
    let name: &str = row.try_get("status")?;
    name.parse().map_err(|()| Error::Storage(format!("column status: `{name}` is no state")))
}

fn moment(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_unix_ms))
}

fn lease(row: &SqliteRow) -> Result<Option<HeldLease>> {
    let worker: Option<String> = row.try_get("lease_worker")?;
    let token: Option<i64> = row.try_get("lease_token")?;
    let held = worker.zip(token).zip(moment(row, "lease_expires_at_ms")?);
    Ok(held.map(|((worker, token), expires_at)| HeldLease {
        worker: WorkerId::new(worker),
        token: token as u64,
        expires_at,
    }))
}

/// An idempotency key as it is stored: behind its owner's name and a line break, which stands in no name and no key. So
/// the column tells the keys of two owners apart.
pub(super) fn key_column(owner: Option<&OwnerId>, key: &str) -> String {
    owner.map_or_else(|| key.to_owned(), |owner| format!("{owner}\n{key}"))
}

fn idempotency(row: &SqliteRow) -> Result<Option<Idempotency>> {
    let column: Option<String> = row.try_get("idempotency_key")?;
    let key = column.map(|column| column.rsplit('\n').next().unwrap_or_default().to_owned());
    let fingerprint: Option<String> = row.try_get("idempotency_fingerprint")?;
    Ok(key.zip(fingerprint).map(|(key, fingerprint)| Idempotency { key, fingerprint }))
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::Storage(format!("a stored value cannot be read: {error}")))
}

fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Storage(format!("a value cannot be stored: {error}")))
}
