//! What a guest may not do, tried by every hypercall that could do it.
//!
//! Columns are frames that the domain must not reach (or, its own table, not for writing); rows are the ways of asking.
//! Each refusal must be the right error: the one that Xen 4.17 gives for the same attempt. Afterwards the entry and the
//! memory that the attempt was aimed at must be what they were.

use crate::architecture::{Architecture, PAGE_SHIFT, ROOT_LEVEL, table_index};
use crate::console::Console;
use crate::guest::Guest;
use crate::pages::Page;
use crate::words;
use crate::{hypercalls, say};
use core::fmt::Write;
use penumbra_abi::mmu::{
    MMU_PT_UPDATE_PRESERVE_AD, MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR, MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L4_TABLE, MmuUpdate, UVMF_INVLPG,
};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// How many attempts were made, and how many weren't refused as they should be.
#[derive(Clone, Copy, Default)]
pub struct Tally {
    /// Attempts made.
    pub attempts: u64,
    /// Attempts that succeeded, were refused with another error than Xen's, or left a trace.
    pub failures: u64,
}

/// A frame to get at.
#[derive(Clone, Copy)]
struct Target {
    name: &'static str,
    frame: u64,
    /// What an entry that leads there is refused with.
    error: Errno,
    /// The domain's own page table: only a *writable* mapping is forbidden, pinning it is not.
    own_table: bool,
}

type Result = core::result::Result<(), Errno>;

/// A way of asking; `None` when it doesn't apply to the target.
struct Way<A: Architecture> {
    name: &'static str,
    /// The error of this way alone, whatever the target; `None` where the target's own error is the right one.
    error: Option<Errno>,
    attempt: fn(&Guest<A>, &Page, Target) -> Option<Result>,
}

/// Makes all attempts against the mapping of `victim`, and prints a table.
pub fn run<A: Architecture>(guest: &Guest<A>, victim: &Page) -> Tally {
    let targets = [foreign(guest), hypervisor(guest), device(guest), own_table(guest, victim)];
    say!(A);
    say!(A, "==== Attempts on frames that this domain must not reach, by every hypercall that could ====");
    for target in targets.iter().flatten() {
        say!(A, "  {:<16}  mfn {:#x}", target.name, target.frame);
    }
    print_row::<A>("", targets.iter().flatten().map(|target| target.name));
    let mut tally = Tally::default();
    for way in ways::<A>() {
        let cells = targets.iter().flatten();
        let cells = cells.map(|target| outcome(guest, victim, &way, *target, &mut tally).unwrap_or("-"));
        print_row::<A>(way.name, cells);
    }
    let standing = tally.attempts - tally.failures;
    say!(A, "  {standing} of {} attempts refused; the old entry and memory stand after each", tally.attempts);
    tally
}

/// Makes one attempt and judges it; the text for its cell.
fn outcome<A: Architecture>(
    guest: &Guest<A>,
    victim: &Page,
    way: &Way<A>,
    target: Target,
    tally: &mut Tally,
) -> Option<&'static str> {
    let before = state(guest, victim);
    let result = (way.attempt)(guest, victim, target)?;
    let untouched = state(guest, victim) == before;
    tally.attempts += 1;
    let (good, text) = match result {
        Err(error) => (error == way.error.unwrap_or(target.error), error.name()),
        Ok(()) => (false, "ALLOWED"),
    };
    if good && untouched {
        return Some(text);
    }
    tally.failures += 1;
    say!(A, "  {}, {}: {text}, trace left: {}", way.name, target.name, !untouched);
    Some(text)
}

/// What an attempt must not change: the entry (hardware's own bits apart) and the memory behind it.
fn state<A: Architecture>(guest: &Guest<A>, victim: &Page) -> (Option<u64>, u64) {
    let entry = guest.leaf(guest.address(victim)).map(|step| step.entry & !A::HARDWARE_BITS);
    (entry, guest.read(victim, 0))
}

fn print_row<A: Architecture>(name: &str, cells: impl Iterator<Item = &'static str>) {
    let mut text = Console::<A>::writer();
    let _ = write!(text, "  {name}");
    let mut blanks = 37usize.saturating_sub(name.len());
    for cell in cells {
        let _ = write!(text, "{:blanks$}{cell}", "");
        blanks = 17usize.saturating_sub(cell.len());
    }
    let _ = writeln!(text);
}

// The targets.

/// A frame that is in the machine but not ours: the first, looking around our own frames, that the M2P says is some
/// other domain's page. On a machine with one domain: any RAM that isn't ours.
fn foreign<A: Architecture>(guest: &Guest<A>) -> Option<Target> {
    let end = hypercalls::maximum_ram_page::<A>().ok()?;
    let start = guest.root_frame();
    let is_foreign = |mfn: &u64| guest.try_m2p(*mfn).is_some_and(|pfn| pfn >> 40 == 0) && !guest.owns(*mfn);
    // Below the first frame of RAM the M2P has holes: one must be able to fall into them.
    let lowest = if guest.catches_faults { 1 } else { start };
    let frame = (start..end)
        .find(is_foreign)
        .or_else(|| (lowest..start).rev().find(is_foreign))
        .or_else(|| (start..end).find(|mfn| !guest.owns(*mfn)))?;
    Some(Target { name: "foreign frame", frame, error: Errno::EBUSY, own_table: false })
}

