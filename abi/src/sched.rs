//! `sched_op` (`sched.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Gives up the rest of the time slice.
pub const SCHEDOP_YIELD: u64 = 0;
/// Unmasks events and sleeps until one is pending.
pub const SCHEDOP_BLOCK: u64 = 1;
/// Ends the domain: [`SchedShutdown`].
pub const SCHEDOP_SHUTDOWN: u64 = 2;
/// Sleeps until one of some event channels is pending, or a time has come.
pub const SCHEDOP_POLL: u64 = 3;
/// Marks another domain as shut down.
pub const SCHEDOP_REMOTE_SHUTDOWN: u64 = 4;
/// Sets the reason for a shutdown to come.
pub const SCHEDOP_SHUTDOWN_CODE: u64 = 5;
/// Sets a watchdog.
pub const SCHEDOP_WATCHDOG: u64 = 6;
/// Pins a vCPU to a CPU for a while.
pub const SCHEDOP_PIN_OVERRIDE: u64 = 7;

/// The domain ended by itself.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// Start it anew.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// It is to be saved.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// It crashed.
pub const SHUTDOWN_CRASH: u32 = 3;
/// Its watchdog expired.
pub const SHUTDOWN_WATCHDOG: u32 = 4;
/// Reset in place.
pub const SHUTDOWN_SOFT_RESET: u32 = 5;
/// The highest valid reason.
pub const SHUTDOWN_MAX: u32 = 5;

/// Argument of [`SCHEDOP_SHUTDOWN`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SchedShutdown {
    /// `SHUTDOWN_*`.
    pub reason: u32,
}

/// Argument of [`SCHEDOP_POLL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SchedPoll {
    /// Guest address of an array of 4-byte port numbers.
    pub ports: u64,
    /// Number of ports.
    pub nr_ports: u32,
    /// Padding that C inserts.
    pub pad: u32,
    /// System time (nanoseconds) at which to wake up anyway; 0: never.
    pub timeout: u64,
}

const _: () = assert!(size_of::<SchedShutdown>() == 4 && size_of::<SchedPoll>() == 24);
