//! Costs learnt from a made-up clock.

use super::super::tests::sample;
use super::fit::LEAST_RATIO;
use super::*;

const CAPS: BatchCaps = BatchCaps { max_rows: 32, max_row_pixels: u64::MAX };

/// A device's clock: fixed, per row, and noise of a few percent that repeats after 7 and 11 forwards.
fn seconds(fixed: f64, per_row: f64, rows: u32, count: usize) -> f64 {
    let noise = ((count % 7) as f64 / 7.0 - 0.43) * 0.03 + ((count % 11) as f64 / 11.0 - 0.45) * 0.02;
    (fixed + per_row * f64::from(rows)) * (1.0 + noise)
}

fn trained(fixed: f64, per_row: f64, outlier: f64) -> CostModel {
    let (mut model, key) = (CostModel::new(CAPS), sample(0, 8, 1, 1).key);
    for count in 0..400 {
        let rows = [2, 4, 6, 10, 16][count % 5];
        let slow = if count % 50 == 49 { outlier } else { 1.0 };
        model.observe(&key, rows, seconds(fixed, per_row, rows, count) * slow);
    }
    model
}

#[test]
fn both_parts_are_found_among_noise_and_outliers() {
    for (fixed, per_row) in [(0.020, 0.004), (0.001, 0.020), (0.1, 0.001)] {
        for outlier in [1.0, 20.0] {
            let found = trained(fixed, per_row, outlier).of(&sample(0, 8, 1, 1).key);
            let of_ten = found.seconds(10) / (fixed + 10.0 * per_row);
            assert!((0.95..1.05).contains(&of_ten), "{found:?} {outlier}");
            // The ratio decides; noise of 2 % on the smallest part's forwards bounds how well it can be known.
            let rows = Cost { fixed, per_row }.rows(16).abs_diff(found.rows(16));
            assert!(rows <= 2 || found.fixed > 10.0 * found.per_row, "{found:?} {outlier}: {rows} rows off");
        }
    }
}

#[test]
fn forwards_of_one_size_keep_the_ratio() {
    let (mut model, key) = (trained(0.020, 0.004, 1.0), sample(0, 8, 1, 1).key);
    for count in 0..2000 {
        model.observe(&key, 4, seconds(0.020, 0.004, 4, count));
    }
    let after = model.of(&key);
    assert!((after.seconds(4) / 0.036 - 1.0).abs() < 0.02, "{after:?}");
    assert!((4.0..6.0).contains(&(after.fixed / after.per_row)), "{after:?}");
}

#[test]
fn a_forward_is_never_taken_for_free() {
    let found = trained(0.0, 0.020, 1.0).of(&sample(0, 8, 1, 1).key);
    assert!(found.fixed >= 0.99 * LEAST_RATIO * found.per_row && found.rows(40) >= 2, "{found:?}");
}

#[test]
fn a_device_that_becomes_slower_for_good_is_believed() {
    let (mut model, key) = (trained(0.020, 0.004, 1.0), sample(0, 8, 1, 1).key);
    for count in 0..400 {
        let rows = [2, 4, 6, 10, 16][count % 5];
        model.observe(&key, rows, seconds(0.010, 0.030, rows, count));
    }
    let after = model.of(&key);
    assert!((after.seconds(10) / 0.310 - 1.0).abs() < 0.05, "{after:?}");
    assert!(after.rows(16) <= 6, "{after:?}");
}

#[test]
fn a_size_never_seen_is_guessed_from_the_nearest_of_its_model() {
    let model = trained(0.020, 0.004, 1.0);
    let known = model.of(&sample(0, 8, 1, 1).key);
    let guessed = model.of(&sample(0, 16, 1, 1).key);
    assert_eq!((guessed.fixed, guessed.per_row), (known.fixed, 4.0 * known.per_row));
    let other = BatchKey { model: crate::domain::ModelId::new("other"), ..(*sample(0, 8, 1, 1).key).clone() };
    assert_eq!(model.of(&other), Cost { fixed: PRIOR_RATIO, per_row: 1.0 });
}

#[test]
fn the_best_number_of_rows_follows_the_costs() {
    let saturated = Cost { fixed: 0.001, per_row: 0.020 };
    assert_eq!((saturated.rows(2), saturated.rows(13), saturated.rows(20)), (0, 1, 2));
    let idle = Cost { fixed: 0.020, per_row: 0.004 };
    assert_eq!((idle.rows(1), idle.rows(16)), (4, 22));
    assert_eq!(Cost { fixed: 1.0, per_row: 1e-300 }.rows(u32::MAX), u32::MAX);
}

#[test]
fn what_clients_choose_does_not_fill_the_memory() {
    let mut model = CostModel::new(CAPS);
    for side in 1..=2 * MAX_KEYS {
        model.observe(&sample(0, side, 1, 1).key, 2, 0.01);
    }
    assert_eq!(model.keys.len(), MAX_KEYS);
    assert!(model.keys.contains_key(&sample(0, 2 * MAX_KEYS, 1, 1).key));
}

#[test]
fn memory_that_ran_out_binds_its_own_key_and_no_other() {
    let (mut model, key) = (CostModel::new(CAPS), sample(0, 8, 1, 1).key);
    model.ran_out(&key, 12);
    assert_eq!(model.bound(&key), (12, StopReason::Memory));
    assert_eq!(model.bound(&sample(0, 16, 1, 1).key), (32, StopReason::MaxRows));
    // What was not measured tells nothing of seconds.
    assert_eq!(model.of(&key), Cost { fixed: PRIOR_RATIO, per_row: 1.0 });
}

#[test]
fn a_bound_of_memory_is_forgotten_once_it_binds_no_more() {
    let (mut model, key) = (CostModel::new(CAPS), sample(0, 8, 1, 1).key);
    model.ran_out(&key, 16);
    let mut forwards = 0;
    while model.bound(&key).1 == StopReason::Memory {
        model.observe(&key, model.bound(&key).0, 0.1);
        forwards += 1;
    }
    // 16, 20, 25, 31.
    assert_eq!((model.bound(&key).0, forwards), (32, 4 * 64));
}

#[test]
fn memory_bounds_rows_by_what_was_measured_and_unknown_sizes_with_care() {
    let (mut model, key) = (CostModel::new(CAPS), sample(0, 8, 1, 1).key);
    let of = |side| sample(0, side, 1, 1).key;
    model.observe_bytes(&key, 2, 2_000);
    assert_eq!(model.bound(&key), (32, StopReason::MaxRows), "nobody bounds it");
    model.bound_memory(Some(12_000));
    assert_eq!(model.bound(&key), (12, StopReason::Memory));
    // Half again as much for a guess, and four times the pixels; what is smaller is not taken for cheaper.
    assert_eq!(model.bound(&of(16)), (2, StopReason::Memory));
    assert_eq!(model.bound(&of(4)), (8, StopReason::Memory));
    // Once measured it stands for itself.
    model.observe_bytes(&of(16), 1, 3_000);
    assert_eq!(model.bound(&of(16)), (4, StopReason::Memory));
    let other = BatchKey { model: crate::domain::ModelId::new("other"), ..(*key).clone() };
    assert_eq!(model.bound(&other), (1, StopReason::Memory));
}
