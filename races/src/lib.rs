//! The frame table under loom: every interleaving of a few CPUs, and every value that a relaxed load may see.
//!
//! The sources of `hyp-core`'s room `frame`, and of what `hyp-el2` notes for break-before-make, are compiled once more here, with loom's
//! atomics in the place of the processor's; nothing else of them is changed. The tests are in `tests/`: each is a story of two or three CPUs that want the same
//! frame. `cargo xtask test` runs them as `loom/...`; `LOOM_MAX_PREEMPTIONS` bounds how often a CPU is interrupted at any
//! place (2 unless told; 3 takes minutes).

pub use hyp_core::{address, machine};

pub mod cpu;
// What only the backends and the tables use has no user here.
#[allow(dead_code)]
#[path = "../../hyp-core/src/frame/mod.rs"]
pub mod frame;
#[path = "../../hyp-el2/src/remembered.rs"]
pub mod remembered;

/// Every interleaving, with so many interruptions that aren't the CPU's own doing.
pub fn explore(story: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(2));
    model.max_branches = 20_000;
    model.check(story);
}

/// As `hyp_core::sync`, with loom's atomics.
pub mod sync {
    /// Atomics that can be made in a constant: loom's own can't, so each is made when it is first used.
    pub mod atomic {
        use std::fmt;
        use std::sync::OnceLock;

        pub use loom::sync::atomic::Ordering;

        macro_rules! lazily {
            ($name:ident, $value:ty) => {
                #[doc = "An atomic of loom's, made at its first use."]
                pub struct $name {
                    first: $value,
                    made: OnceLock<loom::sync::atomic::$name>,
                }

                impl fmt::Debug for $name {
                    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "atomic")
                    }
                }

                #[allow(missing_docs)]
                impl $name {
                    pub const fn new(first: $value) -> Self {
                        Self { first, made: OnceLock::new() }
                    }
                    fn made(&self) -> &loom::sync::atomic::$name {
                        self.made.get_or_init(|| loom::sync::atomic::$name::new(self.first))
                    }
                    pub fn load(&self, order: Ordering) -> $value {
                        self.made().load(order)
                    }
                    pub fn store(&self, value: $value, order: Ordering) {
                        self.made().store(value, order);
                    }
                    pub fn swap(&self, value: $value, order: Ordering) -> $value {
                        self.made().swap(value, order)
                    }
                    pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                        self.made().fetch_add(value, order)
                    }
                    pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                        self.made().fetch_sub(value, order)
                    }
                    pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                        self.made().fetch_or(value, order)
                    }
                    pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                        self.made().fetch_and(value, order)
                    }
                    pub fn compare_exchange(
                        &self,
                        current: $value,
                        new: $value,
                        success: Ordering,
                        failure: Ordering,
                    ) -> Result<$value, $value> {
                        self.made().compare_exchange(current, new, success, failure)
                    }
                    pub fn compare_exchange_weak(
                        &self,
                        current: $value,
                        new: $value,
                        success: Ordering,
                        failure: Ordering,
                    ) -> Result<$value, $value> {
                        self.made().compare_exchange(current, new, success, failure)
                    }
                    pub fn fetch_update(
                        &self,
                        success: Ordering,
                        failure: Ordering,
                        change: impl FnMut($value) -> Option<$value>,
                    ) -> Result<$value, $value> {
                        self.made().fetch_update(success, failure, change)
                    }
                }
            };
        }

        lazily!(AtomicU64, u64);
        lazily!(AtomicUsize, usize);
    }

    /// loom's lock, with the face of a spin lock.
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(content: T) -> Self {
            Self(loom::sync::Mutex::new(content))
        }

        pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("no thread panics and goes on")
        }
    }

    impl<T> std::fmt::Debug for Mutex<T> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "lock")
        }
    }

    /// Lets the other CPUs go on: this one waits for them.
    pub fn spin_loop() {
        loom::thread::yield_now();
    }
}
