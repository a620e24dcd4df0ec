//! States of parked jobs, damaged and made up: told, and never a panic; whatever of them is taken, the engine ends the job.

use std::sync::{Arc, Mutex};

use darkroom::diffusion::engine::{EngineEvent, EngineJob, EngineOptions, ParkedJob, StepLoop};
use darkroom::diffusion::pipelines::Pipeline;
use darkroom::domain::{ErrorCode, GenerationRequest, JobId, QueuePlace, RequestDraft};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::{runner, within_memory};
use crate::support::drafts::{checked, draft, pipeline};

struct Bed {
    engine: StepLoop,
    pipelines: Vec<Arc<dyn Pipeline>>,
    events: Arc<Mutex<Vec<EngineEvent>>>,
    request: Arc<GenerationRequest>,
}

impl Bed {
    /// A request whose state has parts of every kind: held, remembered and drawn noise among them.
    fn new(sampler: &str) -> Self {
        let events: Arc<Mutex<Vec<EngineEvent>>> = Arc::default();
        let told = events.clone();
        let sink = Arc::new(move |event| told.lock().unwrap().push(event));
        let tiny = pipeline("tiny-sd");
        let draft = RequestDraft { sampler: Some(sampler.to_owned()), num_images: Some(2), ..draft("a house", 1) };
        let request = Arc::new(checked(draft, tiny.as_ref()));
        Self { engine: StepLoop::new(EngineOptions::default(), sink), pipelines: vec![tiny], events, request }
    }

    fn admit(&mut self, id: JobId, parked: Option<Box<ParkedJob>>) {
        let (request, place) = (self.request.clone(), QueuePlace { rank_ms: 0, id });
        let (controls, pipelines) = (Vec::new(), self.pipelines.clone());
        self.engine.admit(&EngineJob { id, request, canvas: None, controls, place, pipelines, parked });
    }

    fn parked(&mut self) -> Vec<u8> {
        let id = JobId::generate();
        self.admit(id, None);
        (0..3).for_each(|_| self.engine.tick());
        self.engine.park(id);
        let parked = self.events.lock().unwrap().drain(..).find_map(|event| match event {
            EngineEvent::Parked { parked, .. } => parked,
            _ => None,
        });
        parked.unwrap().to_bytes().unwrap()
    }

    /// Whether the job goes on from this state; it ends in either case, and not by a panic.
    fn ends(&mut self, parked: ParkedJob) -> Result<bool, TestCaseError> {
        self.admit(parked.job(), Some(Box::new(parked)));
        while !self.engine.is_idle() {
            self.engine.tick();
        }
        let (mut is_resumed, mut ends) = (false, Vec::new());
        for event in self.events.lock().unwrap().drain(..) {
            match event {
                EngineEvent::Started { is_resumed: true, .. } => is_resumed = true,
                EngineEvent::Finished { .. } => ends.push(None),
                EngineEvent::Failed { code, .. } => ends.push(Some(code)),
                _ => {}
            }
        }
        // Latents may have become what is no number.
        prop_assert!(matches!(ends[..], [None | Some(ErrorCode::GenerationFailed)]), "{ends:?}");
        Ok(is_resumed)
    }
}

/// One change to bytes: where, as a share of them, and what.
#[derive(Clone, Copy, Debug)]
enum Injury {
    Set(f64, u8),
    Flip(f64, u8),
    Cut(f64),
    Insert(f64, u8),
    Remove(f64),
    /// A digit of the header becomes another.
    Digit(f64, u8),
}

fn injuries() -> impl Strategy<Value = Injury> {
    let at = || 0.0..1.0f64;
    // Half of them hit the frame and the header.
    let early = || prop_oneof![at(), at().prop_map(|at| at / 10.0)];
    prop_oneof![
        (early(), any::<u8>()).prop_map(|(at, byte)| Injury::Set(at, byte)),
        (early(), 0..8u8).prop_map(|(at, bit)| Injury::Flip(at, bit)),
        at().prop_map(Injury::Cut),
        (early(), any::<u8>()).prop_map(|(at, byte)| Injury::Insert(at, byte)),
        early().prop_map(Injury::Remove),
        (at(), b'0'..=b'9').prop_map(|(at, digit)| Injury::Digit(at, digit)),
    ]
}

