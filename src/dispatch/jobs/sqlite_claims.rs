//! Which waiting jobs a claim takes from SQLite, and whose turn it is.

use std::collections::{BTreeMap, HashMap};

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::record::fill_order;
use super::shares::{Account, Candidate, Line, Scale, Share, Turn, Waiting, ahead, in_turn, is_first, joining, weight};
use super::sqlite_identical::first_of_its_identity;
use super::sqlite_rows::{id_bytes, job_id, work};
use super::{ClaimRequest, OwnerWork, Result, Select, WaitingWork};
use crate::domain::{GroupKey, Job, JobId, ModelId, OwnerId, QueuePlace, SizeKey, Timestamp};

/// What says whose turn it is.
pub(super) struct Shares<'a> {
    pub(super) weights: &'a BTreeMap<OwnerId, u32>,
    pub(super) scale: Scale,
}

const COLUMNS: &str = "SELECT id, rank_ms, created_at_ms, width, height, steps, row_count, pixel_steps FROM jobs";

/// The selected jobs in their order, at most about `most` a line; all that the caps let in are among them.
pub(super) async fn selected(
    connection: &mut SqliteConnection,
    request: &ClaimRequest,
    shares: &mut Shares<'_>,
    most: u32,
    now: Timestamp,
) -> Result<Vec<Turn>> {
    let mut lines = waiting_lines(connection, shares.weights).await?;
    shares.scale.follow(&lines, request.speed);
    let mut look = Look { connection, now, most };
    let before = match &request.select {
        Select::Identical(identity) => return look.identical(identity).await,
        Select::Group | Select::Other { .. } => {
            let Some(group) = look.oldest_group(&lines, request, &shares.scale).await? else { return Ok(Vec::new()) };
            for line in &mut lines {
                line.jobs = look.of_size(line.share.as_ref(), &group.size(), (Some(group.steps), None)).await?.into();
            }
            None
        }
        Select::Fill { size, .. } if !request.models.contains(&size.model) => return Ok(Vec::new()),
        Select::Fill { size, steps, before } => {
            for line in &mut lines {
                line.jobs = look.fill(line.share.as_ref(), size, *steps, *before).await?.into();
            }
            *before
        }
    };
    Ok(in_turn(lines, before, &shares.scale))
}

/// Reads waiting jobs.
struct Look<'a> {
    connection: &'a mut SqliteConnection,
    now: Timestamp,
    most: u32,
}

