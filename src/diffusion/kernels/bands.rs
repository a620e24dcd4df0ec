//! How the lines of pictures are laid out for convolution.
//!
//! Neighbouring outputs must find neighbouring numbers for every weight. Wide pictures keep one copy, their lines standing one
//! after the other with the padding between them. Narrow ones, whose vectors would mostly hold padding, and those with a stride
//! get a copy for every column of the kernel: what that column takes for each output, without padding, so that vectors are full.

use std::ops::Range;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::sums::PANEL;

/// Columns of a band, at most: its sums stay in a second-level cache.
const BAND_COLUMNS: usize = 1024;
/// Fewer columns repay less of the way through the weights.
const LEAST_COLUMNS: usize = 128;
/// Numbers a band's pictures are laid out in, about: they stay in a second-level cache too.
const BAND_NUMBERS: usize = 1 << 18;
/// Fewer numbers are laid out sooner than handed to another thread.
const LEAST_NUMBERS: usize = 1 << 14;
/// From this many outputs a line on, the padding in between costs less than copies.
const WIDE_LINE: usize = 32;

/// Sizes of one convolution.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    channels: usize,
    height: usize,
    width: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    /// Height and width of the output.
    pub out: (usize, usize),
    /// From one line's first output to the next one's. In wide pictures the padding after a line is the one before the next.
    pub pitch: usize,
    wide: bool,
}

/// Lines of one sample, or all lines of several.
#[derive(Debug)]
pub(super) struct Band {
    pub samples: Range<usize>,
    pub lines: Range<usize>,
}

/// Where numbers stand in a band that is laid out.
#[derive(Debug)]
pub(super) struct Places {
    /// From one copy of a channel to the next: each has `stride` of them, for lines of every remainder.
    plane: usize,
    /// All of them.
    pub numbers: usize,
    /// For each weight of one output, what stands between an output's place and the number it takes.
    pub offsets: Vec<usize>,
}

impl Geometry {
    /// (channels, height, width) of the input.
    pub(super) fn new(
        (channels, height, width): (usize, usize, usize),
        kernel: usize,
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        if height.min(width) + 2 * padding < kernel || kernel == 0 {
            bail!("a convolution of {kernel}x{kernel} over {height}x{width} with padding {padding}");
        }
        let out_side = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let out = (out_side(height), out_side(width));
        let wide = stride == 1 && out.1 >= WIDE_LINE;
        let pitch = if wide { out.1.max(width + padding) } else { out.1 };
        Ok(Self { channels, height, width, kernel, stride, padding, out, pitch, wide })
    }

    /// Terms of one output's sum.
    pub(super) fn terms(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    /// Of every picture.
    fn copies(&self) -> usize {
        if self.wide { 1 } else { self.kernel }
    }

    /// Lines that follow the last output's first one.
    fn halo(&self) -> usize {
        (self.kernel - 1) / self.stride
    }

    /// Columns of so many lines of one sample, in whole panels.
    fn columns(&self, lines: usize) -> usize {
        ((lines - 1) * self.pitch + self.out.1).next_multiple_of(PANEL)
    }

    /// Everything, in the order of samples and lines. All bands but the last lines of a sample and the last samples are alike.
    pub(super) fn bands(&self, samples: usize) -> Vec<Band> {
        let (height, _) = self.out;
        let columns = (BAND_NUMBERS / (self.channels * self.copies()).max(1)).clamp(LEAST_COLUMNS, BAND_COLUMNS);
        let parts = height.div_ceil((columns / self.pitch).clamp(1, height));
        let lines = height.div_ceil(parts);
        let together = if parts > 1 { 1 } else { (columns / self.columns(height)).max(1) };
        let ranges = |all: usize, step: usize| (0..all).step_by(step).map(move |at| at..(at + step).min(all));
        let bands =
            |samples: Range<usize>| ranges(height, lines).map(move |lines| Band { samples: samples.clone(), lines });
        ranges(samples, together).flat_map(bands).collect()
    }

    /// Of this band and of smaller ones.
    pub(super) fn places(&self, largest: &Band) -> Places {
        let Self { channels, kernel, stride, padding, pitch, wide, .. } = *self;
        let copies = self.copies();
        // Not a power of two, whose multiples share few places of a cache.
        let plane =
            (largest.samples.len() * self.sample(largest) + kernel + padding).next_multiple_of(2 * PANEL) + PANEL;
        let offset = |channel: usize, ky: usize, kx: usize| {
            let (copy, aside) = if wide { (0, kx) } else { (kx, 0) };
            ((channel * copies + copy) * stride + ky % stride) * plane + ky / stride * pitch + aside
        };
        let kernel_of =
            |channel: usize| (0..kernel).flat_map(move |ky| (0..kernel).map(move |kx| offset(channel, ky, kx)));
        let offsets = (0..channels).flat_map(kernel_of).collect();
        // The last vector may read on over the end.
        let past = largest.starts(self).last().map_or(0, |start| start + self.halo() * pitch + kernel + PANEL);
        Places { plane, numbers: channels * copies * stride * plane + past.saturating_sub(plane), offsets }
    }

    /// From one sample of a band to the next.
    fn sample(&self, band: &Band) -> usize {
        (band.lines.len() + self.halo()) * self.pitch
    }
}

impl Band {
    /// The column of the output at the left of the band's first line of its sample `sample`.
    pub(super) fn column(&self, geometry: &Geometry, sample: usize) -> usize {
        sample * geometry.columns(self.lines.len())
    }

