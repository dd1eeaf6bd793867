//! Grants between domains on the fake machine: what is answered, what is left behind, and what a hostile lender or borrower
//! can't get. The auditor and the observer look after each step.

use std::cell::RefCell;

use crate::common::{self, POOL, Rig, SCRATCH, SELF, address, frame, leaf, place};
use hyp_core::address::{DomainId, GuestVirtual, MachineFrame};
use hyp_core::domain::Life;
use hyp_core::grant::{MAX_FRAMES, MAX_MAPS};
use hyp_core::machine::{GuestMemory, Mmu};
use penumbra_abi::errno::Errno;
use penumbra_abi::grant_table::*;
use penumbra_abi::hypercall::GRANT_TABLE_OP;
use penumbra_abi::memory::XENMEM_DECREASE_RESERVATION;
use proptest::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const OKAY: GrantStatus = GrantStatus::OKAY;
const ERROR: GrantStatus = GrantStatus::GENERAL_ERROR;
/// Bytes into the scratch memory at which structures are passed.
const AT: u64 = 0x100;
/// Entries in a frame of a grant table.
const ENTRIES: u32 = 512;
/// The pool's page at whose address domains map what they borrow; their own page there is given up first.
const WINDOW: u64 = 40;

/// A machine with grant tables.
struct Lending {
    rig: Rig,
    /// Frames of each domain's table.
    tables: RefCell<Vec<Vec<MachineFrame>>>,
}

impl std::ops::Deref for Lending {
    type Target = Rig;
    fn deref(&self) -> &Rig {
        &self.rig
    }
}

impl Lending {
    /// Guests 1 to `guests`, each with a table of one frame, and with the window free for mappings.
    fn new(guests: usize) -> Self {
        let lending = Self { rig: Rig::new(guests), tables: RefCell::new(vec![Vec::new(); guests + 1]) };
        for who in 1..=guests {
            assert_eq!(lending.setup(who, 1), OKAY);
            for page in 0..8 {
                lending.remap(who, POOL + WINDOW + page, 0).unwrap();
            }
        }
        lending.check();
        lending
    }

    fn raw<T: IntoBytes + Immutable + FromBytes + KnownLayout>(
        &self,
        who: usize,
        operation: u32,
        structure: &mut T,
        count: u64,
    ) -> Result<u64, Errno> {
        let at = self.give(who, AT, structure.as_bytes());
        let result = self.call(who, GRANT_TABLE_OP, [u64::from(operation), at, count, 0, 0, 0]);
        self.hv.machine().set_root(self.domains[who].root);
        self.hv.machine().read_guest(GuestVirtual::new(at), structure.as_mut_bytes()).unwrap();
        result
    }

    /// One operation that must be carried out, whatever its status.
    fn operate<T: IntoBytes + Immutable + FromBytes + KnownLayout>(
        &self,
        who: usize,
        operation: u32,
        mut structure: T,
    ) -> T {
        assert_eq!(self.raw(who, operation, &mut structure, 1), Ok(0));
        structure
    }

    fn setup(&self, who: usize, frames: u32) -> GrantStatus {
        let list = address(SCRATCH) + 0x800;
        let request =
            SetupTable { dom: SELF as u16, nr_frames: frames, frame_list: list, ..SetupTable::default() };
        let status = self.operate(who, GNTTABOP_SETUP_TABLE, request).status;
        if status == OKAY {
            let words = (0..u64::from(frames)).map(|index| frame(self.word(who, 0x800 + index * 8)));
            self.tables.borrow_mut()[who] = words.collect();
        }
        status
    }

    /// Where an entry stands.
    fn slot(&self, who: usize, reference: u32) -> (MachineFrame, usize) {
        let frame = self.tables.borrow()[who][(reference / ENTRIES) as usize];
        (frame, (reference % ENTRIES) as usize)
    }

    /// Writes an entry, as the lender does through its own mapping of the table.
    fn set(&self, who: usize, reference: u32, entry: GrantEntry) {
        let (frame, index) = self.slot(who, reference);
        self.hv.machine().write_entry(frame, index, entry.to_word());
    }

    fn flags(&self, who: usize, reference: u32) -> u16 {
        let (frame, index) = self.slot(who, reference);
        GrantEntry::from_word(self.hv.machine().read_entry(frame, index)).flags
    }

    /// Domain `who` lends its pool's frame `index`.
    fn lend(&self, who: usize, reference: u32, to: u16, index: u64, writable: bool) -> MachineFrame {
        let mfn = self.pool(who, index);
        self.set(who, reference, GrantEntry::access(to, mfn.number() as u32, writable));
        mfn
    }

    fn map_at(&self, who: usize, dom: u16, reference: u32, flags: u32, host_addr: u64) -> MapGrantRef {
        let request = MapGrantRef { host_addr, flags, reference, dom, handle: 77, ..MapGrantRef::default() };
        let answer = self.operate(who, GNTTABOP_MAP_GRANT_REF, request);
        self.check();
        answer
    }

    /// Maps at page `window` of the window.
    fn map(&self, who: usize, dom: u16, reference: u32, flags: u32, window: u64) -> MapGrantRef {
        self.map_at(who, dom, reference, flags | GNTMAP_HOST_MAP, at(window))
    }

    fn unmap_parts(&self, who: usize, handle: u32, host_addr: u64, dev_bus_addr: u64) -> GrantStatus {
        let request = UnmapGrantRef { host_addr, dev_bus_addr, handle, ..UnmapGrantRef::default() };
        let status = self.operate(who, GNTTABOP_UNMAP_GRANT_REF, request).status;
        self.check();
        status
    }

    fn unmap(&self, who: usize, handle: u32, window: u64) -> GrantStatus {
        self.unmap_parts(who, handle, at(window), 0)
    }

    /// References and uses of a frame.
    fn counts(&self, frame: MachineFrame) -> (u32, u32) {
        (self.hv.frames().hold(frame).unwrap().references, self.uses(frame))
    }

    /// What an address of a domain's leads to, for reading or for writing.
    fn sees(&self, who: usize, window: u64, write: bool) -> Option<MachineFrame> {
        self.hv.machine().set_root(self.domains[who].root);
        self.hv.machine().translate(GuestVirtual::new(at(window)), write)
    }

    /// `mmu_update` of the entry that maps a page of the window.
    fn overwrite(&self, who: usize, window: u64, raw: u64) -> Result<u64, Errno> {
        let (table, index) = self.builder_entry(who, POOL + WINDOW + window);
        self.update(who, &[(place(table, index), raw)])
    }
}

/// Address of a page of the window.
fn at(window: u64) -> u64 {
    address(POOL + WINDOW + window)
}

// ---- The table ---------------------------------------------------------------------------------------

#[test]
fn a_table_grows_on_demand_up_to_its_limit_and_is_no_part_of_memory() {
    let rig = Lending::new(1);
    let domain = rig.domains[1].domain;
    let pages = domain.pages(rig.hv.frames());
    let query = |rig: &Lending| {
        let request = QuerySize { dom: SELF as u16, ..QuerySize::default() };
        let answer = rig.operate(1, GNTTABOP_QUERY_SIZE, request);
        (answer.status, answer.nr_frames, answer.max_nr_frames)
    };
    assert_eq!(query(&rig), (OKAY, 1, MAX_FRAMES as u32));
    let first = rig.tables.borrow()[1].clone();
    assert_eq!(rig.setup(1, MAX_FRAMES as u32), OKAY);
    assert_eq!(rig.tables.borrow()[1][..1], first, "what was there stays");
    assert_eq!(query(&rig), (OKAY, MAX_FRAMES as u32, MAX_FRAMES as u32));
    assert_eq!((rig.setup(1, MAX_FRAMES as u32 + 1), rig.setup(1, u32::MAX)), (ERROR, ERROR));
    assert_eq!(rig.setup(1, 2), OKAY);
    assert_eq!(domain.pages(rig.hv.frames()), pages);
    assert!(rig.tables.borrow()[1].iter().all(|frame| rig.hv.machine().read_entry(*frame, 5) == 0));
    rig.check();
}

