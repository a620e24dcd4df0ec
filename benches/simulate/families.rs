//! The named traces and devices.

use super::traffic::{Arrivals, Family, Mix};
use super::world::Device;

/// 20 ms whatever the rows and 4 ms each: batching pays.
pub(super) const SHARED: Device = Device { fixed: 0.020, per_row: 0.004, cap: 16 };
/// 1 ms and 20 ms a row: batching saves next to nothing.
const SATURATED: Device = Device { fixed: 0.001, per_row: 0.020, cap: 16 };

pub(super) const LOADS: [f64; 5] = [0.2, 0.5, 0.8, 0.9, 0.95];

pub(super) fn families() -> Vec<Family> {
    let mix = |scales: &[f64]| Mix { scales: scales.to_vec(), steps: vec![20, 30, 50] };
    let (one, two) = (mix(&[1.0]), mix(&[1.0, 2.25]));
    let (far, four) = (mix(&[1.0, 4.0]), mix(&[1.0, 1.5, 2.25, 4.0]));
    let small = Arrivals::Bursts { least: 4, most: 8 };
    let large = Arrivals::Bursts { least: 8, most: 12 };
    let poisson = Arrivals::Poisson;
    let family = |name, device, mix: &Mix, arrivals, loads: &[f64], devices| {
        let (mix, loads) = (mix.clone(), loads.to_vec());
        Family { name, device, mix, arrivals, loads, devices }
    };
    vec![
        family("one resolution, Poisson", SHARED, &one, poisson, &LOADS, 1),
        family("one resolution, bursts of 4 to 8", SHARED, &one, small, &LOADS, 1),
        family("one resolution, bursts of 8 to 12", SHARED, &one, large, &LOADS, 1),
        family("one resolution, waves", SHARED, &one, Arrivals::Waves, &LOADS, 1),
        family("two resolutions, Poisson", SHARED, &two, poisson, &LOADS, 1),
        family("two resolutions, bursts of 4 to 8", SHARED, &two, small, &LOADS, 1),
        family("two resolutions, bursts of 8 to 12", SHARED, &two, large, &LOADS, 1),
        family("two resolutions, waves", SHARED, &two, Arrivals::Waves, &LOADS, 1),
        family("two resolutions, one of 4 times the pixels, Poisson", SHARED, &far, poisson, &LOADS, 1),
        family("two resolutions, one of 4 times the pixels, bursts of 8 to 12", SHARED, &far, large, &LOADS, 1),
        family("four resolutions, Poisson", SHARED, &four, poisson, &LOADS, 1),
        family("four resolutions, bursts of 8 to 12", SHARED, &four, large, &LOADS, 1),
        family("saturated device, one resolution, Poisson", SATURATED, &one, poisson, &LOADS, 1),
        family("saturated device, one resolution, bursts of 4 to 8", SATURATED, &one, small, &LOADS, 1),
        family("saturated device, two resolutions, Poisson", SATURATED, &two, poisson, &LOADS, 1),
        family("saturated device, two resolutions, bursts of 4 to 8", SATURATED, &two, small, &LOADS, 1),
        family("4 devices, two resolutions, Poisson", SHARED, &two, poisson, &[0.5, 0.8], 4),
        family("16 devices, two resolutions, Poisson", SHARED, &two, poisson, &[0.5, 0.8], 16),
        family("64 devices, two resolutions, Poisson", SHARED, &two, poisson, &[0.5, 0.8], 64),
        family("256 devices, two resolutions, Poisson", SHARED, &two, poisson, &[0.5, 0.8], 256),
    ]
}