    /// For each panel of columns, where the number stands that its first output takes for the first weight.
    pub(super) fn starts(&self, geometry: &Geometry) -> Vec<usize> {
        let panels = geometry.columns(self.lines.len()) / PANEL;
        let sample = |sample: usize| (0..panels).map(move |panel| sample * geometry.sample(self) + panel * PANEL);
        (0..self.samples.len()).flat_map(sample).collect()
    }

    /// Writes the band's numbers from `x`, with their padding, to where `places` says.
    pub(super) fn lay_out(&self, x: &[f32], geometry: &Geometry, places: &Places, out: &mut [f32]) {
        let Geometry { channels, height, width, stride, .. } = *geometry;
        let size = places.plane * geometry.copies() * stride;
        let channels_at_once = (LEAST_NUMBERS / size).max(1);
        out.par_chunks_mut(size).take(channels).with_min_len(channels_at_once).enumerate().for_each(
            |(channel, out)| {
                out.fill(0.0);
                for (index, sample) in self.samples.clone().enumerate() {
                    let picture = &x[(sample * channels + channel) * height * width..][..height * width];
                    let at = index * geometry.sample(self);
                    for (number, out) in out.chunks_exact_mut(places.plane).enumerate() {
                        let out = &mut out[at..][..geometry.sample(self)];
                        let (copy, phase) = (number / stride, number % stride);
                        if geometry.wide {
                            self.copy_padded(picture, geometry, out);
                        } else if stride == 1 && geometry.out.1 == width {
                            self.copy_moved(picture, geometry, copy, out);
                        } else {
                            self.copy_lines(picture, geometry, (copy, phase), out);
                        }
                    }
                }
            },
        );
    }

    /// The picture's lines that the band takes, and after how many lines of padding they follow; with stride 1.
    fn taken(&self, geometry: &Geometry) -> (Range<usize>, usize) {
        let Geometry { height, padding, .. } = *geometry;
        let from = self.lines.start.saturating_sub(padding);
        let to = (self.lines.end + geometry.halo()).saturating_sub(padding).min(height);
        (from.min(to)..to, padding.saturating_sub(self.lines.start))
    }

    /// One copy with its padding, for wide pictures.
    fn copy_padded(&self, picture: &[f32], geometry: &Geometry, out: &mut [f32]) {
        let Geometry { width, padding, pitch, .. } = *geometry;
        let (lines, before) = self.taken(geometry);
        let numbers = picture[lines.start * width..lines.end * width].chunks_exact(width);
        for (out, numbers) in out.chunks_exact_mut(pitch).skip(before).zip(numbers) {
            out[padding..][..width].copy_from_slice(numbers);
        }
    }

    /// What column `copy` of the kernel takes, where the outputs are as many as the inputs: the whole picture, moved, with
    /// zeros for what came over the edge from the neighbouring line.
    fn copy_moved(&self, picture: &[f32], geometry: &Geometry, copy: usize, out: &mut [f32]) {
        let Geometry { width, padding, .. } = *geometry;
        let (lines, before) = self.taken(geometry);
        let numbers = &picture[lines.start * width..lines.end * width];
        let out = &mut out[before * width..][..numbers.len()];
        let (left, right) = (padding.saturating_sub(copy), copy.saturating_sub(padding));
        if left.max(right) >= width {
            return;
        }
        // None where there are no lines.
        let rest = numbers.len().saturating_sub(left + right);
        if rest > 0 {
            out[left..][..rest].copy_from_slice(&numbers[right..][..rest]);
        }
        for out in out.chunks_exact_mut(width) {
            out[..left].fill(0.0);
            out[width - right..].fill(0.0);
        }
    }

    /// What column `copy` of the kernel takes, for those of its lines that leave `phase` when divided by the stride.
    fn copy_lines(&self, picture: &[f32], geometry: &Geometry, (copy, phase): (usize, usize), out: &mut [f32]) {
        let Geometry { height, width, stride, padding, .. } = *geometry;
        let first = padding.saturating_sub(copy).div_ceil(stride);
        let skipped = first * stride + copy - padding;
        for (line, out) in out.chunks_exact_mut(geometry.out.1).enumerate() {
            let y = ((self.lines.start + line) * stride + phase).wrapping_sub(padding);
            if y < height && skipped < width && first < out.len() {
                let numbers = picture[y * width..][skipped..width].chunks(stride);
                out[first..].iter_mut().zip(numbers).for_each(|(out, numbers)| *out = numbers[0]);
            }
        }
    }
}
