//! Changes of page tables: entry by entry, by address, and of whole tables.

use penumbra_abi::mmu;

use super::Author;
use crate::format::{Hardware, Shape, Walk};
use crate::guest::PAGES;
use crate::hardware::content::{FRAMES, number};
use crate::operation::{MASK_COUNT, MASKS, Operation};
use crate::spec::DOMAINS;
use crate::spec::operations::{Extended, Update};

impl Author<'_> {
    /// Where some set of vCPUs stands.
    fn mask(&mut self) -> u64 {
        MASKS + 8 * self.chance.u64(..MASK_COUNT)
    }

    pub(super) fn update<F: Hardware>(&mut self) -> Update {
        let level = self.chance.u8(1..=F::LEVELS);
        let table = if self.one_in(3) { self.candidate() } else { self.table_of(level) };
        let frame = table.map_or_else(|| self.frame(), number);
        // Of a frame that is no table yet, entries are prepared that fit together by chance.
        let level = table.map_or(level, |at| {
            if self.world.table[at] > 0 {
                self.world.level[at]
            } else {
                1 + (at % usize::from(F::LEVELS)) as u8
            }
        });
        let index = self.index::<F>(level);
        let value = self.entry::<F>(level);
        // A root that leads to itself: too rare if left to chance alone.
        let value = match level == F::LEVELS && self.one_in(24) {
            true => self.compose::<F>(Shape::LimitedTable, frame),
            false => value,
        };
        let kind = match self.chance.u32(..32) {
            0 => 3,
            1 => mmu::MMU_MACHPHYS_UPDATE,
            2..8 => mmu::MMU_PT_UPDATE_PRESERVE_AD,
            _ => 0,
        };
        let value = if kind == mmu::MMU_MACHPHYS_UPDATE { self.chance.u64(..PAGES) } else { value };
        let off = if self.one_in(100) { 4 } else { 0 };
        Update { pointer: (frame << 12 | (index as u64) << 3 | kind) + off, value }
    }

    pub(super) fn updates<F: Hardware>(&mut self) -> Operation {
        let count = [1, 1, 1, 2, 3, 6][self.chance.usize(..6)];
        let frames_of = self.named();
        let tables_of = if self.one_in(60) { u64::from(self.chance.u16(..DOMAINS as u16)) + 1 } else { 0 };
        Operation::Updates(
            tables_of << 16 | u64::from(frames_of),
            (0..count).map(|_| self.update::<F>()).collect(),
        )
    }

    /// Takes every writable mapping of a frame away, so that it can become a table.
    pub(super) fn unmap<F: Hardware>(&mut self) -> Operation {
        let frame = self.of(self.domain);
        let shape = if self.chance.bool() { Shape::ReadOnly } else { Shape::Nothing };
        self.unmap_frame::<F>(frame, shape)
    }

    /// As [`Self::unmap`], of this frame, and what stands in the place of each mapping then.
    pub(super) fn unmap_frame<F: Hardware>(&mut self, frame: u64, shape: Shape) -> Operation {
        let value = F::compose(shape, frame);
        let mut list = Vec::new();
        for table in (0..FRAMES).filter(|at| self.world.table[*at] > 0 && self.world.level[*at] == 1) {
            for index in (0..F::entries(1)).filter(|_| usize::from(self.known.owner[table]) == self.domain) {
                match F::walk(1, self.content.read(table, index)) {
                    Walk::Leaf { frame: mapped, writable: true, .. } if mapped == frame => {
                        list.push(Update { pointer: number(table) << 12 | (index as u64) << 3, value });
                    }
                    _ => {}
                }
            }
        }
        Operation::Updates(0x7ff0, list)
    }

    /// Has a pair of operations ask for both roots, as kernels do, every other time.
    fn perhaps_roots<F: Hardware>(&mut self, mut list: Vec<Extended>) -> Vec<Extended> {
        if let [first, second] = &mut *list
            && self.one_in(2)
        {
            first.command = mmu::MMUEXT_NEW_BASEPTR;
            second.command = mmu::MMUEXT_NEW_USER_BASEPTR;
            for root in [first, second] {
                root.argument = self.table_of(F::LEVELS).map_or(root.argument, number);
            }
        }
        list
    }

    pub(super) fn extended<F: Hardware>(&mut self) -> Operation {
        let count = [1, 1, 1, 2][self.chance.usize(..4)];
        let of = self.named();
        let one = |author: &mut Self| {
            let level = author.chance.u8(1..=F::LEVELS);
            let table = if author.one_in(2) { author.candidate() } else { author.table_of(level) };
            let frame = table.map_or_else(|| author.frame(), number);
            let level = table.map_or(level, |at| {
                if author.world.table[at] > 0 {
                    author.world.level[at]
                } else {
                    1 + (at % usize::from(F::LEVELS)) as u8
                }
            });
            match author.chance.u32(..24) {
                0..8 => Extended { command: u32::from(level) - 1, argument: frame, second: 0 },
                8 => Extended { command: author.chance.u32(..5), argument: frame, second: 0 },
                9..15 => {
                    let mine = author.known.pins.iter().filter(|pin| pin.domain == author.domain);
                    let mine: Vec<_> = mine.map(|pin| number(pin.table)).collect();
                    let frame = if mine.is_empty() || author.one_in(6) {
                        frame
                    } else {
                        mine[author.chance.usize(..mine.len())]
                    };
                    Extended { command: mmu::MMUEXT_UNPIN_TABLE, argument: frame, second: 0 }
                }
                15..19 => {
                    let root = author.table_of(F::LEVELS).map_or(frame, number);
                    Extended {
                        command: mmu::MMUEXT_NEW_BASEPTR,
                        argument: if author.one_in(4) { frame } else { root },
                        second: 0,
                    }
                }
                19..21 => {
                    let root = author.table_of(F::LEVELS).map_or(0, number);
                    Extended {
                        command: mmu::MMUEXT_NEW_USER_BASEPTR,
                        argument: if author.one_in(3) { 0 } else { root },
                        second: 0,
                    }
                }
                21 => {
                    let command =
                        if author.chance.bool() { mmu::MMUEXT_CLEAR_PAGE } else { mmu::MMUEXT_COPY_PAGE };
                    Extended { command, argument: author.frame(), second: author.frame() }
                }
                _ => Extended {
                    command: author.chance.u32(mmu::MMUEXT_TLB_FLUSH_LOCAL..=mmu::MMUEXT_INVLPG_ALL),
                    argument: author.address::<F>(),
                    second: author.mask(),
                },
            }
        };
        let list = (0..count).map(|_| one(self)).collect();
        Operation::Extended(of, self.perhaps_roots::<F>(list))
    }

    pub(super) fn remap<F: Hardware>(&mut self) -> Operation {
        let other = if self.one_in(if self.domain == 0 { 3 } else { 30 }) {
            Some(self.chance.u16(..DOMAINS as u16))
        } else {
            None
        };
        let mut raw = self.entry::<F>(1);
        if let Some(other) = other.filter(|_| !self.one_in(3)) {
            let shape = if self.chance.bool() { Shape::Writable } else { Shape::ReadOnly };
            raw = F::compose(shape, self.of(usize::from(other)));
        }
        let kind = [mmu::UVMF_NONE, mmu::UVMF_INVLPG, mmu::UVMF_TLB_FLUSH][self.chance.usize(..3)];
        let whose = [mmu::UVMF_LOCAL, mmu::UVMF_LOCAL, mmu::UVMF_ALL, self.mask()][self.chance.usize(..4)];
        let flags = kind | whose;
        let address = self.address::<F>();
        Operation::Remap(address, raw, flags, other)
    }
}