#[test]
fn before_it_is_set_up_a_table_is_one_frame_of_empty_entries() {
    let rig = Rig::new(2);
    let mut query = QuerySize { dom: SELF as u16, ..QuerySize::default() };
    let at = rig.give(1, AT, query.as_bytes());
    assert_eq!(rig.call(1, GRANT_TABLE_OP, [6, at, 1, 0, 0, 0]), Ok(0));
    query
        .as_mut_bytes()
        .copy_from_slice(&[rig.word(1, AT).to_le_bytes(), rig.word(1, AT + 8).to_le_bytes()].concat());
    assert_eq!((query.status, query.nr_frames), (OKAY, 1));
    let lending = Lending { rig, tables: RefCell::new(vec![Vec::new(); 3]) };
    assert_eq!(lending.map(2, 1, 511, 0, 0).status, ERROR);
    assert_eq!(lending.map(2, 1, 512, 0, 0).status, GrantStatus::BAD_GNTREF);
}

#[test]
fn the_tables_frames_are_the_domains_to_map_and_never_tables_nor_memory() {
    let rig = Lending::new(2);
    let shared = rig.tables.borrow()[1][0];
    assert_eq!(rig.remap(1, POOL + WINDOW, leaf(shared, true)), Ok(0));
    assert!(rig.pin(1, shared, 1).is_err(), "it is writable to the hypervisor");
    assert_eq!(rig.remap(1, POOL + WINDOW, 0), Ok(0));
    assert!(rig.pin(1, shared, 1).is_err(), "even when the domain has it nowhere");
    assert_eq!(rig.memory(1, XENMEM_DECREASE_RESERVATION, SELF, &[shared.number()]), Ok(0));
    assert!(rig.remap(2, POOL + WINDOW, leaf(shared, false)).is_err(), "it is nobody else's");
    rig.check();
}

#[test]
fn what_is_not_offered_is_refused_as_in_xen() {
    let rig = Lending::new(2);
    let op = |who, operation: u32, bytes: [u32; 4], count| {
        let mut structure = bytes;
        (rig.raw(who, operation, &mut structure, count), structure)
    };
    let own = [SELF as u32, 0, 0, 0];
    for operation in [GNTTABOP_DUMP_TABLE, GNTTABOP_CACHE_FLUSH, 13, 0xfff] {
        assert_eq!(op(1, operation, own, 1).0, Err(Errno::ENOSYS), "{operation}");
    }
    assert_eq!(op(1, GNTTABOP_TRANSFER, own, 1).0, Err(Errno::EOPNOTSUPP));
    for operation in [GNTTABOP_MAP_GRANT_REF | 0x1000, 1 << 31] {
        assert_eq!(op(1, operation, own, 1).0, Err(Errno::EINVAL));
    }
    for count in [1 << 31, u64::from(u32::MAX)] {
        assert_eq!(op(1, GNTTABOP_UNMAP_GRANT_REF, own, count).0, Err(Errno::EINVAL), "{count:#x}");
    }
    for operation in [GNTTABOP_SETUP_TABLE, GNTTABOP_QUERY_SIZE, GNTTABOP_GET_STATUS_FRAMES] {
        assert_eq!(op(1, operation, own, 0).0, Err(Errno::EINVAL));
        assert_eq!(op(1, operation, own, 2).0, Err(Errno::EINVAL));
    }
    for (version, answer) in
        [(1, Ok(0)), (2, Err(Errno::ENOSYS)), (0, Err(Errno::EINVAL)), (3, Err(Errno::EINVAL))]
    {
        assert_eq!(op(1, GNTTABOP_SET_VERSION, [version, 0, 0, 0], 1), (answer, [1, 0, 0, 0]));
    }
    assert_eq!(op(1, GNTTABOP_GET_VERSION, own, 1), (Ok(0), [SELF as u32, 1, 0, 0]));
    assert_eq!(op(1, GNTTABOP_GET_VERSION, [2, 0, 0, 0], 1).0, Err(Errno::EPERM));
    assert_eq!(op(1, GNTTABOP_GET_VERSION, [9, 0, 0, 0], 1).0, Err(Errno::ESRCH));
    assert_eq!(op(0, GNTTABOP_GET_VERSION, [2, 0, 0, 0], 1), (Ok(0), [2, 1, 0, 0]));
    let status_frames = |count| {
        let request = GetStatusFrames { nr_frames: count, dom: SELF as u16, ..GetStatusFrames::default() };
        rig.operate(1, GNTTABOP_GET_STATUS_FRAMES, request).status
    };
    assert_eq!((status_frames(0), status_frames(1)), (OKAY, ERROR), "there are none");
    let beyond = [0, 0x1000_0000, 1, 0, 0, 0];
    assert_eq!(rig.call(1, GRANT_TABLE_OP, beyond), Err(Errno::EFAULT));
    rig.check();
}

#[test]
fn only_the_control_domain_asks_for_anothers_table() {
    let rig = Lending::new(2);
    let ask = |who, dom| {
        let setup =
            SetupTable { dom, nr_frames: 1, frame_list: address(SCRATCH) + 0x800, ..SetupTable::default() };
        let query = QuerySize { dom, ..QuerySize::default() };
        let answers = rig.operate(who, GNTTABOP_SETUP_TABLE, setup).status;
        assert_eq!(rig.operate(who, GNTTABOP_QUERY_SIZE, query).status, answers);
        answers
    };
    assert_eq!((ask(1, 2), ask(1, 0)), (GrantStatus::PERMISSION_DENIED, GrantStatus::PERMISSION_DENIED));
    assert_eq!((ask(1, 1), ask(0, 2), ask(0, 0)), (OKAY, OKAY, OKAY));
    assert_eq!((ask(1, 9), ask(0, 0x7ff1)), (GrantStatus::BAD_DOMAIN, GrantStatus::BAD_DOMAIN));
    let unmapped =
        SetupTable { dom: SELF as u16, nr_frames: 1, frame_list: 0xff_0000, ..SetupTable::default() };
    assert_eq!(rig.operate(1, GNTTABOP_SETUP_TABLE, unmapped).status, GrantStatus::BAD_VIRT_ADDR);
    rig.check();
}

// ---- Mapping -----------------------------------------------------------------------------------------

#[test]
fn a_page_is_shared_and_given_back_without_a_trace() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let before = rig.counts(mfn);
    let map = rig.map(2, 1, 8, 0, 0);
    assert_eq!((map.status, map.dev_bus_addr), (OKAY, mfn.number() << 12));
    assert_eq!(rig.flags(1, 8), GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    assert_eq!((rig.sees(2, 0, true), rig.counts(mfn)), (Some(mfn), (before.0 + 2, before.1 + 2)));
    // Written by the borrower, read by the lender at its own address.
    rig.hv.machine().write_guest(GuestVirtual::new(at(0)), b"by grant").unwrap();
    rig.hv.machine().set_root(rig.domains[1].root);
    let mut seen = [0; 8];
    rig.hv.machine().read_guest(GuestVirtual::new(address(POOL)), &mut seen).unwrap();
    assert_eq!(&seen, b"by grant");
    let flushes = rig.hv.machine().flushes();
    assert_eq!(rig.unmap(2, map.handle, 0), OKAY);
    assert!(rig.hv.machine().flushes() > flushes, "the borrower's TLBs still have it");
    assert_eq!((rig.flags(1, 8), rig.sees(2, 0, false)), (GTF_PERMIT_ACCESS, None));
    assert_eq!(rig.counts(mfn), before);
}

