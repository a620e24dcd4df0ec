//! Jobs of one identity: the oldest is drawn, the others are not, and each has its own end.

use darkroom::dispatch::jobs::{
    Answer, ClaimRequest, ClaimedJob, Inserted, JobStore, NewJob, Origin, Outcome, Rescued, Select, StoreOptions,
};
use darkroom::domain::{GenerationRequest, Job, JobId, JobStatus};

use super::job_store_bed::{Bed, LEASE_MS, OPTIONS, claim, new_job, plain, succeeded, with};

for_every_store! {
    only_the_oldest_of_an_identity_is_claimed_and_none_while_it_runs,
    those_that_wait_are_claimed_together_for_pictures_that_are_there,
    when_the_first_fails_or_is_cancelled_the_next_is_as_if_it_had_been_the_first,
    a_lost_worker_leaves_the_first_in_its_place,
    the_latest_that_succeeded_is_found_for_as_long_as_it_is_kept,
    pictures_drawn_by_other_files_answer_nobody,
    a_job_that_is_answered_as_it_comes_never_waits,
    an_idempotency_key_goes_before_an_answer,
    a_full_claim_counts_only_what_can_be_drawn,
    one_past_its_deadline_is_not_given_pictures,
}

async fn named(bed: &Bed, request: GenerationRequest, identity: &str) -> Job {
    bed.clock.advance_ms(1);
    let new = NewJob { identity: Some(identity.to_owned()), ..new_job(request) };
    match bed.store.insert(new).await.unwrap() {
        Inserted::New(job) => job,
        Inserted::Existing(job) => panic!("{} is not new", job.id),
    }
}

async fn three(bed: &Bed) -> [JobId; 3] {
    [named(bed, plain(), "a").await.id, named(bed, plain(), "a").await.id, named(bed, plain(), "a").await.id]
}

fn ids(claimed: &[ClaimedJob]) -> Vec<JobId> {
    claimed.iter().map(|claimed| claimed.job.id).collect()
}

fn fill(request: &GenerationRequest, max_rows: u32) -> ClaimRequest {
    let size = darkroom::domain::GroupKey::of(request).size();
    ClaimRequest { select: Select::Fill { size, steps: request.steps(), before: None }, ..claim(max_rows) }
}

fn identical(identity: &str) -> ClaimRequest {
    ClaimRequest { select: Select::Identical(identity.to_owned()), ..claim(u32::MAX) }
}

async fn only_the_oldest_of_an_identity_is_claimed_and_none_while_it_runs(bed: Bed) {
    let [first, ..] = three(&bed).await;
    let other = named(&bed, plain(), "b").await.id;
    let own = bed.insert(plain()).await.id;
    let claimed = bed.store.claim(claim(8)).await.unwrap();
    assert_eq!(ids(&claimed), [first, other, own], "not twice in one claim");
    assert!(bed.store.claim(claim(8)).await.unwrap().is_empty());
    assert!(bed.store.claim(fill(&plain(), 8)).await.unwrap().is_empty());
    let before = None;
    let except = darkroom::domain::GroupKey::of(&with(|draft| draft.width = Some(8))).size();
    let others = ClaimRequest { select: Select::Other { except, before }, ..claim(8) };
    assert!(bed.store.claim(others).await.unwrap().is_empty());
    assert_eq!(bed.store.stats().await.unwrap().queued, 2, "they wait");
}

async fn those_that_wait_are_claimed_together_for_pictures_that_are_there(bed: Bed) {
    let [first, second, third] = three(&bed).await;
    let drawn = bed.one().await;
    bed.store.finish(&drawn.lease, succeeded()).await.unwrap();
    let claimed = bed.store.claim(identical("a")).await.unwrap();
    assert_eq!(ids(&claimed), [second, third]);
    for claimed in &claimed {
        let Outcome::Succeeded { images, timings, warnings, .. } = succeeded() else { panic!("it does") };
        let copied = Outcome::Succeeded { images, timings, warnings, origin: Origin::Copied(first) };
        let ended = bed.store.finish(&claimed.lease, copied).await.unwrap();
        assert_eq!((ended.status, ended.reused_from, ended.images.len()), (JobStatus::Succeeded, Some(first), 1));
        assert_eq!(bed.store.get(ended.id).await.unwrap().unwrap(), ended, "as it is stored");
    }
    assert!(bed.store.claim(identical("b")).await.unwrap().is_empty());
}

