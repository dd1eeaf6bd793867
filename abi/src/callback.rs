//! `callback_op`, and `nmi_op` before it: entry points of a guest's kernel (`callback.h`, `nmi.h`; x86).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Registers an entry point: [`CallbackRegister`].
pub const CALLBACKOP_REGISTER: u64 = 0;
/// Takes one away: the first four bytes of [`CallbackRegister`].
pub const CALLBACKOP_UNREGISTER: u64 = 1;

/// Events.
pub const CALLBACKTYPE_EVENT: u16 = 0;
/// A state of the guest's can't be loaded again.
pub const CALLBACKTYPE_FAILSAFE: u16 = 1;
/// `syscall` by 64-bit code of a user's.
pub const CALLBACKTYPE_SYSCALL: u16 = 2;
/// Non-maskable interrupts.
pub const CALLBACKTYPE_NMI: u16 = 4;
/// `sysenter`.
pub const CALLBACKTYPE_SYSENTER: u16 = 5;
/// `syscall` by 32-bit code of a user's.
pub const CALLBACKTYPE_SYSCALL32: u16 = 7;

/// In [`CallbackRegister::flags`]: events are masked on entry.
pub const CALLBACKF_MASK_EVENTS: u16 = 1;

/// `nmi_op`: registers the entry point for non-maskable interrupts: its address, and a word of padding.
pub const XENNMI_REGISTER_CALLBACK: u32 = 0;
/// Takes it away.
pub const XENNMI_UNREGISTER_CALLBACK: u32 = 1;

/// [`CALLBACKOP_REGISTER`] (`struct callback_register`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CallbackRegister {
    /// `CALLBACKTYPE_*`.
    pub kind: u16,
    /// `CALLBACKF_*`.
    pub flags: u16,
    /// Padding that C inserts.
    pub pad: u32,
    /// The entry point.
    pub address: u64,
}

const _: () = assert!(size_of::<CallbackRegister>() == 16);