#[test]
fn rights_are_those_of_the_grant_at_most() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, false);
    assert_eq!(rig.map(2, 1, 8, 0, 0).status, ERROR, "writable by a read-only grant");
    assert_eq!(rig.flags(1, 8), GTF_PERMIT_ACCESS | GTF_READONLY, "no trace");
    let map = rig.map(2, 1, 8, GNTMAP_READONLY, 0);
    assert_eq!((map.status, rig.flags(1, 8)), (OKAY, GTF_PERMIT_ACCESS | GTF_READONLY | GTF_READING));
    assert_eq!((rig.sees(2, 0, false), rig.sees(2, 0, true)), (Some(mfn), None));
    assert_eq!(rig.map(2, 1, 8, 0, 1).status, ERROR, "nor once it is mapped");
    // The entry is an entry like any other, but nobody gets more by it.
    for raw in [leaf(mfn, true), common::lifted(mfn)] {
        assert!(rig.overwrite(2, 0, raw).is_err(), "made writable by a page-table update");
        assert!(rig.overwrite(2, 1, raw).is_err());
    }
    assert!(rig.overwrite(2, 1, leaf(mfn, false)).is_err(), "copied to another entry");
    assert_eq!(rig.overwrite(2, 0, leaf(mfn, false)), Ok(0), "as it was");
    rig.check();
    assert_eq!(rig.unmap(2, map.handle, 0), OKAY);
    assert_eq!(rig.flags(1, 8), GTF_PERMIT_ACCESS | GTF_READONLY);
}

#[test]
fn a_writable_mapping_cannot_be_weakened_behind_the_grants_back() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let map = rig.map(2, 1, 8, 0, 0);
    assert!(rig.overwrite(2, 0, leaf(mfn, false)).is_err());
    assert_eq!(rig.unmap(2, map.handle, 0), OKAY);
}

#[test]
fn what_is_no_grant_is_refused_and_leaves_nothing() {
    let rig = Lending::new(3);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let before = rig.counts(mfn);
    let status = |who, dom, reference, flags, window| rig.map(who, dom, reference, flags, window).status;
    assert_eq!(status(2, 1, ENTRIES, 0, 0), GrantStatus::BAD_GNTREF, "beyond the table");
    assert_eq!(status(2, 1, u32::MAX, 0, 0), GrantStatus::BAD_GNTREF);
    assert_eq!(status(2, 1, 9, 0, 0), ERROR, "an empty entry");
    assert_eq!(status(3, 1, 8, 0, 0), ERROR, "another's grant");
    assert_eq!(status(0, 1, 8, 0, 0), ERROR, "the control domain is no exception");
    for dom in [9, 31, 32, SELF as u16, 0x7ff1, u16::MAX] {
        assert_eq!(status(2, dom, 8, 0, 0), GrantStatus::BAD_DOMAIN, "{dom:#x}");
    }
    for kind in [GTF_INVALID, GTF_ACCEPT_TRANSFER, GTF_TRANSITIVE] {
        rig.set(1, 9, GrantEntry { flags: kind, domid: 2, frame: mfn.number() as u32 });
        assert_eq!(status(2, 1, 9, 0, 0), ERROR, "type {kind}");
        assert_eq!(rig.flags(1, 9), kind);
    }
    for (flags, what) in [(0, "nothing"), (GNTMAP_READONLY | GNTMAP_CONTAINS_PTE, "no mapping")] {
        assert_eq!(rig.map_at(2, 1, 8, flags, at(0)).status, GrantStatus::BAD_GNTREF, "{what}");
    }
    assert_eq!((rig.counts(mfn), rig.flags(1, 8)), (before, GTF_PERMIT_ACCESS));
}

#[test]
fn a_domain_lends_only_what_it_has() {
    let rig = Lending::new(3);
    let foreign = rig.pool(3, 0);
    let root = rig.domains[1].root;
    for (mfn, status) in [
        (foreign.number(), GrantStatus::BAD_PAGE),
        (3, GrantStatus::BAD_PAGE),
        (u64::from(u32::MAX), GrantStatus::BAD_PAGE),
        (root.number(), ERROR),
    ] {
        rig.set(1, 8, GrantEntry::access(2, mfn as u32, true));
        assert_eq!(rig.map(2, 1, 8, 0, 0).status, status, "{mfn:#x}");
        assert_eq!(rig.flags(1, 8), GTF_PERMIT_ACCESS);
    }
    // To be read, a page table may be lent.
    let map = rig.map(2, 1, 8, GNTMAP_READONLY, 0);
    assert_eq!((map.status, rig.unmap(2, map.handle, 0)), (OKAY, OKAY));
}

#[test]
fn places_that_cannot_be_written_are_refused() {
    let rig = Lending::new(2);
    rig.lend(1, 8, 2, 0, true);
    let by_entry = GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE;
    let root = rig.domains[2].root;
    let two = frame((rig.entry(root, 16) >> 20) & 0x3fff_ffff);
    let (foreign, index) = rig.builder_entry(1, POOL + WINDOW);
    let (own, _) = rig.builder_entry(2, POOL + WINDOW);
    let window = |slot: u64| slot << 19;
    for (flags, address, what) in [
        (GNTMAP_HOST_MAP, window(10), "the hypervisor's addresses"),
        (GNTMAP_HOST_MAP, 1 << 40, "no address"),
        (GNTMAP_HOST_MAP, 0, "no table there"),
        (by_entry, place(own, 3) + 4, "not an entry's start"),
        (by_entry, place(own, 16), "beyond the table's entries"),
        (by_entry, place(foreign, index), "the lender's own table"),
        (by_entry, place(two, 0), "a table of level 2"),
        (by_entry, place(root, 0), "the root"),
        (by_entry, place(rig.pool(2, 0), 0), "no table"),
        (by_entry, 3 << 12, "no memory"),
        (by_entry, u64::MAX - 7, "no machine address"),
    ] {
        assert_eq!(rig.map_at(2, 1, 8, flags, address).status, ERROR, "{what}");
        assert_eq!(rig.flags(1, 8), GTF_PERMIT_ACCESS, "{what}");
    }
}

#[test]
fn an_entry_can_be_named_by_its_machine_address() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let (table, index) = rig.builder_entry(2, POOL + WINDOW + 3);
    let map = rig.map_at(2, 1, 8, GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, place(table, index));
    assert_eq!((map.status, rig.sees(2, 3, true)), (OKAY, Some(mfn)));
    assert_eq!(rig.unmap(2, map.handle, 3), ERROR, "a virtual address is no entry's");
    assert_eq!(rig.unmap_parts(2, map.handle, place(table, index), 0), OKAY);
    assert_eq!(rig.sees(2, 3, false), None);
}

/// XSA-227: the entry into which a grant was to be mapped was named by an address that wasn't an entry's start: Xen wrote eight bytes
/// over two entries, neither of which was ever judged. The attacker tries each byte between two entries, to map and to unmap.
#[test]
fn xsa_227_a_grant_is_mapped_into_a_whole_entry() {
    let rig = Lending::new(2);
    rig.lend(1, 8, 2, 0, true);
    let flags = GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE;
    let (table, index) = rig.builder_entry(2, POOL + WINDOW + 3);
    let entries = || [index - 1, index, index + 1].map(|index| rig.entry(table, index));
    let before = entries();
    for offset in (1..8).chain([4096 - 8 * index as u64 - 4]) {
        assert_eq!(rig.map_at(2, 1, 8, flags, place(table, index) + offset).status, ERROR, "{offset}");
        assert_eq!((entries(), rig.flags(1, 8)), (before, GTF_PERMIT_ACCESS), "{offset}");
        rig.check();
    }
    let map = rig.map_at(2, 1, 8, flags, place(table, index));
    let mapped = entries();
    for offset in 1..8 {
        assert_eq!(rig.unmap_parts(2, map.handle, place(table, index) + offset, 0), ERROR, "{offset}");
        assert_eq!(entries(), mapped, "{offset}");
        rig.check();
    }
    assert_eq!(rig.unmap_parts(2, map.handle, place(table, index), 0), OKAY);
    rig.check();
}

