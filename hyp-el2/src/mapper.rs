//! Building the hypervisor's own tables, and surveying what was built.
//!
//! Works on any store of table pages, so that it can be tested without a machine. Levels are numbered as in
//! [`crate::format`]: 4 is the root, 1 holds pages.

const PAGE: u64 = 4096;
const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const READ_ONLY: u64 = 1 << 7;
/// XN of EL2's single-privilege tables; UXN of EL1's, which says nothing about the kernel.
const EXECUTE_NEVER: u64 = 1 << 54;
/// A table. The walker ignores the two upper bits and, beside them, the access flag, which is clear: guest roots lead to tables that are
/// made here (the M2P's), and if a root leads to itself, a walk can end at this entry as if it were a page. That page can't be used.
const TABLE: u64 = VALID | TABLE_OR_PAGE | READ_ONLY | EXECUTE_NEVER;
const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;

/// AF, and AP[1], which is RES1 at EL2 (DDI 0487, D8.4).
const EL2_FIXED: u64 = 1 << 10 | 1 << 6;
const INNER_SHAREABLE: u64 = 0b11 << 8;
/// Index of Device-nGnRE in [`MAIR_EL2`].
const DEVICE: u64 = 1 << 2;

/// `MAIR_EL2` for these tables: index 0 is Normal write-back memory, index 1 Device-nGnRE.
pub const MAIR_EL2: u64 = 0x04_ff;

/// What EL2 may do with memory: the attribute bits of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes(u64);

impl Attributes {
    /// Code.
    pub const TEXT: Self = Self(EL2_FIXED | INNER_SHAREABLE | READ_ONLY);
    /// Constants.
    pub const READ_ONLY: Self = Self(EL2_FIXED | INNER_SHAREABLE | READ_ONLY | EXECUTE_NEVER);
    /// Data.
    pub const DATA: Self = Self(EL2_FIXED | INNER_SHAREABLE | EXECUTE_NEVER);
    /// Registers of devices.
    pub const DEVICE: Self = Self(EL2_FIXED | DEVICE | EXECUTE_NEVER);

    /// Bits of a leaf for other tables than EL2's own.
    pub const fn raw(bits: u64) -> Self {
        Self(bits & !(ADDRESS | TABLE_OR_PAGE))
    }
}

/// Where table pages are. Tables are named by their machine address in bytes.
pub trait TableStore {
    /// A new table of zeros; `None` when there is no room.
    fn allocate(&mut self) -> Option<u64>;
    /// Reads an entry (index below 512).
    fn read(&self, table: u64, index: usize) -> u64;
    /// Writes an entry (index below 512).
    fn write(&mut self, table: u64, index: usize, entry: u64);
}

/// Why a mapping could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The store has no room for another table.
    NoTables,
    /// An address or the size isn't a whole number of pages, or leaves the address space.
    Misaligned,
}

/// Maps `size` bytes from `address` to the machine address `machine`, in the largest leaves that fit. What was mapped there
/// before is replaced.
///
/// # Errors
/// [`MapError`]; part of the range may be mapped then.
pub fn map<S: TableStore>(
    store: &mut S,
    root: u64,
    mut address: u64,
    mut machine: u64,
    size: u64,
    attributes: Attributes,
) -> Result<(), MapError> {
    let fits = |start: u64| start.checked_add(size).is_some_and(|end| end <= 1 << 48);
    if !(address | machine | size).is_multiple_of(PAGE) || !fits(address) || !fits(machine) {
        return Err(MapError::Misaligned);
    }
    let end = address + size;
    while address < end {
        let level = largest_level(address | machine, end - address);
        map_leaf(store, root, address, machine, level, attributes)?;
        address += span(level);
        machine += span(level);
    }
    Ok(())
}

/// Bytes that an entry of `level` covers.
fn span(level: u8) -> u64 {
    PAGE << (9 * u32::from(level.clamp(1, 4) - 1))
}

