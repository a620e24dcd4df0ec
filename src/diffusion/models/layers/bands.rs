//! Maps (N, C, H, W) in bands of rows. The maps of a large picture take gigabytes: worked on band by band, what is used up is let
//! go of before the next is made, and no step needs more than its bands besides.
//!
//! On a CPU the numbers have the same bits wherever a map is cut: convolutions see the rows around a band, and normalisations
//! know of the whole map ([`GroupNorm::statistics`](super::GroupNorm::statistics)).

use std::collections::VecDeque;
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{Conv2d, upsample_nearest};

/// Rows of a band at least: each takes two more along, to convolve.
const FEWEST_ROWS: usize = 8;

/// A map in bands, from top to bottom.
#[derive(Debug, Default)]
pub struct Bands {
    /// The first row of each, and its rows (N, C, rows, W), contiguous. What was let go of is missing at the front.
    bands: VecDeque<(usize, Tensor)>,
    height: usize,
}

impl Bands {
    /// A map (N, C, H, W) in one piece.
    pub fn whole(x: Tensor) -> Result<Self> {
        let mut bands = Self::default();
        bands.push(x)?;
        Ok(bands)
    }

    /// Adds rows (N, C, rows, W) at the bottom.
    pub fn push(&mut self, rows: Tensor) -> Result<()> {
        let count = rows.dim(2)?;
        self.bands.push_back((self.height, rows.contiguous()?));
        self.height += count;
        Ok(())
    }

    /// The whole map.
    pub fn into_whole(self) -> Result<Tensor> {
        self.rows(0..self.height)
    }

    /// H.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bands that are held.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.bands.iter().map(|(_, band)| band)
    }

    /// These rows, (N, C, rows, W); none of them may have been let go of.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let mut parts = Vec::new();
        for (first, band) in &self.bands {
            let (from, to) = (rows.start.max(*first), rows.end.min(first + band.dim(2)?));
            if from < to {
                parts.push(band.narrow(2, from - first, to - from)?);
            }
        }
        match &parts[..] {
            [part] => part.contiguous(),
            parts => Tensor::cat(parts, 2),
        }
    }

    /// Lets go of bands that end at this row or before.
    pub fn let_go(&mut self, before: usize) {
        let end = |bands: &VecDeque<(usize, Tensor)>, height| bands.get(1).map_or(height, |(first, _)| *first);
        while !self.bands.is_empty() && end(&self.bands, self.height) <= before {
            self.bands.pop_front();
        }
    }

    /// Numbers of a row.
    fn row_numbers(&self) -> usize {
        self.bands.front().map_or(0, |(_, band)| band.elem_count() / band.dims()[2].max(1))
    }

    /// The rows to work on at a time, so that they are of about `at_once` numbers.
    pub fn ranges(&self, at_once: usize) -> Vec<Range<usize>> {
        ranges(self.height, self.row_numbers(), at_once)
    }

    /// A 3x3 convolution with padding 1 of what `prepare` makes of this map's rows, number by number.
    pub fn convolved(
        mut self,
        conv: &Conv2d,
        at_once: usize,
        prepare: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut out = Self::default();
        for rows in self.ranges(at_once) {
            out.push(convolved_rows(conv, rows.clone(), self.height, |rows| prepare(&self.rows(rows)?))?)?;
            self.let_go(rows.end - 1);
        }
        Ok(out)
    }

    /// A 3x3 convolution with padding 1 of the map with each pixel repeated `factor` times both ways.
    pub fn upsampled(mut self, conv: &Conv2d, factor: usize, at_once: usize) -> Result<Self> {
        let mut out = Self::default();
        let height = factor * self.height;
        for rows in ranges(height, factor * self.row_numbers(), at_once) {
            let enlarged = |rows: Range<usize>| {
                let x = self.rows(rows.start / factor..rows.end.div_ceil(factor))?;
                let (_, _, h, w) = x.dims4()?;
                upsample_nearest(&x, factor * h, factor * w)?.narrow(2, rows.start % factor, rows.len())
            };
            out.push(convolved_rows(conv, rows.clone(), height, enlarged)?)?;
            self.let_go((rows.end - 1) / factor);
        }
        Ok(out)
    }

    /// What `change` makes of each band, number by number.
    pub fn mapped(mut self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        for (_, band) in &mut self.bands {
            *band = change(band)?;
        }
        Ok(self)
    }

    /// A 3x3 convolution with stride 2 and padding 1; H is even.
    pub fn halved(mut self, conv: &Conv2d, at_once: usize) -> Result<Self> {
        let mut out = Self::default();
        for rows in ranges(self.height.div_ceil(2), 2 * self.row_numbers(), at_once) {
            // Two rows more above keep the parity, and give one row that is not wanted.
            let above = 2 * usize::from(rows.start > 0);
            let x = self.rows(2 * rows.start - above..(2 * rows.end + 1).min(self.height))?;
            out.push(conv.forward(&x)?.narrow(2, above / 2, rows.len())?)?;
            self.let_go((2 * rows.end).saturating_sub(2));
        }
        Ok(out)
    }

    /// A 3x3 convolution with stride 2 and one more row and column of zeros at the end alone, as the autoencoder of Rombach
    /// et al. 2022 pads.
    pub fn downsampled(mut self, conv: &Conv2d, at_once: usize) -> Result<Self> {
        let mut out = Self::default();
        for rows in ranges(self.height / 2, 2 * self.row_numbers(), at_once) {
            let wanted = 2 * rows.start..2 * rows.end + 1;
            let x = self.rows(wanted.start..wanted.end.min(self.height))?;
            let missing = wanted.end.saturating_sub(self.height);
            out.push(conv.forward(&x.pad_with_zeros(2, 0, missing)?.pad_with_zeros(3, 0, 1)?)?)?;
            self.let_go(2 * rows.end);
        }
        Ok(out)
    }
}

