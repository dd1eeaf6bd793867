//! The oracle, for tests only: direct mode under an identity stage 2 whose rights are what the frame table justifies.
//!
//! In direct mode nothing stands behind validation: an entry that slips through is just walked. This build (cargo feature
//! `oracle`) puts a second stage behind it that is empty at first. Each first access of a guest to a frame, its table walks included,
//! faults to EL2, and is judged by the frame's record alone:
//! - the guest's own frames can be read; another domain's only by the control domain, or through a grant;
//! - a frame can be written only while its type is *writable*;
//! - a walk may read only a table: validated, in use, and the guest's own (or the hypervisor's, of the M2P window);
//! - the M2P can be read; nothing else of the hypervisor's, no device, no hole can be reached at all.
//!
//! An access that the record justifies gets its stage-2 entry; one that it doesn't is a bug of the validator: it is reported, and
//! the machine stops. Entries stay until the core flushes everything ([`forget`]), and after each hypercall [`check`] judges
//! them again: so a frame that became a table, or went to another owner, *without* that flush is a bug that shows, too.
//!
//! Differences from the product are kept small: the same tables, the same code, one more bit in `HCR_EL2`. The TLB of QEMU
//! is flushed more often than without it, which is why the tests run both ways.

use core::arch::asm;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{FAR_EL2, HCR_EL2, Readable, Writeable};
use hyp_core::Vcpu;
use hyp_core::address::MachineFrame;
use hyp_core::frame::FrameType;
use hyp_core::machine::Board;
use hyp_el2::layout::IMAGE;
use hyp_el2::syndrome::Syndrome;
use spin::Mutex;

use crate::HYPERVISOR;
use crate::machine::El2;
use crate::own_tables::is_own_table;

/// `HCR_EL2.VM`.
const STAGE_2: u64 = 1;
/// `VTCR_EL2`: 39 bits of address from level 1, 4 KiB granule, write-back inner-shareable walks, 40 bits of output, RES1.
const VTCR: u64 = 25 | 1 << 6 | 1 << 8 | 1 << 10 | 0b11 << 12 | 0b10 << 16 | 1 << 31;
/// A page: valid, Normal write-back memory, readable, inner shareable, accessed.
const PAGE: u64 = 0b11 | 0b1111 << 2 | 1 << 6 | 0b11 << 8 | 1 << 10;
const WRITABLE: u64 = 1 << 7;
const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;

/// Tables of the second stage, the root among them. When they don't suffice, all is forgotten.
const TABLES: usize = 48;
/// Frames that are reachable at one time.
const LEAVES: usize = 2048;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static POOL: [Table; TABLES] = [const { Table([const { AtomicU64::new(0) }; 512]) }; TABLES];
static LOAD: AtomicU64 = AtomicU64::new(0);
static M2P_START: AtomicU64 = AtomicU64::new(0);
static M2P_SIZE: AtomicU64 = AtomicU64::new(0);
/// Accesses that were judged.
static JUDGED: AtomicU64 = AtomicU64::new(0);
/// How often entries were judged again.
static CHECKS: AtomicU64 = AtomicU64::new(0);

/// What is reachable now: stage-2 entries, so that they need not be searched for.
struct Reachable {
    leaves: [u64; LEAVES],
    count: usize,
    tables: usize,
}

static REACHABLE: Mutex<Reachable> = Mutex::new(Reachable { leaves: [0; LEAVES], count: 0, tables: 0 });

/// What a guest does with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Walk,
    Read,
    Write,
}

/// Switches the second stage on. All that any guest does is judged from now on.
pub fn initialise(load: u64) {
    // Relaxed, as wherever it is read: there are no other CPUs or guests yet, and it stays.
    LOAD.store(load, Ordering::Relaxed);
    // SAFETY: the second stage is for EL1 and EL0 only, no guest runs yet, and its root is set before one does.
    unsafe { asm!("msr vtcr_el2, {}", in(reg) VTCR, options(nostack)) };
    HCR_EL2.set(HCR_EL2.get() | STAGE_2);
    forget_all();
    log::info!("oracle: every frame that a guest reaches is judged by its record");
}

/// Says where the M2P is, in bytes of machine memory.
pub fn set_m2p(start: u64, size: u64) {
    // Relaxed, as where they are read: as above.
    M2P_START.store(start, Ordering::Relaxed);
    M2P_SIZE.store(size, Ordering::Relaxed);
}

