//! What all programs of `fuzz_targets` share: each gives bytes to the target of its name, and ends where that
//! takes much memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub use libfuzzer_sys;
use symroute::fuzzing;

/// Most that a target may hold at one time, in bytes. An input has some KiB.
const MOST: usize = 32 << 20;

/// Makes a program of the target of this name.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::run($name, bytes));
    };
}

/// Gives bytes to a target.
pub fn run(name: &str, bytes: &[u8]) {
    let target = fuzzing::target(name).expect("a name of fuzzing::TARGETS");
    LEAST.store(HELD.load(Relaxed), Relaxed);
    target(bytes);
    LEAST.store(usize::MAX / 2, Relaxed);
}

/// Bytes that are held now, and that were held when the target began.
static HELD: AtomicUsize = AtomicUsize::new(0);
static LEAST: AtomicUsize = AtomicUsize::new(usize::MAX / 2);

struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

impl Limited {
    fn take(size: usize) {
        let held = HELD.fetch_add(size, Relaxed).saturating_add(size);
        if held > LEAST.load(Relaxed).saturating_add(MOST) {
            // Nothing that allocates, so no panic. The message comes from libFuzzer.
            std::process::abort();
        }
    }
}

// SAFETY: the system's allocator does all of the work; what is counted changes none of its answers.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        // SAFETY: the caller keeps to the contract, which is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}