#[test]
fn a_grant_can_be_mapped_several_times_and_by_one_domain() {
    let rig = Lending::new(3);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let maps = [rig.map(2, 1, 8, GNTMAP_READONLY, 0), rig.map(2, 1, 8, 0, 1), rig.map(2, 1, 8, 0, 2)];
    assert!(maps.iter().all(|map| map.status == OKAY));
    // The lender changes the entry while it is in use: what counts is what was granted.
    rig.set(1, 8, GrantEntry::access(3, rig.pool(1, 1).number() as u32, true));
    assert_eq!(rig.map(3, 1, 8, 0, 0).status, ERROR, "in use by another domain");
    let late = rig.map(2, 1, 8, 0, 3);
    assert_eq!((late.status, rig.sees(2, 3, true)), (OKAY, Some(mfn)));
    for (map, window) in [(maps[1], 1), (late, 3), (maps[2], 2)] {
        assert_eq!(rig.unmap(2, map.handle, window), OKAY);
    }
    assert_eq!(rig.unmap(2, maps[0].handle, 0), OKAY);
    assert_eq!(rig.flags(1, 8), GTF_PERMIT_ACCESS);
    assert_eq!(rig.map(3, 1, 8, 0, 0).status, OKAY);
}

#[test]
fn writing_is_over_when_the_last_writable_mapping_goes() {
    let rig = Lending::new(2);
    rig.lend(1, 8, 2, 0, true);
    let (reader, writer) = (rig.map(2, 1, 8, GNTMAP_READONLY, 0), rig.map(2, 1, 8, 0, 1));
    assert_eq!(rig.flags(1, 8) & (GTF_READING | GTF_WRITING), GTF_READING | GTF_WRITING);
    assert_eq!(rig.unmap(2, writer.handle, 1), OKAY);
    assert_eq!(rig.flags(1, 8) & (GTF_READING | GTF_WRITING), GTF_READING);
    // The lender takes the right to write back.
    rig.set(1, 8, GrantEntry { flags: rig.flags(1, 8) | GTF_READONLY, ..GrantEntry::access(2, 0, true) });
    assert_eq!(rig.map(2, 1, 8, 0, 1).status, ERROR);
    assert_eq!(rig.unmap(2, reader.handle, 0), OKAY);
}

#[test]
fn one_may_borrow_from_oneself() {
    let rig = Lending::new(1);
    let mfn = rig.lend(1, 8, 1, 0, true);
    let map = rig.map(1, 1, 8, 0, 0);
    assert_eq!((map.status, rig.sees(1, 0, true)), (OKAY, Some(mfn)));
    assert_eq!(rig.unmap(1, map.handle, 0), OKAY);
}

// ---- Undoing -----------------------------------------------------------------------------------------

#[test]
fn handles_are_good_once_and_for_their_owner() {
    let rig = Lending::new(3);
    rig.lend(1, 8, 2, 0, true);
    let map = rig.map(2, 1, 8, 0, 0);
    for (who, handle) in [(1, map.handle), (3, map.handle), (2, map.handle + 1), (2, 5000), (2, u32::MAX)] {
        assert_eq!(rig.unmap(who, handle, 0), GrantStatus::BAD_HANDLE);
    }
    assert_eq!(rig.unmap(2, map.handle, 0), OKAY);
    assert_eq!(rig.unmap(2, map.handle, 0), GrantStatus::BAD_HANDLE);
    // Twice in one hypercall, of which the second comes before the first is finished.
    let map = rig.map(2, 1, 8, 0, 0);
    let one = UnmapGrantRef { host_addr: at(0), handle: map.handle, ..UnmapGrantRef::default() };
    let mut both = [one, one];
    assert_eq!(rig.raw(2, GNTTABOP_UNMAP_GRANT_REF, &mut both, 2), Ok(0));
    assert_eq!(both.map(|one| one.status), [OKAY, GrantStatus::BAD_HANDLE]);
    rig.check();
}

#[test]
fn the_wrong_address_changes_nothing() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    rig.lend(1, 9, 2, 1, true);
    let (map, other) = (rig.map(2, 1, 8, 0, 0), rig.map(2, 1, 9, 0, 1));
    for (address, what) in [
        (at(1), "another grant's"),
        (at(2), "nothing there"),
        (address(POOL), "a page of one's own"),
        (10 << 19, "the hypervisor's"),
        (1 << 40, "no address"),
    ] {
        assert_eq!(rig.unmap_parts(2, map.handle, address, 0), ERROR, "{what}");
        assert_eq!((rig.sees(2, 0, true), rig.flags(1, 8) & GTF_WRITING), (Some(mfn), GTF_WRITING), "{what}");
    }
    assert_eq!(rig.unmap_parts(2, map.handle, 0, 0), OKAY, "nothing is asked for");
    assert_eq!((rig.sees(2, 0, true), rig.flags(1, 8) & GTF_WRITING), (Some(mfn), GTF_WRITING));
    assert_eq!((rig.unmap(2, map.handle, 0), rig.unmap(2, other.handle, 1)), (OKAY, OKAY));
}

/// XSA-234: undoing a mapping looked at the frame of the entry named, and not at its rights. A guest that had a grant mapped
/// read-only and writable named the read-only entry when it undid the writable mapping: the writable entry stayed, and nothing
/// held the page as writable any more. Its owner could make a page table of it, which the guest could then write to.
#[test]
fn xsa_234_a_mapping_with_other_rights_is_not_undone() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let (reader, writer) = (rig.map(2, 1, 8, GNTMAP_READONLY, 0), rig.map(2, 1, 8, 0, 1));
    let before = rig.counts(mfn);
    assert_eq!(rig.unmap(2, writer.handle, 0), ERROR);
    assert_eq!(rig.unmap(2, reader.handle, 1), ERROR);
    assert_eq!((rig.counts(mfn), rig.flags(1, 8) & GTF_WRITING), (before, GTF_WRITING));
    assert_eq!((rig.sees(2, 0, false), rig.sees(2, 1, true)), (Some(mfn), Some(mfn)));
    // Nor is the page free to be a table, though its owner has it nowhere.
    rig.remap(1, POOL, 0).unwrap();
    assert!(rig.pin(1, mfn, 1).is_err());
    assert_eq!((rig.unmap(2, writer.handle, 1), rig.unmap(2, reader.handle, 0)), (OKAY, OKAY));
}

