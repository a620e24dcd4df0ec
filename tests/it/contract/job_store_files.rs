//! What the SQLite store promises of its file, beyond the contract.

use std::collections::HashSet;
use std::sync::Arc;

use darkroom::dispatch::jobs::{Error, JobFilter, JobStore, SqliteStore};
use darkroom::domain::JobStatus;
use sqlx::Connection;

use super::job_store::claim_all;
use super::job_store_bed::{OPTIONS, claim, clock, insert, succeeded};
use super::request;

#[tokio::test]
async fn a_reopened_file_holds_everything() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let path = folder.path().join("jobs.db");
    let store = SqliteStore::open(&path, OPTIONS, clock.clone()).await.unwrap();
    for _ in 0..3 {
        insert(&store, request(|_| ())).await;
    }
    let claimed = store.claim(claim(2)).await.unwrap();
    store.finish(&claimed[0].lease, succeeded()).await.unwrap();
    let everything = JobFilter { limit: 10, ..JobFilter::default() };
    let before = store.list(everything.clone()).await.unwrap();
    store.close().await;
    assert!(store.ping().await.is_err());

    let store = SqliteStore::open(&path, OPTIONS, clock).await.unwrap();
    assert_eq!(store.list(everything).await.unwrap(), before);
    // The lease taken before still holds.
    let ended = store.finish(&claimed[1].lease, succeeded()).await.unwrap();
    assert_eq!(ended.status, JobStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_stores_on_one_file_take_each_job_once() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let path = folder.path().join("jobs.db");
    // Opened at once: one makes the tables, the other finds them.
    let (one, two) = tokio::join!(
        SqliteStore::open(&path, OPTIONS, clock.clone()),
        SqliteStore::open(&path, OPTIONS, clock.clone())
    );
    let stores: [Arc<dyn JobStore>; 2] = [Arc::new(one.unwrap()), Arc::new(two.unwrap())];
    let mut expected = HashSet::new();
    for index in 0..80 {
        expected.insert(insert(&*stores[index % 2], request(|_| ())).await.id);
    }
    let workers = (0..6).map(|index| tokio::spawn(claim_all(stores[index % 2].clone())));
    let taken: Vec<_> = futures::future::join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(taken.len(), expected.len());
    assert_eq!(taken.into_iter().collect::<HashSet<_>>(), expected);
}

/// SQLite refuses one of two in a few of a thousand.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_file_is_opened_by_many_at_once() {
    for _ in 0..25 {
        let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
        let path = folder.path().join("jobs.db");
        // Each connection has a thread of its own.
        let opening = (0..6).map(|_| SqliteStore::open(&path, OPTIONS, clock.clone()));
        for opened in futures::future::join_all(opening).await {
            opened.unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_from_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    SqliteStore::open(&path, OPTIONS, clock()).await.unwrap().close().await;
    let address = format!("sqlite://{}", path.display());
    let mut connection = sqlx::SqliteConnection::connect(&address).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'newer', TRUE, x'00', 0)";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    match SqliteStore::open(&path, OPTIONS, clock()).await {
        Err(Error::Storage(message)) => assert!(message.contains("newer darkroom") && message.contains("9999")),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened a file that it does not understand"),
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent").join("jobs.db");
    let Err(Error::Storage(message)) = SqliteStore::open(&path, OPTIONS, clock()).await else { panic!("opened") };
    assert!(message.contains("jobs.db"));
}
