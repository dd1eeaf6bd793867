//! Descriptor tables: segments, interrupt gates, the task-state segment, and where `syscall` leads.
//!
//! The segment table's first 14 pages hold the running guest's own descriptors (a page of zeros where it has none), then comes the
//! hypervisor's page at selector 0xe000, with Xen's flat segments for ring 3 where the ABI has them. It lies at
//! [`layout::DESCRIPTOR_TABLE`].
//!
//! There is no local descriptor table but a guest's that was judged (`guest_descriptors.rs`). That has to be said to the processor:
//! after a reset it has one at linear address 0, which is a guest's, and a guest that fills it in (with a call gate, for instance)
//! is in ring 0.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::size_of;

use hyp_x86::layout;
use penumbra_abi::x86_64::FLAT_RING3_CS32;
use x86_64::VirtAddr;
use x86_64::instructions::tables::{lgdt, lidt, load_tss};
use x86_64::registers::model_specific::Msr;
use x86_64::registers::segmentation::{CS, SS, Segment};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::SegmentSelector;
use x86_64::structures::tss::TaskStateSegment;

use crate::{entry, stack, tables};

/// The hypervisor's code segment. Its stack segment must be the next one, for `syscall`.
const OWN_CODE: u16 = 0xe008;
const OWN_STACK: u16 = 0xe010;
/// The task-state segment's descriptor, 16 bytes.
const TASK_STATE: u16 = 0xe040;
/// The local table's descriptor, 16 bytes: the two words after the task-state segment's.
const LOCAL_TABLE: u16 = 0xe050;
/// First selector of the hypervisor's page.
const OWN_FIRST: u16 = (layout::GUEST_DESCRIPTOR_PAGES * 4096) as u16;
/// Last byte of the segment table.
const LIMIT: u16 = OWN_FIRST + 4095;

const CODE64_RING0: u64 = 0x00af_9b00_0000_ffff;
const DATA_RING0: u64 = 0x00cf_9300_0000_ffff;
const CODE32_RING3: u64 = 0x00cf_fb00_0000_ffff;
const DATA_RING3: u64 = 0x00cf_f300_0000_ffff;
const CODE64_RING3: u64 = 0x00af_fb00_0000_ffff;

/// Gate flags: present, interrupt gate (interrupts off on entry), and who may use it by `int`.
const GATE_RING0: u64 = 0x8e << 8;
const GATE_RING3: u64 = 0xee << 8;

/// Model-specific registers of `syscall` and `sysenter`.
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_FMASK: u32 = 0xc000_0084;
const MSR_SYSENTER_CS: u32 = 0x174;

/// Flags that `syscall` clears: trap, interrupt, direction, I/O privilege, nested task, resume, virtual-8086, alignment
/// check; everything but the arithmetic ones and the always-one bit.
const CLEARED_FLAGS: u64 = 0x0007_7700;
// Trap, interrupt, direction, I/O privilege (two bits), nested task, alignment check. QEMU's emulator clears the direction flag
// whatever the mask says, so no guest can show there that it is in the mask.
const _: () = assert!(CLEARED_FLAGS & (1 << 8 | 1 << 9 | 1 << 10 | 3 << 12 | 1 << 14 | 1 << 18) == 0x4_7700);

/// A table that the processor reads, and that is written with interrupts off on the one CPU that uses it.
#[repr(C, align(4096))]
struct Table<T>(UnsafeCell<T>);

// SAFETY: written by `load` and `set_ring0_stack` alone, which run on the one CPU that uses the tables.
unsafe impl<T> Sync for Table<T> {}

static SEGMENTS: Table<[u64; 512]> = Table(UnsafeCell::new([0; 512]));
static GATES: Table<[[u64; 2]; 256]> = Table(UnsafeCell::new([[0; 2]; 256]));
static STATE: Table<TaskStateSegment> = Table(UnsafeCell::new(TaskStateSegment::new()));
/// What a guest's part of the segment table holds before it has one: descriptors that aren't present.
static ZEROS: Table<[u64; 512]> = Table(UnsafeCell::new([0; 512]));

/// The pages of the segment table, first to last, as addresses in the image: whether each is the hypervisor's, and where.
pub fn segment_pages() -> impl Iterator<Item = (bool, u64)> {
    let guest = core::iter::repeat_n((false, ZEROS.0.get() as u64), layout::GUEST_DESCRIPTOR_PAGES as usize);
    guest.chain(core::iter::once((true, SEGMENTS.0.get() as u64)))
}

/// Fills the tables in and loads them. Needs the segment table mapped at its place.
///
/// # Safety
/// Once, by the CPU that is started, with interrupts off and the hypervisor's own tables loaded.
pub unsafe fn load() {
    // SAFETY: nobody uses the tables yet.
    unsafe {
        fill_state(&mut *STATE.0.get());
        fill_segments(&mut *SEGMENTS.0.get());
        fill_gates(&mut *GATES.0.get());
    }
    let segments = DescriptorTablePointer { limit: LIMIT, base: VirtAddr::new(layout::DESCRIPTOR_TABLE) };
    let gates = DescriptorTablePointer { limit: 256 * 16 - 1, base: VirtAddr::from_ptr(GATES.0.get()) };
    // SAFETY: the tables are complete, and stay where they are.
    unsafe {
        lgdt(&segments);
        CS::set_reg(SegmentSelector(OWN_CODE));
        SS::set_reg(SegmentSelector(OWN_STACK));
        load_no_local_table();
        lidt(&gates);
        load_tss(SegmentSelector(TASK_STATE));
        load_syscall();
    }
}