impl Look<'_> {
    /// The group of the job whose turn it is: one index look-up a line and model, as long as no size is excepted. Else the
    /// jobs of this size that stand before the limit are passed over, which are few in an open queue: they would have been
    /// taken first.
    async fn oldest_group(
        &mut self,
        lines: &[Line],
        request: &ClaimRequest,
        scale: &Scale,
    ) -> Result<Option<GroupKey>> {
        let (except, before) = match &request.select {
            Select::Other { except, before } => (Some(except), *before),
            _ => (None, None),
        };
        let mut heads: Vec<(&Line, Candidate, GroupKey)> = Vec::new();
        for line in lines {
            let mut oldest: Option<(Candidate, GroupKey)> = None;
            for model in &request.models {
                let found = self.oldest(line.share.as_ref(), model, except, before).await?;
                oldest = oldest.into_iter().chain(found).min_by_key(|(job, _)| job.place);
            }
            heads.extend(oldest.map(|(job, group)| (line, job, group)));
        }
        heads.retain(|(line, job, _)| before.is_none_or(|before| line.place_of(job, scale) < before));
        let first = is_first(heads.iter().map(|(line, job, _)| (*line, job)));
        Ok(first.map(|at| heads.swap_remove(at).2))
    }

    async fn oldest(
        &mut self,
        line: Option<&Share>,
        model: &ModelId,
        except: Option<&SizeKey>,
        before: Option<QueuePlace>,
    ) -> Result<Option<(Candidate, GroupKey)>> {
        let mut query = self.waiting(line, model, before);
        for size in except.iter().filter(|size| size.model == *model) {
            query.push(" AND NOT (width = ").push_bind(size.width);
            query.push(" AND height = ").push_bind(size.height).push(")");
        }
        query.push(" ORDER BY rank_ms, id LIMIT 1");
        let row = query.build().fetch_optional(&mut *self.connection).await?;
        let read = |row: SqliteRow| {
            let (width, height) = (row.try_get("width")?, row.try_get("height")?);
            let group = GroupKey { model: model.clone(), width, height, steps: row.try_get("steps")? };
            Ok((candidate(&row)?, group))
        };
        row.map(read).transpose()
    }

    /// In the queue's own order, whoever's they are: an identity is of one owner.
    async fn identical(&mut self, identity: &str) -> Result<Vec<Turn>> {
        let mut query = QueryBuilder::new(COLUMNS);
        query.push(" WHERE status = 'queued' AND identity = ").push_bind(identity.to_owned());
        self.in_time(&mut query);
        query.push(" ORDER BY rank_ms, id LIMIT ").push_bind(self.most);
        let rows = query.build().fetch_all(&mut *self.connection).await?;
        let turn = |row| candidate(row).map(|job| Turn { job, place: job.place });
        rows.iter().map(turn).collect()
    }

    /// The oldest waiting jobs of a line and size, or of a step count too.
    async fn of_size(
        &mut self,
        line: Option<&Share>,
        size: &SizeKey,
        (steps, before): (Option<u32>, Option<QueuePlace>),
    ) -> Result<Vec<Candidate>> {
        let mut query = self.waiting(line, &size.model, before);
        query.push(" AND width = ").push_bind(size.width).push(" AND height = ").push_bind(size.height);
        if let Some(steps) = steps {
            query.push(" AND steps = ").push_bind(steps);
        }
        query.push(" ORDER BY rank_ms, id LIMIT ").push_bind(self.most);
        let rows = query.build().fetch_all(&mut *self.connection).await?;
        rows.iter().map(candidate).collect()
    }

    /// The order of [`Select::Fill`] in one line.
    async fn fill(
        &mut self,
        line: Option<&Share>,
        size: &SizeKey,
        steps: u32,
        before: Option<QueuePlace>,
    ) -> Result<Vec<Candidate>> {
        let by_age = self.of_size(line, size, (None, before)).await?;
        let alike = self.of_size(line, size, (Some(steps), before)).await?;
        let places = |jobs: &[Candidate]| jobs.iter().map(|job| job.place).collect::<Vec<_>>();
        let order = fill_order(&places(&by_age), &places(&alike));
        let jobs: HashMap<QueuePlace, Candidate> =
            by_age.into_iter().chain(alike).map(|job| (job.place, job)).collect();
        Ok(order.into_iter().map(|place| jobs[&place]).collect())
    }

    /// A query for what waits in a line for a model, is in time, and is not drawn for by another. `before` is a limit to places by acceptance, which are
    /// those of a queue without weights.
    fn waiting(&self, line: Option<&Share>, model: &ModelId, before: Option<QueuePlace>) -> QueryBuilder<Sqlite> {
        let mut query = QueryBuilder::new(COLUMNS);
        if line.is_some() {
            // SQLite would take an index that leads through everybody's jobs.
            query.push(" INDEXED BY jobs_waiting_by_owner");
        }
        query.push(" WHERE status = 'queued' AND model = ").push_bind(model.as_str().to_owned());
        self.in_time(&mut query);
        first_of_its_identity(&mut query);
        match (line, before) {
            (Some(share), _) => {
                query.push(" AND owner IS ").push_bind(share.owner.as_ref().map(|owner| owner.as_str().to_owned()));
            }
            (None, before) => stands_before(&mut query, before),
        }
        query
    }

    fn in_time(&self, query: &mut QueryBuilder<Sqlite>) {
        query.push(" AND (deadline_ms IS NULL OR deadline_ms > ").push_bind(self.now.unix_ms()).push(")");
    }
}

/// Of places by acceptance.
fn stands_before(query: &mut QueryBuilder<Sqlite>, before: Option<QueuePlace>) {
    if let Some(before) = before {
        query.push(" AND (rank_ms, id) < (").push_bind(before.rank_ms);
        query.push(", ").push_bind(id_bytes(before.id)).push(")");
    }
}

fn candidate(row: &SqliteRow) -> Result<Candidate> {
    let place = QueuePlace { rank_ms: row.try_get("rank_ms")?, id: job_id(row)? };
    let rows = u64::from(row.try_get::<u32, _>("row_count")?);
    let (width, height): (u32, u32) = (row.try_get("width")?, row.try_get("height")?);
    Ok(Candidate {
        place,
        moved_ms: place.rank_ms - row.try_get::<i64, _>("created_at_ms")?,
        rows,
        row_pixels: rows * u64::from(width) * u64::from(height),
        pixel_steps: row.try_get::<i64, _>("pixel_steps")?.unsigned_abs(),
    })
}