/// XSA-224: a mapping for host and device at once was counted wrongly: references of the one part were dropped with the
/// other, or not at all, so that pages came free while they were mapped, or never. Whichever part goes first, the page is held
/// until the second is gone, and then not any more.
#[test]
fn xsa_224_host_and_device_parts_go_in_either_order() {
    for (rights, device_first) in [(0, true), (0, false), (GNTMAP_READONLY, true), (GNTMAP_READONLY, false)] {
        let rig = Lending::new(2);
        let mfn = rig.lend(1, 8, 2, 0, true);
        let before = rig.counts(mfn);
        let map = rig.map(2, 1, 8, GNTMAP_DEVICE_MAP | rights, 0);
        assert_eq!(map.dev_bus_addr, mfn.number() << 12);
        let parts = [(0, map.dev_bus_addr), (at(0), 0)];
        let [first, second] = if device_first { parts } else { [parts[1], parts[0]] };
        assert_eq!(rig.unmap_parts(2, map.handle, first.0, first.1), OKAY);
        assert_eq!(rig.flags(1, 8) & GTF_READING, GTF_READING, "the other part holds the page");
        rig.remap(1, POOL, 0).unwrap();
        assert_eq!(rig.pin(1, mfn, 1).is_ok(), rights == GNTMAP_READONLY, "a table nobody can write to");
        if rights == GNTMAP_READONLY {
            rig.unpin(1, mfn).unwrap();
        }
        assert_eq!(rig.unmap_parts(2, map.handle, first.0, first.1), OKAY, "nothing left to undo there");
        assert_eq!(rig.unmap_parts(2, map.handle, second.0, second.1), OKAY);
        assert_eq!(rig.unmap_parts(2, map.handle, second.0, second.1), GrantStatus::BAD_HANDLE);
        assert_eq!((rig.flags(1, 8), rig.counts(mfn).0), (GTF_PERMIT_ACCESS, before.0 - 1));
    }
}

#[test]
fn device_mappings_alone_hold_the_page_and_need_their_address() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let map = rig.map_at(2, 1, 8, GNTMAP_DEVICE_MAP, 0);
    assert_eq!((map.status, map.dev_bus_addr), (OKAY, mfn.number() << 12));
    let wrong = rig.unmap_parts(2, map.handle, 0, map.dev_bus_addr + 4096);
    assert_eq!((wrong, rig.flags(1, 8) & GTF_WRITING), (GrantStatus::BAD_DEV_ADDR, GTF_WRITING));
    assert_eq!(rig.unmap_parts(2, map.handle, at(0), 0), OKAY, "there is no such part");
    assert_eq!(rig.flags(1, 8) & GTF_WRITING, GTF_WRITING);
    assert_eq!(rig.unmap_parts(2, map.handle, 0, map.dev_bus_addr), OKAY);
}

#[test]
fn an_entry_that_was_overwritten_loses_nothing_and_leaks_nothing() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let before = rig.counts(mfn);
    let map = rig.map(2, 1, 8, 0, 0);
    assert_eq!(rig.overwrite(2, 0, 0), Ok(0));
    assert_eq!(rig.counts(mfn), (before.0 + 1, before.1 + 1), "the pin is left");
    rig.check();
    assert_eq!(rig.unmap(2, map.handle, 0), ERROR, "it is not mapped there");
    // One more mapping of the grant can stand in for the lost one.
    let second = rig.map(2, 1, 8, 0, 0);
    assert_eq!((rig.unmap(2, map.handle, 0), rig.unmap(2, second.handle, 0)), (OKAY, ERROR));
    rig.bury(2);
    assert_eq!(
        (rig.counts(mfn), rig.flags(1, 8)),
        (before, GTF_PERMIT_ACCESS),
        "its death gives the pin back"
    );
}

#[test]
fn a_mapping_replaces_what_was_there() {
    let rig = Lending::new(2);
    rig.lend(1, 8, 2, 0, true);
    rig.lend(1, 9, 2, 1, true);
    let own = rig.pool(2, 5);
    let before = rig.counts(own);
    let over_own = rig.map_at(2, 1, 8, GNTMAP_HOST_MAP, address(POOL + 5));
    assert_eq!((over_own.status, rig.counts(own)), (OKAY, (before.0 - 1, before.1 - 1)));
    let over_grant = rig.map_at(2, 1, 9, GNTMAP_HOST_MAP, address(POOL + 5));
    assert_eq!(rig.unmap_parts(2, over_own.handle, address(POOL + 5), 0), ERROR);
    assert_eq!(rig.unmap_parts(2, over_grant.handle, address(POOL + 5), 0), OKAY);
}

#[test]
fn unmap_and_replace_moves_an_entry() {
    let rig = Lending::new(2);
    rig.lend(1, 8, 2, 0, true);
    let own = rig.pool(2, 5);
    let replace = |handle, host_addr, new_addr| {
        let request = UnmapAndReplace { host_addr, new_addr, handle, ..UnmapAndReplace::default() };
        let status = rig.operate(2, GNTTABOP_UNMAP_AND_REPLACE, request).status;
        rig.check();
        status
    };
    let map = rig.map(2, 1, 8, 0, 0);
    let before = rig.counts(own);
    assert_eq!(replace(map.handle, at(0), at(0)), ERROR, "by itself");
    assert_eq!(replace(map.handle, at(0), 1 << 40), ERROR);
    assert_eq!(replace(map.handle, at(0), address(POOL + 5)), OKAY);
    assert_eq!((rig.sees(2, 0, true), rig.counts(own)), (Some(own), before));
    let (table, index) = rig.builder_entry(2, POOL + 5);
    assert_eq!((rig.entry(table, index), rig.flags(1, 8)), (0, GTF_PERMIT_ACCESS));
    let map = rig.map(2, 1, 8, 0, 1);
    assert_eq!(replace(map.handle, at(1), 0), OKAY, "by nothing");
    // Another mapping by grant can't be moved: it would be made anew, by nobody's leave.
    rig.lend(1, 9, 2, 1, true);
    let (one, two) = (rig.map(2, 1, 8, 0, 1), rig.map(2, 1, 9, 0, 2));
    assert_eq!(replace(one.handle, at(1), at(2)), ERROR);
    assert_eq!((rig.sees(2, 1, true), rig.sees(2, 2, true)), (Some(rig.pool(1, 0)), Some(rig.pool(1, 1))));
    assert_eq!((rig.unmap(2, one.handle, 1), rig.unmap(2, two.handle, 2)), (OKAY, OKAY));
    // Unless it leads to the same page with the same rights: then it is the one that stays.
    let (one, two) = (rig.map(2, 1, 8, 0, 1), rig.map(2, 1, 8, 0, 2));
    assert_eq!((replace(one.handle, at(1), at(2)), rig.unmap(2, two.handle, 1)), (OKAY, OKAY));
    assert_eq!(rig.flags(1, 8), GTF_PERMIT_ACCESS);
    let (table, index) = rig.builder_entry(2, POOL + WINDOW + 3);
    let by_entry = rig.map_at(2, 1, 8, GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, place(table, index));
    assert_eq!(replace(by_entry.handle, place(table, index), address(POOL + 6)), ERROR);
}

// ---- Memory and tables -------------------------------------------------------------------------------

#[test]
fn a_page_lent_for_writing_is_no_table_until_it_is_back() {
    let rig = Lending::new(2);
    let mfn = rig.prepare(1, 0, &[]);
    rig.lend(1, 8, 2, 0, true);
    let map = rig.map(2, 1, 8, 0, 0);
    assert!(rig.pin(1, mfn, 1).is_err());
    assert_eq!(rig.unmap(2, map.handle, 0), OKAY);
    assert_eq!(rig.pin(1, mfn, 1), Ok(0));
    assert_eq!(rig.map(2, 1, 8, 0, 0).status, ERROR, "and a table isn't lent for writing");
    let reader = rig.map(2, 1, 8, GNTMAP_READONLY, 0);
    assert_eq!((reader.status, rig.unmap(2, reader.handle, 0)), (OKAY, OKAY));
    rig.unpin(1, mfn).unwrap();
    rig.check();
}

