//! What every `JobStore` promises.

use std::collections::HashSet;
use std::sync::Arc;

use darkroom::dispatch::jobs::{
    Cancelled, ClaimedJob, Error, Idempotency, Inserted, JobFilter, JobStore, LeaseState, NewJob, Outcome, QueueStats,
    Rescued,
};
use darkroom::domain::{ErrorCode, Job, JobError, JobId, JobStatus, JobTimings, OwnerId, Timestamp};

use super::job_store_bed::{Bed, LEASE_MS, OPTIONS, claim, new_job, plain, succeeded, with};

fn ids(jobs: &[Job]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

async fn a_job_is_read_back_as_it_was_accepted(bed: Bed) {
    let request = with(|draft| {
        draft.prompt = Some("größer 🎈 'quoted' \"twice\"".to_owned());
        draft.seed = Some(i128::from(i64::MAX));
        draft.guidance_scale = Some(7.123_456_789);
        draft.metadata = serde_json::json!({"a": [1, null]}).as_object().cloned();
    });
    let job = bed.insert(request.clone()).await;
    assert_eq!((job.status, &job.request, job.attempts), (JobStatus::Queued, &request, 0));
    assert_eq!(job.created_at, Timestamp::from_unix_ms(1_700_000_000_000));
    assert_eq!(bed.store.get(job.id).await.unwrap(), Some(job));
    assert_eq!(bed.store.get(JobId::generate()).await.unwrap(), None);
    bed.store.ping().await.unwrap();
}

async fn a_whole_life_is_recorded(bed: Bed) {
    let job = bed.insert(plain()).await;
    bed.clock.advance_ms(250);
    let claimed = bed.one().await;
    assert_eq!((claimed.job.id, claimed.job.status, claimed.job.attempts), (job.id, JobStatus::Running, 1));
    assert_eq!(claimed.job.started_at, Some(job.created_at.plus_ms(250)));
    assert_eq!(claimed.lease.expires_at, job.created_at.plus_ms(250 + LEASE_MS as i64));
    bed.clock.advance_ms(1_000);
    let ended = bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
    assert_eq!((ended.status, ended.images.len(), ended.warnings.len()), (JobStatus::Succeeded, 1, 1));
    let timings = JobTimings { queued_ms: 250, total_ms: 1_250, denoise_ms: 5, decode_ms: 2, ..JobTimings::default() };
    assert_eq!(ended.timings, Some(timings));
    assert_eq!(ended.ended_at, Some(job.created_at.plus_ms(1_250)));
    assert_eq!(ended.expires_at, Some(job.created_at.plus_ms(61_250)));
    assert_eq!(bed.store.get(job.id).await.unwrap(), Some(ended));
}

async fn a_failure_keeps_its_reason(bed: Bed) {
    bed.insert(plain()).await;
    let claimed = bed.one().await;
    let error = JobError { code: ErrorCode::OutOfMemory, message: "no memory".to_owned() };
    let ended = bed.store.finish(&claimed.lease, Outcome::Failed(error.clone())).await.unwrap();
    assert_eq!((ended.status, ended.error.as_ref()), (JobStatus::Failed, Some(&error)));
    assert!(ended.timings.is_some() && ended.images.is_empty());
    assert_eq!(bed.store.get(ended.id).await.unwrap(), Some(ended));
}

async fn a_finished_lease_ends_nothing_twice(bed: Bed) {
    let job = bed.insert(plain()).await;
    let claimed = bed.one().await;
    let ended = bed.store.finish(&claimed.lease, Outcome::Cancelled).await.unwrap();
    assert_eq!(ended.status, JobStatus::Cancelled);
    let again = bed.store.finish(&claimed.lease, succeeded()).await;
    assert!(matches!(again, Err(Error::LeaseLost(id)) if id == job.id));
    assert!(matches!(bed.store.release(&claimed.lease).await, Err(Error::LeaseLost(_))));
    assert_eq!(bed.store.heartbeat(&[claimed.lease], 1).await.unwrap(), [LeaseState::Lost]);
    assert_eq!(bed.store.get(job.id).await.unwrap(), Some(ended));
}

async fn a_retry_with_its_key_finds_its_job(bed: Bed) {
    let keyed = |fingerprint: &str| NewJob {
        idempotency: Some(Idempotency { key: "key-1".to_owned(), fingerprint: fingerprint.to_owned() }),
        ..new_job(plain())
    };
    let Inserted::New(job) = bed.store.insert(keyed("a")).await.unwrap() else { panic!("is new") };
    assert_eq!(bed.store.insert(keyed("a")).await.unwrap(), Inserted::Existing(job.clone()));
    assert!(matches!(bed.store.insert(keyed("b")).await, Err(Error::IdempotencyMismatch)));
    assert_eq!(bed.store.stats().await.unwrap().queued, 1);
    // Still after its end, and until it is removed.
    bed.store.cancel(job.id).await.unwrap();
    assert!(matches!(bed.store.insert(keyed("a")).await.unwrap(), Inserted::Existing(found) if found.id == job.id));
    bed.store.remove(job.id).await.unwrap();
    assert!(matches!(bed.store.insert(keyed("b")).await.unwrap(), Inserted::New(_)));
}

async fn a_job_is_its_owners(bed: Bed) {
    let idempotency = || Some(Idempotency { key: "key-1".to_owned(), fingerprint: "a".to_owned() });
    let of =
        |owner: Option<&str>| NewJob { owner: owner.map(OwnerId::new), idempotency: idempotency(), ..new_job(plain()) };
    let mut jobs = Vec::new();
    for owner in [None, Some("alice"), Some("bob")] {
        let Inserted::New(job) = bed.store.insert(of(owner)).await.unwrap() else { panic!("is new") };
        assert_eq!(job.owner, owner.map(OwnerId::new));
        assert_eq!(bed.store.insert(of(owner)).await.unwrap(), Inserted::Existing(job.clone()));
        jobs.push(job);
    }
    bed.store.cancel(jobs[2].id).await.unwrap();
    let list = async |owner: Option<&str>, status| {
        let filter = JobFilter { owner: owner.map(OwnerId::new), status, before: None, limit: 10 };
        ids(&bed.store.list(filter).await.unwrap())
    };
    assert_eq!(list(Some("alice"), None).await, [jobs[1].id]);
    assert_eq!(list(Some("bob"), Some(JobStatus::Queued)).await, []);
    assert_eq!(list(Some("bob"), Some(JobStatus::Cancelled)).await, [jobs[2].id]);
    assert_eq!(list(Some("nobody"), None).await, []);
    assert_eq!(list(None, None).await.len(), 3);
}

async fn retries_at_once_make_one_job(bed: Bed) {
    let tries = (0..16).map(|_| {
        let store = bed.store.clone();
        let idempotency = Some(Idempotency { key: "key".to_owned(), fingerprint: "same".to_owned() });
        let new = NewJob { idempotency, ..new_job(plain()) };
        tokio::spawn(async move { store.insert(new).await.unwrap() })
    });
    let results = futures::future::join_all(tries).await;
    let new = results.iter().filter(|result| matches!(result, Ok(Inserted::New(_)))).count();
    assert_eq!((new, bed.store.stats().await.unwrap().queued), (1, 1));
}

async fn an_id_is_taken_once(bed: Bed) {
    let job = bed.insert(plain()).await;
    let again = NewJob { id: job.id, ..new_job(plain()) };
    assert!(matches!(bed.store.insert(again).await, Err(Error::Storage(_))));
    assert_eq!(bed.store.get(job.id).await.unwrap(), Some(job));
}

async fn a_full_queue_refuses_until_a_job_is_taken(bed: Bed) {
    for _ in 0..OPTIONS.max_queued {
        bed.insert(plain()).await;
    }
    let new = || new_job(plain());
    assert!(matches!(bed.store.insert(new()).await, Err(Error::QueueFull { limit: 1_000 })));
    bed.one().await;
    assert!(matches!(bed.store.insert(new()).await, Ok(Inserted::New(_))));
}

async fn a_heartbeat_holds_a_lease(bed: Bed) {
    bed.insert(plain()).await;
    let claimed = bed.one().await;
    for _ in 0..3 {
        bed.clock.advance_ms(LEASE_MS as i64 - 1);
        assert!(bed.store.rescue_expired().await.unwrap().is_empty());
        let leases = [claimed.lease.clone()];
        assert_eq!(bed.store.heartbeat(&leases, LEASE_MS).await.unwrap(), [LeaseState::Held]);
    }
    bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
}

async fn heartbeats_answer_in_order(bed: Bed) {
    for _ in 0..3 {
        bed.insert(plain()).await;
    }
    let claimed = bed.store.claim(claim(3)).await.unwrap();
    let leases: Vec<_> = claimed.into_iter().map(|claimed| claimed.lease).collect();
    let tokens: HashSet<u64> = leases.iter().map(|lease| lease.token).collect();
    assert_eq!(tokens.len(), 3);
    assert!(matches!(bed.store.cancel(leases[1].job_id).await.unwrap(), Some(Cancelled::Requested(_))));
    bed.store.finish(&leases[2], succeeded()).await.unwrap();
    let states = bed.store.heartbeat(&leases, LEASE_MS).await.unwrap();
    assert_eq!(states, [LeaseState::Held, LeaseState::CancelRequested, LeaseState::Lost]);
    assert!(bed.store.heartbeat(&[], LEASE_MS).await.unwrap().is_empty());
}

async fn an_expired_lease_is_rescued_and_its_worker_refused(bed: Bed) {
    let job = bed.insert(plain()).await;
    let lost = bed.one().await;
    bed.clock.advance_ms(LEASE_MS as i64);
    let rescued = bed.store.rescue_expired().await.unwrap();
    assert!(matches!(&rescued[..], [Rescued::Requeued(back)] if back.id == job.id && back.attempts == 1));
    assert!(bed.store.rescue_expired().await.unwrap().is_empty());
    assert_eq!(bed.position(job.id).await, Some(0));
    let taken = bed.one().await;
    assert_eq!(taken.job.attempts, 2);
    assert_ne!(taken.lease.token, lost.lease.token);
    assert!(matches!(bed.store.finish(&lost.lease, succeeded()).await, Err(Error::LeaseLost(_))));
    assert_eq!(bed.store.heartbeat(&[lost.lease], LEASE_MS).await.unwrap(), [LeaseState::Lost]);
    assert_eq!(bed.store.finish(&taken.lease, succeeded()).await.unwrap().status, JobStatus::Succeeded);
}

async fn a_late_worker_may_finish_what_nobody_took(bed: Bed) {
    bed.insert(plain()).await;
    let claimed = bed.one().await;
    bed.clock.advance_ms(10 * LEASE_MS as i64);
    assert_eq!(bed.store.finish(&claimed.lease, succeeded()).await.unwrap().status, JobStatus::Succeeded);
    assert!(bed.store.rescue_expired().await.unwrap().is_empty());
}

async fn a_job_that_keeps_losing_its_workers_fails(bed: Bed) {
    let job = bed.insert(plain()).await;
    for attempt in 1..=OPTIONS.max_attempts {
        assert_eq!(bed.one().await.job.attempts, attempt);
        bed.clock.advance_ms(LEASE_MS as i64);
        let rescued = bed.store.rescue_expired().await.unwrap();
        match &rescued[..] {
            [Rescued::Requeued(_)] => assert!(attempt < OPTIONS.max_attempts),
            [Rescued::Failed(failed)] => {
                assert_eq!((attempt, failed.status), (OPTIONS.max_attempts, JobStatus::Failed));
                assert_eq!(failed.error.as_ref().unwrap().code, ErrorCode::WorkerLost);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bed.store.get(job.id).await.unwrap().unwrap().status, JobStatus::Failed);
    assert!(bed.store.claim(claim(1)).await.unwrap().is_empty());
}

async fn an_attempt_given_up_counts_and_the_last_one_fails_with_its_reason(bed: Bed) {
    let job = bed.insert(plain()).await;
    for attempt in 1..=OPTIONS.max_attempts {
        let claimed = bed.one().await;
        assert_eq!(claimed.job.attempts, attempt);
        match bed.store.lose(&claimed.lease, "the engine hung").await.unwrap() {
            Rescued::Requeued(back) => assert!(attempt < OPTIONS.max_attempts && back.status == JobStatus::Queued),
            Rescued::Failed(failed) => {
                let error = failed.error.unwrap();
                assert_eq!((attempt, error.code), (OPTIONS.max_attempts, ErrorCode::WorkerLost));
                assert!(error.message.ends_with("the last one: the engine hung"), "{}", error.message);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(bed.store.lose(&claimed.lease, "again").await, Err(Error::LeaseLost(_))));
    }
    assert_eq!(bed.store.get(job.id).await.unwrap().unwrap().status, JobStatus::Failed);
    bed.insert(plain()).await;
    let claimed = bed.one().await;
    bed.store.cancel(claimed.job.id).await.unwrap();
    let lost = bed.store.lose(&claimed.lease, "the engine hung").await.unwrap();
    assert!(matches!(lost, Rescued::Cancelled(job) if job.status == JobStatus::Cancelled));
}

async fn a_released_job_waits_again_as_if_untouched(bed: Bed) {
    let job = bed.insert(plain()).await;
    bed.clock.advance_ms(5);
    bed.insert(plain()).await;
    let claimed = bed.one().await;
    assert_eq!(bed.store.release(&claimed.lease).await.unwrap(), job);
    assert_eq!(bed.store.get(job.id).await.unwrap(), Some(job.clone()));
    let again = bed.one().await;
    assert_eq!((again.job.id, again.job.attempts), (job.id, 1));
    assert!(matches!(bed.store.finish(&claimed.lease, succeeded()).await, Err(Error::LeaseLost(_))));
}

async fn a_cancel_does_what_the_state_allows(bed: Bed) {
    assert!(bed.store.cancel(JobId::generate()).await.unwrap().is_none());
    let waiting = bed.insert(plain()).await;
    let Some(Cancelled::Now(job)) = bed.store.cancel(waiting.id).await.unwrap() else { panic!("waited") };
    assert_eq!((job.id, job.status, job.ended_at), (waiting.id, JobStatus::Cancelled, Some(waiting.created_at)));
    assert_eq!(bed.store.cancel(waiting.id).await.unwrap(), Some(Cancelled::AlreadyEnded(job)));
    assert!(bed.store.claim(claim(1)).await.unwrap().is_empty());

    let running = bed.insert(plain()).await;
    let claimed = bed.one().await;
    let Some(Cancelled::Requested(job)) = bed.store.cancel(running.id).await.unwrap() else { panic!("ran") };
    assert_eq!((job.status, job.cancel_requested), (JobStatus::Running, true));
    // Pictures that were done before the worker heard of it count.
    assert_eq!(bed.store.finish(&claimed.lease, succeeded()).await.unwrap().status, JobStatus::Succeeded);
}

async fn a_cancelled_job_never_waits_again(bed: Bed) {
    for _ in 0..2 {
        bed.insert(plain()).await;
    }
    let claimed = bed.store.claim(claim(2)).await.unwrap();
    for taken in &claimed {
        bed.store.cancel(taken.job.id).await.unwrap();
    }
    assert_eq!(bed.store.release(&claimed[0].lease).await.unwrap().status, JobStatus::Cancelled);
    bed.clock.advance_ms(LEASE_MS as i64);
    let rescued = bed.store.rescue_expired().await.unwrap();
    assert!(matches!(&rescued[..], [Rescued::Cancelled(job)] if job.id == claimed[1].job.id));
    assert_eq!(bed.store.stats().await.unwrap(), QueueStats::default());
}

async fn lists_go_newest_first_from_a_cursor(bed: Bed) {
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.insert(0, bed.insert(plain()).await.id);
    }
    bed.store.cancel(jobs[1]).await.unwrap();
    bed.store.cancel(jobs[3]).await.unwrap();
    let list = |status, before, limit| bed.store.list(JobFilter { owner: None, status, before, limit });
    assert_eq!(ids(&list(None, None, 10).await.unwrap()), jobs);
    assert_eq!(ids(&list(None, None, 2).await.unwrap()), jobs[..2]);
    assert_eq!(ids(&list(None, Some(jobs[1]), 2).await.unwrap()), jobs[2..4]);
    assert_eq!(ids(&list(Some(JobStatus::Cancelled), None, 10).await.unwrap()), [jobs[1], jobs[3]]);
    assert_eq!(ids(&list(Some(JobStatus::Queued), Some(jobs[0]), 1).await.unwrap()), [jobs[2]]);
    assert!(list(None, Some(jobs[4]), 10).await.unwrap().is_empty());
    assert!(list(None, None, 0).await.unwrap().is_empty());
}

async fn only_ended_jobs_are_removed(bed: Bed) {
    let job = bed.insert(plain()).await;
    assert!(matches!(bed.store.remove(job.id).await, Err(Error::NotEnded(id)) if id == job.id));
    let claimed = bed.one().await;
    assert!(matches!(bed.store.remove(job.id).await, Err(Error::NotEnded(_))));
    let ended = bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
    assert_eq!(bed.store.remove(job.id).await.unwrap(), Some(ended));
    assert_eq!(bed.store.remove(job.id).await.unwrap(), None);
    assert_eq!(bed.store.get(job.id).await.unwrap(), None);
}

async fn ended_jobs_are_forgotten_in_time(bed: Bed) {
    let mut ended = Vec::new();
    for _ in 0..3 {
        let job = bed.insert(plain()).await;
        bed.store.cancel(job.id).await.unwrap();
        ended.push(job.id);
        bed.clock.advance_ms(10);
    }
    let waiting = bed.insert(plain()).await;
    bed.clock.advance_ms(OPTIONS.retention_ms as i64 - 31);
    assert!(bed.store.remove_expired(10).await.unwrap().is_empty());
    bed.clock.advance_ms(1);
    assert_eq!(ids(&bed.store.remove_expired(10).await.unwrap()), ended[..1]);
    bed.clock.advance_ms(1_000_000);
    assert_eq!(ids(&bed.store.remove_expired(1).await.unwrap()), ended[1..2]);
    assert_eq!(ids(&bed.store.remove_expired(10).await.unwrap()), ended[2..]);
    assert_eq!(ids(&bed.store.list(JobFilter { limit: 9, ..JobFilter::default() }).await.unwrap()), [waiting.id]);
}

async fn stats_count_the_work_ahead(bed: Bed) {
    assert_eq!(bed.store.stats().await.unwrap(), QueueStats::default());
    bed.insert(with(|draft| draft.num_images = Some(3))).await;
    bed.insert(plain()).await;
    let one = 64 * 64 * 10;
    let stats = |queued, running, pixels: u64, waiting_rows| QueueStats {
        queued,
        running,
        pixel_steps: pixels * one,
        waiting_rows,
    };
    assert_eq!(bed.store.stats().await.unwrap(), stats(2, 0, 4, 4));
    let claimed = bed.one().await;
    assert_eq!(bed.store.stats().await.unwrap(), stats(1, 1, 4, 1));
    bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
    assert_eq!(bed.store.stats().await.unwrap(), stats(1, 0, 1, 1));
}

async fn many_workers_take_each_job_once(bed: Bed) {
    let mut expected = HashSet::new();
    for index in 0..120 {
        expected.insert(bed.insert(with(|draft| draft.steps = Some(10 + index % 3))).await.id);
    }
    let workers = (0..8).map(|_| tokio::spawn(claim_all(bed.store.clone())));
    let taken: Vec<JobId> = futures::future::join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(taken.len(), expected.len());
    assert_eq!(taken.into_iter().collect::<HashSet<_>>(), expected);
}

/// Claims and finishes until nothing waits.
pub(super) async fn claim_all(store: Arc<dyn JobStore>) -> Vec<JobId> {
    let mut taken = Vec::new();
    loop {
        let claimed = store.claim(claim(4)).await.unwrap();
        if claimed.is_empty() {
            return taken;
        }
        for ClaimedJob { job, lease, .. } in claimed {
            taken.push(job.id);
            store.finish(&lease, succeeded()).await.unwrap();
        }
    }
}

for_every_store![
    a_job_is_read_back_as_it_was_accepted,
    a_whole_life_is_recorded,
    a_failure_keeps_its_reason,
    a_finished_lease_ends_nothing_twice,
    a_retry_with_its_key_finds_its_job,
    a_job_is_its_owners,
    retries_at_once_make_one_job,
    an_id_is_taken_once,
    a_full_queue_refuses_until_a_job_is_taken,
    a_heartbeat_holds_a_lease,
    heartbeats_answer_in_order,
    an_expired_lease_is_rescued_and_its_worker_refused,
    a_late_worker_may_finish_what_nobody_took,
    a_job_that_keeps_losing_its_workers_fails,
    an_attempt_given_up_counts_and_the_last_one_fails_with_its_reason,
    a_released_job_waits_again_as_if_untouched,
    a_cancel_does_what_the_state_allows,
    a_cancelled_job_never_waits_again,
    lists_go_newest_first_from_a_cursor,
    only_ended_jobs_are_removed,
    ended_jobs_are_forgotten_in_time,
    stats_count_the_work_ahead,
    many_workers_take_each_job_once,
];
