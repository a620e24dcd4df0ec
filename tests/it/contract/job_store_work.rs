//! What every `JobStore` tells of the work that waits.

use darkroom::dispatch::jobs::WaitingWork;
use darkroom::domain::{Job, ModelId, SizeKey};

use super::job_store_bed::{Bed, OPTIONS, plain, with};

fn work(model: &str, width: u32, (jobs, rows, row_steps): (u64, u64, u64)) -> WaitingWork {
    WaitingWork { size: SizeKey { model: ModelId::new(model), width, height: 64 }, jobs, rows, row_steps }
}

async fn before(bed: &Bed, job: Option<&Job>) -> Vec<WaitingWork> {
    let mut work = match job {
        Some(job) => bed.store.ahead(job.id).await.unwrap().unwrap().work,
        None => bed.store.waiting_work().await.unwrap(),
    };
    work.sort_by(|a, b| a.size.cmp(&b.size));
    work
}

async fn the_work_before_a_place_is_told_by_size(bed: Bed) {
    assert_eq!(before(&bed, None).await, []);
    // Two pictures, guided: four rows a step.
    let four_rows = with(|draft| {
        draft.num_images = Some(2);
        draft.guidance_scale = Some(7.5);
        draft.steps = Some(12);
    });
    let first = bed.insert(four_rows).await;
    bed.clock.advance_ms(1);
    let wide = bed.insert(with(|draft| draft.width = Some(128))).await;
    bed.clock.advance_ms(1);
    bed.insert(with(|draft| draft.model = Some("other".to_owned()))).await;
    bed.clock.advance_ms(1);
    let last = bed.insert(with(|draft| draft.steps = Some(30))).await;
    bed.clock.advance_ms(1);
    let hasty = bed.insert(with(|draft| draft.priority = Some("interactive".to_owned()))).await;
    let (other, small) = (work("other", 64, (1, 1, 10)), work("tiny", 64, (2, 5, 4 * 12 + 10)));
    // The hasty one stands before all others.
    assert_eq!(before(&bed, Some(&hasty)).await, []);
    assert_eq!(before(&bed, Some(&first)).await, [work("tiny", 64, (1, 1, 10))]);
    assert_eq!(before(&bed, Some(&wide)).await, std::slice::from_ref(&small));
    assert_eq!(before(&bed, Some(&last)).await, [other.clone(), small, work("tiny", 128, (1, 1, 10))]);
    let all = [other, work("tiny", 64, (3, 6, 4 * 12 + 10 + 30)), work("tiny", 128, (1, 1, 10))];
    assert_eq!(before(&bed, None).await, all);
}

async fn work_that_a_worker_took_waits_no_more(bed: Bed) {
    bed.insert(plain()).await;
    bed.insert(with(|draft| draft.steps = Some(11))).await;
    let claimed = bed.one().await;
    assert_eq!(before(&bed, None).await, [work("tiny", 64, (1, 1, 11))]);
    bed.store.release(&claimed.lease).await.unwrap();
    assert_eq!(before(&bed, None).await, [work("tiny", 64, (2, 2, 21))]);
}

for_every_store![the_work_before_a_place_is_told_by_size, work_that_a_worker_took_waits_no_more,];
