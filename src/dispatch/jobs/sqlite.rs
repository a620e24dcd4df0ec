//! A queue in one SQLite file, shared by every process that opens it.
//!
//! Writes take SQLite's one write lock at once (`BEGIN IMMEDIATE`), so what a method reads stays true until it commits:
//! two processes never claim the same job. Within a process writers line up at a pool of one connection.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection, QueryBuilder, Row, Sqlite, SqliteConnection, Transaction};

use super::record::Record;
use super::sqlite_claims::{ahead, fitting, is_anything, work};
use super::sqlite_identical;
use super::sqlite_rows::{id_bytes, insert, key_column, record, update};
use super::sqlite_shares::{forget, give_turn, owners, settle, took};
use super::{
    Ahead, Cancelled, ClaimRequest, ClaimedJob, Error, Inserted, JobFilter, JobStore, Lease, LeaseState, NewJob,
    Outcome, Overdue, OwnerWork, QueueStats, Rescued, Result, StoreOptions, WaitingModels, WaitingWork,
};
use crate::domain::{Clock, Job, JobId, ModelId, Timestamp};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

/// How long a write waits for another process's write; each takes milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a refusal a file is opened again.
const BUSY_RETRY: Duration = Duration::from_millis(10);
/// Readers never wait for writers (WAL), so a few suffice.
const READERS: u32 = 4;
/// Jobs rescued or expired in one transaction; the next call takes the rest.
const RESCUE_LIMIT: i64 = 256;

/// [`JobStore`] in a SQLite file.
pub struct SqliteStore {
    options: StoreOptions,
    clock: Arc<dyn Clock>,
    reader: SqlitePool,
    writer: SqlitePool,
}

impl SqliteStore {
    /// Opens the file, making it when it is missing (its folder must exist), and brings its tables up to date.
    ///
    /// # Errors
    /// [`Error::Storage`] when the file cannot be opened, or was written by a newer version of this program.
    pub async fn open(path: &Path, options: StoreOptions, clock: Arc<dyn Clock>) -> Result<Self> {
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An accepted job must outlive a power cut, so a commit waits for the disk; WAL's usual NORMAL does not.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let told = |error: sqlx::Error| Error::Storage(format!("cannot open {}: {error}", path.display()));
        let writer = opened(1, &connect).await.map_err(told)?;
        migrate(&writer, path).await?;
        let reader = opened(READERS, &connect).await.map_err(told)?;
        Ok(Self { options, clock, reader, writer })
    }

