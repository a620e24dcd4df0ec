//! The clock of turns and the owners' accounts ([`super::shares`]), in SQL.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::record::{Record, pixel_steps};
use super::shares::{Account, Pace, Settled, Turn, weight};
use super::{OwnerWork, Result};
use crate::domain::{JobStatus, OwnerId, Timestamp};

/// Gives a new record its owner's turn.
pub(super) async fn give_turn(
    connection: &mut SqliteConnection,
    record: &mut Record,
    weights: &BTreeMap<OwnerId, u32>,
    is_anyone_waiting: bool,
    (now, speed): (Timestamp, Option<f64>),
) -> Result<()> {
    let (owner, request) = (record.job.owner.as_ref(), &record.job.request);
    let pace = Pace::at(pace(connection).await?, is_anyone_waiting, now, speed);
    let text = "INSERT INTO shares (id, now_ms, ms_per_pixel_step) VALUES (1, ?, ?) ON CONFLICT (id) \
                DO UPDATE SET now_ms = excluded.now_ms, ms_per_pixel_step = excluded.ms_per_pixel_step";
    sqlx::query(text).bind(pace.now).bind(pace.ms_per_pixel_step).execute(&mut *connection).await?;
    let weight = weight(weights, owner);
    let mut account = account(connection, owner).await?;
    let turn = account.turn(&pace, request.priority(), pixel_steps(request), weight);
    keep(connection, owner, account).await?;
    record.take(turn, weight);
    Ok(())
}

/// A worker took jobs of these turns.
pub(super) async fn took(connection: &mut SqliteConnection, turns: impl Iterator<Item = Turn>) -> Result<()> {
    if let Some(latest) = turns.map(|turn| turn.at).max_by(f64::total_cmp) {
        let query = sqlx::query("UPDATE shares SET now_ms = MAX(now_ms, ?)").bind(latest);
        query.execute(connection).await?;
    }
    Ok(())
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

/// Without weights nobody has turns; should there be weights again, all begin anew.
pub(super) async fn forget(connection: &mut SqliteConnection) -> Result<()> {
    for text in ["DELETE FROM shares", "DELETE FROM owners"] {
        sqlx::query(text).execute(&mut *connection).await?;
    }
    Ok(())
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
