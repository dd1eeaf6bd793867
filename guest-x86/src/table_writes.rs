//! A kernel writes to its own page tables as if they were ordinary memory: with the assistance for it, each write is carried out after it
//! was validated; without, it is a page fault like any other.
//!
//! The entry that is written maps a page of the test's own, in the table that maps this kernel's memory; so whatever goes wrong with the
//! table is noticed at once.

use guest_core::architecture::Architecture;
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of_mut, call, entry, mmuext, multicall};
use guest_core::pages::Page;
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::hypercall::{PENUMBRA, PENUMBRA_UNHOOK, VM_ASSIST, XEN_VERSION};
use penumbra_abi::mmu::MMUEXT_TLB_FLUSH_LOCAL;
use penumbra_abi::version::{XEN_EXTRAVERSION_LEN, XENVER_EXTRAVERSION};
use penumbra_abi::vm_assist::{VMASST_CMD_DISABLE, VMASST_CMD_ENABLE, VMASST_TYPE_WRITABLE_PAGETABLES};

use crate::machine::X86;
use crate::traps::faults;

const WRITABLE: u64 = 1 << 1;
const CARRY: u64 = 1 << 0;
const ZERO: u64 = 1 << 6;
/// What else may stand in an entry than this test has written: used, written through, and what Xen keeps for itself.
const NOT_OURS: u64 = 1 << 5 | 1 << 6 | 1 << 2 | 1 << 8 | 0x7ff << 52;

/// Runs the test `table-writes`.
pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(page) = guest.zeroed_page() else { return check.that("there is a page for the test", false) };
    let address = guest.address(&page);
    let Some(leaf) = guest.leaf(address) else { return check.that("the page is mapped", false) };
    let place = guest.linear_of_frame(leaf.table_frame) + leaf.index as u64 * 8;
    let test = Test { guest, page: &page, place, writable: X86::leaf(guest.frame(&page), true) };
    check.that("switch the assistance off", assist(false));
    // Xen 4.17 carries them out in any case for the first domain, the one with the devices, which this kernel is there; for another one only with
    // the assistance.
    let penumbra = guest.on_penumbra;
    let off = !penumbra || !X86::try_write_word(place, test.writable);
    check.that("without assistance, a write to a table is a fault", off);
    check.that("switch the assistance on", assist(true));
    test.moves(check);
    test.locked(check);
    test.bits(check);
    test.refused(check);
    test.many(check);
    if guest.on_penumbra {
        test.more_than_xen_refuses(check);
        test.unhooked_in_a_multicall(check);
    }
    check.that("switch the assistance off again", assist(false));
    let off = !penumbra || !X86::try_write_word(place, test.writable);
    check.that("then it is a fault again", off);
    guest.pages.free(page);
}

fn assist(on: bool) -> bool {
    let command = if on { VMASST_CMD_ENABLE } else { VMASST_CMD_DISABLE };
    call::<X86>(VM_ASSIST, &[command.into(), VMASST_TYPE_WRITABLE_PAGETABLES.into()]).is_ok()
}

struct Test<'a> {
    guest: &'a Guest<X86>,
    page: &'a Page,
    /// Where the entry stands that maps the page.
    place: u64,
    /// The entry, with the right to write.
    writable: u64,
}

