//! Which waiting jobs a claim takes from SQLite, and what stands before one.

use std::collections::HashMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::record::{Room, fill_order};
use super::sqlite_identical::first_of_its_identity;
use super::sqlite_rows::{id_bytes, job_id, waiting_work};
use super::{Ahead, ClaimRequest, Result, Select, WaitingWork};
use crate::domain::{GroupKey, JobId, QueuePlace, SizeKey, Timestamp};

/// The group of the oldest waiting job of these models: one index look-up a model, as long as no size is excepted. Else
/// the jobs of this size that stand before the limit are passed over, which are few: they would have been taken first.
async fn oldest_group(
    connection: &mut SqliteConnection,
    request: &ClaimRequest,
    now: Timestamp,
) -> Result<Option<GroupKey>> {
    let (except, before) = match &request.select {
        Select::Other { except, before } => (Some(except), *before),
        _ => (None, None),
    };
    let mut oldest: Option<(QueuePlace, GroupKey)> = None;
    for model in &request.models {
        let mut query = QueryBuilder::new("SELECT id, rank_ms, width, height, steps FROM jobs WHERE status = 'queued'");
        query.push(" AND model = ").push_bind(model.as_str());
        in_time(&mut query, now);
        first_of_its_identity(&mut query);
        stands_before(&mut query, before);
        for size in except.iter().filter(|size| size.model == *model) {
            query.push(" AND NOT (width = ").push_bind(size.width);
            query.push(" AND height = ").push_bind(size.height).push(")");
        }
        query.push(" ORDER BY rank_ms, id LIMIT 1");
        let row = query.build().fetch_optional(&mut *connection).await?;
        let Some(row) = row else { continue };
        let place = QueuePlace { rank_ms: row.try_get("rank_ms")?, id: job_id(&row)? };
        if oldest.as_ref().is_none_or(|(other, _)| place < *other) {
            let (width, height) = (row.try_get("width")?, row.try_get("height")?);
            oldest = Some((place, GroupKey { model: model.clone(), width, height, steps: row.try_get("steps")? }));
        }
    }
    Ok(oldest.map(|(_, group)| group))
}

fn in_time(query: &mut QueryBuilder<Sqlite>, now: Timestamp) {
    query.push(" AND (deadline_ms IS NULL OR deadline_ms > ").push_bind(now.unix_ms()).push(")");
}

fn stands_before(query: &mut QueryBuilder<Sqlite>, before: Option<QueuePlace>) {
    if let Some(before) = before {
        query.push(" AND (rank_ms, id) < (").push_bind(before.rank_ms);
        query.push(", ").push_bind(id_bytes(before.id)).push(")");
    }
}

/// Whether a claim would find anything: for a look without the write lock.
pub(super) async fn is_anything(
    connection: &mut SqliteConnection,
    request: &ClaimRequest,
    now: Timestamp,
) -> Result<bool> {
    match &request.select {
        Select::Group | Select::Other { .. } => Ok(oldest_group(connection, request, now).await?.is_some()),
        Select::Identical(identity) => Ok(!identical(connection, identity, 1, now).await?.is_empty()),
        Select::Fill { size, before, .. } => Ok(!waiting(connection, size, (None, *before), 1, now).await?.is_empty()),
    }
}

/// The selected jobs that fit, in order.
pub(super) async fn fitting(
    connection: &mut SqliteConnection,
    request: &ClaimRequest,
    now: Timestamp,
) -> Result<Vec<JobId>> {
    // Each job has a row at least.
    let most = request.max_rows.max(1);
    let selected = match &request.select {
        Select::Group | Select::Other { .. } => match oldest_group(connection, request, now).await? {
            Some(group) => waiting(connection, &group.size(), (Some(group.steps), None), most, now).await?,
            None => Vec::new(),
        },
        Select::Identical(identity) => identical(connection, identity, most, now).await?,
        Select::Fill { size, .. } if !request.models.contains(&size.model) => Vec::new(),
        Select::Fill { size, steps, before } => {
            let by_age = waiting(connection, size, (None, *before), most, now).await?;
            let alike = waiting(connection, size, (Some(*steps), *before), most, now).await?;
            let places = |jobs: &[(QueuePlace, RowCount)]| jobs.iter().map(|(place, _)| *place).collect::<Vec<_>>();
            let rows: HashMap<QueuePlace, RowCount> = by_age.iter().chain(&alike).copied().collect();
            let order = fill_order(&places(&by_age), &places(&alike));
            order.into_iter().map(|place| (place, rows[&place])).collect()
        }
    };
    let mut room = Room::of(request);
    let fits = |(place, RowCount { rows, row_pixels }): (QueuePlace, RowCount)| {
        room.take(rows, row_pixels).then_some(place.id)
    };
    Ok(selected.into_iter().map_while(fits).collect())
}