/// What `VTTBR_EL2` holds besides the VMID.
pub fn root() -> u64 {
    machine_address(&POOL[0])
}

fn machine_address(table: &Table) -> u64 {
    (core::ptr::from_ref(table).addr() as u64).wrapping_sub(IMAGE) + LOAD.load(Ordering::Relaxed)
}

/// Makes nothing reachable: the core flushes everything, or another domain gets the CPU.
pub fn forget() {
    if LOAD.load(Ordering::Relaxed) != 0 {
        forget_all();
    }
}

fn forget_all() {
    let mut reachable = REACHABLE.lock();
    (reachable.count, reachable.tables) = (0, 1);
    // Relaxed: under the lock; walkers are told by the barriers of the flush.
    POOL[0].0.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    drop(reachable);
    flush();
}

fn flush() {
    // SAFETY: forgetting translations of EL1 and EL0 is always allowed.
    unsafe { asm!("dsb ishst", "tlbi alle1is", "dsb ish", "isb", options(nostack)) };
}

/// Judges everything again that the guest can reach without asking.
pub fn check(vcpu: &Vcpu<El2>) {
    // Relaxed: a number to be told at the end.
    CHECKS.fetch_add(1, Ordering::Relaxed);
    let reachable = REACHABLE.lock();
    for leaf in reachable.leaves.iter().take(reachable.count) {
        let Some(frame) = MachineFrame::new((leaf & ADDRESS) >> 12) else { continue };
        let kind = HYPERVISOR.frames().usage(frame).map_or(FrameType::None, |usage| usage.kind);
        let access = if leaf & WRITABLE != 0 { Access::Write } else { Access::Read };
        // The last writable mapping may be gone without a flush: the type stays until another one is asked for.
        let still = !matches!(kind, FrameType::None | FrameType::Writable) && leaf & WRITABLE != 0;
        if still || !may_reach(vcpu, frame, access) {
            accuse(vcpu, frame, format_args!("is still reachable, with rights {:#x}", leaf & WRITABLE));
        }
    }
}

/// Deals with a fault of the second stage. `false`: it is none.
pub fn judge(vcpu: &Vcpu<El2>, syndrome: Syndrome) -> bool {
    // Instruction or data abort from a lower level; translation, access flag or permission fault.
    if !matches!(syndrome.class(), 0x20 | 0x24) || !matches!(syndrome.0 >> 2 & 0xf, 1..=3) {
        return false;
    }
    let page: u64;
    // SAFETY: reads a register. QEMU fills it in for permission faults, too.
    unsafe { asm!("mrs {}, hpfar_el2", out(reg) page, options(nomem, nostack)) };
    let Some(frame) = MachineFrame::new(page >> 4 & ((1 << 40) - 1)) else { return false };
    let is_data = syndrome.class() == 0x24;
    let access = match (syndrome.0 >> 7 & 1, is_data && syndrome.0 >> 6 & 0b101 == 1) {
        (1, _) => Access::Walk,
        (_, true) => Access::Write,
        _ => Access::Read,
    };
    // Relaxed: a number to be told at the end.
    JUDGED.fetch_add(1, Ordering::Relaxed);
    match access {
        Access::Walk if !may_walk(vcpu, frame) => accuse(vcpu, frame, format_args!("is walked as a table")),
        Access::Read if !may_reach(vcpu, frame, access) => accuse(vcpu, frame, format_args!("is read")),
        Access::Write if !may_write(vcpu, frame) => accuse(vcpu, frame, format_args!("is written")),
        _ => allow(frame, access),
    }
    true
}

fn is_m2p(frame: MachineFrame) -> bool {
    let start = M2P_START.load(Ordering::Relaxed);
    frame.start().bytes().wrapping_sub(start) < M2P_SIZE.load(Ordering::Relaxed)
}

fn is_hypervisors_table(frame: MachineFrame) -> bool {
    is_own_table(frame.start().bytes(), LOAD.load(Ordering::Relaxed))
}

fn is_own(vcpu: &Vcpu<El2>, frame: MachineFrame) -> bool {
    let owner = HYPERVISOR.frames().hold(frame).and_then(|hold| hold.owner);
    owner == Some(vcpu.domain_id())
}

/// Whether the frame is another domain's that this one may map, and write to if it asks so.
fn is_lent(vcpu: &Vcpu<El2>, frame: MachineFrame, access: Access) -> bool {
    let owned = HYPERVISOR.frames().hold(frame).is_some_and(|hold| hold.owner.is_some());
    let Some(domain) = HYPERVISOR.domain(vcpu.domain_id()).filter(|_| owned) else { return false };
    domain.is_control() || domain.has_borrowed(frame, access == Access::Write)
}