/// Rows of the 3x3 convolution with padding 1 of a map of so many rows, of which `input` gives those that are asked for.
pub fn convolved_rows(
    conv: &Conv2d,
    rows: Range<usize>,
    height: usize,
    input: impl FnOnce(Range<usize>) -> Result<Tensor>,
) -> Result<Tensor> {
    let wanted = rows.start.saturating_sub(1)..(rows.end + 1).min(height);
    let first = rows.start - wanted.start;
    conv.forward(&input(wanted)?)?.narrow(2, first, rows.len())
}

fn ranges(height: usize, row_numbers: usize, at_once: usize) -> Vec<Range<usize>> {
    let rows = (at_once / row_numbers.max(1)).max(FEWEST_ROWS);
    // All bands about alike, none a row or two.
    let rows = height.div_ceil(height.div_ceil(rows).max(1)).max(1);
    (0..height).step_by(rows).map(|from| from..(from + rows).min(height)).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, IndexOp};

    use super::*;

    #[test]
    fn rows_are_found_across_bands_until_they_are_let_go_of() -> Result<()> {
        let x = Tensor::arange(0f32, 60.0, &Device::Cpu)?.reshape((1, 2, 10, 3))?;
        let mut bands = Bands::default();
        for (from, to) in [(0, 4), (4, 5), (5, 10)] {
            bands.push(x.narrow(2, from, to - from)?)?;
        }
        let numbers = |x: Tensor| x.i(0)?.to_vec3::<f32>();
        assert_eq!(numbers(bands.rows(3..7)?)?, numbers(x.narrow(2, 3, 4)?)?);
        bands.let_go(4);
        assert_eq!(bands.iter().count(), 2);
        bands.let_go(9);
        assert_eq!(numbers(bands.rows(9..10)?)?, numbers(x.narrow(2, 9, 1)?)?);
        bands.let_go(10);
        assert_eq!((bands.iter().count(), bands.height()), (0, 10));
        Ok(())
    }

    #[test]
    fn bands_are_about_alike_and_cover_all_rows() {
        for (height, row, at_once) in [(64, 100, 1600), (65, 100, 1600), (7, 1000, 1), (100, 1, usize::MAX), (1, 1, 1)]
        {
            let ranges = ranges(height, row, at_once);
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, height));
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            let longest = ranges.iter().map(Range::len).max();
            assert!(longest <= Some((at_once / row).max(FEWEST_ROWS)), "{ranges:?}");
        }
    }
}