/// The hypervisor's own table behind the M2P window, as the first reserved slot of our root names it.
fn hypervisor<A: Architecture>(guest: &Guest<A>) -> Option<Target> {
    let slot = A::RESERVED_SLOTS.start as u64;
    let entry = A::read_word(guest.info.pt_base + slot * 8);
    let frame = A::decode(ROOT_LEVEL, entry)?.frame;
    Some(Target { name: "hypervisor frame", frame, error: Errno::EBUSY, own_table: false })
}

/// A device. The first domain on Xen may map devices; there this column is left out.
fn device<A: Architecture>(guest: &Guest<A>) -> Option<Target> {
    if !guest.on_penumbra && guest.is_control() {
        say!(A, "  (no device column: Xen lets its first domain map devices)");
        return None;
    }
    let frame = guest.words().value("device").and_then(words::number).unwrap_or(A::DEVICE_FRAME);
    Some(Target { name: "device frame", frame, error: Errno::EPERM, own_table: false })
}

/// The level-1 table that maps the victim.
fn own_table<A: Architecture>(guest: &Guest<A>, victim: &Page) -> Option<Target> {
    let frame = guest.leaf(guest.address(victim))?.table_frame;
    Some(Target { name: "own table, RW", frame, error: Errno::EBUSY, own_table: true })
}

// The ways.

fn ways<A: Architecture>() -> [Way<A>; 14] {
    let way = |name, attempt| Way { name, error: None, attempt };
    let own = |name, error, attempt| Way { name, error: Some(error), attempt };
    [
        way("mmu_update", by_mmu_update),
        way("mmu_update, read-only", by_read_only_update),
        way("mmu_update, A/D preserved", by_preserving_update),
        own("mmu_update, as a frame of domain 0", Errno::EPERM, by_foreign_update),
        way("update_va_mapping", by_update_va_mapping),
        own("update_va_mapping_otherdomain(0)", Errno::EPERM, by_otherdomain),
        way("multicall: mmu_update", by_multicall_mmu_update),
        way("multicall: update_va_mapping", by_multicall_update_va_mapping),
        way("pin a table that maps it", by_pinning_a_table),
        way("hook in a table that maps it", by_hooking_a_table),
        way("new_baseptr of a tree that maps it", by_new_root),
        own("pin the frame itself as a table", Errno::EINVAL, by_pinning_the_frame),
        own("new_baseptr of the frame itself", Errno::EINVAL, by_loading_the_frame),
        own("new_user_baseptr of the frame itself", Errno::EINVAL, by_loading_it_for_users),
    ]
}

fn entry_address<A: Architecture>(guest: &Guest<A>, victim: &Page) -> Option<u64> {
    guest.leaf(guest.address(victim)).map(|step| step.machine_address())
}

fn by_mmu_update<A: Architecture>(guest: &Guest<A>, victim: &Page, target: Target) -> Option<Result> {
    let address = entry_address(guest, victim)?;
    Some(hypercalls::update_entry::<A>(address, A::leaf(target.frame, true)))
}

/// Just looking isn't allowed either, except at one's own tables.
fn by_read_only_update<A: Architecture>(guest: &Guest<A>, victim: &Page, target: Target) -> Option<Result> {
    let address = entry_address(guest, victim)?;
    (!target.own_table).then(|| hypercalls::update_entry::<A>(address, A::leaf(target.frame, false)))
}

/// The kind of update that a kernel uses for entries in use.
fn by_preserving_update<A: Architecture>(guest: &Guest<A>, victim: &Page, target: Target) -> Option<Result> {
    let address = entry_address(guest, victim)?;
    Some(hypercalls::update_entry::<A>(address | MMU_PT_UPDATE_PRESERVE_AD, A::leaf(target.frame, true)))
}

/// Claims that the frame is domain 0's. (Domain 0 itself may say so of its own frames.)
fn by_foreign_update<A: Architecture>(guest: &Guest<A>, victim: &Page, target: Target) -> Option<Result> {
    let update = MmuUpdate { pointer: entry_address(guest, victim)?, value: A::leaf(target.frame, true) };
    (!guest.is_control()).then(|| hypercalls::mmu_update::<A>(&[update], 0).map(drop))
}

fn by_update_va_mapping<A: Architecture>(guest: &Guest<A>, victim: &Page, target: Target) -> Option<Result> {
    Some(hypercalls::update_va_mapping::<A>(guest.address(victim), A::leaf(target.frame, true)))
}

