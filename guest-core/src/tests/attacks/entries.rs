//! Entries that map what they mustn't, or as they mustn't, by every call that writes entries.

use super::scene::{Extent, Tree};
use crate::architecture::{Architecture, Bits, Level, PAGE_SHIFT, ROOT_LEVEL};
use crate::guest::Guest;
use crate::hypercalls::{entry, mmu_update, mmuext, multicall, update_entry, update_va_mapping};
use crate::tests::Check;
use penumbra_abi::grant_table::{GNTMAP_CONTAINS_PTE, GrantEntry, GrantStatus};
use penumbra_abi::mmu::{
    MMU_PT_UPDATE_NO_TRANSLATE, MMU_PT_UPDATE_PRESERVE_AD, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE,
    MmuUpdate, UVMF_INVLPG,
};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// What an entry that may not be is refused with.
const REFUSED: &[Errno] = &[Errno::EINVAL, Errno::EBUSY, Errno::EPERM];
/// The kinds of update that write an entry.
const KINDS: [u64; 3] = [0, MMU_PT_UPDATE_PRESERVE_AD, MMU_PT_UPDATE_NO_TRANSLATE];

/// XSA-148: a fast path for level-2 entries looked neither at the superpage bit nor at the right to write. A guest changed "only the
/// flags" of an entry, and had a page table in a writable superpage.
pub fn writable_superpage_over_a_table<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(extent), Some(tree)) = (Extent::take(guest, check), Tree::build(guest, check)) else {
        return check.that("there is memory for the test", false);
    };
    let table = extent.first + 7;
    check.done("one of the frames is a table", mmuext::<A>(MMUEXT_PIN_L1_TABLE, table, 0));
    let (readable, writable) = (A::superpage(extent.first, false), A::superpage(extent.first, true));
    check.refused("a writable superpage over a table", tree.put(2, 5, writable), REFUSED);
    check.done("a read-only one", tree.put(2, 5, readable));
    let (inside, stands) = (Tree::<A>::address(5, 7), tree.entry(2, 5));
    check.that("it translates", A::try_read_word(inside) == Some(0));
    for kind in KINDS {
        let upgrade = update_entry::<A>(tree.place(2, 5) | kind, writable);
        check.refused("made writable by its flags", upgrade, REFUSED);
        check.that("nothing was written", tree.entry(2, 5) == stands);
        check.that("the table can't be written to", !A::try_write_word(inside, !0));
    }
    // The other way round: what a writable superpage covers can't become a table.
    check.done("no table any more", mmuext::<A>(MMUEXT_UNPIN_TABLE, table, 0));
    check.done("now it can be writable", tree.put(2, 5, writable));
    let covered = mmuext::<A>(MMUEXT_PIN_L1_TABLE, table, 0);
    check.refused("a table below a writable superpage", covered, REFUSED);
    check.that("it can be written to", A::try_write_word(inside, 0));
    tree.remove(check);
    check.done("a table when that is gone", mmuext::<A>(MMUEXT_PIN_L1_TABLE, table, 0));
    check.done("and a page again", mmuext::<A>(MMUEXT_UNPIN_TABLE, table, 0));
    extent.give_back(guest, check);
}

/// XSA-182: a fast path let an entry's flags change without a new validation, so that a read-only mapping of a page table became a
/// writable one, or one with another memory type.
pub fn mapping_of_a_table_made_writable<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let Some(tree) = Tree::build(guest, check) else { return check.that("pages for tables", false) };
    let table = tree.frame(1);
    let (readable, writable) = (A::leaf(table, false), A::leaf(table, true));
    check.done("a table maps itself to be read", tree.put(1, 3, readable));
    let (address, stands) = (Tree::<A>::address(0, 3), tree.entry(1, 3));
    check.that("it shows", A::try_read_word(address + 3 * 8).is_some());
    let types = A::MEMORY_TYPES.iter().map(|change| readable ^ change);
    let by_hardware = readable | A::WRITABLE_BY_HARDWARE;
    for wrong in types.chain([writable]).chain(Some(by_hardware).filter(|entry| *entry != readable)) {
        for kind in KINDS {
            check.refused("by an update", update_entry::<A>(tree.place(1, 3) | kind, wrong), REFUSED);
        }
        check.refused("by update_va_mapping", update_va_mapping::<A>(address, wrong), REFUSED);
        let mut calls = [entry(number::UPDATE_VA_MAPPING, &[address, wrong, UVMF_INVLPG])];
        check.done("a multicall", multicall::<A>(&mut calls));
        check.refused("within a multicall", Errno::from_return(calls[0].result), REFUSED);
        check.that("the entry stands", tree.entry(1, 3) == stands);
        check.that("the table can't be written to", !A::try_write_word(address + 4 * 8, A::leaf(0, true)));
    }
    tree.remove(check);
}

