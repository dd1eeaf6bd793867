//! Where the results of a row of mappings go: each is written by the tables as they are by then, although the frame of the one before is
//! still held as *writable*.
//!
//! The list stands in a page that the row's own table maps, so that the row changes the mapping of its own list and goes on.

use super::rows::{PAGE, remap_entry, stands, stands_below, two_tables, unhook_entry};
use super::writable::{kind, mapped};
use crate::common::{Rig, SELF, leaf};
use hyp_core::address::{GuestVirtual, MachineFrame, PAGE_SIZE};
use hyp_core::fake::format::PRESENT;
use hyp_core::frame::FrameType;
use hyp_core::machine::{FrameMemory, GuestMemory};
use hyp_core::paging::Budget;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::memory::XENMEM_DECREASE_RESERVATION;
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MmuextOp};
use penumbra_abi::multicall::MulticallEntry;
use zerocopy::IntoBytes;

/// What stands in a result that nobody has written.
const UNWRITTEN: u64 = 99;
/// The pages of the row's table by which the list is reached.
const WINDOW: u64 = 1;
const ENTRY_BYTES: usize = size_of::<MulticallEntry>();

/// A table of which two pages are a window on two frames, and the frames, which no other page maps writable.
struct Window {
    rig: Rig,
    table: MachineFrame,
    frames: [MachineFrame; 2],
    /// The address of the table's first page.
    start: u64,
}

impl Window {
    fn new() -> Self {
        let rig = Rig::new(1);
        let ([table, _], at) = two_tables(&rig);
        let frames = [0, 1].map(|index| rig.free_up(1, index));
        let window = Self { rig, table, frames, start: at - (PAGE << 12) };
        for (slot, frame) in (0..).zip(frames) {
            assert_eq!(window.call(number::UPDATE_VA_MAPPING, &window.map(slot, Some(frame))), Ok(0));
        }
        window
    }

    /// The arguments by which page `slot` of the window is mapped writable to the frame, or not at all.
    fn map(&self, slot: u64, frame: Option<MachineFrame>) -> [u64; 6] {
        [self.page(WINDOW + slot), frame.map_or(0, |frame| leaf(frame, true)), 0, 0, 0, 0]
    }

    fn call(&self, number: u64, arguments: &[u64; 6]) -> Result<u64, Errno> {
        let outcome = self.rig.call(1, number, *arguments);
        self.rig.check();
        outcome
    }

    /// The address of a page of the table.
    fn page(&self, index: u64) -> u64 {
        self.start + (index << 12)
    }

    /// An entry that maps or unmaps a page behind the window.
    fn other(&self, index: u64, present: bool) -> MulticallEntry {
        let raw = if present { leaf(self.rig.pool(1, 2), false) } else { 0 };
        remap_entry(self.page(PAGE + index), raw)
    }

    fn is_mapped(&self, index: u64) -> bool {
        self.rig.entry(self.table, (PAGE + index) as usize) & PRESENT != 0
    }

    /// An entry that changes what the window shows.
    fn turn(&self, slot: u64, raw: u64) -> MulticallEntry {
        remap_entry(self.page(WINDOW + slot), raw)
    }

    /// Carries out entries that are laid so many bytes into the window.
    fn run(&self, offset: usize, entries: &[MulticallEntry]) -> Result<u64, Errno> {
        let at = self.lay(offset, entries);
        self.call(number::MULTICALL, &[at, entries.len() as u64, 0, 0, 0, 0])
    }

    fn lay(&self, offset: usize, entries: &[MulticallEntry]) -> u64 {
        let at = self.page(WINDOW) + offset as u64;
        self.rig.hv.machine().set_root(self.rig.domains[1].root);
        let laid = self.rig.hv.machine().write_guest(GuestVirtual::new(at), entries.as_bytes());
        laid.expect("the window is writable");
        at
    }

    /// What stands in a frame where the result of the list's entry `index` goes, if the list begins so many bytes into the window.
    fn result(&self, slot: usize, offset: usize, index: usize) -> u64 {
        self.rig.entry(self.frames[slot], (offset + index * ENTRY_BYTES + 8) % PAGE_SIZE / 8)
    }

    /// References and uses of both frames.
    fn counts(&self) -> [(u32, FrameType, u32); 2] {
        self.frames.map(|frame| {
            let (kind, uses) = kind(&self.rig, frame);
            (self.rig.hv.frames().hold(frame).expect("memory").references, kind, uses)
        })
    }
}

