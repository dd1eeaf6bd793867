//! Grants to oneself: everything about mapping, undoing and copying that one domain can see alone.

use super::check::Check;
use crate::architecture::Architecture;
use crate::grants::{Table, map, operation, unmap};
use crate::guest::Guest;
use crate::hypercalls::update_va_mapping;
use crate::pages::Page;
use penumbra_abi::grant_table::{
    self as abi, CopyEnd, GNTMAP_CONTAINS_PTE, GNTMAP_READONLY, GTF_PERMIT_ACCESS, GTF_READING, GTF_WRITING,
    GetVersion, GrantCopy, GrantEntry, GrantStatus, QuerySize,
};
use penumbra_abi::{DOMID_SELF, Errno};

/// The control domain runs this.
const SELF: u16 = 0;
/// A reference that has no other use.
const REFERENCE: u32 = 16;

/// What the test works with.
struct Scene<'a, A: Architecture> {
    guest: &'a Guest<A>,
    table: Table<A>,
    /// What is lent.
    lent: Page,
    /// Where it is mapped.
    windows: [Page; 2],
}

impl<A: Architecture> Scene<'_, A> {
    fn address(&self, window: usize) -> u64 {
        self.guest.address(&self.windows[window])
    }

    fn flags(&self) -> u16 {
        self.table.entry(REFERENCE).flags
    }
}

/// Runs the test `grant-table`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    asked(guest, check);
    let pages = (guest.zeroed_page(), guest.pages.allocate(), guest.pages.allocate());
    let ((Some(lent), Some(one), Some(two)), Some(table)) = (pages, Table::open(guest)) else {
        return check.that("there are pages, and a table", false);
    };
    let entry = GrantEntry::access(SELF, guest.frame(&lent) as u32, true);
    table.set(REFERENCE, entry);
    let scene = Scene { guest, table, lent, windows: [one, two] };
    mapped(&scene, check);
    rights(&scene, check);
    by_entry(&scene, check);
    refused(&scene, check);
    copied(&scene, check);
    check.that("at last nothing is in use", scene.flags() == GTF_PERMIT_ACCESS);
    scene.table.set(REFERENCE, GrantEntry::default());
    check.done("give the table's page back", scene.table.close(guest));
    for page in scene.windows.into_iter().chain([scene.lent]) {
        check.done("map a window's own page again", guest.release(page));
    }
}

fn asked<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let query = QuerySize { dom: DOMID_SELF, ..QuerySize::default() };
    let size = operation::<A, _>(abi::GNTTABOP_QUERY_SIZE, query);
    let fits =
        |size: QuerySize| size.nr_frames >= 1 && size.max_nr_frames >= 4 && size.status == GrantStatus::OKAY;
    check.that("the table's size", size.is_ok_and(fits));
    let version = GetVersion { dom: DOMID_SELF, ..GetVersion::default() };
    let version = operation::<A, _>(abi::GNTTABOP_GET_VERSION, version).map(|answer| answer.version);
    check.that("entries are of version 1", version == Ok(1));
    let missing =
        operation::<A, _>(abi::GNTTABOP_GET_VERSION, GetVersion { dom: 0x7000, ..GetVersion::default() });
    check.refused("a domain that isn't there", missing, &[Errno::ESRCH]);
    check.refused("no operation", operation::<A, _>(77, [0u64; 8]), &[Errno::ENOSYS]);
    check.refused("bits beyond the operation", operation::<A, _>(0x1000, [0u64; 8]), &[Errno::EINVAL]);
    if guest.on_penumbra {
        check.refused("transfer", operation::<A, _>(abi::GNTTABOP_TRANSFER, [0u64; 4]), &[Errno::EOPNOTSUPP]);
        check.refused("version 2", operation::<A, _>(abi::GNTTABOP_SET_VERSION, 2u32), &[Errno::ENOSYS]);
    }
}