async fn when_the_first_fails_or_is_cancelled_the_next_is_as_if_it_had_been_the_first(bed: Bed) {
    let [first, second, third] = three(&bed).await;
    let claimed = bed.one().await;
    assert_eq!(claimed.job.id, first);
    bed.store.finish(&claimed.lease, Outcome::Cancelled).await.unwrap();
    let claimed = bed.one().await;
    assert_eq!(claimed.job.id, second);
    // Handed back, it is first again.
    bed.store.release(&claimed.lease).await.unwrap();
    assert_eq!(bed.one().await.job.id, second);
    assert!(bed.store.claim(claim(8)).await.unwrap().is_empty());
    bed.store.cancel(third).await.unwrap();
    assert_eq!(bed.store.get(third).await.unwrap().unwrap().status, JobStatus::Cancelled, "on its own");
    assert_eq!(bed.store.identical("a").await.unwrap(), None);
}

async fn a_lost_worker_leaves_the_first_in_its_place(bed: Bed) {
    let [first, second, _] = three(&bed).await;
    assert_eq!(bed.one().await.job.id, first);
    bed.clock.advance_ms(LEASE_MS as i64 + 1);
    assert!(bed.store.claim(claim(8)).await.unwrap().is_empty(), "until it has been rescued");
    assert!(matches!(&bed.store.rescue_expired().await.unwrap()[..], [Rescued::Requeued(job)] if job.id == first));
    assert_eq!(bed.one().await.job.id, first);
    // One that was taken to be given pictures, by a worker that was lost, comes back to be drawn.
    let copying = bed.store.claim(identical("a")).await.unwrap();
    assert_eq!(copying[0].job.id, second);
    bed.clock.advance_ms(LEASE_MS as i64 + 1);
    assert_eq!(bed.store.rescue_expired().await.unwrap().len(), 3);
    assert_eq!(ids(&bed.store.claim(claim(8)).await.unwrap()), [first]);
}

async fn the_latest_that_succeeded_is_found_for_as_long_as_it_is_kept(bed: Bed) {
    let [_, second, _] = three(&bed).await;
    for _ in 0..2 {
        let claimed = bed.one().await;
        bed.clock.advance_ms(10);
        bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
    }
    let found = bed.store.identical("a").await.unwrap().unwrap();
    assert_eq!((found.id, found.identity.as_deref()), (second, Some("a")));
    assert_eq!(bed.store.identical("b").await.unwrap(), None);
    bed.clock.advance_ms(OPTIONS.retention_ms as i64 + 1);
    assert_eq!(bed.store.identical("a").await.unwrap(), None, "past its time, though not removed yet");
    bed.store.remove_expired(10).await.unwrap();
    assert_eq!(bed.store.identical("a").await.unwrap(), None);
}

async fn pictures_drawn_by_other_files_answer_nobody(bed: Bed) {
    three(&bed).await;
    let claimed = bed.one().await;
    let Outcome::Succeeded { images, timings, warnings, .. } = succeeded() else { panic!("it does") };
    let otherwise = Outcome::Succeeded { images, timings, warnings, origin: Origin::DrawnOtherwise };
    let ended = bed.store.finish(&claimed.lease, otherwise).await.unwrap();
    assert_eq!((ended.status, ended.identity), (JobStatus::Succeeded, None));
    assert_eq!(bed.store.identical("a").await.unwrap(), None);
    assert_eq!(bed.store.claim(claim(8)).await.unwrap().len(), 1, "the next is drawn");
}

fn answered(from: &Job) -> NewJob {
    let answer = Answer { from: from.id, images: from.images.clone(), warnings: from.warnings.clone() };
    NewJob { identity: Some("a".to_owned()), answer: Some(answer), ..new_job(plain()) }
}