#[test]
fn results_go_where_the_list_is_by_then() {
    let window = Window::new();
    let (before, second) = (window.counts(), window.frames[1]);
    let entries = [
        window.other(0, true),
        window.turn(0, leaf(second, true)),
        window.other(1, true),
        window.other(0, false),
    ];
    assert_eq!(window.run(0, &entries), Ok(0));
    assert!(!window.is_mapped(0) && window.is_mapped(1), "all are done");
    let results = |slot| [0, 1, 2, 3].map(|index| window.result(slot, 0, index));
    assert_eq!(results(0), [0, UNWRITTEN, UNWRITTEN, UNWRITTEN], "the frame that was shown first");
    assert_eq!(results(1)[1..], [0, 0, 0], "and the one after it");
    let [first, other] = before;
    let moved = [(first.0 - 1, first.1, first.2 - 1), (other.0 + 1, other.1, other.2 + 1)];
    assert_eq!(window.counts(), moved, "as many as there are mappings");
}

#[test]
fn a_row_that_takes_its_own_list_away_ends_there() {
    for writable_no_more in [false, true] {
        let window = Window::new();
        let away = if writable_no_more { leaf(window.frames[0], false) } else { 0 };
        let entries = [window.other(0, true), window.turn(0, away), window.other(1, true)];
        assert_eq!(window.run(0, &entries), Err(Errno::EFAULT));
        assert!(window.is_mapped(0) && !window.is_mapped(1), "nothing is done after it");
        assert_eq!([0, 1, 2].map(|index| window.result(0, 0, index)), [0, UNWRITTEN, UNWRITTEN]);
        assert_eq!(kind(&window.rig, window.frames[0]).1, 0, "no use is left behind");
    }
}

/// The second entry takes away the page of the first one's result, which a third can then use for a table: the row holds the page of its
/// last result only, and that is another.
#[test]
fn a_page_that_the_results_have_left_can_become_a_table() {
    let window = Window::new();
    let [first, _] = window.frames;
    let pin = MmuextOp { command: MMUEXT_PIN_L1_TABLE, pad: 0, argument1: first.number(), argument2: 0 };
    let pin_at = window.rig.give(1, 0, pin.as_bytes());
    let pin = MulticallEntry {
        operation: number::MMUEXT_OP,
        arguments: [pin_at, 1, 0, SELF, 0, 0],
        ..window.other(0, true)
    };
    let offset = PAGE_SIZE - ENTRY_BYTES;
    let entries = [window.other(0, true), window.turn(0, leaf(first, false)), pin, window.other(1, true)];
    assert_eq!(window.run(offset, &entries), Ok(0));
    assert_eq!(window.result(0, offset, 0), 0);
    assert_eq!([1, 2, 3].map(|index| window.result(1, offset, index)), [0; 3]);
    assert_eq!(kind(&window.rig, first), (FrameType::Table(1), 1));
    assert!(window.is_mapped(1));
}

/// While it is the page of the results, it is writable, and so no table.
#[test]
fn a_page_of_results_is_no_table() {
    let window = Window::new();
    let [first, _] = window.frames;
    let pin = MmuextOp { command: MMUEXT_PIN_L1_TABLE, pad: 0, argument1: first.number(), argument2: 0 };
    let pin_at = window.rig.give(1, 0, pin.as_bytes());
    let pin = MulticallEntry {
        operation: number::MMUEXT_OP,
        arguments: [pin_at, 1, 0, SELF, 0, 0],
        ..window.other(0, true)
    };
    assert_eq!(window.run(0, &[window.other(0, true), pin, window.other(1, true)]), Ok(0));
    let results = [0, 1, 2].map(|index| Errno::from_return(window.result(0, 0, index)));
    assert_eq!(results, [Ok(0), Err(Errno::EINVAL), Ok(0)]);
    assert_eq!(kind(&window.rig, first), (FrameType::Writable, 1));
}