#[test]
fn memory_given_up_while_it_is_lent_stays_its_owners_until_it_is_back() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let map = rig.map(2, 1, 8, 0, 0);
    let owned = rig.hv.frames().owned(DomainId::new(1));
    rig.remap(1, POOL, 0).unwrap();
    assert_eq!(rig.memory(1, XENMEM_DECREASE_RESERVATION, SELF, &[mfn.number()]), Ok(1));
    rig.check();
    assert_eq!(rig.hv.frames().owned(DomainId::new(1)), owned, "it counts as the lender's");
    assert_eq!(rig.sees(2, 0, true), Some(mfn));
    assert_eq!(rig.unmap(2, map.handle, 0), OKAY);
    assert_eq!(rig.hv.frames().owned(DomainId::new(1)), owned - 1);
    assert_eq!(rig.map(2, 1, 8, 0, 0).status, GrantStatus::BAD_PAGE, "it is nobody's now");
}

// ---- Death -------------------------------------------------------------------------------------------

#[test]
fn a_lender_that_dies_first_waits_for_what_it_lent() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let map = rig.map(2, 1, 8, 0, 0);
    rig.bury(1);
    let lender = rig.domains[1].domain;
    assert_eq!((lender.life(), rig.hv.frames().owned(DomainId::new(1))), (Life::Dying, 1));
    assert_eq!(rig.sees(2, 0, true), Some(mfn));
    assert_eq!(rig.map(2, 1, 8, 0, 1).status, GrantStatus::BAD_DOMAIN, "the dead lend nothing");
    assert_eq!(rig.unmap(2, map.handle, 0), OKAY);
    while rig.hv.background() {
        rig.check();
    }
    assert_eq!((lender.life(), rig.hv.frames().hold(mfn).unwrap().owner), (Life::Vacant, None));
}

#[test]
fn a_borrower_that_dies_first_gives_everything_back() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let before = rig.counts(mfn);
    for window in 0..4 {
        assert_eq!(rig.map(2, 1, 8, if window % 2 == 0 { 0 } else { GNTMAP_READONLY }, window).status, OKAY);
    }
    rig.map_at(2, 1, 8, GNTMAP_DEVICE_MAP, 0);
    rig.bury(2);
    assert_eq!(rig.domains[2].domain.life(), Life::Vacant);
    assert_eq!((rig.counts(mfn), rig.flags(1, 8)), (before, GTF_PERMIT_ACCESS));
}

#[test]
fn domains_that_lend_to_each_other_die_in_any_order() {
    for order in [[1, 2], [2, 1]] {
        let rig = Lending::new(2);
        let free = rig.hv.frames().free_frames();
        let owned: u64 = [1, 2].map(|who| rig.hv.frames().owned(DomainId::new(who))).iter().sum();
        for (lender, borrower) in [(1, 2), (2, 1)] {
            rig.lend(lender, 8, borrower as u16, 0, true);
            assert_eq!(rig.map(borrower, lender as u16, 8, 0, 0).status, OKAY);
        }
        order.iter().for_each(|who| rig.bury(*who));
        assert_eq!(rig.hv.frames().free_frames() as u64, free as u64 + owned);
        assert!([1, 2].iter().all(|who| rig.domains[*who].domain.life() == Life::Vacant));
    }
}

// ---- Batches -----------------------------------------------------------------------------------------

/// Maps a batch at the same address, again and again; returns how often it was preempted.
fn batch<T: IntoBytes + Immutable + FromBytes + KnownLayout + Copy>(
    rig: &Lending,
    operation: u32,
    structures: &mut [T],
) -> usize {
    // Too large for the scratch pages: in pieces of 128 structures at most, each one hypercall.
    let mut preempted = 0;
    for piece in structures.chunks_mut(128) {
        let at = rig.give(2, AT, <[T]>::as_bytes(piece));
        let mut arguments = [u64::from(operation), at, piece.len() as u64, 0, 0, 0];
        while let Err(again) = rig.call_once(2, GRANT_TABLE_OP, arguments) {
            assert!(again[2] < arguments[2], "no progress");
            arguments = again;
            preempted += 1;
            rig.check();
        }
        rig.hv.machine().read_guest(GuestVirtual::new(at), <[T]>::as_mut_bytes(piece)).unwrap();
    }
    preempted
}

#[test]
fn there_are_so_many_handles_and_a_batch_can_be_preempted() {
    let rig = Lending::new(2);
    let mfn = rig.lend(1, 8, 2, 0, true);
    let before = rig.counts(mfn);
    let request = MapGrantRef { flags: GNTMAP_DEVICE_MAP, reference: 8, dom: 1, ..MapGrantRef::default() };
    let mut maps = vec![request; MAX_MAPS + 1];
    batch(&rig, GNTTABOP_MAP_GRANT_REF, &mut maps);
    let (last, others) = maps.split_last().unwrap();
    assert!(others.iter().all(|map| map.status == OKAY));
    assert_eq!(last.status, GrantStatus::NO_SPACE);
    let undo = |map: &MapGrantRef| UnmapGrantRef {
        dev_bus_addr: map.dev_bus_addr,
        handle: map.handle,
        ..UnmapGrantRef::default()
    };
    let mut unmaps: Vec<_> = others.iter().map(undo).collect();
    batch(&rig, GNTTABOP_UNMAP_GRANT_REF, &mut unmaps);
    assert!(unmaps.iter().all(|unmap| unmap.status == OKAY));
    assert_eq!((rig.counts(mfn), rig.flags(1, 8)), (before, GTF_PERMIT_ACCESS));
    rig.check();
}

#[test]
fn long_batches_are_preempted_and_short_ones_flush_once() {
    let rig = Lending::new(2);
    rig.lend(1, 8, 2, 0, true);
    let at_bad = UnmapGrantRef { handle: 99, ..UnmapGrantRef::default() };
    // 512 refusals cost as much as the budget allows, and not more.
    let pointer = rig.give(2, AT, [at_bad; 128].as_bytes());
    let call = |count| rig.call_once(2, GRANT_TABLE_OP, [1, pointer, count, 0, 0, 0]);
    assert_eq!(call(128), Ok(0));
    let copy = GrantCopy {
        len: 4096,
        source: CopyEnd { domid: SELF as u16, ..CopyEnd::default() },
        ..GrantCopy::default()
    };
    let copies: Vec<_> = vec![copy; 90];
    let pointer = rig.give(2, AT, copies.as_bytes());
    let again = rig.call_once(2, GRANT_TABLE_OP, [5, pointer, 90, 0, 0, 0]).unwrap_err();
    assert!(again[0] == 5 && again[2] > 0 && again[2] < 90 && again[1] == pointer + (90 - again[2]) * 40);
    let maps: Vec<_> = (0..8).map(|window| rig.map(2, 1, 8, 0, window).handle).collect();
    let mut unmaps: Vec<_> = (0u64..)
        .zip(&maps)
        .map(|(window, handle)| UnmapGrantRef {
            host_addr: at(window),
            handle: *handle,
            ..UnmapGrantRef::default()
        })
        .collect();
    let flushes = rig.hv.machine().flushes();
    batch(&rig, GNTTABOP_UNMAP_GRANT_REF, &mut unmaps);
    assert!(unmaps.iter().all(|unmap| unmap.status == OKAY));
    assert_eq!(rig.hv.machine().flushes(), flushes + 1);
}

#[test]
fn an_answer_that_cannot_be_written_ends_the_batch_but_not_the_books() {
    let rig = Lending::new(2);
    rig.lend(1, 8, 2, 0, true);
    let map = rig.map(2, 1, 8, 0, 0);
    // The request lies in a page that becomes read-only.
    let request = UnmapGrantRef { host_addr: at(0), handle: map.handle, ..UnmapGrantRef::default() };
    rig.give(2, 0, &[]);
    rig.hv.machine().write_guest(GuestVirtual::new(address(POOL)), request.as_bytes()).unwrap();
    rig.remap(2, POOL, leaf(rig.pool(2, 0), false)).unwrap();
    let arguments = [u64::from(GNTTABOP_UNMAP_GRANT_REF), address(POOL), 1, 0, 0, 0];
    assert_eq!(rig.call(2, GRANT_TABLE_OP, arguments), Err(Errno::EFAULT));
    rig.check();
    assert_eq!(
        (rig.sees(2, 0, false), rig.flags(1, 8)),
        (None, GTF_PERMIT_ACCESS),
        "it was undone all the same"
    );
}