async fn a_job_that_is_answered_as_it_comes_never_waits(bed: Bed) {
    named(&bed, plain(), "a").await;
    let claimed = bed.one().await;
    let drawn = bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
    let Inserted::New(job) = bed.store.insert(answered(&drawn)).await.unwrap() else { panic!("is new") };
    assert_eq!((job.status, job.attempts, job.reused_from), (JobStatus::Succeeded, 0, Some(drawn.id)));
    assert_eq!((&job.images, &job.warnings), (&drawn.images, &drawn.warnings));
    assert!(job.ended_at.is_some() && job.expires_at.is_some() && job.timings.is_some());
    assert_eq!(bed.store.get(job.id).await.unwrap().unwrap(), job, "as it is stored");
    assert_eq!(bed.position(job.id).await, None);
    assert_eq!(bed.store.stats().await.unwrap(), darkroom::dispatch::jobs::QueueStats::default());
    // Neither's removal is the other's.
    bed.store.remove(drawn.id).await.unwrap();
    assert_eq!(bed.store.identical("a").await.unwrap().unwrap().id, job.id);
}

#[tokio::test]
async fn a_full_queue_takes_a_job_that_is_answered_as_it_comes() {
    let full = StoreOptions { max_queued: 1, ..OPTIONS };
    for bed in [Bed::memory(full.clone()).await, Bed::sqlite(full).await] {
        named(&bed, plain(), "a").await;
        let claimed = bed.one().await;
        let drawn = bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
        bed.insert(plain()).await;
        assert!(matches!(bed.store.insert(answered(&drawn)).await, Ok(Inserted::New(_))));
    }
}

async fn an_idempotency_key_goes_before_an_answer(bed: Bed) {
    named(&bed, plain(), "a").await;
    let claimed = bed.one().await;
    let drawn = bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
    let idempotency = darkroom::dispatch::jobs::Idempotency { key: "key".to_owned(), fingerprint: "f".to_owned() };
    let keyed = || NewJob { idempotency: Some(idempotency.clone()), ..answered(&drawn) };
    let Inserted::New(job) = bed.store.insert(keyed()).await.unwrap() else { panic!("is new") };
    assert!(matches!(bed.store.insert(keyed()).await.unwrap(), Inserted::Existing(found) if found.id == job.id));
}

async fn a_full_claim_counts_only_what_can_be_drawn(bed: Bed) {
    for _ in 0..20 {
        named(&bed, plain(), "a").await;
    }
    let own = [bed.insert(plain()).await.id, bed.insert(plain()).await.id];
    let claimed = bed.store.claim(claim(3)).await.unwrap();
    assert_eq!(ids(&claimed)[1..], own, "those behind nineteen that wait for the first");
    let more = bed.insert(plain()).await.id;
    assert_eq!(ids(&bed.store.claim(fill(&plain(), 3)).await.unwrap()), [more]);
}

async fn one_past_its_deadline_is_not_given_pictures(bed: Bed) {
    named(&bed, plain(), "a").await;
    named(&bed, with(|draft| draft.expires_in = Some(1)), "a").await;
    let third = named(&bed, plain(), "a").await.id;
    let claimed = bed.one().await;
    bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
    bed.clock.advance_ms(2_000);
    assert_eq!(ids(&bed.store.claim(identical("a")).await.unwrap()), [third]);
}

/// Two stores on one file, as two processes have them.
#[tokio::test]
async fn two_processes_never_draw_one_identity_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let clock = super::job_store_bed::clock();
    let open = darkroom::dispatch::jobs::SqliteStore::open;
    let path = folder.path().join("jobs.db");
    let (east, west) = (open(&path, OPTIONS, clock.clone()), open(&path, OPTIONS, clock.clone()));
    let (east, west) = (east.await.unwrap(), west.await.unwrap());
    for _ in 0..5 {
        let new = NewJob { identity: Some("a".to_owned()), ..new_job(plain()) };
        east.insert(new).await.unwrap();
    }
    let (one, two) = tokio::join!(east.claim(claim(8)), west.claim(claim(8)));
    assert_eq!(one.unwrap().len() + two.unwrap().len(), 1);
}