/// A line for each owner with waiting jobs, still empty; without weights one for everybody.
async fn waiting_lines(connection: &mut SqliteConnection, weights: &BTreeMap<OwnerId, u32>) -> Result<Vec<Line>> {
    if weights.is_empty() {
        return Ok(vec![Line { share: None, jobs: Default::default() }]);
    }
    // From one owner's entries in the index to the next one's, not through all of them.
    let rows = sqlx::query(
        "WITH RECURSIVE waiting (owner) AS ( \
           SELECT MIN(owner) FROM jobs INDEXED BY jobs_waiting_by_owner WHERE status = 'queued' AND owner > '' \
           UNION ALL SELECT (SELECT MIN(owner) FROM jobs INDEXED BY jobs_waiting_by_owner \
             WHERE status = 'queued' AND owner > waiting.owner) \
           FROM waiting WHERE waiting.owner IS NOT NULL) \
         SELECT waiting.owner, owners.tag FROM waiting LEFT JOIN owners ON owners.name = waiting.owner \
         WHERE waiting.owner IS NOT NULL \
         UNION ALL SELECT NULL, (SELECT tag FROM owners WHERE name = '') \
         WHERE EXISTS (SELECT 1 FROM jobs INDEXED BY jobs_waiting_by_owner WHERE status = 'queued' AND owner IS NULL)",
    )
    .fetch_all(connection)
    .await?;
    let read = |row: &SqliteRow| {
        let owner = row.try_get::<Option<String>, _>(0)?.map(OwnerId::new);
        let weight = weight(weights, owner.as_ref());
        let tag = row.try_get::<Option<f64>, _>(1)?.unwrap_or_default();
        Ok(Line { share: Some(Share { owner, weight, tag }), jobs: Default::default() })
    };
    rows.iter().map(read).collect()
}

fn account_name(owner: Option<&OwnerId>) -> &str {
    owner.map_or("", OwnerId::as_str)
}

async fn account(connection: &mut SqliteConnection, owner: Option<&OwnerId>) -> Result<Account> {
    let query = sqlx::query("SELECT tag, pixel_steps FROM owners WHERE name = ?").bind(account_name(owner));
    let Some(row) = query.fetch_optional(connection).await? else { return Ok(Account::default()) };
    Ok(Account { tag: row.try_get("tag")?, pixel_steps: row.try_get::<i64, _>("pixel_steps")?.unsigned_abs() })
}