/// XSA-167 and 176: the frame number of a superpage's entry was not checked, and the walker ignored reserved bits of it. Here each
/// bit that is neither the frame's nor free is refused, and so is a superpage at every other level.
pub fn bits_of_superpages<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(extent), Some(tree)) = (Extent::take(guest, check), Tree::build(guest, check)) else {
        return check.that("there is memory for the test", false);
    };
    let good = A::superpage(extent.first, true);
    for &(bit, name) in A::FORBIDDEN_BITS.superpages.iter().copied().flatten() {
        for entry in [good ^ 1 << bit, A::superpage(extent.first, false) ^ 1 << bit] {
            check.refused(name, tree.put(2, 6, entry), REFUSED);
        }
    }
    check.that("the entry is empty", tree.entry(2, 6) == 0);
    check.done("without them it is a good one", tree.put(2, 6, good));
    let stands = tree.entry(2, 6);
    for &(bit, name) in A::FORBIDDEN_BITS.superpages.iter().copied().flatten() {
        for kind in KINDS {
            check.refused(name, update_entry::<A>(tree.place(2, 6) | kind, good ^ 1 << bit), REFUSED);
        }
    }
    check.that("it stands as it was", tree.entry(2, 6) == stands);
    check.refused("1 GiB", tree.put(3, 6, A::superpage(extent.first & !0x3_ffff, false)), REFUSED);
    check.refused(
        "512 GiB",
        update_entry::<A>((guest.root_frame() << 12) | (303 * 8), A::superpage(0, false)),
        REFUSED,
    );
    // As many frames as are left of the machine, and more.
    for frame in [A::DEVICE_FRAME & !511, 1 << 36, (1 << 36) - 512] {
        check.refused("frames that aren't ours", tree.put(2, 7, A::superpage(frame, false)), REFUSED);
    }
    tree.remove(check);
    extent.give_back(guest, check);
}

/// Bits that mean something on some processor, or in some mode: one by one, in each kind of entry.
pub fn forbidden_bits<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(tree), Some(page)) = (Tree::build(guest, check), guest.pages.allocate()) else {
        return check.that("pages for the test", false);
    };
    let page_entry = A::leaf(guest.frame(&page), false);
    check.done("a page without them", tree.put(1, 9, page_entry));
    try_each(&tree, check, 1, page_entry, A::FORBIDDEN_BITS.pages);
    for level in [2, 3] {
        check.done("a table without them", tree.put(level, 0, A::table(tree.frame(level - 1))));
        try_each(&tree, check, level, A::table(tree.frame(level - 1)), A::FORBIDDEN_BITS.tables);
    }
    tree.remove(check);
    guest.pages.free(page);
}

/// Writes `good` with each bit flipped to an empty entry, and over `good` itself.
fn try_each<A: Architecture>(
    tree: &Tree<'_, A>,
    check: &mut Check<A>,
    level: Level,
    good: u64,
    bits: &[Bits],
) {
    let in_use = if level == 1 { 9 } else { 0 };
    let before = tree.entry(level, in_use);
    for &(bit, name) in bits.iter().copied().flatten() {
        check.refused(name, tree.put(level, 10, good ^ 1 << bit), REFUSED);
        for kind in KINDS {
            let over = update_entry::<A>(tree.place(level, in_use) | kind, good ^ 1 << bit);
            check.refused(name, over, REFUSED);
        }
    }
    check.that("the empty entry is empty", tree.entry(level, 10) == 0);
    check.that("the other is as it was", tree.entry(level, in_use) == before);
}

/// XSA-154: one page mapped with two memory types: what one mapping writes the other doesn't see, and a table's validation reads
/// other bytes than the walker. RAM has one type, wherever it is mapped from.
pub fn another_memory_type<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(tree), Some(page)) = (Tree::build(guest, check), guest.pages.allocate()) else {
        return check.that("pages for the test", false);
    };
    let address = guest.address(&page);
    for writable in [true, false] {
        let good = A::leaf(guest.frame(&page), writable);
        for change in A::MEMORY_TYPES {
            check.refused("beside a cached mapping", tree.put(1, 4, good ^ change), REFUSED);
            check.refused("in its place", update_va_mapping::<A>(address, good ^ change), REFUSED);
        }
    }
    check.done("no other mapping is left", update_va_mapping::<A>(address, 0));
    for change in A::MEMORY_TYPES {
        let alone = tree.put(1, 4, A::leaf(guest.frame(&page), true) ^ change);
        check.refused("the only mapping there is", alone, REFUSED);
    }
    check.done("the page", guest.release(page));
    tree.remove(check);
}