/// Lists that cross into the next page, between two entries, within one, and within a result, which is then written in two parts.
#[test]
fn results_are_written_on_both_sides_of_a_pages_end() {
    for before_the_end in
        [ENTRY_BYTES, ENTRY_BYTES + 24, ENTRY_BYTES + 8, 2 * ENTRY_BYTES + 12, 3 * ENTRY_BYTES + 9]
    {
        let window = Window::new();
        let counts = window.counts();
        let offset = PAGE_SIZE - before_the_end;
        let unmapped = remap_entry(0xf << 19, 0);
        let entries =
            [window.other(0, true), unmapped, window.other(1, true), window.other(2, true), unmapped];
        let entries = entries.map(|entry| MulticallEntry { result: u64::MAX, ..entry });
        assert_eq!(window.run(offset, &entries), Ok(0));
        let (ok, no) = (0u64, Errno::EINVAL.to_return());
        for (index, expected) in [ok, no, ok, ok, no].into_iter().enumerate() {
            let mut result = [0; 8];
            let at = window.page(WINDOW) + (offset + index * ENTRY_BYTES + 8) as u64;
            window.rig.hv.machine().read_guest(GuestVirtual::new(at), &mut result).expect("still there");
            assert_eq!(
                u64::from_le_bytes(result),
                expected,
                "{before_the_end} bytes before the end, entry {index}"
            );
        }
        assert!((0..3).all(|index| window.is_mapped(index)));
        assert_eq!(window.counts(), counts);
    }
}

/// A list in a frame that was given back to the hypervisor: the mapping alone keeps it, and then the row, until the next result goes
/// elsewhere or nowhere.
#[test]
fn a_page_of_results_that_was_given_back_is_freed_after_them() {
    for elsewhere in [false, true] {
        let window = Window::new();
        let [first, second] = window.frames;
        let given = window.rig.memory(1, XENMEM_DECREASE_RESERVATION, SELF, &[first.number()]);
        assert_eq!(given, Ok(1));
        let free = window.rig.hv.frames().free_frames();
        let away = if elsewhere { leaf(second, true) } else { 0 };
        let outcome = window.run(0, &[window.other(0, true), window.turn(0, away), window.other(1, true)]);
        assert_eq!(outcome, if elsewhere { Ok(0) } else { Err(Errno::EFAULT) });
        assert_eq!(window.rig.hv.frames().free_frames(), free + 1);
        assert_eq!(window.is_mapped(1), elsewhere);
        assert_eq!(window.rig.entry(first, 1), 0, "scrubbed, and not written to any more");
    }
}

/// As for a frame that is freed with its last mapping: the row is cut when its budget is spent.
#[test]
fn what_is_freed_behind_the_results_is_paid_for() {
    let window = Window::new();
    let [first, second] = window.frames;
    let given = window.rig.memory(1, XENMEM_DECREASE_RESERVATION, SELF, &[first.number()]);
    assert_eq!(given, Ok(1));
    let entries = [window.other(0, true), window.turn(0, leaf(second, true)), window.other(1, true)];
    // The next list's page holds the rest, too.
    let at = window.lay(PAGE_SIZE, &entries) - PAGE_SIZE as u64;
    window.lay(0, &entries);
    let vcpu = window.rig.domains[1].vcpu();
    vcpu.context().take();
    let budget = Budget::new(2 * Budget::OPERATION + Budget::FRAME);
    window.rig.hv.hypercall_within(vcpu, number::MULTICALL, [at, 3, 0, 0, 0, 0], &budget);
    let again = vcpu.context().take().again;
    assert_eq!(
        again,
        Some([at + 2 * ENTRY_BYTES as u64, 1, 0, 0, 0, 0]),
        "the frame has cost the third entry's share"
    );
    assert!(!window.is_mapped(1));
    window.rig.check();
}

/// A list in a table that its own first entry unhooks: its result can be written, and nothing holds the page when the second hooks the table
/// in again.
#[test]
fn a_list_in_an_unhooked_table_does_not_keep_it_from_coming_back() {
    let rig = Rig::new(1);
    let ([table, _], at) = two_tables(&rig);
    let entries = [unhook_entry(), remap_entry(at, leaf(rig.pool(1, 0), false)), remap_entry(at + 4096, 0)];
    // Behind the table's entries, which are few in this format.
    let offset = 1024;
    rig.hv.machine().write_frame(table, offset, entries.as_bytes());
    let outcome = rig.call(1, number::MULTICALL, [mapped(0) + offset as u64, 3, 0, 0, 0, 0]);
    rig.check();
    assert_eq!(outcome, Err(Errno::EFAULT), "the second result can't be written: the page is a table again");
    assert_eq!(rig.entry(table, offset / 8 + 1), 0, "the first one was");
    assert!(!rig.domains[1].domain.has_unhooked() && stands_below(&rig) && stands(&rig, table));
}
