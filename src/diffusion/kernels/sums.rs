//! The inner loop of products and convolutions: a block of sums in registers, over operands laid out for it beforehand.
//!
//! Every sum adds its terms one after the other in the same order, in spans of [`SPAN`]: its bits depend on nothing but its
//! own operands, wherever in a block it stands and whoever its neighbours are.

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

/// Columns that stand side by side in a packed matrix: the numbers of the widest vector there is.
pub(super) const PANEL: usize = 16;
/// Rows of a packed matrix that stand side by side: the rows of a block where there are 32 registers.
pub(super) const ROWS: usize = 8;
/// Terms that are added in registers before they join the total; short enough for the first-level cache, and for rounding:
/// a sum of 10,000 terms loses as much as one of 500.
pub(super) const SPAN: usize = 512;

/// Where vectors are this wide there are 32 registers: 8 x 3 sums, else 4 x 2.
const WIDE: usize = 16;

/// Rows of `length` numbers -> (blocks, length, N): N rows' numbers side by side, zeros after the last row.
pub(super) fn side_by_side<const N: usize>(rows: &[f32], length: usize) -> Vec<f32> {
    let block = (length * N).max(1);
    let mut packed = vec![0f32; rows.len().div_ceil(block) * block];
    packed.par_chunks_mut(block).zip(rows.par_chunks(block)).for_each(|(block, rows)| {
        for (place, row) in rows.chunks_exact(length).enumerate() {
            for (block, number) in block.chunks_exact_mut(N).zip(row) {
                block[place] = *number;
            }
        }
    });
    packed
}

/// Adds products of `weights` (terms, ROWS) and `picture` to `out`, (ROWS, panels * PANEL): the picture's numbers for term t
/// and panel p stand from `starts[p] + offsets[t]` on.
#[inline(always)]
pub(super) fn add_shifted<S: Simd>(
    simd: S,
    weights: &[[f32; ROWS]],
    picture: &[f32],
    (offsets, starts): (&[usize], &[usize]),
    out: &mut [f32],
) {
    let columns = starts.len() * PANEL;
    for (weights, offsets) in weights.chunks(SPAN).zip(offsets.chunks(SPAN)) {
        let mut from = 0;
        while from < columns {
            let at = (from, starts);
            from += S::F32_LANES
                * match (S::F32_LANES, (columns - from) / S::F32_LANES) {
                    (WIDE, 1) => shifted::<S, ROWS, 1>(simd, weights, picture, offsets, out, at),
                    // Four are better halved than cut into three and one.
                    (WIDE, 2 | 4) => shifted::<S, ROWS, 2>(simd, weights, picture, offsets, out, at),
                    (WIDE, _) => shifted::<S, ROWS, 3>(simd, weights, picture, offsets, out, at),
                    _ => shifted::<S, 4, 2>(simd, weights, picture, offsets, out, at),
                };
        }
    }
}

