//! Frames that change hands, or never belonged to a guest.

use super::counts::can_be_a_table;
use super::scene::Tree;
use crate::architecture::{Architecture, PAGE_SHIFT};
use crate::grants::{self, Table, operation};
use crate::guest::Guest;
use crate::hypercalls::{
    address_of_mut, call, exchange, maximum_ram_page, mmuext, reservation, update_va_mapping,
};
use crate::pages::Page;
use crate::say;
use crate::tests::{Check, REFUSED_TABLE};
use penumbra_abi::grant_table::{
    GNTMAP_DEVICE_MAP, GNTMAP_READONLY, GNTTABOP_SETUP_TABLE, GNTTABOP_UNMAP_GRANT_REF, GTF_PERMIT_ACCESS,
    GrantEntry, GrantStatus, SetupTable, UnmapGrantRef,
};
use penumbra_abi::memory::{
    XENMEM_DECREASE_RESERVATION as DECREASE, XENMEM_EXCHANGE, XENMEM_POPULATE_PHYSMAP as POPULATE,
};
use penumbra_abi::mmu::{
    MMUEXT_CLEAR_PAGE, MMUEXT_NEW_BASEPTR, MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE,
};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// What dealing with a frame that one doesn't have is refused with.
const REFUSED: &[Errno] = &[Errno::EINVAL, Errno::EBUSY, Errno::EPERM];

/// Exchanges one frame for another; the new one.
fn swap<A: Architecture>(old: u64, pfn: u64) -> Result<u64, Errno> {
    let (mut old, mut new) = ([old], [pfn]);
    let mut request = exchange(&mut old, 0, &mut new, 0);
    call::<A>(number::MEMORY_OP, &[XENMEM_EXCHANGE, address_of_mut(&mut request)])?;
    Ok(new[0])
}

/// XSA-214 and 287: a page was taken from its owner together with its validated type, or while somebody else still held a reference. Here
/// a page is exchanged away in each state that it mustn't be in, and at last in the one that it may.
pub fn tables_given_away<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(table), Some(data), Some(tree)) =
        (guest.zeroed_page(), guest.zeroed_page(), Tree::build(guest, check))
    else {
        return check.that("pages for the test", false);
    };
    let old = guest.frame(&table);
    guest.write(&table, 3, A::leaf(guest.frame(&data), false));
    let stays = |check: &mut Check<A>, why| {
        check.refused(why, swap::<A>(old, table.pfn()), REFUSED);
        check.that("it is still ours", guest.m2p(old) == table.pfn());
    };
    stays(check, "mapped to be written");
    check.done("read-only", guest.set_writable(&table, false));
    stays(check, "mapped to be read");
    check.done("pinned", mmuext::<A>(MMUEXT_PIN_L1_TABLE, old, 0));
    check.done("without a mapping", update_va_mapping::<A>(guest.address(&table), 0));
    stays(check, "a pinned table");
    check.done("in use", tree.put(2, 9, A::table(old)));
    check.done("not pinned", mmuext::<A>(MMUEXT_UNPIN_TABLE, old, 0));
    stays(check, "a table in use");
    check.done("out of use", tree.put(2, 9, 0));
    check.done("mapped elsewhere", tree.put(1, 9, A::leaf(old, false)));
    stays(check, "mapped by another entry");
    check.done("no more", tree.put(1, 9, 0));
    let Some(new) = check.done("a page like any other", swap::<A>(old, table.pfn())) else { return };
    guest.set_p2m(table.pfn(), new);
    check.that("another frame", new != old && guest.m2p(new) == table.pfn());
    gone(guest, check, &tree, old);
    // What comes instead is no table, and holds nothing of one.
    check.done("map it", guest.set_writable(&table, true));
    check.that("it is blank", (0..512).all(|index| guest.read(&table, index) == 0));
    check.done("read-only", guest.set_writable(&table, false));
    check.refused("it isn't pinned", mmuext::<A>(MMUEXT_UNPIN_TABLE, new, 0), REFUSED);
    can_be_a_table(guest, check, &table);
    tree.remove(check);
    check.done("the data was let go", guest.set_writable(&data, false));
    can_be_a_table(guest, check, &data);
    check.done("one page", guest.release(data));
    check.done("and the other", guest.release(table));
}

