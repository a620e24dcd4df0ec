//! What every `JobStore` promises of its claims: which jobs a worker gets, and in which order.

use darkroom::dispatch::jobs::{ClaimRequest, Select};
use darkroom::domain::{Job, JobId, ModelId, QueuePlace, SizeKey};

use super::job_store_bed::{Bed, OPTIONS, claim, claimed_ids, plain, with};

async fn the_oldest_goes_first_moved_by_priority(bed: Bed) {
    let priority = |name: &str| with(|draft| draft.priority = Some(name.to_owned()));
    let bulk = bed.insert(priority("bulk")).await;
    let normal = bed.insert(priority("normal")).await;
    bed.clock.advance_ms(29_999);
    let hasty = bed.insert(priority("interactive")).await;
    bed.clock.advance_ms(300_000);
    let late = bed.insert(priority("normal")).await;
    let order = [&hasty, &normal, &bulk, &late];
    for (place, job) in order.iter().enumerate() {
        assert_eq!(bed.position(job.id).await, Some(place as u64));
    }
    for job in order {
        let claimed = bed.one().await;
        assert_eq!(claimed.job.id, job.id);
        assert_eq!(bed.position(job.id).await, None);
    }
    assert_eq!(bed.position(JobId::generate()).await, None);
    assert!(bed.store.claim(claim(8)).await.unwrap().is_empty());
}

async fn a_claim_takes_one_group(bed: Bed) {
    let first = bed.insert(plain()).await;
    let wide = bed.insert(with(|draft| draft.width = Some(128))).await;
    let tall = bed.insert(with(|draft| draft.height = Some(128))).await;
    let long = bed.insert(with(|draft| draft.steps = Some(11))).await;
    let second = bed.insert(with(|draft| draft.sampler = Some("ddim".to_owned()))).await;
    let other = bed.insert(with(|draft| draft.model = Some("other".to_owned()))).await;
    assert_eq!(claimed_ids(&bed.store.claim(claim(8)).await.unwrap()), [first.id, second.id]);
    for job in [wide, tall, long] {
        assert_eq!(claimed_ids(&bed.store.claim(claim(8)).await.unwrap()), [job.id]);
    }
    assert!(bed.store.claim(claim(8)).await.unwrap().is_empty());
    assert!(bed.store.claim(ClaimRequest { models: Vec::new(), ..claim(8) }).await.unwrap().is_empty());
    let models = ["tiny", "other"].map(ModelId::new).to_vec();
    assert_eq!(claimed_ids(&bed.store.claim(ClaimRequest { models, ..claim(8) }).await.unwrap()), [other.id]);
}

async fn of_several_models_the_oldest_job_goes_first(bed: Bed) {
    let other = bed.insert(with(|draft| draft.model = Some("other".to_owned()))).await;
    bed.insert(plain()).await;
    let models = ["tiny", "other"].map(ModelId::new).to_vec();
    assert_eq!(claimed_ids(&bed.store.claim(ClaimRequest { models, ..claim(8) }).await.unwrap()), [other.id]);
}

async fn a_claim_stays_within_rows(bed: Bed) {
    let guided = |images| {
        with(|draft| {
            draft.guidance_scale = Some(7.5);
            draft.num_images = Some(images);
        })
    };
    let mut jobs = Vec::new();
    for images in [8, 1, 2, 1, 1] {
        jobs.push(bed.insert(guided(images)).await.id);
    }
    // 16 rows: more than the cap, but first.
    assert_eq!(claimed_ids(&bed.store.claim(claim(6)).await.unwrap()), jobs[..1]);
    // 2 + 4 rows fit; the next 2 do not.
    assert_eq!(claimed_ids(&bed.store.claim(claim(6)).await.unwrap()), jobs[1..3]);
    // A cap of nothing still takes the first.
    assert_eq!(claimed_ids(&bed.store.claim(claim(0)).await.unwrap()), jobs[3..4]);
}

async fn a_claim_stays_within_row_pixels(bed: Bed) {
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(bed.insert(plain()).await.id);
    }
    let within = |max_row_pixels| ClaimRequest { max_row_pixels, ..claim(8) };
    assert_eq!(claimed_ids(&bed.store.claim(within(2 * 64 * 64 + 1)).await.unwrap()), jobs[..2]);
    assert_eq!(claimed_ids(&bed.store.claim(within(1)).await.unwrap()), jobs[2..3]);
}

fn size(width: u32) -> SizeKey {
    SizeKey { model: ModelId::new("tiny"), width, height: 64 }
}

async fn a_fill_takes_the_oldest_of_a_size_then_its_likes_then_the_rest(bed: Bed) {
    let of = |width, steps| {
        with(|draft| {
            draft.width = Some(width);
            draft.steps = Some(steps);
        })
    };
    let mut jobs = Vec::new();
    for (width, steps) in [(128, 20), (64, 30), (64, 10), (64, 20), (64, 30), (64, 20), (128, 20), (64, 20)] {
        jobs.push(bed.insert(of(width, steps)).await.id);
        bed.clock.advance_ms(1);
    }
    let fill = |width, steps, max_rows| {
        bed.store
            .claim(ClaimRequest { select: Select::Fill { size: size(width), steps, before: None }, ..claim(max_rows) })
    };
    // The oldest is taken whatever its steps; of those alike, the older.
    assert_eq!(claimed_ids(&fill(64, 20, 3).await.unwrap()), [jobs[1], jobs[3], jobs[5]]);
    assert_eq!(claimed_ids(&fill(64, 20, 8).await.unwrap()), [jobs[2], jobs[7], jobs[4]]);
    assert!(fill(64, 20, 8).await.unwrap().is_empty());
    assert!(fill(256, 20, 8).await.unwrap().is_empty());
    let models = vec![ModelId::new("other")];
    let select = Select::Fill { size: size(128), steps: 20, before: None };
    assert!(bed.store.claim(ClaimRequest { models, select, ..claim(8) }).await.unwrap().is_empty());
    assert_eq!(claimed_ids(&fill(128, 99, 8).await.unwrap()), [jobs[0], jobs[6]]);
}