fn index(address: u64, level: u8) -> usize {
    ((address / span(level)) % 512) as usize
}

fn largest_level(addresses: u64, room: u64) -> u8 {
    let fits = |level: &u8| addresses.is_multiple_of(span(*level)) && room >= span(*level);
    [3, 2].into_iter().find(fits).unwrap_or(1)
}

fn map_leaf<S: TableStore>(
    store: &mut S,
    root: u64,
    address: u64,
    machine: u64,
    level: u8,
    attributes: Attributes,
) -> Result<(), MapError> {
    let mut table = root;
    for above in (level + 1..=4).rev() {
        table = descend(store, table, index(address, above), above)?;
    }
    store.write(table, index(address, level), leaf(machine, level, attributes.0));
    Ok(())
}

fn leaf(machine: u64, level: u8, attributes: u64) -> u64 {
    let kind = if level == 1 { VALID | TABLE_OR_PAGE } else { VALID };
    (machine & ADDRESS) | attributes | kind
}

/// The table below an entry of `level`: made if there is none, and filled with smaller leaves if there was a large one.
fn descend<S: TableStore>(store: &mut S, table: u64, index: usize, level: u8) -> Result<u64, MapError> {
    let entry = store.read(table, index);
    if entry & VALID != 0 && entry & TABLE_OR_PAGE != 0 {
        return Ok(entry & ADDRESS);
    }
    let below = store.allocate().ok_or(MapError::NoTables)?;
    if entry & VALID != 0 {
        let attributes = entry & !(ADDRESS | VALID | TABLE_OR_PAGE);
        for (slot, machine) in (0..512).zip((entry & ADDRESS..).step_by(span(level - 1) as usize)) {
            store.write(below, slot, leaf(machine, level - 1, attributes));
        }
    }
    store.write(table, index, below | TABLE);
    Ok(below)
}

/// What a table tree maps, in pages of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Survey {
    /// Executable and not writable.
    pub text: u64,
    /// Neither writable nor executable.
    pub read_only: u64,
    /// Writable and not executable.
    pub writable: u64,
    /// Writable and executable: must be 0.
    pub writable_and_executable: u64,
}

/// Counts what the tables under `root` map, by walking them as the MMU would.
pub fn survey<S: TableStore>(store: &S, root: u64) -> Survey {
    let mut survey = Survey::default();
    survey_table(store, root, 4, &mut survey);
    survey
}

fn survey_table<S: TableStore>(store: &S, table: u64, level: u8, survey: &mut Survey) {
    for index in 0..512 {
        let entry = store.read(table, index);
        match (entry & VALID != 0, entry & TABLE_OR_PAGE != 0) {
            (true, true) if level > 1 => survey_table(store, entry & ADDRESS, level - 1, survey),
            (true, page) if page == (level == 1) => survey.count(entry, span(level) / PAGE),
            _ => {}
        }
    }
}

impl Survey {
    fn count(&mut self, entry: u64, pages: u64) {
        let counter = match (entry & READ_ONLY == 0, entry & EXECUTE_NEVER == 0) {
            (true, true) => &mut self.writable_and_executable,
            (true, false) => &mut self.writable,
            (false, true) => &mut self.text,
            (false, false) => &mut self.read_only,
        };
        *counter += pages;
    }
}

