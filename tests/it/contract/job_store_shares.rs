//! What every `JobStore` promises of owners and their shares.

use std::collections::BTreeMap;

use darkroom::dispatch::jobs::{
    Answer, ClaimRequest, ClaimedJob, Inserted, NewJob, Origin, Outcome, OwnerWork, Select, SqliteStore, StoreOptions,
    WaitingWork,
};
use darkroom::domain::{GenerationRequest, Job, JobId, ModelId, OwnerId, Priority, QueuePlace, SizeKey};

use super::job_store_bed::{Bed, OPTIONS, claim, claimed_ids, clock, new_job, plain, succeeded, with};

/// Alice has three times Bob's share; whoever else has a job has one.
fn options() -> StoreOptions {
    StoreOptions { weights: BTreeMap::from([(OwnerId::new("alice"), 3), (OwnerId::new("bob"), 1)]), ..OPTIONS }
}

/// Pixel-steps of `plain`.
const PLAIN: u64 = 64 * 64 * 10;

async fn submit(bed: &Bed, owner: &str, request: GenerationRequest) -> Job {
    let owner = (!owner.is_empty()).then(|| OwnerId::new(owner));
    let new = NewJob { owner, ..new_job(request) };
    match bed.store.insert(new).await.unwrap() {
        Inserted::New(job) => job,
        Inserted::Existing(job) => panic!("{} is not new", job.id),
    }
}

async fn flood(bed: &Bed, owner: &str, count: usize, request: impl Fn() -> GenerationRequest) -> Vec<JobId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(submit(bed, owner, request()).await.id);
        bed.clock.advance_ms(10);
    }
    ids
}

fn owner_of(claimed: &ClaimedJob) -> String {
    claimed.job.owner.as_ref().map_or_else(String::new, ToString::to_string)
}

/// Whose jobs are taken, one claim after another.
async fn owners_taken(bed: &Bed, claims: usize) -> Vec<String> {
    let mut taken = Vec::new();
    for _ in 0..claims {
        taken.push(owner_of(&bed.one().await));
    }
    taken
}

fn small() -> SizeKey {
    SizeKey { model: ModelId::new("tiny"), width: 64, height: 64 }
}

fn work(name: &str, (queued, running): (u64, u64), pixel_steps: u64) -> OwnerWork {
    let weight = if name == "alice" { 3 } else { 1 };
    OwnerWork { owner: Some(OwnerId::new(name)), weight, queued, running, pixel_steps }
}

fn large() -> GenerationRequest {
    with(|draft| (draft.width, draft.height) = (Some(128), Some(128)))
}

async fn a_late_owner_does_not_stand_behind_a_flood(bed: Bed) {
    flood(&bed, "carol", 40, plain).await;
    owners_taken(&bed, 5).await;
    bed.clock.advance_ms(600_000);
    let late = flood(&bed, "dan", 2, plain).await;
    assert_eq!(bed.position(late[0]).await, Some(0));
    assert_eq!(bed.position(late[1]).await, Some(2));
    // Of equal turns the older job goes first.
    assert_eq!(owners_taken(&bed, 5).await, ["dan", "carol", "dan", "carol", "carol"]);
    // What he does not ask for goes to the other.
    assert_eq!(owners_taken(&bed, 3).await, ["carol"; 3]);
}

async fn shares_are_by_weight_and_counted_in_pixel_steps(bed: Bed) {
    flood(&bed, "bob", 40, plain).await;
    // Each four times as much work.
    flood(&bed, "alice", 40, large).await;
    for _ in 0..42 {
        let claimed = bed.one().await;
        bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
    }
    // 18 of 4 units and 24 of one: 3 to 1.
    let owners = bed.store.owners().await.unwrap();
    assert_eq!(owners, [work("alice", (22, 0), 18 * 4 * PLAIN), work("bob", (16, 0), 24 * PLAIN)]);
}

async fn one_claim_shares_its_batch(bed: Bed) {
    flood(&bed, "bob", 20, plain).await;
    flood(&bed, "alice", 20, plain).await;
    let count = |claimed: &[ClaimedJob]| claimed.iter().filter(|job| owner_of(job) == "alice").count();
    let group = bed.store.claim(claim(8)).await.unwrap();
    assert_eq!((group.len(), count(&group)), (8, 6));
    let select = Select::Fill { size: small(), steps: 10, before: None };
    let fill = bed.store.claim(ClaimRequest { select, ..claim(4) }).await.unwrap();
    assert_eq!((fill.len(), count(&fill)), (4, 3));
    // In the engine they stand in the order of their turns.
    let places: Vec<QueuePlace> = group.iter().chain(&fill).map(|claimed| claimed.place).collect();
    assert!(places.is_sorted_by_key(|place| place.rank_ms), "{places:?}");
}

