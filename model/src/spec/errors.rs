//! Sets of error codes: what an operation may be refused with.

use penumbra_abi::errno::Errno;

/// A set of error codes; empty: the operation has to succeed.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Errors(u16);

const KNOWN: [Errno; 10] = [
    Errno::EPERM,
    Errno::EINVAL,
    Errno::EBUSY,
    Errno::ESRCH,
    Errno::EFAULT,
    Errno::ENOMEM,
    Errno::ENOSYS,
    Errno::ENOENT,
    Errno::EEXIST,
    Errno::ENXIO,
];

impl Errors {
    /// No reason to refuse.
    pub const NONE: Self = Self(0);

    /// Just this one.
    pub fn only(errno: Errno) -> Self {
        let mut errors = Self::NONE;
        errors.add(errno);
        errors
    }

    /// One more reason.
    pub fn add(&mut self, errno: Errno) {
        let place = KNOWN.iter().position(|known| *known == errno).expect("an error code that is foreseen");
        self.0 |= 1 << place;
    }

    /// Whether nothing speaks against it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this code is among the reasons.
    pub fn has(self, errno: Errno) -> bool {
        KNOWN.iter().position(|known| *known == errno).is_some_and(|place| self.0 >> place & 1 != 0)
    }
}

impl std::fmt::Debug for Errors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(KNOWN.iter().filter(|known| self.has(**known)).map(|known| known.name()))
            .finish()
    }
}
