//! Shared code of all programs in `fuzz_targets`. Each passes bytes to the target with its name, and aborts if the
//! target takes too much memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub use libfuzzer_sys;
use symroute::fuzzing;

/// Maximum memory that a target may hold at one time, in bytes. An input has some KiB.
const MOST: usize = 32 << 20;

/// Defines the program for the target with this name.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::run($name, bytes));
    };
}

/// Calls a target with these bytes.
pub fn run(name: &str, bytes: &[u8]) {
    let target = fuzzing::target(name).expect("a name of fuzzing::TARGETS");
    LEAST.store(HELD.load(Relaxed), Relaxed);
    target(bytes);
    LEAST.store(usize::MAX / 2, Relaxed);
}

/// Allocated bytes now.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// Allocated bytes when the target began. Outside of a target, a value without effect.
static LEAST: AtomicUsize = AtomicUsize::new(usize::MAX / 2);

struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

impl Limited {
    fn take(size: usize) {
        let held = HELD.fetch_add(size, Relaxed).saturating_add(size);
        if held > LEAST.load(Relaxed).saturating_add(MOST) {
            // Not a panic, which allocates. libFuzzer prints the message.
            std::process::abort();
        }
    }
}

// SAFETY: the system's allocator does all the work, and the counters do not change its answers.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        // SAFETY: the caller keeps the contract of this function, which is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: see `alloc`.
        unsafe { System.dealloc(place, layout) }
    }
}