/// One page at two addresses, of which one is by grant.
fn mapped<A: Architecture>(scene: &Scene<'_, A>, check: &mut Check<A>) {
    let (guest, address) = (scene.guest, scene.address(0));
    let Ok(answer) = map::<A>(SELF, REFERENCE, address, 0) else {
        return check.that("map a grant", false);
    };
    check.that("the answer has the machine address", answer.dev_bus_addr >> 12 == guest.frame(&scene.lent));
    check.that(
        "the entry leads there",
        guest.mapping(address).map(|m| m.frame) == Some(answer.dev_bus_addr >> 12),
    );
    check.that("the flags say so", scene.flags() == GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    A::write_word(address + 24, 0x1234);
    check.that("what is written here is read there", guest.read(&scene.lent, 3) == 0x1234);
    guest.write(&scene.lent, 4, 0x4321);
    check.that("and the other way round", A::read_word(address + 32) == 0x4321);
    for (what, handle, place) in [
        ("undo at another address", answer.handle, scene.address(1)),
        ("undo at the page's own address", answer.handle, guest.info.pt_base),
    ] {
        check.that(what, unmap::<A>(handle, place) == GrantStatus::GENERAL_ERROR);
    }
    check.that("undo another's", unmap::<A>(answer.handle + 1, address) == GrantStatus::BAD_HANDLE);
    check.that("undo", unmap::<A>(answer.handle, address) == GrantStatus::OKAY);
    check.that("undo twice", unmap::<A>(answer.handle, address) == GrantStatus::BAD_HANDLE);
    check.that("nothing is there any more", guest.mapping(address).is_none());
    if guest.catches_faults {
        check.that("nor in the TLB", A::try_read_word(address).is_none());
    }
}

/// XSA-234, as far as a guest can try it: the mapping that is named has the right frame and the wrong rights.
fn rights<A: Architecture>(scene: &Scene<'_, A>, check: &mut Check<A>) {
    let (here, there) = (scene.address(0), scene.address(1));
    let (Ok(reader), Ok(writer)) =
        (map::<A>(SELF, REFERENCE, here, GNTMAP_READONLY), map::<A>(SELF, REFERENCE, there, 0))
    else {
        return check.that("map a grant twice", false);
    };
    check.that("the rights differ", scene.guest.mapping(here).is_some_and(|m| !m.writable));
    if scene.guest.catches_faults {
        check.that("read-only is read-only", !A::try_write_word(here, 1));
    }
    check.that("the writer at the reader's", unmap::<A>(writer.handle, here) == GrantStatus::GENERAL_ERROR);
    check.that("the reader at the writer's", unmap::<A>(reader.handle, there) == GrantStatus::GENERAL_ERROR);
    check.that(
        "both are still there",
        scene.flags() & GTF_WRITING != 0 && scene.guest.mapping(there).is_some(),
    );
    check.that("undo the writer", unmap::<A>(writer.handle, there) == GrantStatus::OKAY);
    check.that("only a reader is left", scene.flags() == GTF_PERMIT_ACCESS | GTF_READING);
    check.that("undo the reader", unmap::<A>(reader.handle, here) == GrantStatus::OKAY);
}

/// The entry is named, and not the address.
fn by_entry<A: Architecture>(scene: &Scene<'_, A>, check: &mut Check<A>) {
    let address = scene.address(0);
    let Some(step) = scene.guest.leaf(address) else {
        return check.that("the window has an entry", false);
    };
    let place = step.machine_address();
    let Ok(answer) = map::<A>(SELF, REFERENCE, place, GNTMAP_CONTAINS_PTE) else {
        return check.that("map a grant by its entry", false);
    };
    let frame = scene.guest.mapping(address).map(|mapping| mapping.frame);
    check.that("the entry leads to it", frame == Some(scene.guest.frame(&scene.lent)));
    check.that("undo by the entry", unmap::<A>(answer.handle, place) == GrantStatus::OKAY);
    for (what, place) in [
        ("no entry's start", place + 4),
        ("an entry of a root", scene.guest.root_frame() << 12),
        ("no memory", 1 << 50),
    ] {
        let refused = map::<A>(SELF, REFERENCE, place, GNTMAP_CONTAINS_PTE).err();
        check.that(what, refused == Some(GrantStatus::GENERAL_ERROR));
    }
}

fn refused<A: Architecture>(scene: &Scene<'_, A>, check: &mut Check<A>) {
    let address = scene.address(0);
    let status = |reference, flags| map::<A>(SELF, reference, address, flags).err();
    check.that("an empty entry", status(REFERENCE + 1, 0) == Some(GrantStatus::GENERAL_ERROR));
    check.that("no such entry", status(u32::MAX, 0) == Some(GrantStatus::BAD_GNTREF));
    let nobody = map::<A>(0x7000, REFERENCE, address, 0).err();
    check.that("no such domain", nobody == Some(GrantStatus::BAD_DOMAIN));
    let window = map::<A>(SELF, REFERENCE, A::M2P_WINDOW, 0).err();
    check.that("the hypervisor's addresses", window == Some(GrantStatus::GENERAL_ERROR));
    let frame = scene.guest.frame(&scene.lent) as u32;
    scene.table.set(REFERENCE, GrantEntry::access(SELF, frame, false));
    check.that("writable by a read-only grant", status(REFERENCE, 0) == Some(GrantStatus::GENERAL_ERROR));
    let table = scene.guest.root_frame() as u32;
    scene.table.set(REFERENCE, GrantEntry::access(SELF, table, true));
    check.that("a page table, to be written to", status(REFERENCE, 0) == Some(GrantStatus::GENERAL_ERROR));
    scene.table.set(REFERENCE, GrantEntry::access(SELF, frame, true));
    let other = update_va_mapping::<A>(address, A::leaf(u64::from(frame), true));
    check.done("one's own page needs no grant", other);
}

fn copied<A: Architecture>(scene: &Scene<'_, A>, check: &mut Check<A>) {
    let guest = scene.guest;
    let Some(page) = guest.zeroed_page() else { return check.that("there is a page to copy to", false) };
    guest.write(&scene.lent, 1, 0x7766_5544_3322_1100);
    let source =
        CopyEnd { reference_or_frame: u64::from(REFERENCE), domid: SELF, offset: 9, ..CopyEnd::default() };
    let dest = CopyEnd {
        reference_or_frame: guest.frame(&page),
        domid: DOMID_SELF,
        offset: 16,
        ..CopyEnd::default()
    };
    let copy = GrantCopy { source, dest, len: 4, flags: abi::GNTCOPY_SOURCE_GREF, ..GrantCopy::default() };
    let status = |copy| operation::<A, _>(abi::GNTTABOP_COPY, copy).map(|answer: GrantCopy| answer.status);
    check.that("copy from a grant", status(copy) == Ok(GrantStatus::OKAY));
    check.that("four bytes, and no more", guest.read(&page, 2) == 0x4433_2211 && guest.read(&page, 3) == 0);
    let beyond = GrantCopy { dest: CopyEnd { offset: 4094, ..dest }, ..copy };
    check.that("beyond the page", status(beyond) == Ok(GrantStatus::BAD_COPY_ARG));
    let table = GrantCopy { dest: CopyEnd { reference_or_frame: guest.root_frame(), ..dest }, ..copy };
    check.that("into a page table", status(table) == Ok(GrantStatus::GENERAL_ERROR));
    guest.pages.free(page);
}