fn injured(bytes: &mut Vec<u8>, injury: Injury) {
    let place = |bytes: &[u8], at: f64| ((bytes.len() as f64 * at) as usize).min(bytes.len().saturating_sub(1));
    match injury {
        _ if bytes.is_empty() => {}
        Injury::Set(at, byte) => {
            let at = place(bytes, at);
            bytes[at] = byte;
        }
        Injury::Flip(at, bit) => {
            let at = place(bytes, at);
            bytes[at] ^= 1 << bit;
        }
        Injury::Cut(at) => bytes.truncate(place(bytes, at)),
        Injury::Insert(at, byte) => bytes.insert(place(bytes, at), byte),
        Injury::Remove(at) => {
            bytes.remove(place(bytes, at));
        }
        Injury::Digit(at, digit) => {
            let digits: Vec<usize> = (16..bytes.len().min(4000)).filter(|at| bytes[*at].is_ascii_digit()).collect();
            if !digits.is_empty() {
                bytes[digits[(digits.len() as f64 * at) as usize]] = digit;
            }
        }
    }
}

/// Makes the checksum right again.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(body) = bytes.len().checked_sub(32) {
        let checksum = Sha256::digest(&bytes[..body]);
        bytes[body..].copy_from_slice(&checksum);
    }
    bytes
}

#[test]
fn a_damaged_state_is_refused_and_one_whose_checksum_is_right_ends_its_job() {
    within_memory(
        "fuzz::parked::a_damaged_state_is_refused_and_one_whose_checksum_is_right_ends_its_job",
        3000,
        || {
            for sampler in ["dpmpp_3m_sde", "unipc", "euler_a"] {
                let bed = std::cell::RefCell::new(Bed::new(sampler));
                let whole = bed.borrow_mut().parked();
                let (read, taken) = (std::cell::Cell::new(0u32), std::cell::Cell::new(0u32));
                let strategy = (prop::collection::vec(injuries(), 1..4), any::<bool>());
                let result = runner(600).run(&strategy, |(injuries, seals)| {
                    let mut bytes = whole.clone();
                    injuries.into_iter().for_each(|injury| injured(&mut bytes, injury));
                    let bytes = if seals { sealed(bytes) } else { bytes };
                    match ParkedJob::from_bytes(&bytes) {
                        Ok(parked) => {
                            prop_assert!(seals || bytes == whole, "damage was read");
                            read.set(read.get() + 1);
                            let is_taken = bed.borrow_mut().ends(parked)?;
                            taken.set(taken.get() + u32::from(is_taken));
                        }
                        Err(error) => prop_assert!(!error.to_string().is_empty()),
                    }
                    Ok(())
                });
                if let Err(failure) = result {
                    panic!("{sampler}: {failure}");
                }
                assert!(read.get() > taken.get() && taken.get() > 0, "{} read, {} taken", read.get(), taken.get());
            }
        },
    );
}

#[test]
fn noise_is_no_state() {
    let noise = (any::<bool>(), 0..3u32, any::<u32>(), prop::collection::vec(any::<u8>(), 0..300));
    let result = runner(4000).run(&noise, |(frames, version, length, noise)| {
        let mut bytes = noise;
        if frames {
            let length = if length % 2 == 0 { length } else { length % 300 };
            let frame = [&b"DARKPARK"[..], &version.to_le_bytes(), &length.to_le_bytes()].concat();
            bytes.splice(0..0, frame);
            bytes = sealed(bytes);
        }
        prop_assert!(ParkedJob::from_bytes(&bytes).is_err());
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
