//! RAM, and the parts of it that are taken.

use core::fmt;

use dtoolkit::Node;

use super::tree::{DeviceTree, reg, text};

/// A range of machine addresses in bytes: `start` belongs to it, `end` doesn't; never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Range {
    /// The range of `size` bytes from `start`; `None` when it is empty or leaves the 52 bits of an address.
    pub fn new(start: u64, size: u64) -> Option<Self> {
        let end = start.checked_add(size)?;
        (size > 0 && end <= 1 << 52).then_some(Self { start, end })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.end - self.start
    }
}

/// A short list of ranges, of fixed capacity so that it needs no memory.
#[derive(Clone, Default)]
pub struct Ranges {
    list: [Option<Range>; Self::CAPACITY],
    overflowed: bool,
}

impl Ranges {
    /// How many ranges can be kept.
    pub const CAPACITY: usize = 32;

    /// Adds a range.
    pub fn push(&mut self, range: Range) {
        match self.list.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(range),
            None => self.overflowed = true,
        }
    }

    /// The ranges, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = Range> + '_ {
        self.list.iter().flatten().copied()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.iter().all(Option::is_none)
    }

    /// Whether some range was left out because the list was full.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }
}

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Every range of every `device_type = "memory"` node.
pub(super) fn ram(tree: &DeviceTree<'_>) -> Ranges {
    let mut ranges = Ranges::default();
    for node in tree.devices().filter(|node| text(node, "device_type") == Some("memory")) {
        push_all(&mut ranges, |index| reg(&node, index));
    }
    ranges
}

/// The reservation block and the fixed children of `/reserved-memory`.
pub(super) fn reserved(tree: &DeviceTree<'_>) -> Ranges {
    let mut ranges = Ranges::default();
    for (start, size) in tree.reservations() {
        ranges.list_push(start, size);
    }
    if let Some(parent) = tree.find("/reserved-memory") {
        for node in parent.children() {
            push_all(&mut ranges, |index| reg(&node, index));
        }
    }
    ranges
}

impl Ranges {
    fn list_push(&mut self, start: u64, size: u64) {
        if let Some(range) = Range::new(start, size) {
            self.push(range);
        }
    }
}

/// Pushes what `nth` returns for 0, 1, ... until it returns nothing.
fn push_all(ranges: &mut Ranges, nth: impl Fn(usize) -> Option<(u64, u64)>) {
    for (start, size) in (0..Ranges::CAPACITY).map_while(nth) {
        ranges.list_push(start, size);
    }
}
