//! How much memory a computation takes: the program's allocator counts, on each thread by itself.
//!
//! A count of the whole process would tell what everybody takes: pictures being decoded, a model being loaded, requests.
//! Here a thread's blocks are its own, and [`among_workers`](super::among_workers) adds what a computation took elsewhere to
//! whoever waits for it. What the threads that help it allocate for themselves is not counted; kernels keep that small.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator with a count.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes since a measurement began.
#[derive(Clone, Copy, Default)]
struct Meter {
    /// Taken and not given back; below 0 where older blocks were given back.
    live: isize,
    /// The most that `live` was.
    most: isize,
}

impl Meter {
    fn add(&mut self, bytes: isize) {
        self.live += bytes;
        self.most = self.most.max(self.live);
    }
}

thread_local! {
    /// Without a destructor and made at compile time: reading it allocates nothing.
    static METER: Cell<Meter> = const { Cell::new(Meter { live: 0, most: 0 }) };
}

/// A thread that ends may have its cell no more; nobody measures there.
fn count(bytes: isize) {
    let _ = METER.try_with(|cell| {
        let mut meter = cell.get();
        meter.add(bytes);
        cell.set(meter);
    });
}

/// What the system gave, which counts where it is something.
fn counted(block: *mut u8, bytes: isize) -> *mut u8 {
    if !block.is_null() {
        count(bytes);
    }
    block
}

#[expect(unsafe_code, reason = "an allocator is unsafe by nature")]
// SAFETY: every call goes to the system's allocator as it came, and its answer back; counting touches no block, does not
// allocate and does not panic: a layout's size is at most isize::MAX, and the sum of a thread's blocks is no larger than its memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps what `alloc` asks of it.
        counted(unsafe { System.alloc(layout) }, layout.size().cast_signed())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps what `alloc_zeroed` asks of it.
        counted(unsafe { System.alloc_zeroed(layout) }, layout.size().cast_signed())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let more = size.cast_signed().wrapping_sub(layout.size().cast_signed());
        // SAFETY: the caller keeps what `realloc` asks of it.
        counted(unsafe { System.realloc(block, layout, size) }, more)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(layout.size().cast_signed().wrapping_neg());
        // SAFETY: the caller keeps what `dealloc` asks of it.
        unsafe { System.dealloc(block, layout) }
    }
}

/// What a computation took of a thread's memory.
#[derive(Clone, Copy)]
pub(super) struct Taken(Meter);

/// Puts the outer measurement back, whatever ends the inner one.
struct Within(Meter);

impl Drop for Within {
    fn drop(&mut self) {
        METER.set(self.0);
    }
}

/// Runs `work` with a count of its own. One that runs within another, since its thread helped out, is not part of it.
pub(super) fn apart<T>(work: impl FnOnce() -> T) -> (T, Taken) {
    let _outer = Within(METER.replace(Meter::default()));
    let value = work();
    (value, Taken(METER.get()))
}

/// Adds what was done for this thread by another.
pub(super) fn add(Taken(meter): Taken) {
    let outer = METER.get();
    METER.set(Meter { live: outer.live + meter.live, most: outer.most.max(outer.live + meter.most) });
}

/// Runs `work`, and tells the most bytes that it held at one time above what was there before, on the CPU.
pub fn with_memory_taken<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let (value, taken) = apart(work);
    add(taken);
    (value, taken.0.most.unsigned_abs() as u64)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use candle_core::Device;

    use super::super::among_workers;
    use super::*;

    fn block(bytes: usize) -> Vec<u8> {
        black_box(vec![1; bytes])
    }

    #[test]
    fn the_most_that_was_held_at_one_time_is_told() {
        let before = block(1 << 20);
        let (kept, taken) = with_memory_taken(|| {
            drop(before);
            let first = block(3 << 20);
            drop(block(1 << 20));
            drop(first);
            block(2 << 20)
        });
        // The block that was there before makes room for one of the three.
        assert_eq!((kept.len(), taken), (2 << 20, 3 << 20));
        let ((), grown) = with_memory_taken(|| {
            let mut grows = Vec::<u8>::with_capacity(1 << 16);
            grows.reserve_exact(1 << 18);
            black_box(&grows);
        });
        assert_eq!(grown, 1 << 18);
    }

    #[test]
    fn what_other_threads_do_for_a_computation_is_part_of_it_and_what_they_do_for_others_is_not() {
        let other = std::thread::spawn(|| drop(block(64 << 20)));
        let (block, taken) = with_memory_taken(|| among_workers(&Device::Cpu, || block(5 << 20)));
        assert!(other.join().is_ok());
        assert_eq!(block.len(), 5 << 20);
        // Handing work over takes a little too.
        assert!((5 << 20..6 << 20).contains(&taken), "{taken}");
    }

    #[test]
    fn a_measurement_within_another_stays_out_of_it() {
        let (_, outer) = with_memory_taken(|| {
            let (_, inner) = apart(|| drop(block(8 << 20)));
            assert_eq!(inner.0.most, 8 << 20);
            block(1 << 20)
        });
        assert_eq!(outer, 1 << 20);
        let panicked = std::panic::catch_unwind(|| apart::<()>(|| panic!("within")));
        let (_, after) = with_memory_taken(|| block(1 << 20));
        assert!(panicked.is_err() && after == 1 << 20);
    }
}