async fn within_an_owner_priority_and_age_decide(bed: Bed) {
    let of = |priority: Priority| with(|draft| draft.priority = Some(priority.name().to_owned()));
    let mut jobs = Vec::new();
    for priority in [Priority::Bulk, Priority::Normal, Priority::Normal, Priority::Interactive] {
        jobs.push(submit(&bed, "bob", of(priority)).await.id);
        bed.clock.advance_ms(1);
    }
    submit(&bed, "alice", of(Priority::Interactive)).await;
    let taken = bed.store.claim(claim(8)).await.unwrap();
    let bobs: Vec<JobId> = taken.iter().filter(|job| owner_of(job) == "bob").map(|claimed| claimed.job.id).collect();
    assert_eq!(bobs, [jobs[3], jobs[1], jobs[2], jobs[0]]);
    // An urgent job stands 30 s before its turn.
    let urgent = &taken[0];
    assert!(urgent.place.rank_ms < taken[2].place.rank_ms - 20_000, "{taken:?}");
}

async fn another_size_is_taken_when_it_is_its_owners_turn(bed: Bed) {
    flood(&bed, "carol", 30, plain).await;
    let aboard = bed.store.claim(claim(4)).await.unwrap();
    bed.clock.advance_ms(600_000);
    let late = submit(&bed, "dan", large()).await;
    let other = async |before: QueuePlace| {
        let select = Select::Other { except: small(), before: Some(before) };
        bed.store.claim(ClaimRequest { select, ..claim(4) }).await.unwrap()
    };
    // He comes after the one whose turn it was when he came.
    assert!(other(aboard[0].place).await.is_empty());
    // But before those who have theirs later, though they were taken with it.
    assert_eq!(claimed_ids(&other(aboard[1].place).await), [late.id]);
}

async fn an_owners_own_other_sizes_do_not_hold_up_a_job_for_ever(bed: Bed) {
    flood(&bed, "carol", 4, plain).await;
    let wide = flood(&bed, "carol", 1, large).await;
    flood(&bed, "carol", 30, plain).await;
    bed.store.claim(claim(4)).await.unwrap();
    let select = Select::Fill { size: small(), steps: 10, before: None };
    let filled = bed.store.claim(ClaimRequest { select, ..claim(4) }).await.unwrap();
    // Whatever is taken meanwhile, it stands where it stood.
    let select = Select::Other { except: small(), before: Some(filled[0].place) };
    assert_eq!(claimed_ids(&bed.store.claim(ClaimRequest { select, ..claim(4) }).await.unwrap()), wide);
}

async fn a_job_that_waits_again_keeps_its_turn(bed: Bed) {
    let first = flood(&bed, "carol", 3, plain).await[0];
    flood(&bed, "dan", 3, plain).await;
    let claimed = bed.one().await;
    bed.store.release(&claimed.lease).await.unwrap();
    let again = bed.one().await;
    assert_eq!((again.job.id, again.place), (first, claimed.place));
    // Its worker is lost.
    bed.clock.advance_ms(600_000);
    bed.store.rescue_expired().await.unwrap();
    assert_eq!(bed.one().await.place, claimed.place);
    assert_eq!(owners_taken(&bed, 5).await, ["dan", "carol", "dan", "carol", "dan"]);
}

async fn a_job_that_ends_before_it_is_drawn_gives_its_turn_back(bed: Bed) {
    for id in flood(&bed, "carol", 20, plain).await {
        bed.store.cancel(id).await.unwrap();
    }
    let expiring = with(|draft| draft.expires_in = Some(1));
    for _ in 0..20 {
        submit(&bed, "carol", expiring.clone()).await;
    }
    bed.clock.advance_ms(1_000);
    assert_eq!(bed.store.expire_overdue().await.unwrap().len(), 20);
    flood(&bed, "dan", 20, plain).await;
    let late = submit(&bed, "carol", plain()).await;
    assert_eq!(bed.position(late.id).await, Some(1), "after the one of the same turn that is older");
}

async fn a_job_that_is_given_anothers_pictures_is_not_paid_for(bed: Bed) {
    let named = || NewJob { owner: Some(OwnerId::new("carol")), identity: Some("same".to_owned()), ..new_job(plain()) };
    for _ in 0..3 {
        bed.store.insert(named()).await.unwrap();
        bed.clock.advance_ms(1);
    }
    let of_dan = submit(&bed, "dan", plain()).await;
    // The oldest is drawn; the others wait for its pictures, and hold up nobody's turn.
    let taken = bed.store.claim(claim(8)).await.unwrap();
    assert_eq!(taken.iter().map(owner_of).collect::<Vec<_>>(), ["carol", "dan"]);
    assert_eq!(taken[1].job.id, of_dan.id);
    let drawn = bed.store.finish(&taken[0].lease, succeeded()).await.unwrap();
    let select = Select::Identical("same".to_owned());
    for waiting in bed.store.claim(ClaimRequest { select, ..claim(8) }).await.unwrap() {
        let Outcome::Succeeded { images, timings, warnings, .. } = succeeded() else { panic!("it succeeds") };
        let outcome = Outcome::Succeeded { images, timings, warnings, origin: Origin::Copied(drawn.id) };
        bed.store.finish(&waiting.lease, outcome).await.unwrap();
    }
    let answer = Answer { from: drawn.id, images: drawn.images.clone(), warnings: Vec::new() };
    bed.store.insert(NewJob { answer: Some(answer), ..named() }).await.unwrap();
    let owners = bed.store.owners().await.unwrap();
    assert_eq!(owners, [work("carol", (0, 0), PLAIN), work("dan", (0, 1), 0)]);
    // Each has had one turn.
    flood(&bed, "dan", 4, plain).await;
    let late = submit(&bed, "carol", plain()).await;
    assert_eq!(bed.position(late.id).await, Some(1));
}

