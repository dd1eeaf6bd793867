//! Keeping count of what was as it should be.

use crate::architecture::Architecture;
use crate::say;
use core::marker::PhantomData;
use penumbra_abi::Errno;

/// The checks of one test.
pub struct Check<A> {
    name: &'static str,
    made: u32,
    failed: u32,
    first: &'static str,
    architecture: PhantomData<A>,
}

impl<A: Architecture> Check<A> {
    /// Begins the test `name`.
    pub const fn new(name: &'static str) -> Self {
        Self { name, made: 0, failed: 0, first: "", architecture: PhantomData }
    }

    /// `good` must be true.
    pub fn that(&mut self, what: &'static str, good: bool) {
        self.made += 1;
        if !good {
            say!(A, "  {}: not so: {what}", self.name);
            self.failed += 1;
            if self.failed == 1 {
                self.first = what;
            }
        }
    }

    /// The call must have succeeded; its value.
    pub fn done<T>(&mut self, what: &'static str, result: Result<T, Errno>) -> Option<T> {
        if let Err(error) = &result {
            say!(A, "  {}: {what}: refused with {error}", self.name);
        }
        self.that(what, result.is_ok());
        result.ok()
    }

    /// The call must have been refused, with one of `errors`.
    pub fn refused<T>(&mut self, what: &'static str, result: Result<T, Errno>, errors: &[Errno]) {
        let error = result.err();
        let good = error.is_some_and(|error| errors.contains(&error));
        if !good {
            say!(A, "  {}: {what}: expected one of {errors:?}, got {error:?}", self.name);
        }
        self.that(what, good);
    }

    /// Prints the test's line.
    pub fn report(self) {
        say!(A, "  {}: {} checks, {} failed", self.name, self.made, self.failed);
        match self.failed {
            0 if self.made > 0 => say!(A, "TEST {}: PASS", self.name),
            0 => say!(A, "TEST {}: FAIL no checks were made", self.name),
            _ => say!(A, "TEST {}: FAIL {}", self.name, self.first),
        }
    }
}