/// The same claim, by the other call that makes it.
fn by_otherdomain<A: Architecture>(guest: &Guest<A>, victim: &Page, target: Target) -> Option<Result> {
    if guest.is_control() {
        return None;
    }
    let entry = A::leaf(target.frame, true);
    Some(hypercalls::update_va_mapping_otherdomain::<A>(guest.address(victim), entry, 0))
}

/// One call in a multicall: refused as a whole, or by its own result.
fn by_multicall<A: Architecture>(operation: u64, arguments: &[u64]) -> Result {
    let mut calls = [hypercalls::entry(operation, arguments)];
    hypercalls::multicall::<A>(&mut calls)?;
    Errno::from_return(calls[0].result).map(drop)
}

fn by_multicall_mmu_update<A: Architecture>(
    guest: &Guest<A>,
    victim: &Page,
    target: Target,
) -> Option<Result> {
    let update = MmuUpdate { pointer: entry_address(guest, victim)?, value: A::leaf(target.frame, true) };
    let arguments = [hypercalls::address_of(&update), 1, 0, u64::from(DOMID_SELF)];
    Some(by_multicall::<A>(number::MMU_UPDATE, &arguments))
}

fn by_multicall_update_va_mapping<A: Architecture>(
    guest: &Guest<A>,
    victim: &Page,
    target: Target,
) -> Option<Result> {
    let arguments = [guest.address(victim), A::leaf(target.frame, true), UVMF_INVLPG];
    Some(by_multicall::<A>(number::UPDATE_VA_MAPPING, &arguments))
}

/// Fills a page with one entry, runs `attempt` while the page is read-only as a table must be, and frees it again.
fn with_table<A: Architecture>(
    guest: &Guest<A>,
    index: usize,
    entry: u64,
    attempt: impl FnOnce(u64) -> Option<Result>,
) -> Option<Result> {
    let page = guest.zeroed_page()?;
    guest.write(&page, index, entry);
    guest.set_writable(&page, false).ok()?;
    let result = attempt(guest.frame(&page));
    guest.release(page).ok().and(result)
}

fn by_pinning_a_table<A: Architecture>(guest: &Guest<A>, _victim: &Page, target: Target) -> Option<Result> {
    with_table(guest, 7, A::leaf(target.frame, true), |table| {
        Some(hypercalls::mmuext::<A>(MMUEXT_PIN_L1_TABLE, table, 0))
    })
}

/// Writes an entry to the fresh table into an empty slot of the level-2 table that leads to the victim.
fn by_hooking_a_table<A: Architecture>(guest: &Guest<A>, victim: &Page, target: Target) -> Option<Result> {
    let step = guest.walk(guest.address(victim)).find(|step| step.level == 2)?;
    let table = guest.linear_of_frame(step.table_frame);
    let empty = (0..512).rev().find(|&i| A::decode(2, A::read_word(table + i * 8)).is_none())?;
    with_table(guest, 7, A::leaf(target.frame, true), |fresh| {
        Some(hypercalls::update_entry::<A>((step.table_frame << PAGE_SHIFT) | (empty * 8), A::table(fresh)))
    })
}

/// Builds a root like the present one, with one slot more that leads to the target, and loads it.
fn by_new_root<A: Architecture>(guest: &Guest<A>, victim: &Page, target: Target) -> Option<Result> {
    let slot = (0..256).rev().find(|&i| A::decode(4, A::read_word(guest.info.pt_base + i * 8)).is_none())?;
    let kernel = table_index(guest.address(victim), ROOT_LEVEL);
    let kernel_entry = A::read_word(guest.info.pt_base + kernel as u64 * 8);
    with_table(guest, 1, A::leaf(target.frame, true), |l1| {
        with_table(guest, 2, A::table(l1), |l2| {
            with_table(guest, 3, A::table(l2), |l3| {
                let root = guest.zeroed_page()?;
                guest.write(&root, kernel, kernel_entry);
                guest.write(&root, slot as usize, A::table(l3));
                guest.set_writable(&root, false).ok()?;
                let result = hypercalls::mmuext::<A>(MMUEXT_NEW_BASEPTR, guest.frame(&root), 0);
                guest.release(root).ok().and(Some(result))
            })
        })
    })
}

fn by_pinning_the_frame<A: Architecture>(
    _guest: &Guest<A>,
    _victim: &Page,
    target: Target,
) -> Option<Result> {
    (!target.own_table).then(|| hypercalls::mmuext::<A>(MMUEXT_PIN_L4_TABLE, target.frame, 0))
}

fn by_loading_the_frame<A: Architecture>(
    _guest: &Guest<A>,
    _victim: &Page,
    target: Target,
) -> Option<Result> {
    Some(hypercalls::mmuext::<A>(MMUEXT_NEW_BASEPTR, target.frame, 0))
}

fn by_loading_it_for_users<A: Architecture>(
    _guest: &Guest<A>,
    _victim: &Page,
    target: Target,
) -> Option<Result> {
    Some(hypercalls::mmuext::<A>(MMUEXT_NEW_USER_BASEPTR, target.frame, 0))
}
