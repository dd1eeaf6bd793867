//! Who owns each machine frame, and what it may be used as.
//!
//! Every frame of RAM has a [`FrameRecord`] of 16 bytes: its owner, how many references keep it from being freed, the
//! *type* it is used as, and how many uses of that type there are. Types exclude each other and change only when
//! no use is left: that is the whole of direct mode's safety. A frame that some guest can write to is of
//! type *writable*; a frame that the MMU walks is of type *table n*; no frame is both.
//!
//! * [`words`]: what the 16 bytes say.
//! * [`record`]: their atomic transitions.
//! * [`table`]: all records, free memory, references that last longer than a call.
//! * [`uses`]: the types of frames, and the one place that flushes for a change.
//! * [`allocator`]: which frames are free.
//! * [`extent`]: many frames given out at once, and taken back from their owner.
//! * [`m2p`]: the machine-to-physical table that guests read.
//! * [`boot_memory`]: memory before the frame table exists.

pub mod allocator;
pub mod boot_memory;
pub mod extent;
pub mod held;
pub mod m2p;
pub mod record;
pub mod table;
pub mod uses;
pub mod words;

pub use boot_memory::BootMemory;
pub use record::FrameRecord;
pub use table::{FrameTable, Memory, Unreferenced};
pub use words::FrameType;

use crate::address::MachineFrame;

/// Why a frame can't be had as asked. Always the asker's fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// No RAM has this number: a hole, or a device. It belongs to nobody.
    NotMemory(MachineFrame),
    /// The frame is somebody else's, or free.
    NotOwned(MachineFrame),
    /// The frame is in use as something that excludes what was asked.
    InUse(MachineFrame, FrameType),
    /// So many references that one more could overflow the count.
    TooManyReferences(MachineFrame),
}
