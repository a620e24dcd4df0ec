//! PyTorch's CPU noise, bit for bit. `tests/fixtures/noise/make_noise.py` made the reference.

use darkroom::diffusion::noise::TorchCpuGenerator;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    seed: u64,
    draws: Vec<Draw>,
}

#[derive(Deserialize)]
struct Draw {
    length: usize,
    first: Vec<u32>,
    last: Vec<u32>,
    fnv1a: String,
}

#[test]
fn torch_randn_bit_for_bit() {
    let fixture: Fixture = serde_json::from_str(include_str!("../../fixtures/noise/noise.json")).unwrap();
    let mut values = 0;
    for case in &fixture.cases {
        let mut generator = TorchCpuGenerator::new(case.seed);
        for (index, draw) in case.draws.iter().enumerate() {
            let name = format!("seed {}, draw {index} of {} values", case.seed, draw.length);
            let mut out = vec![f32::NAN; draw.length];
            generator.standard_normal(&mut out);
            let bits: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
            assert_eq!(bits[..draw.first.len()], draw.first, "{name}: first values");
            assert_eq!(bits[bits.len() - draw.last.len()..], draw.last, "{name}: last values");
            assert_eq!(format!("{:016x}", fnv1a(&bits)), draw.fnv1a, "{name}: somewhere in between");
            values += draw.length;
        }
    }
    assert!(values > 2_000_000, "only {values} values compared: is the fixture whole?");
}

pub(super) fn fnv1a(words: &[u32]) -> u64 {
    words.iter().fold(0xcbf2_9ce4_8422_2325, |state, &word| (state ^ u64::from(word)).wrapping_mul(0x100_0000_01b3))
}