/// From now on every selector of the local descriptor table faults.
fn load_no_local_table() {
    // SAFETY: the null selector takes the local table away, and no segment of the hypervisor's comes from it.
    unsafe { asm!("lldt {:x}", in(reg) 0u16, options(nomem, nostack, preserves_flags)) };
}

/// The entry of the hypervisor's tables for a page of the segment table that a guest hasn't filled.
pub fn nothing_entry() -> u64 {
    tables::image_physical(ZEROS.0.get() as u64) | tables::READ_ONLY.bits()
}

/// Takes the local table at its place in the window, so many bytes of it; 0 takes it away.
pub fn load_local_table(bytes: u64) {
    if bytes == 0 {
        return load_no_local_table();
    }
    let base = layout::DESCRIPTOR_TABLE + layout::LOCAL_TABLE_PAGE * 4096;
    let place = usize::from(LOCAL_TABLE - OWN_FIRST) / 8;
    // SAFETY: the two words are the local table's alone, in a page that is this CPU's; the pages below the limit are in the window, and
    // each of their descriptors was judged.
    unsafe {
        let segments = SEGMENTS.0.get().cast::<u64>();
        for (word, value) in hyp_x86::segment::local_table(base, bytes).into_iter().enumerate() {
            segments.add(place + word).write_volatile(value);
        }
        asm!("lldt {:x}", in(reg) LOCAL_TABLE, options(nostack, preserves_flags));
    }
}

/// Says where the processor pushes what it pushes when ring 3 is interrupted: the first byte beyond.
#[inline]
pub fn set_ring0_stack(top: u64) {
    // SAFETY: the processor reads this field only when ring 3 is interrupted, and this runs in ring 0; a plain write of an
    // unaligned field through a raw pointer.
    unsafe {
        let field = &raw mut (*STATE.0.get()).privilege_stack_table[0];
        field.write_unaligned(VirtAddr::new_truncate(top));
    }
}

fn fill_state(state: &mut TaskStateSegment) {
    let stacks = [
        stack::NON_MASKABLE.top(),
        stack::DOUBLE_FAULT.top(),
        stack::MACHINE_CHECK.top(),
        stack::DEBUG.top(),
    ];
    let mut table = [VirtAddr::zero(); 7];
    for (slot, top) in table.iter_mut().zip(stacks) {
        *slot = VirtAddr::new_truncate(top);
    }
    state.interrupt_stack_table = table;
    // Beyond the segment's limit: no port is allowed.
    state.iomap_base = size_of::<TaskStateSegment>() as u16;
}

fn fill_segments(segments: &mut [u64; 512]) {
    let base = STATE.0.get() as u64;
    let limit = size_of::<TaskStateSegment>() as u64 - 1;
    let state = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    // Selectors 0xe000, 0xe008, ...: the ring-3 ones at 0xe023, 0xe02b, 0xe033 are the ABI's.
    let own = [0, CODE64_RING0, DATA_RING0, 0, CODE32_RING3, DATA_RING3, CODE64_RING3, 0, state, base >> 32];
    segments[..own.len()].copy_from_slice(&own);
}

fn fill_gates(gates: &mut [[u64; 2]; 256]) {
    let stubs = entry::address(&entry::entry_stubs);
    for (vector, gate) in gates.iter_mut().enumerate() {
        let stub = stubs + vector as u64 * entry::STUB_BYTES;
        // Breakpoint and overflow have instructions of their own, which ring 3 may use.
        let kind = if matches!(vector, 3 | 4) { GATE_RING3 } else { GATE_RING0 };
        let low = stub & 0xffff
            | u64::from(OWN_CODE) << 16
            | (kind | stack_of(vector)) << 32
            | (stub >> 16 & 0xffff) << 48;
        *gate = [low, stub >> 32];
    }
}

/// Which entry of the interrupt stack table a vector uses; 0 is none.
const fn stack_of(vector: usize) -> u64 {
    match vector {
        2 => 1,
        8 => 2,
        18 => 3,
        1 => 4,
        _ => 0,
    }
}

/// # Safety
/// The segment table is loaded.
unsafe fn load_syscall() {
    let selectors = u64::from(FLAT_RING3_CS32) << 48 | u64::from(OWN_CODE) << 32;
    let by_number = [
        (MSR_STAR, selectors),
        (MSR_LSTAR, entry::address(&entry::entry_syscall)),
        (MSR_CSTAR, entry::address(&entry::entry_compatibility_syscall)),
        (MSR_FMASK, CLEARED_FLAGS),
        // A null code segment makes `sysenter` fault.
        (MSR_SYSENTER_CS, 0),
    ];
    for (number, value) in by_number {
        // SAFETY: every processor with long mode has these; the targets are the entry points made for them.
        unsafe { Msr::new(number).write(value) };
    }
}
