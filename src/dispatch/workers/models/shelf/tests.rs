use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A shelf and its time; models `a`, `b`, ... that take 10 bytes each and load in a second.
struct Bed {
    shelf: Shelf,
    now: Instant,
}

fn id(name: &str) -> ModelId {
    ModelId::new(name)
}

fn want(models: &[&str], rank_ms: i64) -> Want {
    Want { models: models.iter().map(|model| id(model)).collect(), rank_ms }
}

impl Bed {
    fn new(budget: u64) -> Self {
        let models = ["a", "b", "c", "d"].map(|name| (id(name), 10));
        Self { shelf: Shelf::new(budget, models), now: Instant::now() }
    }

    fn want(&mut self, wants: &[(&str, i64)]) {
        self.shelf.want(wants.iter().map(|(model, rank)| want(&[*model], *rank)).collect());
    }

    fn next(&mut self) -> Next {
        self.shelf.next(self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// What is to be loaded, is.
    fn load(&mut self, model: &str) {
        assert_eq!(self.next(), Next::Load(id(model)));
        self.pass(SECOND);
        self.shelf.loaded(&id(model), 10, SECOND, self.now);
    }

    /// Somebody drew with it.
    fn draw(&mut self, model: &str) {
        self.shelf.hold(&id(model));
        self.shelf.let_go(&id(model), true);
    }

    fn present(&self) -> Vec<String> {
        self.shelf.present().iter().map(ToString::to_string).collect()
    }
}

/// `a` and `b` are there, nothing is wanted, and both have stayed for long.
fn two_of_four() -> Bed {
    let mut bed = Bed::new(25);
    bed.want(&[("b", 2), ("a", 1)]);
    bed.load("a");
    bed.load("b");
    bed.want(&[]);
    bed.pass(10 * SECOND);
    bed
}

#[test]
fn what_is_wanted_is_loaded_one_at_a_time_the_oldest_first() {
    let mut bed = Bed::new(100);
    assert_eq!(bed.next(), Next::Rest);
    bed.want(&[("b", 2), ("a", 1), ("c", 3)]);
    assert_eq!(bed.next(), Next::Load(id("a")));
    assert_eq!(bed.next(), Next::Rest, "it is loading");
    assert_eq!(bed.shelf.held(), 10, "its room is taken");
    bed.shelf.loaded(&id("a"), 12, SECOND, bed.now);
    assert_eq!((bed.shelf.held(), bed.present()), (12, vec!["a".to_owned()]));
    bed.load("b");
    bed.load("c");
    assert!(!bed.shelf.is_complete());
    bed.want(&[("d", 4)]);
    bed.load("d");
    assert!(bed.shelf.is_complete());
}

#[test]
fn the_least_recently_used_makes_room() {
    let mut bed = two_of_four();
    bed.draw("a");
    bed.want(&[("c", 3)]);
    assert_eq!(bed.next(), Next::Drop(id("b")));
    bed.load("c");
    bed.want(&[("b", 4)]);
    bed.draw("c");
    assert_eq!(bed.next(), Next::Drop(id("a")));
    bed.load("b");
    assert_eq!(bed.present(), ["b", "c"]);
}

#[test]
fn loras_and_controlnets_that_no_job_uses_make_room_before_any_model() {
    let mut bed = two_of_four();
    bed.shelf.extras(Extra { used: 1, unused: 10 });
    bed.shelf.loaded(&id("a"), 1, SECOND, bed.now);
    bed.want(&[("c", 3)]);
    assert_eq!(bed.next(), Next::Release, "ten for seven");
    bed.load("c");
    // One model would not be enough beside them.
    let mut bed = two_of_four();
    bed.shelf.extras(Extra { used: 3, unused: 5 });
    bed.want(&[("c", 3)]);
    assert_eq!([bed.next(), bed.next()], [Next::Release, Next::Drop(id("a"))]);
    bed.load("c");
}

#[test]
fn loras_and_controlnets_stay_where_there_is_room_and_until_it_can_be_made() {
    let mut bed = Bed::new(25);
    bed.shelf.extras(Extra { used: 0, unused: 15 });
    bed.want(&[("a", 1)]);
    bed.load("a");
    bed.shelf.hold(&id("a"));
    bed.shelf.extras(Extra { used: 0, unused: 5 });
    bed.want(&[("a", 2), ("b", 3)]);
    bed.shelf.weigh(&id("b"), 20);
    assert_eq!(bed.next(), Next::Rest, "`a` is wanted before `b`");
}

/// What its jobs use is none of a model's own bytes, and goes with them.
#[test]
fn a_model_leaves_for_one_that_needs_the_room_of_its_jobs_loras() {
    let mut bed = Bed::new(10);
    bed.shelf.weigh(&id("a"), 3);
    bed.shelf.weigh(&id("c"), 8);
    bed.want(&[("a", 1)]);
    assert_eq!(bed.next(), Next::Load(id("a")));
    bed.shelf.loaded(&id("a"), 3, SECOND, bed.now);
    bed.shelf.hold(&id("a"));
    bed.pass(10 * SECOND);
    bed.shelf.extras(Extra { used: 6, unused: 0 });
    bed.want(&[("c", 2)]);
    assert_eq!((bed.next(), bed.present()), (Next::Rest, Vec::new()), "no more jobs are begun with it");
    bed.shelf.let_go(&id("a"), true);
    bed.shelf.extras(Extra { used: 0, unused: 6 });
    assert_eq!([bed.next(), bed.next(), bed.next()], [Next::Release, Next::Drop(id("a")), Next::Load(id("c"))]);
}

#[test]
fn as_many_as_needed_make_room() {
    let mut bed = Bed::new(30);
    bed.shelf.weigh(&id("d"), 20);
    bed.want(&[("a", 1), ("b", 2), ("c", 3)]);
    for model in ["a", "b", "c"] {
        bed.load(model);
    }
    bed.want(&[("d", 4)]);
    assert_eq!([bed.next(), bed.next()], [Next::Drop(id("a")), Next::Drop(id("b"))]);
    assert_eq!(bed.next(), Next::Load(id("d")));
    assert_eq!(bed.shelf.held(), 30);
}

#[test]
fn what_is_used_is_not_dropped_but_begins_no_more_jobs() {
    let mut bed = two_of_four();
    for model in ["a", "b"] {
        bed.shelf.hold(&id(model));
    }
    bed.want(&[("c", 3)]);
    assert_eq!((bed.next(), bed.present()), (Next::Rest, vec!["b".to_owned()]));
    assert_eq!(bed.next(), Next::Rest, "until the jobs begun with it have ended");
    bed.shelf.let_go(&id("a"), true);
    assert_eq!(bed.next(), Next::Drop(id("a")));
    bed.load("c");
    assert_eq!(bed.present(), ["b", "c"]);
}

#[test]
fn who_leaves_stays_when_it_is_wanted_no_longer() {
    let mut bed = two_of_four();
    for model in ["a", "b"] {
        bed.shelf.hold(&id(model));
    }
    bed.want(&[("c", 3)]);
    assert_eq!((bed.next(), bed.present().len()), (Next::Rest, 1));
    bed.want(&[]);
    assert_eq!((bed.next(), bed.present().len()), (Next::Rest, 2));
}

#[test]
fn one_that_is_used_stays_for_as_long_as_its_loading_took() {
    let mut bed = Bed::new(10);
    bed.want(&[("a", 1), ("b", 2)]);
    bed.load("a");
    let loaded = bed.now;
    bed.shelf.hold(&id("a"));
    // Nothing else waits for it, but jobs that come now are begun.
    bed.want(&[("b", 2)]);
    assert_eq!((bed.next(), bed.present()), (Next::Wait(loaded + SECOND), vec!["a".to_owned()]));
    bed.pass(SECOND);
    assert_eq!((bed.next(), bed.present()), (Next::Rest, Vec::new()));
    bed.shelf.let_go(&id("a"), true);
    assert_eq!(bed.next(), Next::Drop(id("a")));
}

#[test]
fn one_that_is_idle_and_wanted_comes_to_its_jobs_first() {
    let mut bed = Bed::new(10);
    bed.want(&[("a", 5)]);
    bed.load("a");
    // Somebody came to a place before.
    bed.want(&[("a", 5), ("b", 2)]);
    assert_eq!(bed.next(), Next::Wait(bed.now + SECOND));
    bed.want(&[("b", 2)]);
    assert_eq!(bed.next(), Next::Drop(id("a")), "its jobs are done, and nobody else wants it");
}

#[test]
fn what_an_older_job_wants_is_not_dropped_for_a_younger_one() {
    let mut bed = two_of_four();
    bed.want(&[("a", 1), ("b", 2), ("c", 3)]);
    assert_eq!((bed.next(), bed.present().len()), (Next::Rest, 2));
    bed.want(&[("a", 1), ("b", 4), ("c", 3)]);
    assert_eq!(bed.next(), Next::Drop(id("b")));
}

#[test]
fn a_job_of_several_models_has_them_all() {
    let mut bed = two_of_four();
    bed.draw("a");
    bed.shelf.want(vec![want(&["a", "c"], 1), want(&["b"], 2)]);
    assert_eq!(bed.next(), Next::Drop(id("b")));
    bed.load("c");
    assert_eq!(bed.present(), ["a", "c"]);
}

#[test]
fn one_that_failed_is_tried_again_later() {
    let mut bed = Bed::new(100);
    bed.want(&[("a", 1), ("b", 2)]);
    assert_eq!(bed.next(), Next::Load(id("a")));
    bed.shelf.failed(&id("a"), "torn".to_owned(), bed.now);
    assert_eq!(bed.shelf.failing(bed.now), [(id("a"), "torn".to_owned())]);
    bed.load("b");
    bed.want(&[("a", 3)]);
    assert_eq!(bed.next(), Next::Rest);
    bed.pass(RETRY_AFTER);
    assert_eq!((bed.shelf.failing(bed.now), bed.next()), (Vec::new(), Next::Load(id("a"))));
    bed.shelf.loaded(&id("a"), 10, SECOND, bed.now);
    assert_eq!(bed.shelf.statuses()[&id("a")].reason, None);
}

#[test]
fn one_that_never_finds_room_fails_and_drops_nobody() {
    let mut bed = two_of_four();
    bed.shelf.weigh(&id("c"), 26 << 20);
    bed.want(&[("c", 1), ("d", 2)]);
    assert_eq!(bed.next(), Next::Drop(id("a")), "for `d`, which has room");
    let failing = bed.shelf.failing(bed.now);
    assert!(
        matches!(&failing[..], [(model, reason)] if *model == id("c") && reason.contains("needs 26 MiB")),
        "{failing:?}"
    );
    assert!(bed.shelf.refusal_at_start(&id("d"), 10).is_none());
    assert!(bed.shelf.refusal_at_start(&id("d"), 16).is_some_and(|reason| reason.contains("`b`, `d` need")));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// A job that waits, or is drawn.
    #[derive(Clone, Debug)]
    struct Job {
        model: usize,
        accepted: u64,
        steps: u32,
    }

    /// What comes in one tick.
    fn arrivals() -> impl Strategy<Value = Vec<(usize, u32)>> {
        prop::collection::vec((0..4usize, 1..6u32), 0..3)
    }

    proptest! {
        /// Jobs of four models where there is room for two, but not beside what four jobs use besides: nothing is loaded beyond the
        /// bound, nothing that is used is dropped, and every job is done.
        #[test]
        fn jobs_of_all_models_are_done(ticks in prop::collection::vec(arrivals(), 1..60), loads in 1..5u32) {
            let names = ["a", "b", "c", "d"];
            let mut bed = Bed::new(24);
            let (mut waiting, mut drawn): (Vec<Job>, Vec<Job>) = (Vec::new(), Vec::new());
            let mut loading: Option<(ModelId, u32)> = None;
            let mut last = 0;
            for tick in 0..20_000u64 {
                if let Some(arrived) = ticks.get(tick as usize) {
                    waiting.extend(arrived.iter().map(|(model, steps)| Job { model: *model, accepted: tick, steps: *steps }));
                } else if waiting.is_empty() && drawn.is_empty() {
                    break;
                }
                last = tick;
                bed.pass(SECOND);
                bed.want(&waiting.iter().map(|job| (names[job.model], job.accepted as i64)).collect::<Vec<_>>());
                // Each job has something of its own, and something stays for others until there is no room.
                let mut extras = Extra { used: 3 * drawn.len() as u64, unused: 4 };
                bed.shelf.extras(extras);
                loop {
                    match bed.next() {
                        Next::Load(model) => {
                            loading = Some((model, loads));
                            prop_assert!(bed.shelf.held() + extras.used + extras.unused <= 24);
                        }
                        Next::Release => extras.unused = 0,
                        Next::Drop(model) => prop_assert!(drawn.iter().all(|job| names[job.model] != model.as_str())),
                        Next::Wait(_) | Next::Rest => break,
                    }
                    prop_assert!(bed.shelf.held() <= 20);
                }
                // The device: four jobs at most, the oldest of a model that is there first.
                let present = bed.present();
                while drawn.len() < 4 {
                    let Some(at) = waiting.iter().position(|job| present.iter().any(|it| it == names[job.model])) else { break };
                    bed.shelf.hold(&id(names[waiting[at].model]));
                    drawn.push(waiting.remove(at));
                }
                drawn.iter_mut().for_each(|job| job.steps -= 1);
                for job in drawn.extract_if(.., |job| job.steps == 0) {
                    bed.shelf.let_go(&id(names[job.model]), true);
                }
                if let Some((model, left)) = &mut loading {
                    *left -= 1;
                    if *left == 0 {
                        bed.shelf.loaded(model, 10, SECOND * loads, bed.now);
                        loading = None;
                    }
                }
            }
            prop_assert!(waiting.is_empty() && drawn.is_empty(), "left after {last} ticks: {waiting:?} {drawn:?}");
            // At most 120 jobs of 5 steps, and a turn for each at the worst.
            prop_assert!(last < 60 + 120 * (5 + 2 * u64::from(loads)), "{last} ticks");
        }
    }
}
