//! How the lines of pictures are laid out for convolution.

use std::ops::Range;

use candle_core::{Result, bail};

use super::sums::PANEL;

/// Columns of a band, about: its input and sums stay in a second-level cache.
const BAND_COLUMNS: usize = 1024;

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
    /// From one line's first output to the next one's. The padding after a line is the one before the next.
    pub pitch: usize,
}

/// Lines of one sample, or all lines of several.
#[derive(Debug)]
pub(super) struct Band {
    pub samples: Range<usize>,
    pub lines: Range<usize>,
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
        let pitch = if stride == 1 { width + padding } else { out.1 + (kernel - 1) / stride };
        Ok(Self { channels, height, width, kernel, stride, padding, out, pitch })
    }

    /// Terms of one output's sum.
    pub(super) fn terms(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    /// Lines that follow the last output's first one.
    fn halo(&self) -> usize {
        (self.kernel - 1) / self.stride
    }

    /// Everything, in the order of samples and lines. All bands but the last lines of a sample and the last samples are alike.
    pub(super) fn bands(&self, samples: usize) -> Vec<Band> {
        let (height, _) = self.out;
        let lines = (BAND_COLUMNS / self.pitch).clamp(1, height);
        let together = if lines < height { 1 } else { (BAND_COLUMNS / ((height + self.halo()) * self.pitch)).max(1) };
        let ranges = |all: usize, step: usize| (0..all).step_by(step).map(move |at| at..(at + step).min(all));
        let bands =
            |samples: Range<usize>| ranges(height, lines).map(move |lines| Band { samples: samples.clone(), lines });
        ranges(samples, together).flat_map(bands).collect()
    }
}

impl Band {
    /// Where the output `line` lines below the first and at the left of the band's sample `sample` stands.
    pub(super) fn column(&self, geometry: &Geometry, sample: usize, line: usize) -> usize {
        (sample * (self.lines.len() + geometry.halo()) + line) * geometry.pitch
    }

    /// Columns to work on: up to the last output, in whole vectors.
    pub(super) fn columns(&self, geometry: &Geometry) -> usize {
        let last = self.column(geometry, self.samples.len() - 1, self.lines.len() - 1);
        (last + geometry.out.1).next_multiple_of(PANEL)
    }

    /// From one channel's numbers to the next one's; not a power of two, whose multiples share few places of a cache.
    fn plane(&self, geometry: &Geometry) -> usize {
        let numbers = self.column(geometry, self.samples.len(), 0) + geometry.kernel;
        numbers.next_multiple_of(2 * PANEL) + PANEL
    }

    /// How many numbers it is laid out in.
    pub(super) fn numbers(&self, geometry: &Geometry) -> usize {
        let farthest = geometry.halo() * (geometry.pitch + 1) + self.columns(geometry);
        let planes = geometry.channels * geometry.stride * geometry.stride;
        planes * self.plane(geometry) + farthest.saturating_sub(self.plane(geometry))
    }

    /// For each weight of one output, what stands between an output's column and the number it takes.
    pub(super) fn offsets(&self, geometry: &Geometry) -> Vec<usize> {
        let Geometry { channels, kernel, stride, pitch, .. } = *geometry;
        let plane = self.plane(geometry);
        let offset = |channel: usize, ky: usize, kx: usize| {
            let phase = (channel * stride + ky % stride) * stride + kx % stride;
            phase * plane + ky / stride * pitch + kx / stride
        };
        let kernel_of =
            |channel: usize| (0..kernel).flat_map(move |ky| (0..kernel).map(move |kx| offset(channel, ky, kx)));
        (0..channels).flat_map(kernel_of).collect()
    }

    /// The band's numbers with their padding. With a stride every channel is dealt out into stride * stride planes, so that
    /// neighbouring outputs find neighbouring numbers there too.
    pub(super) fn lay_out(&self, x: &[f32], geometry: &Geometry) -> Vec<f32> {
        let Geometry { channels, height, width, stride, padding, pitch, .. } = *geometry;
        let plane = self.plane(geometry);
        let mut out = vec![0f32; self.numbers(geometry)];
        for (channel, out) in out.chunks_mut(plane * stride * stride).take(channels).enumerate() {
            for (index, sample) in self.samples.clone().enumerate() {
                let picture = &x[(sample * channels + channel) * height * width..][..height * width];
                for line in 0..self.lines.len() + geometry.halo() {
                    let at = self.column(geometry, index, line);
                    for phase in 0..stride {
                        let y = ((self.lines.start + line) * stride + phase).wrapping_sub(padding);
                        if y >= height {
                            continue;
                        }
                        let numbers = &picture[y * width..][..width];
                        if stride == 1 {
                            out[at + padding..][..width].copy_from_slice(numbers);
                            continue;
                        }
                        for (x, number) in numbers.iter().enumerate() {
                            let (column, side) = ((x + padding) / stride, (x + padding) % stride);
                            if column < pitch {
                                out[(phase * stride + side) * plane + at + column] = *number;
                            }
                        }
                    }
                }
            }
        }
        out
    }
}