/// What a job adds to a forward.
#[derive(Clone, Copy)]
struct RowCount {
    rows: u64,
    row_pixels: u64,
}

/// The oldest waiting jobs of a size, or of a size and step count, and what each adds to a forward.
async fn waiting(
    connection: &mut SqliteConnection,
    size: &SizeKey,
    (steps, before): (Option<u32>, Option<QueuePlace>),
    most: u32,
    now: Timestamp,
) -> Result<Vec<(QueuePlace, RowCount)>> {
    let mut query = QueryBuilder::new(ROW_COUNTS);
    query.push(" WHERE status = 'queued' AND model = ").push_bind(size.model.as_str());
    query.push(" AND width = ").push_bind(size.width).push(" AND height = ").push_bind(size.height);
    if let Some(steps) = steps {
        query.push(" AND steps = ").push_bind(steps);
    }
    in_time(&mut query, now);
    first_of_its_identity(&mut query);
    stands_before(&mut query, before);
    query.push(" ORDER BY rank_ms, id LIMIT ").push_bind(most);
    query.build().fetch_all(connection).await?.iter().map(row_count).collect()
}

/// Jobs of an identity that wait, the oldest first.
async fn identical(
    connection: &mut SqliteConnection,
    identity: &str,
    most: u32,
    now: Timestamp,
) -> Result<Vec<(QueuePlace, RowCount)>> {
    let mut query = QueryBuilder::new(ROW_COUNTS);
    query.push(" WHERE status = 'queued' AND identity = ").push_bind(identity);
    in_time(&mut query, now);
    query.push(" ORDER BY rank_ms, id LIMIT ").push_bind(most);
    query.build().fetch_all(connection).await?.iter().map(row_count).collect()
}

const ROW_COUNTS: &str = "SELECT id, rank_ms, row_count, width, height FROM jobs";

fn row_count(row: &SqliteRow) -> Result<(QueuePlace, RowCount)> {
    let rows = u64::from(row.try_get::<u32, _>("row_count")?);
    let (width, height): (u32, u32) = (row.try_get("width")?, row.try_get("height")?);
    let row_pixels = rows * u64::from(width) * u64::from(height);
    let place = QueuePlace { rank_ms: row.try_get("rank_ms")?, id: job_id(row)? };
    Ok((place, RowCount { rows, row_pixels }))
}

/// What stands before a job; `None` when it does not wait.
pub(super) async fn ahead(connection: &mut SqliteConnection, id: JobId) -> Result<Option<Ahead>> {
    let me = sqlx::query("SELECT rank_ms FROM jobs WHERE id = ? AND status = 'queued'").bind(id_bytes(id));
    let Some(me) = me.fetch_optional(&mut *connection).await? else { return Ok(None) };
    let place = QueuePlace { rank_ms: me.try_get("rank_ms")?, id };
    Ok(Some(Ahead { place, work: work(connection, Some(place)).await? }))
}

/// What waits and stands before this place, or all that waits.
pub(super) async fn work(connection: &mut SqliteConnection, before: Option<QueuePlace>) -> Result<Vec<WaitingWork>> {
    let mut query = QueryBuilder::new(
        "SELECT model, width, height, COUNT(*) AS jobs, SUM(row_count) AS row_count, \
         SUM(row_count * steps) AS row_steps FROM jobs WHERE status = 'queued'",
    );
    stands_before(&mut query, before);
    query.push(" GROUP BY model, width, height");
    query.build().fetch_all(connection).await?.iter().map(waiting_work).collect()
}