async fn the_work_before_a_job_is_what_has_earlier_turns(bed: Bed) {
    flood(&bed, "bob", 8, plain).await;
    flood(&bed, "bob", 8, large).await;
    let alices = flood(&bed, "alice", 10, plain).await;
    // Four of Alice's, and the two that are Bob's meanwhile.
    let ahead = bed.store.ahead(alices[4]).await.unwrap().unwrap();
    assert_eq!(ahead.work, [WaitingWork { size: small(), jobs: 6, rows: 6, row_steps: 60 }]);
    let running = bed.one().await;
    assert_eq!(bed.store.ahead(running.job.id).await.unwrap(), None);
}

async fn nobody_saves_up_shares_while_they_ask_for_nothing(bed: Bed) {
    flood(&bed, "dan", 1, plain).await;
    owners_taken(&bed, 1).await;
    flood(&bed, "carol", 30, plain).await;
    owners_taken(&bed, 10).await;
    flood(&bed, "dan", 10, plain).await;
    let taken = owners_taken(&bed, 10).await;
    assert_eq!(taken.iter().filter(|owner| *owner == "dan").count(), 5, "{taken:?}");
}

async fn jobs_without_an_owner_have_a_share_too(bed: Bed) {
    flood(&bed, "", 8, plain).await;
    flood(&bed, "dan", 8, plain).await;
    let taken = owners_taken(&bed, 8).await;
    assert_eq!(taken.iter().filter(|owner| owner.is_empty()).count(), 4, "{taken:?}");
}

async fn many_workers_take_each_job_once_whoseever_it_is(bed: Bed) {
    for owner in ["alice", "bob", "carol"] {
        flood(&bed, owner, 20, plain).await;
    }
    let workers = (0..4).map(|_| {
        let store = bed.store.clone();
        tokio::spawn(async move {
            let mut taken = Vec::new();
            loop {
                let claimed = store.claim(claim(3)).await.unwrap();
                if claimed.is_empty() {
                    return taken;
                }
                taken.extend(claimed_ids(&claimed));
            }
        })
    });
    let mut taken: Vec<JobId> =
        futures::future::join_all(workers).await.into_iter().flat_map(|taken| taken.unwrap()).collect();
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), 60);
    let running: u64 = bed.store.owners().await.unwrap().iter().map(|work| work.running).sum();
    assert_eq!(running, 60);
}

for_every_store! { of options():
    a_late_owner_does_not_stand_behind_a_flood,
    shares_are_by_weight_and_counted_in_pixel_steps,
    one_claim_shares_its_batch,
    within_an_owner_priority_and_age_decide,
    another_size_is_taken_when_it_is_its_owners_turn,
    an_owners_own_other_sizes_do_not_hold_up_a_job_for_ever,
    a_job_that_waits_again_keeps_its_turn,
    a_job_that_ends_before_it_is_drawn_gives_its_turn_back,
    a_job_that_is_given_anothers_pictures_is_not_paid_for,
    the_work_before_a_job_is_what_has_earlier_turns,
    nobody_saves_up_shares_while_they_ask_for_nothing,
    jobs_without_an_owner_have_a_share_too,
    many_workers_take_each_job_once_whoseever_it_is,
}

#[tokio::test]
async fn a_reopened_file_remembers_what_each_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.db");
    let open = async |options| Bed::of(SqliteStore::open(&path, options, clock()).await.unwrap());
    let bed = open(options()).await;
    flood(&bed, "carol", 12, plain).await;
    for _ in 0..6 {
        let claimed = bed.one().await;
        bed.store.finish(&claimed.lease, succeeded()).await.unwrap();
    }
    let bed = open(options()).await;
    let late = flood(&bed, "dan", 2, plain).await;
    assert_eq!((bed.position(late[0]).await, bed.position(late[1]).await), (Some(0), Some(2)));
    assert_eq!(bed.store.owners().await.unwrap()[0], work("carol", (6, 0), 6 * PLAIN));
    // Without weights all stand by age, and weights begin anew.
    let store = SqliteStore::open(&path, OPTIONS, clock()).await.unwrap();
    store.forget_turns().await.unwrap();
    let bed = Bed::of(store);
    let last = submit(&bed, "dan", plain()).await;
    // This file's clock stands still: six of Carol's and two of Dan's came before in the same millisecond.
    assert_eq!((bed.position(late[0]).await, bed.position(last.id).await), (Some(6), Some(8)));
    assert_eq!((bed.store.owners().await.unwrap(), bed.store.get(last.id).await.unwrap()), (Vec::new(), Some(last)));
}