/// Nothing can be done with a frame that was given away.
fn gone<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, tree: &Tree<'_, A>, frame: u64) {
    check.that("it has no name", guest.try_m2p(frame).is_none_or(|pfn| pfn == !0));
    check.refused("map it", tree.put(1, 9, A::leaf(frame, false)), REFUSED);
    check.refused("have it as a table", tree.put(2, 9, A::table(frame)), REFUSED);
    check.refused("pin it", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0), REFUSED);
    check.refused("unpin it", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0), REFUSED);
    check.refused("load it", mmuext::<A>(MMUEXT_NEW_BASEPTR, frame, 0), REFUSED);
    check.refused("clear it", mmuext::<A>(MMUEXT_CLEAR_PAGE, frame, 0), REFUSED);
    check.that("give it away", !matches!(reservation::<A>(DECREASE, &mut [frame]), Ok(1)));
    check.refused("exchange it", swap::<A>(frame, 0), REFUSED);
}

/// XSA-224: the references of a grant that is mapped for the host and for devices at once were counted wrongly. Whichever goes first,
/// the page stays what it is until the other has gone.
pub fn host_and_device<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    const REFERENCE: u32 = 21;
    let pages = (guest.zeroed_page(), guest.pages.allocate(), Table::open(guest));
    let (Some(lent), Some(window), Some(table)) = pages else {
        return check.that("pages, and a table", false);
    };
    let (frame, address) = (guest.frame(&lent), guest.address(&window));
    table.set(REFERENCE, GrantEntry::access(guest.number(), frame as u32, true));
    let undo = |handle, host_addr, dev_bus_addr| {
        let request = UnmapGrantRef { host_addr, dev_bus_addr, handle, ..UnmapGrantRef::default() };
        operation::<A, _>(GNTTABOP_UNMAP_GRANT_REF, request).map_or(GrantStatus::GENERAL_ERROR, |a| a.status)
    };
    check.done("the page's own mapping is read-only", guest.set_writable(&lent, false));
    for (rights, device_first) in [(0, true), (0, false), (GNTMAP_READONLY, true), (GNTMAP_READONLY, false)] {
        let Ok(mapped) = grants::map::<A>(guest.number(), REFERENCE, address, GNTMAP_DEVICE_MAP | rights)
        else {
            return check.that("map it for both", false);
        };
        let parts = [(0, mapped.dev_bus_addr), (address, 0)];
        let [first, second] = if device_first { parts } else { [parts[1], parts[0]] };
        check.that("one part", undo(mapped.handle, first.0, first.1) == GrantStatus::OKAY);
        check.that("the page is in use", table.is_used(REFERENCE));
        let as_table = mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0);
        check.that("a table if nobody can write to it", as_table.is_ok() == (rights == GNTMAP_READONLY));
        if as_table.is_ok() {
            check.done("no table", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0));
        }
        check.refused("exchange it", swap::<A>(frame, lent.pfn()), REFUSED);
        check.that("the other part", undo(mapped.handle, second.0, second.1) == GrantStatus::OKAY);
        let again = undo(mapped.handle, second.0, second.1);
        check.that("there is no third", again == GrantStatus::BAD_HANDLE);
        check.that("nobody uses it", table.entry(REFERENCE).flags == GTF_PERMIT_ACCESS);
        can_be_a_table(guest, check, &lent);
    }
    table.set(REFERENCE, GrantEntry::default());
    check.done("the grant table's page", table.close(guest));
    check.done("the window", guest.release(window));
    check.done("the lent page", guest.release(lent));
}

