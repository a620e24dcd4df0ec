//! The clock of turns and the owners' accounts ([`super::shares`]), in SQL.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::record::{Record, pixel_steps};
use super::shares::{Account, Pace, Settled, Turn, Weight, own_weight};
use super::sqlite_rows::{id_bytes, record};
use super::{OwnerWork, Result};
use crate::domain::{JobStatus, ModelId, OwnerId, Timestamp};

/// Gives a new record its owner's turn.
pub(super) async fn give_turn(
    connection: &mut SqliteConnection,
    record: &mut Record,
    weights: &BTreeMap<OwnerId, u32>,
    is_anyone_waiting: bool,
    (now, speed): (Timestamp, Option<f64>),
) -> Result<()> {
    let (owner, request) = (record.job.owner.as_ref(), &record.job.request);
    let weight = Weight::of(weights, owner);
    let pace = match pace(connection).await? {
        Some(pace) if is_anyone_waiting => pace,
        known => {
            // No other of an owner's lines is further on.
            let latest: Option<f64> =
                sqlx::query_scalar("SELECT MAX(next_bulk_ms) FROM owners").fetch_one(&mut *connection).await?;
            Pace::anew(known, latest.unwrap_or(0.0), now, speed, weight)
        }
    };
    let text = "INSERT INTO shares (id, now_ms, ms_per_pixel_step) VALUES (1, ?, ?) ON CONFLICT (id) \
                DO UPDATE SET now_ms = excluded.now_ms, ms_per_pixel_step = excluded.ms_per_pixel_step";
    sqlx::query(text).bind(pace.now).bind(pace.ms_per_pixel_step).execute(&mut *connection).await?;
    let first = oldest_rank(connection, std::slice::from_ref(request.model())).await?;
    let mut account = account(connection, owner).await?;
    let turn = account.turn(&pace, first, (request.priority(), pixel_steps(request)), weight);
    keep(connection, owner, account).await?;
    record.take(turn, weight);
    Ok(())
}

/// Workers took jobs to draw them, this turn's first, with this rank; others of these models are left.
pub(super) async fn took(
    connection: &mut SqliteConnection,
    (first, rank_ms): (Turn, i64),
    models: &[ModelId],
) -> Result<()> {
    let Some(mut pace) = pace(connection).await? else { return Ok(()) };
    pace.took(first, rank_ms, oldest_rank(connection, models).await?);
    sqlx::query("UPDATE shares SET now_ms = ?").bind(pace.now).execute(connection).await?;
    Ok(())
}

/// Of the jobs that wait for these models.
async fn oldest_rank(connection: &mut SqliteConnection, models: &[ModelId]) -> Result<Option<i64>> {
    let mut oldest = None;
    for model in models {
        let text = "SELECT rank_ms FROM jobs WHERE status = 'queued' AND model = ? ORDER BY rank_ms, id LIMIT 1";
        let rank: Option<i64> = sqlx::query_scalar(text).bind(model.as_str()).fetch_optional(&mut *connection).await?;
        oldest = oldest.into_iter().chain(rank).min();
    }
    Ok(oldest)
}

/// What a record's new state means for its turn.
pub(super) async fn settle(connection: &mut SqliteConnection, before: JobStatus, record: &Record) -> Result<()> {
    let (owner, request) = (record.job.owner.as_ref(), &record.job.request);
    let settled = Settled::of(before, &record.job);
    let Some(turn) = record.turn.filter(|_| settled != Settled::Not) else { return Ok(()) };
    let Some(pace) = pace(connection).await? else { return Ok(()) };
    let mut account = account(connection, owner).await?;
    match settled {
        Settled::GivenBack => account.give_back(turn, request.priority(), &pace),
        Settled::Drawn => account.pixel_steps += pixel_steps(request),
        Settled::Not => {}
    }
    keep(connection, owner, account).await
}

/// Without weights nobody has turns: all stand by acceptance, and should there be weights again, all begin anew.
pub(super) async fn forget(connection: &mut SqliteConnection) -> Result<()> {
    let rows = sqlx::query("SELECT * FROM jobs WHERE turn_ms IS NOT NULL AND status IN ('queued', 'running')");
    for row in &rows.fetch_all(&mut *connection).await? {
        let job = record(row)?.job;
        let text = "UPDATE jobs SET rank_ms = ?, turn_ms = NULL, turn_cost_ms = NULL WHERE id = ?";
        sqlx::query(text).bind(job.place().rank_ms).bind(id_bytes(job.id)).execute(&mut *connection).await?;
    }
    for text in ["DELETE FROM shares", "DELETE FROM owners"] {
        sqlx::query(text).execute(&mut *connection).await?;
    }
    Ok(())
}

/// What each owner has here and was given.
pub(super) async fn owners(
    connection: &mut SqliteConnection,
    weights: &BTreeMap<OwnerId, u32>,
) -> Result<Vec<OwnerWork>> {
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
        let owner = (!name.is_empty()).then(|| OwnerId::new(name));
        Ok(OwnerWork {
            weight: own_weight(weights, owner.as_ref()),
            owner,
            queued: count("queued")?,
            running: count("running")?,
            pixel_steps: count("pixel_steps")?,
        })
    };
    rows.iter().map(read).collect()
}

async fn pace(connection: &mut SqliteConnection) -> Result<Option<Pace>> {
    let row = sqlx::query("SELECT now_ms, ms_per_pixel_step FROM shares").fetch_optional(connection).await?;
    let read =
        |row: SqliteRow| Ok(Pace { now: row.try_get("now_ms")?, ms_per_pixel_step: row.try_get("ms_per_pixel_step")? });
    row.map(read).transpose()
}

fn account_name(owner: Option<&OwnerId>) -> &str {
    owner.map_or("", OwnerId::as_str)
}

async fn account(connection: &mut SqliteConnection, owner: Option<&OwnerId>) -> Result<Account> {
    let text = "SELECT next_interactive_ms, next_normal_ms, next_bulk_ms, pixel_steps FROM owners WHERE name = ?";
    let query = sqlx::query(text).bind(account_name(owner));
    let Some(row) = query.fetch_optional(connection).await? else { return Ok(Account::default()) };
    let next = [row.try_get("next_interactive_ms")?, row.try_get("next_normal_ms")?, row.try_get("next_bulk_ms")?];
    Ok(Account { next, pixel_steps: row.try_get::<i64, _>("pixel_steps")?.unsigned_abs() })
}

async fn keep(connection: &mut SqliteConnection, owner: Option<&OwnerId>, account: Account) -> Result<()> {
    let Account { next: [interactive, normal, bulk], pixel_steps } = account;
    sqlx::query(
        "INSERT OR REPLACE INTO owners (name, next_interactive_ms, next_normal_ms, next_bulk_ms, pixel_steps) \
         VALUES (?, ?, ?, ?, ?)",
    )
    .bind(account_name(owner))
    .bind(interactive)
    .bind(normal)
    .bind(bulk)
    .bind(i64::try_from(pixel_steps).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(())
}
