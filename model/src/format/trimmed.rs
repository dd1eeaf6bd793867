//! A real format with short tables.
//!
//! Entries are the real format's, bit for bit, judged by its code; but a table has only 16 of them, so that a whole machine
//! is recounted in microseconds and trees of all shapes fit into a hundred frames. What 512 entries change (indices, budgets) is tested
//! by the same operations on the real size, fewer of them.

use std::marker::PhantomData;
use std::ops::Range;

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::machine::{Entry, EntryFault, Level, PageTableFormat};
use hyp_el2::store::Change;

use super::{Hardware, Shape, Walk};

/// log2 of a short table's entries.
const BITS: u32 = 4;
/// log2 of what a real table has more.
const CUT: u32 = 9 - BITS;

/// The format `F` with short tables.
pub struct Trimmed<F>(PhantomData<F>);

impl<F: Hardware> PageTableFormat for Trimmed<F> {
    const LEVELS: Level = F::LEVELS;

    fn index_bits(_: Level) -> u32 {
        BITS
    }

    fn reserved_root_slots() -> Range<usize> {
        let real = F::reserved_root_slots();
        real.start >> CUT..real.end.div_ceil(1 << CUT)
    }

    #[inline]
    fn decode(level: Level, raw: u64) -> Entry {
        F::decode(level, raw)
    }

    #[inline]
    fn admit(level: Level, raw: u64) -> Result<(u64, Entry), EntryFault> {
        F::admit(level, raw)
    }

    fn encode(level: Level, entry: Entry) -> u64 {
        F::encode(level, entry)
    }

    fn is_read_only_table(raw: u64) -> bool {
        F::is_read_only_table(raw)
    }

    fn with_write(raw: u64, writable: bool) -> u64 {
        F::with_write(raw, writable)
    }

    fn hidden(raw: u64) -> u64 {
        F::hidden(raw)
    }

    fn hardware_bits(level: Level) -> u64 {
        F::hardware_bits(level)
    }
}

impl<F: Hardware> Hardware for Trimmed<F> {
    const NAME: &'static str = F::NAME;
    const SIGN: u64 = F::SIGN;
    const KERNEL_SLOT: u64 = F::KERNEL_SLOT >> CUT;
    const TAGGED: bool = F::TAGGED;
    const BREAKS: bool = F::BREAKS;
    const LIMITS: bool = F::LIMITS;

    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        user: Option<MachineFrame>,
    ) -> Option<MachineFrame> {
        F::root_of(address, kernel, user)
    }

    #[inline]
    fn walk(level: Level, raw: u64) -> Walk {
        F::walk(level, raw)
    }

    fn conflict(level: Level, old: u64, new: u64) -> bool {
        F::conflict(level, old, new)
    }

    fn backend_change(old: u64, new: u64) -> Change {
        F::backend_change(old, new)
    }

    fn used(written: bool) -> u64 {
        F::used(written)
    }

    fn compose(shape: Shape, frame: u64) -> u64 {
        F::compose(shape, frame)
    }

    fn uncached(frame: u64) -> u64 {
        F::uncached(frame)
    }
}