async fn a_fill_prefers_likes_only_of_the_oldest_jobs_age(bed: Bed) {
    let mut jobs = Vec::new();
    for (steps, later) in [(30, 0), (40, 500), (20, 500), (50, 1), (20, 0)] {
        bed.clock.advance_ms(later);
        jobs.push(bed.insert(with(|draft| draft.steps = Some(steps))).await.id);
    }
    let select = Select::Fill { size: size(64), steps: 20, before: None };
    let taken = bed.store.claim(ClaimRequest { select, ..claim(8) }).await.unwrap();
    // The third came a second after the first and passes the second; the last is too late to pass anybody.
    assert_eq!(claimed_ids(&taken), [jobs[0], jobs[2], jobs[1], jobs[3], jobs[4]]);
}

async fn a_fill_stays_within_rows(bed: Bed) {
    let mut jobs = Vec::new();
    for images in [3, 1, 2] {
        jobs.push(bed.insert(with(|draft| draft.num_images = Some(images))).await.id);
    }
    let fill = |max_rows, max_row_pixels| {
        let select = Select::Fill { size: size(64), steps: 10, before: None };
        bed.store.claim(ClaimRequest { select, max_row_pixels, ..claim(max_rows) })
    };
    assert_eq!(claimed_ids(&fill(1, u64::MAX).await.unwrap()), jobs[..1]);
    assert_eq!(claimed_ids(&fill(8, 2 * 64 * 64).await.unwrap()), jobs[1..2]);
}

async fn another_size_is_taken_only_when_its_oldest_job_is_older(bed: Bed) {
    let of = |width, steps| {
        with(|draft| {
            draft.width = Some(width);
            draft.steps = Some(steps);
        })
    };
    let mut jobs = Vec::new();
    for (width, steps) in [(64, 10), (128, 10), (256, 10), (128, 20), (128, 10)] {
        jobs.push(bed.insert(of(width, steps)).await);
        bed.clock.advance_ms(10);
    }
    let other = |except: u32, before| {
        let select = Select::Other { except: size(except), before };
        bed.store.claim(ClaimRequest { select, ..claim(8) })
    };
    let place = |job: &Job| Some(job.place());
    assert!(other(64, place(&jobs[1])).await.unwrap().is_empty(), "as old is not older");
    // Of two accepted in the same millisecond, the first is the older.
    let earlier = QueuePlace { rank_ms: jobs[1].place().rank_ms, id: uuid::Uuid::nil().into() };
    assert!(other(64, Some(earlier)).await.unwrap().is_empty());
    // The group of the oldest of another size.
    let taken = other(64, Some(QueuePlace { id: uuid::Uuid::max().into(), ..jobs[1].place() })).await.unwrap();
    assert_eq!(claimed_ids(&taken), [jobs[1].id, jobs[4].id]);
    assert!(other(64, place(&jobs[2])).await.unwrap().is_empty());
    assert_eq!(claimed_ids(&other(64, None).await.unwrap()), [jobs[2].id]);
    assert_eq!(claimed_ids(&other(64, None).await.unwrap()), [jobs[3].id]);
    assert!(other(64, None).await.unwrap().is_empty());
    assert_eq!(claimed_ids(&other(128, None).await.unwrap()), [jobs[0].id]);
}

async fn a_fill_without_room_takes_only_who_stands_before(bed: Bed) {
    let mut jobs = Vec::new();
    for steps in [10, 20, 10, 20] {
        jobs.push(bed.insert(with(|draft| draft.steps = Some(steps))).await);
        bed.clock.advance_ms(10);
    }
    let fill = |before| {
        let select = Select::Fill { size: size(64), steps: 20, before };
        bed.store.claim(ClaimRequest { select, ..claim(8) })
    };
    assert!(fill(Some(jobs[0].place())).await.unwrap().is_empty());
    assert_eq!(claimed_ids(&fill(Some(jobs[3].place())).await.unwrap()), [jobs[0].id, jobs[1].id, jobs[2].id]);
    let after = QueuePlace { rank_ms: jobs[3].place().rank_ms + 1, ..jobs[3].place() };
    assert_eq!(claimed_ids(&fill(Some(after)).await.unwrap()), [jobs[3].id]);
}

for_every_store![
    the_oldest_goes_first_moved_by_priority,
    a_claim_takes_one_group,
    of_several_models_the_oldest_job_goes_first,
    a_claim_stays_within_rows,
    a_claim_stays_within_row_pixels,
    a_fill_takes_the_oldest_of_a_size_then_its_likes_then_the_rest,
    a_fill_prefers_likes_only_of_the_oldest_jobs_age,
    a_fill_stays_within_rows,
    a_fill_without_room_takes_only_who_stands_before,
    another_size_is_taken_only_when_its_oldest_job_is_older,
];