async fn write(connection: &mut SqliteConnection, owner: Option<&OwnerId>, account: Account) -> Result<()> {
    sqlx::query(
        "INSERT INTO owners (name, tag, pixel_steps) VALUES (?, ?, ?) \
         ON CONFLICT (name) DO UPDATE SET tag = excluded.tag, pixel_steps = excluded.pixel_steps",
    )
    .bind(account_name(owner))
    .bind(account.tag)
    .bind(i64::try_from(account.pixel_steps).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(())
}

impl Shares<'_> {
    /// A job of this owner is about to come into the queue.
    pub(super) async fn join(&self, connection: &mut SqliteConnection, owner: Option<&OwnerId>) -> Result<()> {
        if self.weights.is_empty() {
            return Ok(());
        }
        let lines = waiting_lines(connection, self.weights).await?;
        let waiting = || lines.iter().filter_map(|line| line.share.as_ref());
        if waiting().any(|share| share.owner.as_ref() == owner) {
            return Ok(());
        }
        let all: Vec<f64> = sqlx::query_scalar("SELECT tag FROM owners").fetch_all(&mut *connection).await?;
        let known = account(connection, owner).await?;
        let tag = joining(known.tag, waiting().map(|share| share.tag), all.into_iter());
        write(connection, owner, Account { tag, ..known }).await
    }

    /// A worker took this job.
    pub(super) async fn charge(&self, connection: &mut SqliteConnection, job: &Job, pixel_steps: u64) -> Result<()> {
        self.change(connection, job, |account, weight| account.charge(pixel_steps, weight)).await
    }

    /// A worker handed this job back.
    pub(super) async fn refund(&self, connection: &mut SqliteConnection, job: &Job, pixel_steps: u64) -> Result<()> {
        self.change(connection, job, |account, weight| account.refund(pixel_steps, weight)).await
    }

    async fn change(
        &self,
        connection: &mut SqliteConnection,
        job: &Job,
        change: impl FnOnce(&mut Account, u32),
    ) -> Result<()> {
        if self.weights.is_empty() {
            return Ok(());
        }
        let owner = job.owner.as_ref();
        let mut known = account(connection, owner).await?;
        change(&mut known, weight(self.weights, owner));
        write(connection, owner, known).await
    }

    /// What stands before a waiting job; `None` when it does not wait.
    pub(super) async fn ahead(&self, connection: &mut SqliteConnection, id: JobId) -> Result<Option<Vec<WaitingWork>>> {
        let me = sqlx::query("SELECT owner, rank_ms, id FROM jobs WHERE id = ? AND status = 'queued'");
        let Some(me) = me.bind(id_bytes(id)).fetch_optional(&mut *connection).await? else { return Ok(None) };
        let place = QueuePlace { rank_ms: me.try_get("rank_ms")?, id };
        if self.weights.is_empty() {
            return waiting_work(connection, Some(place)).await.map(Some);
        }
        let own: Option<String> = me.try_get("owner")?;
        let mut lines: BTreeMap<Option<String>, Vec<(WaitingWork, u64)>> = BTreeMap::new();
        let mut query = QueryBuilder::new(format!(
            "SELECT owner, SUM(pixel_steps) AS pixel_steps, {SUMS} FROM jobs INDEXED BY jobs_waiting_by_owner WHERE status = 'queued'"
        ));
        query.push(" AND (owner IS NOT ").push_bind(own.clone()).push(" OR (rank_ms, id) < (");
        query.push_bind(place.rank_ms).push(", ").push_bind(id_bytes(id)).push("))");
        query.push(" GROUP BY owner, model, width, height");
        for row in &query.build().fetch_all(&mut *connection).await? {
            let (owner, pixel_steps) = (row.try_get("owner")?, row.try_get::<i64, _>("pixel_steps")?.unsigned_abs());
            lines.entry(owner).or_default().push((work(row)?, pixel_steps));
        }
        let mine = self.summed(connection, &own, lines.remove(&own).unwrap_or_default()).await?;
        let mut others = Vec::new();
        for (owner, sums) in lines {
            others.push(self.summed(connection, &owner, sums).await?);
        }
        Ok(Some(ahead(mine, others.into_iter())))
    }

    async fn summed(
        &self,
        connection: &mut SqliteConnection,
        owner: &Option<String>,
        sums: Vec<(WaitingWork, u64)>,
    ) -> Result<Waiting> {
        let owner = owner.as_ref().map(OwnerId::new);
        let tag = account(connection, owner.as_ref()).await?.tag;
        let mut waiting = Waiting::of(weight(self.weights, owner.as_ref()), tag);
        sums.into_iter().for_each(|(work, pixel_steps)| waiting.add(work, pixel_steps));
        Ok(waiting)
    }
}

const SUMS: &str =
    "model, width, height, COUNT(*) AS jobs, SUM(row_count) AS row_count, SUM(row_count * steps) AS row_steps";

/// What waits and stands before this place by acceptance, or all that waits.
pub(super) async fn waiting_work(
    connection: &mut SqliteConnection,
    before: Option<QueuePlace>,
) -> Result<Vec<WaitingWork>> {
    let mut query = QueryBuilder::new(format!("SELECT {SUMS} FROM jobs WHERE status = 'queued'"));
    stands_before(&mut query, before);
    query.push(" GROUP BY model, width, height");
    query.build().fetch_all(connection).await?.iter().map(work).collect()
}

/// What each owner has here and was given.
pub(super) async fn owners(connection: &mut SqliteConnection) -> Result<Vec<OwnerWork>> {
    let rows = sqlx::query(
        "SELECT name, pixel_steps, \
         (SELECT COUNT(*) FROM jobs WHERE status = 'queued' AND owner IS NULLIF(name, '')) AS queued, \
         (SELECT COUNT(*) FROM jobs WHERE status = 'running' AND owner IS NULLIF(name, '')) AS running \
         FROM owners ORDER BY name",
    )
    .fetch_all(connection)
    .await?;
    let read = |row: &SqliteRow| {
        let count = |column: &str| Ok::<u64, super::Error>(row.try_get::<i64, _>(column)?.unsigned_abs());
        let name: String = row.try_get("name")?;
        Ok(OwnerWork {
            owner: (!name.is_empty()).then(|| OwnerId::new(name)),
            queued: count("queued")?,
            running: count("running")?,
            pixel_steps: count("pixel_steps")?,
        })
    };
    rows.iter().map(read).collect()
}