impl Test<'_> {
    /// Whether the entry is what it should be, and the page can be written just when it should.
    fn is(&self, writable: bool) -> bool {
        let expected = if writable { self.writable } else { self.writable & !WRITABLE };
        let entry = X86::read_word(self.place) & !NOT_OURS == expected & !NOT_OURS;
        // The processor may remember the entry as it was: that is the guest's own business.
        let flushed = mmuext::<X86>(MMUEXT_TLB_FLUSH_LOCAL, 0, 0).is_ok();
        entry && flushed && X86::try_write_word(self.guest.address(self.page), 1) == writable
    }

    fn moves(&self, check: &mut Check<X86>) {
        let read_only = self.writable & !WRITABLE;
        check.that("8 bytes are written", X86::try_write_word(self.place, read_only) && self.is(false));
        let low = self.writable as u32;
        let failed = faults!("mov [{p}], {v:e}"; p = in(reg) self.place, v = in(reg) low);
        check.that("4 bytes are written", !failed && self.is(true));
        let failed = faults!("mov byte ptr [{p}], 0x65"; p = in(reg) self.place);
        check.that("a constant byte is written", !failed && self.is(false));
        let failed = faults!("mov [{p} + {i} * 8 - 16], {v}"; p = in(reg) self.place, i = in(reg) 2u64, v = in(reg) self.writable);
        check.that("an index and a displacement are understood", !failed && self.is(true));
        // r12 is one of the registers that the hypervisor's own code preserves.
        let old: u64;
        let failed = faults!("xchg [{p}], r12"; p = in(reg) self.place, inout("r12") read_only => old);
        check.that("an exchange gives what was there", !failed && old & WRITABLE != 0 && self.is(false));
        let old: u64;
        let failed =
            faults!("xchg [{p}], {v:x}"; p = in(reg) self.place, v = inout(reg) self.writable => old);
        let kept = old & !0xffff == self.writable & !0xffff;
        check.that("an exchange of 2 bytes keeps the rest of the register", !failed && kept && self.is(true));
    }

    fn locked(&self, check: &mut Check<X86>) {
        let failed = faults!("lock and byte ptr [{p}], 0xfd"; p = in(reg) self.place);
        check.that("a locked and of one byte", !failed && self.is(false));
        let failed = faults!("lock or qword ptr [{p}], 2"; p = in(reg) self.place);
        check.that("a locked or", !failed && self.is(true));
        let (expected, mut flags) = (X86::read_word(self.place), 0u64);
        let found: u64;
        let failed = faults!(
            "lock cmpxchg [{p}], {new}", "pushfq", "pop {flags}";
            p = in(reg) self.place, new = in(reg) self.writable & !WRITABLE, flags = inout(reg) flags,
            inout("rax") expected => _
        );
        check.that("a compare-and-exchange that fits", !failed && flags & ZERO != 0 && self.is(false));
        let failed = faults!(
            "lock cmpxchg [{p}], {new}", "pushfq", "pop {flags}";
            p = in(reg) self.place, new = in(reg) self.writable, flags = inout(reg) flags, inout("rax") 0u64 => found
        );
        let told = flags & ZERO == 0 && found == X86::read_word(self.place);
        check.that("one that doesn't fit tells what is there", !failed && told && self.is(false));
        let mut added = WRITABLE;
        let failed = faults!("lock xadd [{p}], {v}"; p = in(reg) self.place, v = inout(reg) added);
        check.that("an exchange and addition", !failed && added & WRITABLE == 0 && self.is(true));
    }

    fn bits(&self, check: &mut Check<X86>) {
        let mut flags = 0u64;
        let failed = faults!(
            "lock btr qword ptr [{p}], 1", "pushfq", "pop {flags}"; p = in(reg) self.place, flags = inout(reg) flags
        );
        check.that(
            "a bit is cleared, and the carry says what it was",
            !failed && flags & CARRY != 0 && self.is(false),
        );
        let failed = faults!(
            "lock bts qword ptr [{p}], {bit}", "pushfq", "pop {flags}";
            p = in(reg) self.place, bit = in(reg) 1u64, flags = inout(reg) flags
        );
        check.that(
            "a bit is set, and the carry says what it was",
            !failed && flags & CARRY == 0 && self.is(true),
        );
    }

    /// What an update by hypercall would be refused is a fault here, and the entry stays.
    fn refused(&self, check: &mut Check<X86>) {
        let itself = X86::leaf(self.guest.leaf(self.place).map_or(0, |leaf| leaf.table_frame), true);
        let device = X86::leaf(X86::DEVICE_FRAME, true);
        let table = X86::leaf(self.guest.root_frame(), true);
        for (what, entry) in
            [("a device", device), ("the root, writable", table), ("a table of level 1, writable", itself)]
        {
            check.that(what, !X86::try_write_word(self.place, entry) && self.is(true));
        }
        let window = X86::M2P_WINDOW;
        check.that("what is no table is a fault", !X86::try_write_word(window, 0));
    }

    fn more_than_xen_refuses(&self, check: &mut Check<X86>) {
        for (what, entry) in [
            ("another memory type", self.writable | 1 << 4),
            ("a frame that doesn't exist", X86::leaf(0xf_ffff_ffff, false)),
        ] {
            check.that(what, !X86::try_write_word(self.place, entry) && self.is(true));
        }
        let failed = faults!("mov [{p} + 4], {v}"; p = in(reg) self.place, v = in(reg) 0u64);
        check.that("a write over the end of an entry is a fault", failed && self.is(true));
    }

    /// An unhooked table is what the guest has made of it, and the hypervisor, in ring 0, could still walk through it. So a multicall that
    /// unhooks one can't have the hypervisor use any address of the guest's afterwards.
    fn unhooked_in_a_multicall(&self, check: &mut Check<X86>) {
        // Of the two tables that map this kernel's first 4 MiB, the one that doesn't map the tables themselves.
        let Some(other) = self.guest.leaf(self.guest.info.pt_base ^ 1 << 21) else {
            return check.that("there is another table", false);
        };
        let mut text = [0u8; XEN_EXTRAVERSION_LEN];
        let mut calls = [
            entry(PENUMBRA, &[PENUMBRA_UNHOOK, self.guest.linear_of_frame(other.table_frame)]),
            entry(XEN_VERSION, &[XENVER_EXTRAVERSION, address_of_mut(&mut text)]),
        ];
        check.refused("unhook within a multicall, and go on", multicall::<X86>(&mut calls), &[Errno::EFAULT]);
        check.that("nothing was written", text == [0; XEN_EXTRAVERSION_LEN]);
        check.that("the table is in its place again", self.is(true));
    }

    /// So many writes in a row that the table is worth being taken out of its tree.
    fn many(&self, check: &mut Check<X86>) {
        let mut done = true;
        for round in 0..64u64 {
            let entry = if round % 2 == 0 { self.writable & !WRITABLE } else { self.writable };
            done &= X86::try_write_word(self.place, entry);
        }
        check.that("64 writes in a row", done && self.is(true));
        // A hypercall in between, and memory that the same table maps.
        let last = X86::try_write_word(self.place, self.writable & !WRITABLE);
        check.that("and one more", last && self.is(false));
        check.that("and back", X86::try_write_word(self.place, self.writable) && self.is(true));
    }
}
