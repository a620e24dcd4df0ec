//! The policy `continuous` in the real step loop: who is aboard when, and that nobody's picture notices.

use darkroom::domain::{GenerationRequest, RequestDraft};

use super::alone;
use super::stepper::{Stepper, continuous};
use crate::support::drafts::{checked, draft, pipeline};

fn request(seed: u64, change: impl FnOnce(&mut RequestDraft)) -> GenerationRequest {
    let mut draft = draft(&format!("picture number {seed}"), seed);
    change(&mut draft);
    checked(draft, pipeline("tiny-sd").as_ref())
}

fn stepper(max_rows: u32) -> Stepper {
    Stepper::new(vec![pipeline("tiny-sd"), pipeline("tiny-sd2")], continuous(max_rows), None)
}

/// Samples and steps of each forward.
fn aboard(stepper: &Stepper) -> Vec<(u32, Option<u32>)> {
    stepper.batches.iter().map(|report| (report.samples, report.steps)).collect()
}

fn assert_as_alone(stepper: &Stepper, jobs: &[(darkroom::domain::JobId, &GenerationRequest)]) {
    for (id, request) in jobs {
        for (image, picture) in alone(request).into_iter().enumerate() {
            assert!(stepper.pictures[&(*id, image as u32)] == picture, "{} image {image}", request.prompt());
        }
    }
}

#[test]
fn a_job_joins_a_running_batch_leaves_it_and_its_place_is_taken() {
    // One guided sample and a plain one beside it, no more.
    let mut stepper = stepper(3);
    let long = request(1, |draft| {
        draft.steps = Some(9);
        draft.sampler = Some("ddim".to_owned());
    });
    let short = request(2, |draft| {
        draft.steps = Some(3);
        draft.guidance_scale = Some(1.0);
        draft.sampler = Some("euler_a".to_owned());
    });
    let next = request(3, |draft| {
        draft.steps = Some(2);
        draft.guidance_scale = Some(1.0);
        draft.sampler = Some("dpmpp_2m".to_owned());
    });
    let first = stepper.admit(&long);
    stepper.step();
    let second = stepper.admit(&short);
    let third = stepper.admit(&next);
    stepper.run();
    // Alone; with the second for its three steps; with the third for its two; alone.
    let mut expected = vec![(1, Some(9))];
    expected.extend([(2, None); 5]);
    expected.extend([(1, Some(9)); 3]);
    assert_eq!(aboard(&stepper), expected);
    assert_eq!(stepper.finished, [second, third, first]);
    assert_as_alone(&stepper, &[(first, &long), (second, &short), (third, &next)]);
}

#[test]
fn a_cancelled_job_leaves_at_the_next_step_and_the_next_one_takes_its_place() {
    let mut stepper = stepper(2);
    let plain = |seed| {
        request(seed, |draft| {
            draft.steps = Some(5);
            draft.guidance_scale = Some(1.0);
        })
    };
    let requests: Vec<_> = (1..=3).map(plain).collect();
    let jobs: Vec<_> = requests.iter().map(|request| stepper.admit(request)).collect();
    stepper.step();
    stepper.step();
    stepper.cancel(jobs[0]);
    stepper.run();
    // Two steps of the first and second, three of the second and third, two of the third.
    assert_eq!(stepper.batches.iter().map(|report| report.jobs).collect::<Vec<_>>(), [2, 2, 2, 2, 2, 1, 1]);
    assert_eq!((stepper.cancelled.as_slice(), stepper.finished.as_slice()), (&jobs[..1], &jobs[1..]));
    assert_as_alone(&stepper, &[(jobs[1], &requests[1]), (jobs[2], &requests[2])]);
}

#[test]
fn a_parked_picture_goes_on_to_the_same_bytes() {
    let mut stepper = stepper(8);
    let small = request(1, |draft| draft.steps = Some(2));
    let late = request(2, |draft| {
        draft.steps = Some(7);
        draft.sampler = Some("ddpm".to_owned());
    });
    let wide = request(3, |draft| draft.width = Some(32));
    let first = stepper.admit(&small);
    let other = stepper.admit(&wide);
    stepper.step();
    let second = stepper.admit(&late);
    stepper.run();
    // The first's turn is two steps; who joined it waits until the wide one has had its own.
    let widths: Vec<u32> = stepper.batches.iter().map(|report| report.width).collect();
    assert_eq!(widths, [16, 16, 32, 32, 32, 32, 16, 16, 16, 16, 16, 16]);
    assert_eq!(stepper.finished, [first, other, second]);
    assert_as_alone(&stepper, &[(first, &small), (second, &late), (other, &wide)]);
}

#[test]
fn an_interactive_picture_takes_the_place_of_a_bulk_one_which_goes_on_to_the_same_bytes() {
    let mut stepper = stepper(2);
    let bulk = request(1, |draft| {
        draft.steps = Some(6);
        draft.sampler = Some("dpmpp_2m".to_owned());
    });
    let interactive = request(2, |draft| draft.steps = Some(3));
    let first = stepper.admit_at(&bulk, 300_000);
    stepper.step();
    stepper.step();
    let second = stepper.admit_at(&interactive, -29_000);
    stepper.run();
    assert_eq!(aboard(&stepper), [[(1, Some(6)); 2].as_slice(), &[(1, Some(3)); 3], &[(1, Some(6)); 4]].concat());
    assert_eq!(stepper.finished, [second, first]);
    assert_as_alone(&stepper, &[(first, &bulk), (second, &interactive)]);
}

#[test]
fn models_have_turns_too() {
    let mut stepper = stepper(8);
    let one = request(1, |_| ());
    let large = RequestDraft { width: Some(32), height: Some(32), ..draft("another model's", 2) };
    let two = checked(large, pipeline("tiny-sd2").as_ref());
    let jobs = [stepper.admit(&one), stepper.admit(&two)];
    stepper.run();
    let models: Vec<&str> = stepper.batches.iter().map(|report| report.model.as_str()).collect();
    assert_eq!(models, [["tiny-sd"; 4], ["tiny-sd2"; 4]].concat());
    assert_as_alone(&stepper, &[(jobs[0], &one), (jobs[1], &two)]);
}