/// The machine address and leaf that `address` is translated to, if it is.
pub fn translate<S: TableStore>(store: &S, root: u64, address: u64) -> Option<u64> {
    let mut table = root;
    for level in (1..=4).rev() {
        let entry = store.read(table, index(address, level));
        match (entry & VALID != 0, entry & TABLE_OR_PAGE != 0) {
            (true, true) if level > 1 => table = entry & ADDRESS,
            (true, page) if page == (level == 1) => return Some((entry & ADDRESS) + address % span(level)),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tables(Vec<[u64; 512]>);

    impl TableStore for Tables {
        fn allocate(&mut self) -> Option<u64> {
            (self.0.len() < 32).then(|| {
                self.0.push([0; 512]);
                (self.0.len() as u64 - 1) * PAGE
            })
        }
        fn read(&self, table: u64, index: usize) -> u64 {
            self.0[(table / PAGE) as usize][index]
        }
        fn write(&mut self, table: u64, index: usize, entry: u64) {
            self.0[(table / PAGE) as usize][index] = entry;
        }
    }

    fn tables() -> (Tables, u64) {
        let mut tables = Tables(Vec::new());
        let root = tables.allocate().expect("room");
        (tables, root)
    }

    #[test]
    fn large_ranges_use_large_leaves() {
        let (mut store, root) = tables();
        map(&mut store, root, 0x8000_4000_0000, 0x4000_0000, 3 << 30, Attributes::DATA).expect("mapped");
        assert_eq!(store.0.len(), 2, "a root and one table of gigabytes");
        assert_eq!(translate(&store, root, 0x8000_4000_1234), Some(0x4000_1234));
        assert_eq!(translate(&store, root, 0x8001_0000_0000), None);
        assert_eq!(survey(&store, root).writable, 3 << 18);
    }

    #[test]
    fn rights_of_a_part_can_be_taken_away() {
        let (mut store, root) = tables();
        map(&mut store, root, 0x4000_0000, 0x4000_0000, 1 << 30, Attributes::DATA).expect("mapped");
        map(&mut store, root, 0x4020_1000, 0x4020_1000, 0x5000, Attributes::READ_ONLY).expect("mapped");
        let survey = survey(&store, root);
        assert_eq!((survey.read_only, survey.writable), (5, (1 << 18) - 5));
        assert_eq!(translate(&store, root, 0x4020_7fff), Some(0x4020_7fff));
        assert_eq!(translate(&store, root, 0x7fff_ffff), Some(0x7fff_ffff));
    }

    #[test]
    fn the_survey_finds_a_page_that_is_writable_and_executable() {
        let (mut store, root) = tables();
        map(&mut store, root, 0x1000, 0x1000, 0x1000, Attributes(EL2_FIXED)).expect("mapped");
        map(&mut store, root, 0x2000, 0x2000, 0x1000, Attributes::TEXT).expect("mapped");
        assert_eq!(survey(&store, root), Survey { text: 1, writable_and_executable: 1, ..Survey::default() });
    }

    /// The hypervisor's entries in a guest's root, reached through a root that leads to itself: pages without an access flag.
    #[test]
    fn a_table_entry_is_no_page_that_anyone_could_use() {
        const ACCESS_FLAG: u64 = 1 << 10;
        let (mut store, root) = tables();
        map(&mut store, root, 0x8000_0000_0000, 0x4000_0000, PAGE, Attributes::READ_ONLY).expect("mapped");
        let entries = (1..store.0.len()).map(|table| store.0[table - 1].iter().find(|entry| **entry != 0));
        for entry in entries {
            let entry = entry.expect("each table but the last leads to one");
            assert_eq!(entry & (VALID | TABLE_OR_PAGE | READ_ONLY | ACCESS_FLAG), TABLE & !EXECUTE_NEVER);
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let (mut store, root) = tables();
        assert_eq!(map(&mut store, root, 0x1001, 0, PAGE, Attributes::DATA), Err(MapError::Misaligned));
        assert_eq!(
            map(&mut store, root, (1 << 48) - PAGE, 0, 2 * PAGE, Attributes::DATA),
            Err(MapError::Misaligned)
        );
        let mut result = Ok(());
        for gigabyte in 0..64 {
            result =
                result.and_then(|()| map(&mut store, root, gigabyte << 30, 0x1000, PAGE, Attributes::DATA));
        }
        assert_eq!(result, Err(MapError::NoTables));
    }
}