    /// Has all jobs stand by acceptance, where owners had weights once: for a server without any, before it takes jobs.
    ///
    /// # Errors
    /// A database that fails.
    pub async fn forget_turns(&self) -> Result<()> {
        let mut transaction = self.write().await?;
        forget(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Closes the file; calls after this fail. Dropping the store does the same, without waiting.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// A pool with its first connection. Of two processes that open a new file at once SQLite refuses one as busy without
/// waiting for the other: both are readers that want to write its first page, in which the journal's mode stands.
async fn opened(connections: u32, connect: &SqliteConnectOptions) -> sqlx::Result<SqlitePool> {
    let until = Instant::now() + BUSY_TIMEOUT;
    loop {
        let pool = SqlitePoolOptions::new().max_connections(connections).connect_with(connect.clone()).await;
        match pool {
            Err(error) if is_busy(&error) && Instant::now() < until => tokio::time::sleep(BUSY_RETRY).await,
            done => return done,
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| is_busy_code(&code))
}

/// `SQLITE_BUSY`, or `SQLITE_PROTOCOL`: a race at the start of the journal. An extended code has the primary one in its lowest byte
/// (<https://sqlite.org/rescode.html>).
fn is_busy_code(code: &str) -> bool {
    code.parse::<u32>().is_ok_and(|code| [5, 15].contains(&(code & 0xff)))
}

/// All steps in one transaction under the write lock: of two processes that open the file, the second finds it done.
async fn migrate(writer: &SqlitePool, path: &Path) -> Result<()> {
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
    MIGRATIONS.run(&mut *transaction).await.map_err(|error| {
        let path = path.display();
        Error::Storage(match error {
            MigrateError::VersionMissing(version) => format!(
                "{path} was written by a newer darkroom: it holds migration {version}, which this one does not know. \
                 Use the newer program, or restore a backup made before the update"
            ),
            other => format!("cannot bring {path} up to date: {other}"),
        })
    })?;
    Ok(transaction.commit().await?)
}

async fn load(connection: &mut SqliteConnection, id: JobId) -> Result<Option<Record>> {
    let row = sqlx::query("SELECT * FROM jobs WHERE id = ?").bind(id_bytes(id)).fetch_optional(connection).await?;
    row.as_ref().map(record).transpose()
}

async fn load_held(connection: &mut SqliteConnection, lease: &Lease) -> Result<Record> {
    load(connection, lease.job_id).await?.ok_or(Error::LeaseLost(lease.job_id))
}

async fn find_by_key(connection: &mut SqliteConnection, new: &NewJob) -> Result<Option<Record>> {
    let Some(idempotency) = &new.idempotency else { return Ok(None) };
    let key = key_column(new.owner.as_ref(), &idempotency.key);
    let query = sqlx::query("SELECT * FROM jobs WHERE idempotency_key = ?").bind(key);
    query.fetch_optional(connection).await?.as_ref().map(record).transpose()
}

async fn count_queued(connection: &mut SqliteConnection) -> Result<u64> {
    let count: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM jobs WHERE status = 'queued'").fetch_one(connection).await?;
    Ok(count.unsigned_abs())
}

/// Jobs that have not ended and whose deadline is over, going by the column.
async fn overdue(connection: &mut SqliteConnection, now: Timestamp, most: i64) -> Result<Vec<Record>> {
    let text = "SELECT * FROM jobs WHERE deadline_ms IS NOT NULL AND deadline_ms <= ? \
                AND status IN ('queued', 'running') ORDER BY deadline_ms LIMIT ?";
    let rows = sqlx::query(text).bind(now.unix_ms()).bind(most).fetch_all(connection).await?;
    rows.iter().map(record).collect()
}

#[async_trait]
impl JobStore for SqliteStore {
    async fn insert(&self, new: NewJob) -> Result<Inserted> {
        let mut transaction = self.write().await?;
        if let Some(known) = find_by_key(&mut transaction, &new).await? {
            return match known.idempotency == new.idempotency {
                true => Ok(Inserted::Existing(known.job)),
                false => Err(Error::IdempotencyMismatch),
            };
        }
        let queued = count_queued(&mut transaction).await?;
        if new.answer.is_none() && queued >= self.options.max_queued {
            return Err(Error::QueueFull { limit: self.options.max_queued });
        }
        let (now, speed, weights) = (self.clock.now(), new.speed, &self.options.weights);
        let mut record = Record::new(new, &self.options, now)?;
        if !weights.is_empty() && !record.job.status.is_terminal() {
            give_turn(&mut transaction, &mut record, weights, queued > 0, (now, speed)).await?;
        }
        insert(&mut transaction, &record).await?;
        transaction.commit().await?;
        Ok(Inserted::New(record.job))
    }

    async fn get(&self, id: JobId) -> Result<Option<Job>> {
        let mut connection = self.reader.acquire().await?;
        Ok(load(&mut connection, id).await?.map(|record| record.job))
    }

    async fn list(&self, filter: JobFilter) -> Result<Vec<Job>> {
        // Any UUIDv7 sorts before 16 bytes of ones.
        let before = filter.before.map_or_else(|| vec![0xff; 16], id_bytes);
        let mut query = QueryBuilder::new("SELECT * FROM jobs WHERE id < ");
        query.push_bind(before);
        if let Some(owner) = &filter.owner {
            query.push(" AND owner = ").push_bind(owner.as_str());
        }
        if let Some(status) = filter.status {
            query.push(" AND status = ").push_bind(status.name());
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(filter.limit);
        let rows = query.build().fetch_all(&self.reader).await?;
        rows.iter().map(|row| Ok(record(row)?.job)).collect()
    }

    async fn ahead(&self, id: JobId) -> Result<Option<Ahead>> {
        ahead(&mut *self.reader.acquire().await?, id).await
    }

    async fn waiting_work(&self) -> Result<Vec<WaitingWork>> {
        work(&mut *self.reader.acquire().await?, None).await
    }

    async fn identical(&self, identity: &str) -> Result<Option<Job>> {
        let mut connection = self.reader.acquire().await?;
        sqlite_identical::latest(&mut connection, identity, self.clock.now()).await
    }

    async fn waiting_models(&self) -> Result<Vec<WaitingModels>> {
        let rows =
            sqlx::query("SELECT model, MIN(rank_ms) AS rank_ms FROM jobs WHERE status = 'queued' GROUP BY model")
                .fetch_all(&self.reader)
                .await?;
        let read = |row: &SqliteRow| {
            let models = vec![ModelId::new(row.try_get::<String, _>("model")?)];
            Ok(WaitingModels { models, rank_ms: row.try_get("rank_ms")? })
        };
        rows.iter().map(read).collect()
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Vec<ClaimedJob>> {
        // Idle workers ask often: look without the write lock first, and look again once it is held.
        let mut reader = self.reader.acquire().await?;
        if !is_anything(&mut reader, &request, self.clock.now()).await? {
            return Ok(Vec::new());
        }
        drop(reader);
        let mut transaction = self.write().await?;
        let now = self.clock.now();
        let (mut claimed, mut first) = (Vec::new(), None);
        for id in fitting(&mut transaction, &request, now).await? {
            let Some(mut record) = load(&mut transaction, id).await? else { continue };
            let lease = record.claim(&request, now)?;
            update(&mut transaction, &record).await?;
            first = first.or(record.turn.map(|turn| (turn, record.place.rank_ms)));
            claimed.push(ClaimedJob { job: record.job, lease, place: record.place });
        }
        if let Some(first) = first.filter(|_| request.is_to_draw) {
            took(&mut transaction, first, &request.models).await?;
        }
        transaction.commit().await?;
        Ok(claimed)
    }

    async fn heartbeat(&self, leases: &[Lease], lease_ms: u64) -> Result<Vec<LeaseState>> {
        let mut transaction = self.write().await?;
        let now = self.clock.now();
        let mut states = Vec::with_capacity(leases.len());
        for lease in leases {
            let Some(mut record) = load(&mut transaction, lease.job_id).await? else {
                states.push(LeaseState::Lost);
                continue;
            };
            let state = record.renew(lease, lease_ms, now);
            if state != LeaseState::Lost {
                update(&mut transaction, &record).await?;
            }
            states.push(state);
        }
        transaction.commit().await?;
        Ok(states)
    }

    async fn finish(&self, lease: &Lease, outcome: Outcome) -> Result<Job> {
        let mut transaction = self.write().await?;
        let mut record = load_held(&mut transaction, lease).await?;
        let before = record.job.status;
        record.finish(lease, outcome, &self.options, self.clock.now())?;
        update(&mut transaction, &record).await?;
        settle(&mut transaction, before, &record).await?;
        transaction.commit().await?;
        Ok(record.job)
    }

    async fn release(&self, lease: &Lease) -> Result<Job> {
        let mut transaction = self.write().await?;
        let mut record = load_held(&mut transaction, lease).await?;
        record.release(lease, &self.options, self.clock.now())?;
        update(&mut transaction, &record).await?;
        transaction.commit().await?;
        Ok(record.job)
    }

    async fn lose(&self, lease: &Lease, reason: &str) -> Result<Rescued> {
        let mut transaction = self.write().await?;
        let mut record = load_held(&mut transaction, lease).await?;
        let rescued = record.lose(lease, reason, &self.options, self.clock.now())?;
        update(&mut transaction, &record).await?;
        transaction.commit().await?;
        Ok(rescued)
    }

    async fn cancel(&self, id: JobId) -> Result<Option<Cancelled>> {
        let mut transaction = self.write().await?;
        let Some(mut record) = load(&mut transaction, id).await? else { return Ok(None) };
        let before = record.job.status;
        let cancelled = record.cancel(&self.options, self.clock.now())?;
        if !matches!(cancelled, Cancelled::AlreadyEnded(_)) {
            update(&mut transaction, &record).await?;
            settle(&mut transaction, before, &record).await?;
        }
        transaction.commit().await?;
        Ok(Some(cancelled))
    }

    async fn rescue_expired(&self) -> Result<Vec<Rescued>> {
        let mut transaction = self.write().await?;
        let now = self.clock.now();
        let rows = sqlx::query(
            "SELECT * FROM jobs WHERE status = 'running' AND lease_expires_at_ms <= ? \
             ORDER BY lease_expires_at_ms LIMIT ?",
        )
        .bind(now.unix_ms())
        .bind(RESCUE_LIMIT)
        .fetch_all(&mut *transaction)
        .await?;
        let mut rescued = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut record = record(row)?;
            rescued.push(record.rescue(None, &self.options, now)?);
            update(&mut transaction, &record).await?;
        }
        transaction.commit().await?;
        Ok(rescued)
    }

    async fn expire_overdue(&self) -> Result<Vec<Overdue>> {
        let now = self.clock.now();
        // Asked for every second, and rarely is there any: look without the write lock first.
        let mut reader = self.reader.acquire().await?;
        if overdue(&mut reader, now, 1).await?.is_empty() {
            return Ok(Vec::new());
        }
        drop(reader);
        let mut transaction = self.write().await?;
        let mut found = Vec::new();
        for mut record in overdue(&mut transaction, now, RESCUE_LIMIT).await? {
            let before = record.job.status;
            let what = record.overdue(&self.options, now)?;
            // One that is not overdue was changed by an older program, which leaves the column as it was.
            if !matches!(what, Some(Overdue::Running(_))) {
                update(&mut transaction, &record).await?;
                settle(&mut transaction, before, &record).await?;
            }
            found.extend(what);
        }
        transaction.commit().await?;
        Ok(found)
    }

    async fn remove(&self, id: JobId) -> Result<Option<Job>> {
        let mut transaction = self.write().await?;
        let Some(record) = load(&mut transaction, id).await? else { return Ok(None) };
        if !record.job.status.is_terminal() {
            return Err(Error::NotEnded(id));
        }
        sqlx::query("DELETE FROM jobs WHERE id = ?").bind(id_bytes(id)).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Some(record.job))
    }

    async fn remove_expired(&self, limit: u32) -> Result<Vec<Job>> {
        let mut transaction = self.write().await?;
        let rows = sqlx::query(
            "SELECT * FROM jobs WHERE expires_at_ms IS NOT NULL AND expires_at_ms <= ? \
             ORDER BY expires_at_ms, id LIMIT ?",
        )
        .bind(self.clock.now().unix_ms())
        .bind(limit)
        .fetch_all(&mut *transaction)
        .await?;
        let mut removed = Vec::with_capacity(rows.len());
        for row in &rows {
            let job = record(row)?.job;
            sqlx::query("DELETE FROM jobs WHERE id = ?").bind(id_bytes(job.id)).execute(&mut *transaction).await?;
            removed.push(job);
        }
        transaction.commit().await?;
        Ok(removed)
    }

    async fn stats(&self) -> Result<QueueStats> {
        let row = sqlx::query(
            "SELECT COUNT(*) FILTER (WHERE status = 'queued') AS queued, \
             COUNT(*) FILTER (WHERE status = 'running') AS running, COALESCE(SUM(pixel_steps), 0) AS pixel_steps, \
             COALESCE(SUM(row_count) FILTER (WHERE status = 'queued'), 0) AS waiting_rows FROM jobs WHERE status IN ('queued', 'running')",
        )
        .fetch_one(&self.reader)
        .await?;
        let count = |column: &str| Ok::<u64, Error>(row.try_get::<i64, _>(column)?.unsigned_abs());
        Ok(QueueStats {
            queued: count("queued")?,
            running: count("running")?,
            pixel_steps: count("pixel_steps")?,
            waiting_rows: count("waiting_rows")?,
        })
    }

    async fn owners(&self) -> Result<Vec<OwnerWork>> {
        owners(&mut *self.reader.acquire().await?, &self.options.weights).await
    }

    async fn ping(&self) -> Result<()> {
        Ok(self.reader.acquire().await?.ping().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_file_is_known_by_its_code() {
        // SQLITE_BUSY, _RECOVERY, _SNAPSHOT and _TIMEOUT, SQLITE_PROTOCOL; SQLITE_ERROR, _LOCKED, _CANTOPEN_ISDIR, none.
        let codes = ["5", "261", "517", "773", "15", "1", "6", "526", "busy"];
        assert_eq!(codes.map(is_busy_code), [true, true, true, true, true, false, false, false, false]);
    }
}