/// XSA-248: pages of the hypervisor's own belonged to the guest, and so could be mapped. Every frame number of the machine, and the
/// devices' above it: what isn't this domain's can't be mapped, not even to be read, and can't be a table.
pub fn every_frame_of_the_machine<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let Some(tree) = Tree::build(guest, check) else { return check.that("pages for tables", false) };
    let end = check.done("the machine's end", maximum_ram_page::<A>()).unwrap_or(0) + 1;
    let shared = [guest.info.shared_info >> PAGE_SHIFT, grant_frame::<A>()];
    let high = (12..52).flat_map(|bit| [1 << bit, (1 << bit) - 1]).filter(|frame| *frame >= end);
    let (mut tried, mut reached) = (0u64, 0u64);
    for frame in (0..end).chain(0xf_d000..0x10_0000).chain(high) {
        if guest.owns(frame) || shared.contains(&frame) {
            continue;
        }
        let mapped = tree.put(1, 1, A::leaf(frame, false));
        let table = tree.put(2, 1, A::table(frame));
        let pinned = mmuext::<A>(MMUEXT_PIN_L4_TABLE, frame, 0);
        tried += 1;
        if mapped.is_ok() || table.is_ok() || pinned.is_ok() {
            reached += 1;
            if reached < 4 {
                say!(A, "  reached {frame:#x}: mapped {mapped:?}, as a table {table:?}, pinned {pinned:?}");
            }
        }
    }
    say!(A, "  {tried} frames that aren't ours, up to {end:#x} and beyond; {reached} reached");
    check.that("there are such frames", tried > 10_000);
    check.that("none can be reached", reached == 0);
    check.that("nothing was written", tree.entry(1, 1) == 0 && tree.entry(2, 1) == 0);
    tree.remove(check);
}

/// The first frame of our grant table, which isn't in the P2M.
fn grant_frame<A: Architecture>() -> u64 {
    let mut frame = !0u64;
    let request = SetupTable {
        dom: DOMID_SELF,
        nr_frames: 1,
        frame_list: address_of_mut(&mut frame),
        ..SetupTable::default()
    };
    let _ = operation::<A, _>(GNTTABOP_SETUP_TABLE, request);
    frame
}

/// XSA-252: giving back the memory of a pinned table unpinned it on the way, without what unpinning needs. Here the claim to a pinned
/// table can't be given up; and a page that is given back while it is mapped stays ours until it isn't.
pub fn pinned_tables_given_back<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(table), Some(tree)) = (guest.zeroed_page(), Tree::build(guest, check)) else {
        return check.that("pages for the test", false);
    };
    let frame = guest.frame(&table);
    check.done("read-only", guest.set_writable(&table, false));
    check.done("pinned", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0));
    for _ in 0..3 {
        check.that("given back", matches!(reservation::<A>(DECREASE, &mut [frame]), Ok(0) | Err(_)));
        check.refused("it is a table", guest.set_writable(&table, true), REFUSED_TABLE);
        check.refused("it is pinned", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0), REFUSED_TABLE);
    }
    check.done("unpinned once", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0));
    check.refused("and not twice", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0), REFUSED);
    given_back_while_mapped(guest, check, &tree, &table);
    tree.remove(check);
    check.done("a page again", guest.release(table));
}

/// Memory that is given back while it is mapped: its mappings stay, and it is nobody else's before they are gone.
fn given_back_while_mapped<A: Architecture>(
    guest: &Guest<A>,
    check: &mut Check<A>,
    tree: &Tree<'_, A>,
    page: &Page,
) {
    let frame = guest.frame(page);
    check.done("mapped to be written", tree.put(1, 9, A::leaf(frame, true)));
    let given = reservation::<A>(DECREASE, &mut [frame]);
    check.that("given back while it is mapped", given == Ok(1));
    check.that("twice", matches!(reservation::<A>(DECREASE, &mut [frame]), Ok(0) | Err(_)));
    let address = Tree::<A>::address(0, 9);
    check.that("the mapping stays", A::try_write_word(address, 0x77));
    check.done("one goes", update_va_mapping::<A>(guest.address(page), 0));
    check.that("the other stays", A::try_read_word(address) == Some(0x77));
    // No flush is asked for: the hypervisor owes one to whoever gets the frame next.
    check.done("the last goes", tree.put(1, 9, 0));
    check.that("nor is it in the TLB", !A::try_write_word(address, 0x78));
    gone(guest, check, tree, frame);
    let mut list = [page.pfn()];
    check.that("another comes", reservation::<A>(POPULATE, &mut list) == Ok(1));
    guest.set_p2m(page.pfn(), list[0]);
    check.done("map it", guest.set_writable(page, true));
    check.that("it is blank", (0..512).all(|index| guest.read(page, index) == 0));
}
