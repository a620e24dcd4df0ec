//! The one in-memory picture.

/// Rows of pixels of `N` bytes each, from the top left.
#[derive(Clone, PartialEq, Eq)]
pub struct Pixels<const N: usize> {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

/// 8-bit RGB.
pub type RgbImage = Pixels<3>;

/// 8-bit grey, such as a mask.
pub type GrayImage = Pixels<1>;

/// A rectangle within a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The left edge.
    pub x: u32,
    /// The upper edge.
    pub y: u32,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

impl<const N: usize> Pixels<N> {
    /// Wraps `width * height * N` bytes; `None` when there are not as many.
    pub fn from_pixels(width: u32, height: u32, pixels: Vec<u8>) -> Option<Self> {
        (pixels.len() as u64 == u64::from(width) * u64::from(height) * N as u64).then_some(Self {
            width,
            height,
            pixels,
        })
    }

    /// All bytes 0.
    pub fn black(width: u32, height: u32) -> Self {
        Self { width, height, pixels: vec![0; width as usize * height as usize * N] }
    }

    /// In pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// In pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// (width, height).
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// `width * height * N` bytes.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Each byte through `map`.
    #[must_use]
    pub fn mapped(mut self, map: impl Fn(u8) -> u8) -> Self {
        self.pixels.iter_mut().for_each(|byte| *byte = map(*byte));
        self
    }

    /// A part of it. `region` lies within.
    #[must_use]
    pub fn cropped(&self, region: Region) -> Self {
        let Region { x, y, width, height } = region;
        let rows = (y..y + height).flat_map(|row| self.row(row, x, width));
        Self { width, height, pixels: rows.copied().collect() }
    }

    /// Puts `other` over it, its upper left corner at (x, y), which may lie outside, as may any part of it.
    pub(super) fn paste(&mut self, other: &Self, x: i64, y: i64) {
        let clip = |at: i64, len: u32, room: u32| {
            let from = (-at).clamp(0, len.into());
            let to = (i64::from(room) - at).clamp(from, len.into());
            (from as u32, (to - from) as u32)
        };
        let (left, width) = clip(x, other.width, self.width);
        let (top, height) = clip(y, other.height, self.height);
        if width == 0 {
            return;
        }
        for row in 0..height {
            let at = ((y + i64::from(top + row)) * i64::from(self.width) + x + i64::from(left)) as usize * N;
            let source = other.row(top + row, left, width);
            self.pixels[at..at + source.len()].copy_from_slice(source);
        }
    }

    fn row(&self, y: u32, x: u32, width: u32) -> &[u8] {
        let at = (y as usize * self.width as usize + x as usize) * N;
        &self.pixels[at..at + width as usize * N]
    }
}

impl<const N: usize> std::fmt::Debug for Pixels<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pixels<{N}>({}x{})", self.width, self.height)
    }
}