/// XSA-109: `mmu_update` was carried out on frames that are not tables of this domain's.
pub fn tables_of_others<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let end = crate::hypercalls::maximum_ram_page::<A>().unwrap_or(0) + 1;
    let mut theirs = [0; 32];
    let named = |frame: &u64| guest.try_m2p(*frame).is_some_and(|pfn| pfn >> 40 == 0) && !guest.owns(*frame);
    let known = theirs.iter_mut().zip((0..end).filter(named)).map(|(to, frame)| *to = frame).count();
    check.that("there is another domain", known == theirs.len());
    let reserved = A::RESERVED_SLOTS.start as u64;
    let hypervisor =
        A::decode(ROOT_LEVEL, A::read_word(guest.info.pt_base + reserved * 8)).map_or(0, |m| m.frame);
    let others = theirs.into_iter().chain([hypervisor, A::DEVICE_FRAME, 0, end, 1 << 36, !0 >> PAGE_SHIFT]);
    for frame in others {
        for value in [0, A::leaf(guest.root_frame(), false), !0] {
            for kind in KINDS {
                let result = update_entry::<A>(frame << PAGE_SHIFT | 8 | kind, value);
                check.refused("an entry of a frame that isn't ours", result, REFUSED);
            }
        }
    }
    // Ours, but named as another's; and theirs, to map what is ours.
    let own = guest.leaf(guest.info.pt_base).map_or(0, |step| step.machine_address());
    let before = guest.leaf(guest.info.pt_base).map(|step| step.entry);
    let as_theirs = [MmuUpdate { pointer: own, value: 0 }];
    let owner = u64::from(u16::from(guest.is_control()) + 1) << 16 | u64::from(DOMID_SELF);
    check.refused("our table, named as theirs", mmu_update::<A>(&as_theirs, owner), REFUSED);
    check.that("our table is as it was", guest.leaf(guest.info.pt_base).map(|step| step.entry) == before);
}

/// XSA-227: the address of an entry that isn't aligned to one: a write that spans two entries makes a third that nobody has judged.
pub fn addresses_between_entries<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(tree), Some(page)) = (Tree::build(guest, check), guest.pages.allocate()) else {
        return check.that("pages for the test", false);
    };
    let Some(grants) = crate::grants::Table::open(guest) else { return check.that("a grant table", false) };
    let good = A::leaf(guest.frame(&page), false);
    for index in [7, 8, 511] {
        check.done("an entry", tree.put(1, index, good));
    }
    let entries = |tree: &Tree<'_, A>| [6, 7, 8, 9, 510, 511].map(|index| tree.entry(1, index));
    let before = entries(&tree);
    const REFERENCE: u32 = 20;
    grants.set(REFERENCE, GrantEntry::access(guest.number(), guest.frame(&page) as u32, true));
    for index in [7, 511] {
        // Beyond the kind of request, the third bit is all that can be wrong; a grant has no kind.
        for offset in 4..8 {
            let place = tree.place(1, index) + offset;
            for value in [0, A::leaf(guest.root_frame(), true) >> 32, good << 32, !0] {
                // (1 names a frame in the M2P.)
                if offset != 5 {
                    check.refused("between two entries", update_entry::<A>(place, value), REFUSED);
                }
            }
        }
        for offset in 1..8 {
            let place = tree.place(1, index) + offset;
            let by_grant = crate::grants::map::<A>(guest.number(), REFERENCE, place, GNTMAP_CONTAINS_PTE);
            check.that("a grant between two entries", by_grant.is_err());
        }
    }
    check.that("all entries are as they were", entries(&tree) == before);
    // So it was nothing else that was wrong with the grant.
    let aligned = crate::grants::map::<A>(guest.number(), REFERENCE, tree.place(1, 7), GNTMAP_CONTAINS_PTE);
    let undone =
        aligned.is_ok_and(|it| crate::grants::unmap::<A>(it.handle, tree.place(1, 7)) == GrantStatus::OKAY);
    check.that("the grant at an entry", undone);
    grants.set(REFERENCE, GrantEntry::default());
    check.done("give the grant table's page back", grants.close(guest));
    tree.remove(check);
    guest.pages.free(page);
}
