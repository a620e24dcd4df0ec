//! What every `JobStore` promises of `start_within` and `expires_in`.

use darkroom::dispatch::jobs::{ClaimRequest, LeaseState, Outcome, Overdue, Rescued, Select};
use darkroom::domain::{ErrorCode, GenerationRequest, Job, JobStatus, SizeKey};

use super::job_store_bed::{Bed, LEASE_MS, OPTIONS, claim, claimed_ids, plain, succeeded, with};

fn start_within(seconds: i64) -> GenerationRequest {
    with(|draft| draft.start_within = Some(seconds))
}

fn expires_in(seconds: i64) -> GenerationRequest {
    with(|draft| draft.expires_in = Some(seconds))
}

fn expired(job: &Job) -> &str {
    let error = job.error.as_ref().expect("says why");
    assert_eq!((job.status, error.code), (JobStatus::Failed, ErrorCode::Expired));
    assert!(job.ended_at.is_some() && job.expires_at.is_some() && job.timings.is_some());
    &error.message
}

async fn one_that_waits_too_long_is_never_claimed_and_fails(bed: Bed) {
    let (late, soon) = (bed.insert(start_within(5)).await, bed.insert(expires_in(7)).await);
    let patient = bed.insert(plain()).await;
    bed.clock.advance_ms(4_999);
    assert!(bed.store.expire_overdue().await.unwrap().is_empty());
    bed.clock.advance_ms(1);
    // Before anybody has looked for such jobs.
    assert_eq!(claimed_ids(&bed.store.claim(claim(1)).await.unwrap()), [soon.id]);
    let overdue = bed.store.expire_overdue().await.unwrap();
    let [Overdue::Ended(job)] = &overdue[..] else { panic!("{overdue:?}") };
    assert_eq!(job.id, late.id);
    assert!(expired(job).contains("within 5 s (`start_within`)"), "{:?}", job.error);
    assert_eq!(bed.store.get(late.id).await.unwrap().as_ref(), Some(&**job));
    assert!(bed.store.expire_overdue().await.unwrap().is_empty());
    let stats = bed.store.stats().await.unwrap();
    assert_eq!((stats.queued, stats.running), (1, 1));
    assert_eq!(claimed_ids(&bed.store.claim(claim(8)).await.unwrap()), [patient.id]);
}

async fn every_kind_of_claim_passes_over_them(bed: Bed) {
    let late = bed.insert(start_within(1)).await;
    let wide = bed.insert(with(|draft| (draft.width, draft.start_within) = (Some(128), Some(1)))).await;
    let of = |width| SizeKey { model: late.request.model().clone(), width, height: 64 };
    bed.clock.advance_ms(1_000);
    for select in [
        Select::Group,
        Select::Fill { size: of(64), steps: 10, before: None },
        Select::Other { except: of(64), before: None },
        Select::Other { except: of(128), before: None },
    ] {
        let request = ClaimRequest { select, ..claim(8) };
        assert!(bed.store.claim(request.clone()).await.unwrap().is_empty(), "{request:?}");
    }
    // Cancelled before they have ended, one stays cancelled.
    bed.store.cancel(wide.id).await.unwrap();
    let overdue = bed.store.expire_overdue().await.unwrap();
    assert!(matches!(&overdue[..], [Overdue::Ended(job)] if job.id == late.id), "{overdue:?}");
    assert_eq!(bed.store.get(wide.id).await.unwrap().unwrap().status, JobStatus::Cancelled);
}

async fn one_that_was_started_in_time_may_go_on(bed: Bed) {
    let job = bed.insert(start_within(5)).await;
    let first = bed.one().await;
    bed.clock.advance_ms(60_000);
    assert_eq!(bed.store.heartbeat(std::slice::from_ref(&first.lease), LEASE_MS).await.unwrap(), [LeaseState::Held]);
    assert!(bed.store.expire_overdue().await.unwrap().is_empty());
    // Its worker is lost: it was started, and waits for another.
    bed.clock.advance_ms(LEASE_MS as i64);
    assert!(matches!(&bed.store.rescue_expired().await.unwrap()[..], [Rescued::Requeued(_)]));
    assert!(bed.store.expire_overdue().await.unwrap().is_empty());
    let second = bed.one().await;
    assert_eq!(second.job.id, job.id);
    // Handed back untouched, it was not.
    bed.store.release(&second.lease).await.unwrap();
    assert!(bed.store.claim(claim(1)).await.unwrap().is_empty());
    assert!(matches!(&bed.store.expire_overdue().await.unwrap()[..], [Overdue::Ended(ended)] if ended.id == job.id));
}

async fn one_that_runs_too_long_is_left_and_fails(bed: Bed) {
    let job = bed.insert(with(|draft| (draft.start_within, draft.expires_in) = (Some(5), Some(20)))).await;
    let claimed = bed.one().await;
    bed.clock.advance_ms(19_999);
    assert_eq!(bed.store.heartbeat(std::slice::from_ref(&claimed.lease), LEASE_MS).await.unwrap(), [LeaseState::Held]);
    bed.clock.advance_ms(1);
    for _ in 0..2 {
        assert_eq!(bed.store.expire_overdue().await.unwrap(), [Overdue::Running(job.id)]);
    }
    let leases = [claimed.lease.clone()];
    assert_eq!(bed.store.heartbeat(&leases, LEASE_MS).await.unwrap(), [LeaseState::CancelRequested]);
    let ended = bed.store.finish(&claimed.lease, Outcome::Cancelled).await.unwrap();
    assert!(expired(&ended).contains("within 20 s (`expires_in`)"), "{:?}", ended.error);
    assert!(!ended.cancel_requested);
    assert_eq!(bed.store.get(job.id).await.unwrap(), Some(ended));
    assert!(bed.store.expire_overdue().await.unwrap().is_empty());
}

async fn pictures_that_are_done_count_and_a_cancel_stays_one(bed: Bed) {
    let (drawn, cancelled) = (bed.insert(expires_in(5)).await, bed.insert(expires_in(5)).await);
    let claimed = bed.store.claim(claim(2)).await.unwrap();
    bed.store.cancel(cancelled.id).await.unwrap();
    bed.clock.advance_ms(6_000);
    assert_eq!(bed.store.finish(&claimed[0].lease, succeeded()).await.unwrap().status, JobStatus::Succeeded);
    assert_eq!(bed.store.finish(&claimed[1].lease, Outcome::Cancelled).await.unwrap().status, JobStatus::Cancelled);
    assert_eq!(claimed[0].job.id, drawn.id);
    assert!(bed.store.expire_overdue().await.unwrap().is_empty());
}

async fn a_lost_one_does_not_run_again(bed: Bed) {
    let job = bed.insert(expires_in(15)).await;
    bed.one().await;
    bed.clock.advance_ms(15_000);
    // Its lease is over as well: it waits again, and nobody takes it.
    bed.store.rescue_expired().await.unwrap();
    assert!(bed.store.claim(claim(1)).await.unwrap().is_empty());
    let overdue = bed.store.expire_overdue().await.unwrap();
    assert!(matches!(&overdue[..], [Overdue::Ended(ended)] if ended.id == job.id), "{overdue:?}");
}

for_every_store![
    one_that_waits_too_long_is_never_claimed_and_fails,
    every_kind_of_claim_passes_over_them,
    one_that_was_started_in_time_may_go_on,
    one_that_runs_too_long_is_left_and_fails,
    pictures_that_are_done_count_and_a_cancel_stays_one,
    a_lost_one_does_not_run_again,
];