/// One block of columns; how many vectors wide it is.
#[inline(always)]
fn shifted<S: Simd, const R: usize, const V: usize>(
    simd: S,
    weights: &[[f32; ROWS]],
    picture: &[f32],
    offsets: &[usize],
    out: &mut [f32],
    (from, starts): (usize, &[usize]),
) -> usize {
    let columns = starts.len() * PANEL;
    let pictures: [&[f32]; V] = std::array::from_fn(|v| {
        let column = from + v * S::F32_LANES;
        &picture[starts[column / PANEL] + column % PANEL..]
    });
    for first in (0..ROWS).step_by(R) {
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for (weights, offset) in weights.iter().zip(offsets) {
            let mut numbers = [simd.splat_f32s(0.0); V];
            // Lengths known while compiling keep the sums in registers; closures would not be compiled for the vectors.
            for v in 0..V {
                numbers[v] = S::as_simd_f32s(&pictures[v][*offset..*offset + S::F32_LANES]).0[0];
            }
            for row in 0..R {
                let weight = simd.splat_f32s(weights[first + row]);
                for v in 0..V {
                    sums[row][v] = simd.mul_add_e_f32s(weight, numbers[v], sums[row][v]);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = &mut out[(first + row) * columns + from..][..V * S::F32_LANES];
            for (out, sum) in S::as_mut_simd_f32s(out).0.iter_mut().zip(sums) {
                *out = simd.add_f32s(*out, *sum);
            }
        }
    }
    V
}

/// Adds products to rows of `out`: row r's number in column c gains the sum over k of `x[r][k] * panels[c / PANEL][k][c % PANEL]`.
/// All rows of `x` have the panels' length; `out` may end within the last panel.
#[inline(always)]
pub(super) fn add_product<S: Simd>(simd: S, x: &[&[f32]], panels: &[&[[f32; PANEL]]], out: &mut [&mut [f32]]) {
    let inner = panels.first().map_or(0, |panel| panel.len());
    for from in (0..inner).step_by(SPAN) {
        let span = from..(from + SPAN).min(inner);
        let (mut first, all) = (0, panels.len() * PANEL);
        while first < all {
            let mut vectors = 0;
            for (x, out) in x.chunks(ROWS).zip(out.chunks_mut(ROWS)) {
                vectors = match (S::F32_LANES, (all - first) / S::F32_LANES) {
                    (WIDE, 1) => product::<S, ROWS, 1>(simd, x, panels, span.clone(), out, first),
                    (WIDE, 2 | 4) => product::<S, ROWS, 2>(simd, x, panels, span.clone(), out, first),
                    (WIDE, _) => product::<S, ROWS, 3>(simd, x, panels, span.clone(), out, first),
                    _ => product::<S, 4, 2>(simd, x, panels, span.clone(), out, first),
                };
            }
            first += vectors * S::F32_LANES;
        }
    }
}

/// Up to eight rows of one block of columns from `first` on; how many vectors wide it is.
#[inline(always)]
fn product<S: Simd, const R: usize, const V: usize>(
    simd: S,
    x: &[&[f32]],
    panels: &[&[[f32; PANEL]]],
    span: Range<usize>,
    out: &mut [&mut [f32]],
    first: usize,
) -> usize {
    // A vector may be a part of a panel; the widest is a whole one.
    let mut places = [0; V];
    if S::F32_LANES < PANEL {
        places = std::array::from_fn(|v| (first + v * S::F32_LANES) % PANEL);
    }
    let columns: [&[[f32; PANEL]]; V] =
        std::array::from_fn(|v| &panels[(first + v * S::F32_LANES) / PANEL][span.clone()]);
    for (x, out) in x.chunks(R).zip(out.chunks_mut(R)) {
        // Where rows are missing the last one is worked on again.
        let rows: [&[f32]; R] = std::array::from_fn(|row| &x[row.min(x.len() - 1)][span.clone()]);
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        let length = span.len();
        let (rows, columns) = (rows.map(|row| &row[..length]), columns.map(|column| &column[..length]));
        for k in 0..length {
            let mut numbers = [simd.splat_f32s(0.0); V];
            for v in 0..V {
                numbers[v] = S::as_simd_f32s(&columns[v][k][places[v]..][..S::F32_LANES]).0[0];
            }
            for row in 0..R {
                let factor = simd.splat_f32s(rows[row][k]);
                for v in 0..V {
                    sums[row][v] = simd.mul_add_e_f32s(factor, numbers[v], sums[row][v]);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(&sums) {
            let end = out.len().min(first + V * S::F32_LANES);
            let (whole, rest) = S::as_mut_simd_f32s(&mut out[first.min(end)..end]);
            for (out, sum) in whole.iter_mut().zip(sums) {
                *out = simd.add_f32s(*out, *sum);
            }
            if let Some(sum) = sums.get(whole.len()) {
                let mut numbers = [0f32; PANEL];
                S::as_mut_simd_f32s(&mut numbers).0[0] = *sum;
                rest.iter_mut().zip(numbers).for_each(|(out, number)| *out += number);
            }
        }
    }
    V
}

#[cfg(test)]
mod tests {
    use pulp::WithSimd;

    use super::super::levels;
    use super::*;

    struct Shifted<'a>(&'a [[f32; ROWS]], &'a [f32], (&'a [usize], &'a [usize]), &'a mut [f32]);

    impl WithSimd for Shifted<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            add_shifted(simd, self.0, self.1, self.2, self.3);
        }
    }

    struct Product<'a>(&'a [&'a [f32]], &'a [&'a [[f32; PANEL]]], &'a mut [&'a mut [f32]]);

    impl WithSimd for Product<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            add_product(simd, self.0, self.1, self.2);
        }
    }

    /// Small whole numbers: sums of their products are exact in any order.
    fn whole_numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|k| ((k * 7919 + seed * 104_729) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn shifted_sums_are_exact_on_every_level() {
        for (terms, starts) in [(5, vec![3]), (600, vec![0, 16, 40, 77]), (30, vec![0, 16, 32, 48, 64, 100, 150])] {
            let (weights, picture) = (whole_numbers(terms * ROWS, 1), whole_numbers(1000, 2));
            let offsets: Vec<usize> = (0..terms).map(|term| term * 13 % 800).collect();
            let columns = starts.len() * PANEL;
            let sum = |row: usize, column: usize| -> f32 {
                let at = starts[column / PANEL] + column % PANEL;
                (0..terms).map(|term| weights[term * ROWS + row] * picture[at + offsets[term]]).sum()
            };
            let expected: Vec<f32> = (0..ROWS * columns).map(|k| 1.0 + sum(k / columns, k % columns)).collect();
            for arch in levels() {
                let mut out = vec![1.0; ROWS * columns];
                arch.dispatch(Shifted(weights.as_chunks().0, &picture, (&offsets, &starts), &mut out));
                assert_eq!(out, expected, "{arch:?}");
            }
        }
    }
    #[test]
    fn products_are_exact_on_every_level() {
        for (rows, inner, outputs) in [(1, 5, 1), (9, 600, 33), (13, 40, 64), (8, 7, 112)] {
            let (x, weight) = (whole_numbers(rows * inner, 3), whole_numbers(outputs * inner, 4));
            let packed = side_by_side::<PANEL>(&weight, inner);
            let panels: Vec<&[[f32; PANEL]]> = packed.chunks_exact(inner * PANEL).map(|p| p.as_chunks().0).collect();
            let x: Vec<&[f32]> = x.chunks_exact(inner).collect();
            let sum = |row: usize, output: usize| -> f32 {
                x[row].iter().zip(&weight[output * inner..][..inner]).map(|(x, weight)| x * weight).sum()
            };
            let expected: Vec<f32> = (0..rows * outputs).map(|k| 1.0 + sum(k / outputs, k % outputs)).collect();
            for arch in levels() {
                let mut out = vec![1.0; rows * outputs];
                let mut lines: Vec<&mut [f32]> = out.chunks_exact_mut(outputs).collect();
                arch.dispatch(Product(&x, &panels, &mut lines));
                assert_eq!(out, expected, "{arch:?}");
            }
        }
    }
}
