//! Page-table updates: `mmu_update`, `mmuext_op`, `update_va_mapping` (`xen.h`).
//!
//! Entries, pointers and frame numbers here are *machine*: the guest translates with its P2M before it asks.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One request of `mmu_update`: store `value` at `pointer`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MmuUpdate {
    /// Machine address (bytes) of the entry, 8-byte aligned; its two low bits hold the kind of the request.
    pub pointer: u64,
    /// The new entry, or for [`MMU_MACHPHYS_UPDATE`] the pseudo-physical frame number.
    pub value: u64,
}

/// The bits of [`MmuUpdate::pointer`] that hold the kind of the request.
pub const MMU_UPDATE_KIND_MASK: u64 = 3;
/// Checked store of a page-table entry.
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
/// Sets the M2P entry of the machine frame that `pointer` lies in.
pub const MMU_MACHPHYS_UPDATE: u64 = 1;
/// As [`MMU_NORMAL_PT_UPDATE`], but the accessed and dirty bits of the old entry stay.
pub const MMU_PT_UPDATE_PRESERVE_AD: u64 = 2;
/// As [`MMU_NORMAL_PT_UPDATE`], with a machine frame number even for guests whose frames are translated.
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;

/// Added to the count of a batch that the hypervisor goes on with after a preemption (`MMU_UPDATE_PREEMPTED`): the high
/// bit of the 32-bit count argument.
pub const MMU_UPDATE_PREEMPTED: u64 = 1 << 31;

/// Reads the domain argument of `mmu_update` (its fourth).
///
/// The low 16 bits name the owner of the frames that the new entries lead to. The high 16 bits, when not zero, are one
/// more than the domain whose tables are to be changed; `None` stands for the caller's own tables.
pub const fn decode_foreign_domain(argument: u64) -> (Option<u16>, u16) {
    let table_owner = ((argument >> 16) & 0xffff) as u16;
    let frame_owner = (argument & 0xffff) as u16;
    (table_owner.checked_sub(1), frame_owner)
}

/// One operation of `mmuext_op`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MmuextOp {
    /// A `MMUEXT_*` command.
    pub command: u32,
    /// Padding that C inserts.
    pub pad: u32,
    /// A machine frame number, or a linear address for the flushes of one page.
    pub argument1: u64,
    /// A count, the guest address of a CPU mask, or a source frame number.
    pub argument2: u64,
}

const _: () = assert!(size_of::<MmuUpdate>() == 16 && size_of::<MmuextOp>() == 24);
const _: () = assert!(core::mem::offset_of!(MmuextOp, argument1) == 8);

/// Validates frame `argument1` as a level-1 table and keeps it so.
pub const MMUEXT_PIN_L1_TABLE: u32 = 0;
/// Validates frame `argument1` as a level-2 table and keeps it so.
pub const MMUEXT_PIN_L2_TABLE: u32 = 1;
/// Validates frame `argument1` as a level-3 table and keeps it so.
pub const MMUEXT_PIN_L3_TABLE: u32 = 2;
/// Validates frame `argument1` as a level-4 table and keeps it so.
pub const MMUEXT_PIN_L4_TABLE: u32 = 3;
/// Undoes a pin of frame `argument1`.
pub const MMUEXT_UNPIN_TABLE: u32 = 4;
/// Loads the root in frame `argument1` for the guest's kernel.
pub const MMUEXT_NEW_BASEPTR: u32 = 5;
/// Flushes all of this CPU's translations.
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
/// Flushes the translation of address `argument1` on this CPU.
pub const MMUEXT_INVLPG_LOCAL: u32 = 7;
/// Flushes all translations on the vCPUs of the mask at `argument2`.
pub const MMUEXT_TLB_FLUSH_MULTI: u32 = 8;
/// Flushes the translation of `argument1` on the vCPUs of the mask at `argument2`.
pub const MMUEXT_INVLPG_MULTI: u32 = 9;
/// Flushes all translations on all the domain's CPUs.
pub const MMUEXT_TLB_FLUSH_ALL: u32 = 10;
/// Flushes the translation of `argument1` on all the domain's CPUs.
pub const MMUEXT_INVLPG_ALL: u32 = 11;
/// Writes back and invalidates the caches.
pub const MMUEXT_FLUSH_CACHE: u32 = 12;
/// Installs a local descriptor table: linear address `argument1`, `argument2` entries (x86).
pub const MMUEXT_SET_LDT: u32 = 13;
/// Loads the root in frame `argument1` for user mode; frame 0 means none.
pub const MMUEXT_NEW_USER_BASEPTR: u32 = 15;
/// Clears frame `argument1`.
pub const MMUEXT_CLEAR_PAGE: u32 = 16;
/// Copies frame `argument2` to frame `argument1`.
pub const MMUEXT_COPY_PAGE: u32 = 17;
/// Writes back and invalidates the caches of all CPUs.
pub const MMUEXT_FLUSH_CACHE_GLOBAL: u32 = 18;
/// Marks a 2 MiB range as usable for superpages.
pub const MMUEXT_MARK_SUPER: u32 = 19;
/// Undoes [`MMUEXT_MARK_SUPER`].
pub const MMUEXT_UNMARK_SUPER: u32 = 20;

/// `update_va_mapping`: flush nothing.
pub const UVMF_NONE: u64 = 0;
/// `update_va_mapping`: flush everything.
pub const UVMF_TLB_FLUSH: u64 = 1;
/// `update_va_mapping`: flush the one address.
pub const UVMF_INVLPG: u64 = 2;
/// The bits of the flags that say what to flush; both set at once is an error.
pub const UVMF_FLUSHTYPE_MASK: u64 = 3;
/// `update_va_mapping`: the rest of the flags is the guest address of a vCPU mask; 0 means this vCPU (`UVMF_LOCAL`).
pub const UVMF_MULTI: u64 = 0;
/// `update_va_mapping`: flush on this vCPU.
pub const UVMF_LOCAL: u64 = 0;
/// `update_va_mapping`: flush on all vCPUs of the domain.
pub const UVMF_ALL: u64 = 4;

#[cfg(test)]
mod tests {
    use super::decode_foreign_domain;

    #[test]
    fn the_foreign_domain_argument_holds_two_domains() {
        assert_eq!(decode_foreign_domain(0x7ff0), (None, 0x7ff0));
        assert_eq!(decode_foreign_domain(0x0002_0003), (Some(1), 3));
    }
}
