//! The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), 32-bit, seeded by `init_genrand`.

const STATE_LEN: usize = 624;
const SHIFT: usize = 397;
const MATRIX_A: u32 = 0x9908_b0df;
const UPPER_BIT: u32 = 0x8000_0000;
const LOWER_BITS: u32 = 0x7fff_ffff;

/// One stream of 32-bit words.
#[derive(Clone)]
pub(super) struct Mt19937 {
    state: [u32; STATE_LEN],
    /// The next word to temper; `STATE_LEN` when a new block is due.
    next: usize,
}

impl Mt19937 {
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [0; STATE_LEN];
        state[0] = seed;
        for index in 1..STATE_LEN {
            let before: u32 = state[index - 1];
            state[index] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index as u32);
        }
        Self { state, next: STATE_LEN }
    }

    pub(super) fn next_word(&mut self) -> u32 {
        if self.next == STATE_LEN {
            self.next_block();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// Goes on as if `count` words had been drawn.
    pub(super) fn skip(&mut self, mut count: u64) {
        while count > 0 {
            if self.next == STATE_LEN {
                self.next_block();
            }
            let left = STATE_LEN - self.next;
            let taken = usize::try_from(count).unwrap_or(usize::MAX).min(left);
            self.next += taken;
            count -= taken as u64;
        }
    }

    fn next_block(&mut self) {
        for index in 0..STATE_LEN {
            let high = self.state[index] & UPPER_BIT;
            let low = self.state[(index + 1) % STATE_LEN] & LOWER_BITS;
            let mixed = high | low;
            let twisted = (mixed >> 1) ^ if mixed & 1 == 1 { MATRIX_A } else { 0 };
            self.state[index] = self.state[(index + SHIFT) % STATE_LEN] ^ twisted;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_the_published_words() {
        // Seed 5489 is the original's default; the 10000th word is fixed by C++'s [rand.predef].
        let mut twister = Mt19937::new(5489);
        assert_eq!(twister.next_word(), 3_499_211_612);
        let mut last = 0;
        for _ in 1..10_000 {
            last = twister.next_word();
        }
        assert_eq!(last, 4_123_659_995);
    }

    #[test]
    fn skipping_is_drawing() {
        for count in [0, 1, 5, 623, 624, 625, 1247, 1248, 10_000] {
            let mut drawn = Mt19937::new(7);
            for _ in 0..count {
                drawn.next_word();
            }
            let mut skipped = Mt19937::new(7);
            skipped.skip(count);
            assert_eq!(drawn.next_word(), skipped.next_word(), "after {count} words");
        }
    }
}
