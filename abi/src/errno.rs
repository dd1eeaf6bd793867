//! Error codes (`errno.h`).
//!
//! A hypercall returns a non-negative value, or one of these negated. They are Xen's numbers, which aren't always those
//! of the guest's operating system.

use core::fmt;

/// An error code as Xen numbers it: always positive here, negated when it is returned to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

macro_rules! errors {
    ($($name:ident = $value:literal, $meaning:literal;)*) => {
        impl Errno {
            $(#[doc = $meaning] pub const $name: Self = Self($value);)*

            /// The code's symbolic name, or `"E?"` for a number that `errno.h` doesn't list.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($value => stringify!($name),)*
                    _ => "E?",
                }
            }
        }
    };
}

errors! {
    EPERM = 1, "The caller has no right to this operation.";
    ENOENT = 2, "There is no such entry.";
    ESRCH = 3, "There is no such domain.";
    EINTR = 4, "Interrupted.";
    EIO = 5, "Input or output failed.";
    ENXIO = 6, "There is no such device or address.";
    E2BIG = 7, "The argument list is too long.";
    ENOEXEC = 8, "Not in an executable's format.";
    EBADF = 9, "Bad handle.";
    EAGAIN = 11, "Try again.";
    ENOMEM = 12, "Out of memory.";
    EACCES = 13, "Permission denied.";
    EFAULT = 14, "A guest address can't be used as asked.";
    EBUSY = 16, "In use.";
    EEXIST = 17, "Exists already.";
    EXDEV = 18, "The two sides don't belong together.";
    ENODEV = 19, "There is no such device.";
    EISDIR = 21, "Is a directory.";
    EINVAL = 22, "Invalid argument.";
    ENOSPC = 28, "No space is left.";
    EROFS = 30, "Read-only.";
    EDOM = 33, "Out of the function's domain.";
    ERANGE = 34, "The result is out of range.";
    EDEADLK = 35, "Would deadlock.";
    ENOSYS = 38, "No such hypercall or sub-operation.";
    ENODATA = 61, "No data available.";
    ETIME = 62, "Timer expired.";
    EOVERFLOW = 75, "Too large for the data type.";
    EILSEQ = 84, "Illegal sequence of bytes.";
    ERESTART = 85, "Restart the call. Never reaches a guest.";
    EMSGSIZE = 90, "Message too large.";
    EOPNOTSUPP = 95, "Known, but not supported here.";
    EADDRINUSE = 98, "Address in use.";
    ENOBUFS = 105, "No buffer space.";
    ETIMEDOUT = 110, "Timed out.";
}

impl Errno {
    /// The code, positive.
    pub const fn code(self) -> u16 {
        self.0
    }

    /// The value that a hypercall returns for this error: the negated code in two's complement.
    pub const fn to_return(self) -> u64 {
        (self.0 as u64).wrapping_neg()
    }

    /// Reads what a hypercall returned.
    ///
    /// # Errors
    /// The error, when `returned` lies in the range of negated codes (-4095 to -1).
    pub const fn from_return(returned: u64) -> Result<u64, Self> {
        let negated = returned.wrapping_neg();
        if negated == 0 || negated > 4095 { Ok(returned) } else { Err(Self(negated as u16)) }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        if self.name() == "E?" { write!(f, "({})", self.0) } else { Ok(()) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn a_returned_error_is_the_negated_code() {
        assert_eq!(Errno::EINVAL.to_return(), (-22_i64) as u64);
        assert_eq!(Errno::ENOSYS.to_return(), (-38_i64) as u64);
    }

    #[test]
    fn reading_a_return_value_tells_errors_from_values() {
        assert_eq!(Errno::from_return(0), Ok(0));
        assert_eq!(Errno::from_return(u64::MAX), Err(Errno::EPERM));
        assert_eq!(Errno::from_return((-4095_i64) as u64).map_err(Errno::code), Err(4095));
        assert_eq!(Errno::from_return((-4096_i64) as u64), Ok((-4096_i64) as u64));
        assert_eq!(Errno::from_return(Errno::EBUSY.to_return()), Err(Errno::EBUSY));
    }
}