// ---- Copying -----------------------------------------------------------------------------------------

fn own_end(frame: MachineFrame, offset: u16) -> CopyEnd {
    CopyEnd { reference_or_frame: frame.number(), domid: SELF as u16, offset, pad: 0 }
}

fn grant_end(domid: u16, reference: u32, offset: u16) -> CopyEnd {
    CopyEnd { reference_or_frame: u64::from(reference), domid, offset, pad: 0 }
}

impl Lending {
    fn copy(&self, who: usize, source: CopyEnd, dest: CopyEnd, len: u16, flags: u16) -> GrantStatus {
        let request = GrantCopy { source, dest, len, flags, ..GrantCopy::default() };
        let status = self.operate(who, GNTTABOP_COPY, request).status;
        self.check();
        status
    }
}

#[test]
fn bytes_are_copied_between_own_and_granted_pages() {
    let rig = Lending::new(3);
    let lent = rig.lend(1, 8, 2, 0, false);
    let target = rig.lend(3, 9, 2, 0, true);
    let own = rig.pool(2, 0);
    let machine = rig.hv.machine();
    (0..512).for_each(|index| machine.write_entry(lent, index, 0x0101_0101_0101_0101 * (index as u64 % 251)));
    assert_eq!(rig.copy(2, grant_end(1, 8, 8), own_end(own, 3), 1000, GNTCOPY_SOURCE_GREF), OKAY);
    let byte = |frame, at: usize| machine.read_entry(frame, at / 8).to_le_bytes()[at % 8];
    assert!((0..1000).all(|at| byte(own, 3 + at) == byte(lent, 8 + at)));
    let both = GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF;
    assert_eq!(rig.copy(2, grant_end(1, 8, 0), grant_end(3, 9, 0), 4096, both), OKAY);
    assert!((0..512).all(|index| machine.read_entry(target, index) == machine.read_entry(lent, index)));
    assert_eq!(rig.copy(2, own_end(own, 0), own_end(rig.pool(2, 1), 4095), 1, 0), OKAY);
    assert_eq!((rig.flags(1, 8) & 0x18, rig.flags(3, 9) & 0x18), (0, 0), "nothing is in use afterwards");
    let map = rig.map(2, 3, 9, 0, 0);
    assert_eq!(
        rig.copy(2, own_end(own, 0), grant_end(3, 9, 0), 8, GNTCOPY_DEST_GREF),
        OKAY,
        "beside a mapping"
    );
    assert_eq!(rig.flags(3, 9) & GTF_WRITING, GTF_WRITING);
    assert_eq!(rig.unmap(2, map.handle, 0), OKAY);
}

#[test]
fn copies_that_must_not_be_are_refused_as_in_xen() {
    let rig = Lending::new(3);
    rig.lend(1, 8, 2, 0, false);
    let (own, root) = (rig.pool(2, 0), rig.domains[2].root);
    let (from, to) = (GNTCOPY_SOURCE_GREF, GNTCOPY_DEST_GREF);
    let good = own_end(own, 0);
    let foreign = own_end(rig.pool(1, 0), 0);
    let denied = GrantStatus::PERMISSION_DENIED;
    for (source, dest, len, flags, status, what) in [
        (good, grant_end(1, 8, 0), 8, to, ERROR, "to a read-only grant"),
        (grant_end(1, 9, 0), good, 8, from, ERROR, "an empty entry"),
        (grant_end(1, 512, 0), good, 8, from, GrantStatus::BAD_GNTREF, "beyond the table"),
        (grant_end(9, 8, 0), good, 8, from, GrantStatus::BAD_DOMAIN, "no such domain"),
        (CopyEnd { domid: 1, ..good }, good, 8, 0, denied, "another's frame by number"),
        (CopyEnd { domid: 2, ..good }, good, 8, 0, denied, "as Xen: frames only of DOMID_SELF"),
        (foreign, good, 8, 0, GrantStatus::BAD_PAGE, "a frame that isn't one's own"),
        (good, foreign, 8, 0, GrantStatus::BAD_PAGE, "nor to it"),
        (good, own_end(root, 0), 8, 0, ERROR, "to a page table"),
        (own_end(root, 0), good, 8, 0, OKAY, "from a page table"),
        (good, own_end(frame(3), 0), 8, 0, GrantStatus::BAD_PAGE, "to no memory"),
        (CopyEnd { reference_or_frame: u64::MAX, ..good }, good, 8, 0, GrantStatus::BAD_PAGE, "no frame"),
        (CopyEnd { offset: 4090, ..good }, good, 8, 0, GrantStatus::BAD_COPY_ARG, "beyond the source"),
        (good, CopyEnd { offset: 4089, ..good }, 8, 0, GrantStatus::BAD_COPY_ARG, "beyond the destination"),
        (good, CopyEnd { offset: u16::MAX, ..good }, u16::MAX, 0, GrantStatus::BAD_COPY_ARG, "far beyond"),
        (foreign, foreign, 0, 0, OKAY, "nothing at all"),
    ] {
        assert_eq!(rig.copy(2, source, dest, len, flags), status, "{what}");
    }
    assert_eq!(
        rig.copy(3, grant_end(1, 8, 0), own_end(rig.pool(3, 0), 0), 8, from),
        ERROR,
        "another's grant"
    );
    assert_eq!(rig.flags(1, 8), GTF_PERMIT_ACCESS | GTF_READONLY);
}

// ---- Exchanging entries ------------------------------------------------------------------------------

#[test]
fn entries_are_exchanged_unless_they_are_in_use() {
    let rig = Lending::new(2);
    let (one, two) = (rig.lend(1, 8, 2, 0, true), rig.lend(1, 9, 2, 1, false));
    let swap = |ref_a, ref_b| {
        rig.operate(1, GNTTABOP_SWAP_GRANT_REF, SwapGrantRef { ref_a, ref_b, ..SwapGrantRef::default() })
            .status
    };
    assert_eq!(swap(8, 9), OKAY);
    let word = |reference| rig.hv.machine().read_entry(rig.slot(1, reference).0, reference as usize);
    assert_eq!(GrantEntry::from_word(word(8)), GrantEntry::access(2, two.number() as u32, false));
    assert_eq!(GrantEntry::from_word(word(9)), GrantEntry::access(2, one.number() as u32, true));
    assert_eq!(
        (swap(8, 8), swap(8, 512), swap(u32::MAX, 8)),
        (OKAY, GrantStatus::BAD_GNTREF, GrantStatus::BAD_GNTREF)
    );
    let map = rig.map(2, 1, 9, 0, 0);
    assert_eq!((swap(8, 9), swap(9, 8), swap(8, 10)), (GrantStatus::EAGAIN, GrantStatus::EAGAIN, OKAY));
    assert_eq!(rig.unmap(2, map.handle, 0), OKAY);
}

// ---- Anything, by two domains ------------------------------------------------------------------------