fn may_walk(vcpu: &Vcpu<El2>, frame: MachineFrame) -> bool {
    let is_table = HYPERVISOR
        .frames()
        .usage(frame)
        .is_some_and(|usage| matches!(usage.kind, FrameType::Table(_)) && usage.complete && usage.uses > 0);
    is_table && is_own(vcpu, frame) || is_hypervisors_table(frame)
}

/// Whether there may be a translation at all, or one that allows writing, by whose frame it is. (The hypervisor's tables: for walks, which leave the same entry.)
fn may_reach(vcpu: &Vcpu<El2>, frame: MachineFrame, access: Access) -> bool {
    is_own(vcpu, frame) || is_lent(vcpu, frame, access) || is_m2p(frame) || is_hypervisors_table(frame)
}

fn may_write(vcpu: &Vcpu<El2>, frame: MachineFrame) -> bool {
    let is_writable = HYPERVISOR
        .frames()
        .usage(frame)
        .is_some_and(|usage| usage.kind == FrameType::Writable && usage.complete && usage.uses > 0);
    is_writable && (is_own(vcpu, frame) || is_lent(vcpu, frame, Access::Write))
}

/// Makes a frame reachable.
fn allow(frame: MachineFrame, access: Access) {
    let rights = if access == Access::Write { WRITABLE } else { 0 };
    let leaf = frame.start().bytes() | PAGE | rights;
    loop {
        let mut reachable = REACHABLE.lock();
        if let (Some(slot), Some(count)) = (slot(&mut reachable, frame), reachable.count.checked_add(1))
            && count <= LEAVES
        {
            let last = reachable.count;
            reachable.leaves[last] = leaf;
            reachable.count = count;
            // Release: the tables on the way were written before.
            slot.store(leaf, Ordering::Release);
            drop(reachable);
            flush();
            return;
        }
        drop(reachable);
        forget_all();
    }
}

/// Where the entry of a frame stands; `None` if the tables are used up. (A frame beyond 39 bits isn't RAM here, and was never allowed.)
fn slot(reachable: &mut Reachable, frame: MachineFrame) -> Option<&'static AtomicU64> {
    let index = |level: u32| (frame.number() >> (9 * level)) as usize & 511;
    let mut table = &POOL[0];
    for level in [2, 1] {
        let entry = &table.0[index(level)];
        // Relaxed: all loads and stores but the walkers' are under the lock.
        if entry.load(Ordering::Relaxed) == 0 {
            let below = POOL.get(reachable.tables)?;
            reachable.tables += 1;
            below.0.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
            // Release: the table is empty before it can be walked.
            entry.store(machine_address(below) | 0b11, Ordering::Release);
        }
        let offset = (entry.load(Ordering::Relaxed) & ADDRESS) - root();
        table = POOL.get(offset as usize / size_of::<Table>())?;
    }
    table.0.get(index(0))
}

/// Says what a guest could reach, and stops the machine.
fn accuse(vcpu: &Vcpu<El2>, frame: MachineFrame, what: fmt::Arguments<'_>) -> ! {
    let (hold, usage) = (HYPERVISOR.frames().hold(frame), HYPERVISOR.frames().usage(frame));
    log::error!("oracle: {:?} vcpu {}: frame {:#x} {what}", vcpu.domain_id(), vcpu.index(), frame.number());
    log::error!("oracle: at {:#x}; its record: {hold:?}, {usage:?}", FAR_EL2.get());
    El2.power_off()
}

/// Translates as a guest's access would be; where the second stage knows nothing of the tables on the way, without it.
pub fn translated(ask: impl Fn() -> u64) -> u64 {
    let result = ask();
    if result & 1 == 0 {
        return result;
    }
    let switch = |value: u64| {
        HCR_EL2.set(value);
        // SAFETY: a barrier.
        unsafe { asm!("isb", options(nostack)) };
    };
    let with = HCR_EL2.get();
    switch(with & !STAGE_2);
    let result = ask();
    switch(with);
    result
}

/// Says how much was judged, when the machine ends.
pub fn summarise() {
    let (judged, checks) = (JUDGED.load(Ordering::Relaxed), CHECKS.load(Ordering::Relaxed));
    log::info!("oracle: {judged} first accesses were judged, and what was reachable {checks} times again");
}
