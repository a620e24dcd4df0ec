//! Gaussian blur to the byte as Pillow does it (`ImageFilter.GaussianBlur`; its C source is src/libImaging/BoxBlur.c): three
//! box blurs each way, with boxes whose edges count in part (Gwosdek et al. 2011, "Theoretical foundations of Gaussian
//! convolution by extended box filtering").

use super::GrayImage;

/// Box blurs each way.
const PASSES: usize = 3;

impl GrayImage {
    /// Blurred with this standard deviation, in pixels; 0 leaves it.
    #[must_use]
    pub fn blurred(&self, radius: f32) -> Self {
        if radius <= 0.0 {
            return self.clone();
        }
        let half = Box_::of(radius);
        let (width, height) = (self.width() as usize, self.height() as usize);
        let mut pixels = self.pixels().to_vec();
        pixels.chunks_exact_mut(width).for_each(|row| half.blur(row));
        let mut turned = transposed(&pixels, width);
        turned.chunks_exact_mut(height).for_each(|column| half.blur(column));
        let pixels = transposed(&turned, height);
        Self::from_pixels(self.width(), self.height(), pixels).expect("as many. This is a bug in images.")
    }
}

fn transposed(pixels: &[u8], width: usize) -> Vec<u8> {
    let height = pixels.len() / width;
    (0..width).flat_map(|x| (0..height).map(move |y| pixels[y * width + x])).collect()
}

/// Half a box: whole pixels to either side, and weights in 2^-24 of a whole pixel and of the one beyond.
struct Box_ {
    radius: usize,
    whole: u32,
    edge: u32,
}

impl Box_ {
    /// In single precision where the reference is.
    fn of(radius: f32) -> Self {
        let variance = radius * radius / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let share = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
            / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
        let radius = whole + share;
        let whole_pixels = radius as usize;
        let weight = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        let rest = (1u32 << 24) - (whole_pixels as u32 * 2 + 1) * weight;
        Self { radius: whole_pixels, whole: weight, edge: rest / 2 }
    }

    /// A row's pixels beyond its ends are those at its ends.
    fn blur(&self, row: &mut [u8]) {
        for _ in 0..PASSES {
            let source = row.to_vec();
            let last = source.len() as i64 - 1;
            let reach = self.radius as i64;
            let at = |index: i64| u32::from(source[index.clamp(0, last) as usize]);
            let mut sum: u32 = (-reach - 1..reach).map(at).sum();
            for (x, out) in row.iter_mut().enumerate() {
                let x = x as i64;
                sum = sum + at(x + reach) - at(x - reach - 1);
                let bulk = sum * self.whole + (at(x - reach - 1) + at(x + reach + 1)) * self.edge;
                *out = ((bulk + (1 << 23)) >> 24) as u8;
            }
        }
    }
}