/// One step of a hostile pair.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A lender writes some entry.
    Entry { who: usize, reference: u32, kind: u16, domid: u16, page: u64 },
    /// A borrower maps.
    Map { who: usize, dom: u16, reference: u32, flags: u32, window: u64, by_entry: bool },
    /// And undoes.
    Unmap { who: usize, handle: u32, window: u64, device: bool, by_entry: bool },
    /// And copies.
    Copy { who: usize, dom: u16, reference: u32, page: u64, out: bool },
    /// Somebody writes an entry of the page tables: their own page, or the other's.
    Update { who: usize, window: u64, owner: usize, page: u64, writable: bool, present: bool },
    /// Somebody makes a table of a page, or a page of a table.
    Pin { who: usize, page: u64, pin: bool },
    /// Somebody gives memory up.
    Give { who: usize, page: u64 },
    /// Two entries are exchanged.
    Swap { who: usize, one: u32, other: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let (who, dom, reference, page, window) = (1..3usize, 0..4u16, 6..10u32, 0..4u64, 0..3u64);
    let flags = prop_oneof![Just(2u32), Just(6), Just(3), Just(7), Just(1), Just(5), Just(0)];
    let entries = (who.clone(), reference.clone(), prop_oneof![3 => Just(1u16), 2 => Just(5), 1 => 0..64u16]);
    prop_oneof![
        3 => (entries, 0..4u16, page.clone()).prop_map(|((who, reference, kind), domid, page)| {
            Step::Entry { who, reference, kind, domid, page }
        }),
        6 => (who.clone(), dom.clone(), reference.clone(), flags, window.clone(), any::<bool>()).prop_map(
            |(who, dom, reference, flags, window, by_entry)| Step::Map { who, dom, reference, flags, window, by_entry }
        ),
        6 => (who.clone(), 0..5u32, window.clone(), any::<bool>(), any::<bool>()).prop_map(
            |(who, handle, window, device, by_entry)| Step::Unmap { who, handle, window, device, by_entry }
        ),
        2 => (who.clone(), dom, reference.clone(), page.clone(), any::<bool>()).prop_map(
            |(who, dom, reference, page, out)| Step::Copy { who, dom, reference, page, out }
        ),
        3 => (who.clone(), window, 1..3usize, page.clone(), any::<bool>(), any::<bool>()).prop_map(
            |(who, window, owner, page, writable, present)| Step::Update { who, window, owner, page, writable, present }
        ),
        2 => (who.clone(), page.clone(), any::<bool>()).prop_map(|(who, page, pin)| Step::Pin { who, page, pin }),
        1 => (who.clone(), page).prop_map(|(who, page)| Step::Give { who, page }),
        1 => (who, reference.clone(), reference).prop_map(|(who, one, other)| Step::Swap { who, one, other }),
    ]
}

/// What one of two knows of the other's pages by counting for itself.
#[derive(Default)]
struct Books {
    /// Live handles: borrower, handle, lender, frame, writable.
    live: Vec<(usize, u32, usize, u64, bool, [bool; 2])>,
}

impl Books {
    fn take(&mut self, rig: &Lending, step: Step) {
        match step {
            Step::Entry { who, reference, kind, domid, page } => {
                rig.set(
                    who,
                    reference,
                    GrantEntry { flags: kind, domid, frame: rig.pool(who, page).number() as u32 },
                );
            }
            Step::Map { who, dom, reference, flags, window, by_entry } => {
                let (table, index) = rig.builder_entry(who, POOL + WINDOW + window);
                let (flags, address) = match by_entry {
                    true => (flags | GNTMAP_CONTAINS_PTE, place(table, index)),
                    false => (flags, at(window)),
                };
                let map = rig.map_at(who, dom, reference, flags, address);
                if map.status == OKAY {
                    let parts = [flags & GNTMAP_HOST_MAP != 0, flags & GNTMAP_DEVICE_MAP != 0];
                    let writable = flags & GNTMAP_READONLY == 0;
                    self.live.push((who, map.handle, dom.into(), map.dev_bus_addr >> 12, writable, parts));
                }
            }
            Step::Unmap { who, handle, window, device, by_entry } => {
                self.unmap(rig, who, handle, window, device, by_entry)
            }
            Step::Copy { who, dom, reference, page, out } => {
                let (own, grant) = (own_end(rig.pool(who, page), 0), grant_end(dom, reference, 64));
                match out {
                    true => rig.copy(who, own, grant, 32, GNTCOPY_DEST_GREF),
                    false => rig.copy(who, grant, own, 32, GNTCOPY_SOURCE_GREF),
                };
            }
            Step::Update { who, window, owner, page, writable, present } => {
                let raw = if present { leaf(rig.pool(owner, page), writable) } else { 0 };
                let foreign = rig.overwrite(who, window, raw).is_ok() && present && owner != who;
                // Only an update that changes nothing may lead to a borrowed frame.
                assert!(!foreign || self.has(who, rig.pool(owner, page).number(), writable));
            }
            Step::Pin { who, page, pin } => {
                let mfn = rig.pool(who, page);
                let pinned = pin && rig.pin(who, mfn, 1).is_ok();
                if !pin {
                    let _ = rig.unpin(who, mfn);
                }
                let lent = self.live.iter().any(|live| live.3 == mfn.number() && live.4);
                assert!(!pinned || !lent, "a table of a page that is lent for writing");
            }
            Step::Give { who, page } => {
                let _ = rig.memory(who, XENMEM_DECREASE_RESERVATION, SELF, &[rig.pool(who, page).number()]);
            }
            Step::Swap { who, one, other } => {
                rig.operate(
                    who,
                    GNTTABOP_SWAP_GRANT_REF,
                    SwapGrantRef { ref_a: one, ref_b: other, ..SwapGrantRef::default() },
                );
            }
        }
    }

    fn has(&self, who: usize, frame: u64, writable: bool) -> bool {
        self.live.iter().any(|live| live.0 == who && live.3 == frame && live.4 == writable && live.5[0])
    }

    fn unmap(&mut self, rig: &Lending, who: usize, handle: u32, window: u64, device: bool, by_entry: bool) {
        let known = self.live.iter().position(|live| (live.0, live.1) == (who, handle));
        let bus = known.filter(|_| device).map_or(0, |index| self.live[index].3 << 12);
        let (table, index) = rig.builder_entry(who, POOL + WINDOW + window);
        let address = if by_entry { place(table, index) } else { at(window) };
        let status = rig.unmap_parts(who, handle, address, bus);
        let Some(known) = known else { return assert_eq!(status, GrantStatus::BAD_HANDLE) };
        if status == OKAY {
            let live = &mut self.live[known];
            live.5 = [false, live.5[1] && !device];
            if live.5 == [false, false] {
                self.live.swap_remove(known);
            }
        }
    }

    /// Every page that is lent is held; what is not lent any more has no mapping left (the observer has looked).
    fn compare(&self, rig: &Lending) {
        for who in 1..3 {
            let maps: Vec<_> = rig.domains[who].domain.grants.maps.lock().iter().collect();
            assert_eq!(maps.len(), self.live.iter().filter(|live| live.0 == who).count());
        }
        for &(_, _, lender, frame, writable, _) in &self.live {
            let hold = rig.hv.frames().hold(common::frame(frame)).unwrap();
            assert_eq!(hold.owner, Some(DomainId::new(lender as u16)));
            let usage = rig.hv.frames().usage(common::frame(frame)).unwrap();
            assert!(!writable || usage.kind == hyp_core::frame::FrameType::Writable);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn two_hostile_domains_break_nothing(steps in prop::collection::vec(step(), 1..60), first_to_die in 1..3usize) {
        let rig = Lending::new(2);
        for who in 1..3 {
            // Some pages are mapped nowhere, so that they can become tables.
            for page in 2..4 {
                rig.prepare(who, page, &[]);
            }
        }
        let mut books = Books::default();
        for step in steps {
            books.take(&rig, step);
            rig.check();
            books.compare(&rig);
        }
        for who in [first_to_die, 3 - first_to_die] {
            rig.bury(who);
        }
        prop_assert!([1, 2].iter().all(|who| rig.domains[*who].domain.life() == Life::Vacant));
    }
}
