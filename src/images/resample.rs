//! Resizing to the byte as Pillow 13 does it (`Image.resize`; its C source is src/libImaging/Resample.c): the picture a
//! network is shown must be the one it is shown elsewhere, or the same seed is not the same picture.
//!
//! Separable filters along the rows and along the columns, with 8-bit bytes in between and weights of 22 bits after the
//! point. When a picture shrinks the filter widens, so that every pixel counts. Rows come first unless the height shrinks by
//! more than twice what the width does; up to Pillow 12 they always did, which can differ by a few 255ths.

use super::Pixels;

/// How pixels between pixels are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A sinc within a sinc three pixels wide: what diffusers resizes pictures with.
    Lanczos,
    /// Keys' cubic with a = -1/2.
    Bicubic,
}

impl Filter {
    /// Pixels to either side that count.
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
            Self::Bicubic => cubic(x.abs()),
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;

    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Bits of a weight after the point.
const PRECISION: u32 = 22;

/// Where one output pixel comes from: the first input pixel, and the weights of it and those after it.
struct Source {
    first: usize,
    weights: Vec<i32>,
}

/// The sources of `len` output pixels that cover `from..to` of `input` pixels. An empty stretch (`from == to`) gives the
/// pixel at that edge, spread over all.
fn sources(input: u32, (from, to): (f64, f64), len: u32, filter: Filter) -> Vec<Source> {
    let scale = (to - from) / f64::from(len);
    let widened = scale.max(1.0);
    let support = filter.support() * widened;
    let source = |index: u32| {
        let center = from + (f64::from(index) + 0.5) * scale;
        // Casts cut towards zero, as in the reference.
        let first = ((center - support + 0.5) as i64).max(0);
        let end = ((center + support + 0.5) as i64).min(input.into());
        let weights: Vec<f64> =
            (first..end).map(|at| filter.weight((at as f64 - center + 0.5) * (1.0 / widened))).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let share = if sum == 0.0 { *weight } else { weight / sum } * f64::from(1 << PRECISION);
            (if share < 0.0 { share - 0.5 } else { share + 0.5 }) as i32
        };
        Source { first: first as usize, weights: weights.iter().map(fixed).collect() }
    };
    (0..len).map(source).collect()
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

impl<const N: usize> Pixels<N> {
    /// Of another size, the whole of it.
    #[must_use]
    pub fn resized(&self, width: u32, height: u32, filter: Filter) -> Self {
        let whole = [0.0, 0.0, f64::from(self.width()), f64::from(self.height())];
        self.resized_window(whole, width, height, filter)
    }

    /// A window of it ([left, upper, right, lower], which may be empty), at another size. Sizes are at least 1.
    pub(super) fn resized_window(&self, window: [f64; 4], width: u32, height: u32, filter: Filter) -> Self {
        let [left, upper, right, lower] = window;
        let moved = |len: u32, new: u32, from: f64, to: f64| new != len || from != 0.0 || to != f64::from(new);
        let rows = |picture: Self| match moved(self.width(), width, left, right) {
            true => picture.along_rows(&sources(self.width(), (left, right), width, filter)),
            false => picture,
        };
        let columns = |picture: Self| match moved(self.height(), height, upper, lower) {
            true => picture.along_columns(&sources(self.height(), (upper, lower), height, filter)),
            false => picture,
        };
        let (narrower, lower) =
            (i64::from(self.width()) - i64::from(width), i64::from(self.height()) - i64::from(height));
        if lower > 0 && lower > 2 * narrower { rows(columns(self.clone())) } else { columns(rows(self.clone())) }
    }

    fn along_rows(&self, sources: &[Source]) -> Self {
        let width = self.width() as usize;
        let mut pixels = Vec::with_capacity(sources.len() * self.height() as usize * N);
        for row in self.pixels().chunks_exact(width * N) {
            for source in sources {
                let input = row[source.first * N..].as_chunks::<N>().0;
                pixels.extend(weighed(input.iter().zip(&source.weights)).map(clip));
            }
        }
        Self::from_pixels(sources.len() as u32, self.height(), pixels).expect("as many. This is a bug in images.")
    }

    fn along_columns(&self, sources: &[Source]) -> Self {
        let stride = self.width() as usize * N;
        let mut pixels = Vec::with_capacity(sources.len() * stride);
        let mut sums = vec![0i32; stride];
        for source in sources {
            sums.fill(1 << (PRECISION - 1));
            let rows = self.pixels()[source.first * stride..].chunks_exact(stride);
            for (row, weight) in rows.zip(&source.weights) {
                sums.iter_mut().zip(row).for_each(|(sum, byte)| *sum += i32::from(*byte) * weight);
            }
            pixels.extend(sums.iter().map(|sum| clip(*sum)));
        }
        Self::from_pixels(self.width(), sources.len() as u32, pixels).expect("as many. This is a bug in images.")
    }
}

fn weighed<'a, const N: usize>(terms: impl Iterator<Item = (&'a [u8; N], &'a i32)>) -> [i32; N] {
    let mut sums = [1 << (PRECISION - 1); N];
    for (pixel, weight) in terms {
        sums.iter_mut().zip(pixel).for_each(|(sum, byte)| *sum += i32::from(*byte) * weight);
    }
    sums
}
