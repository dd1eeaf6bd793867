//! Instructions by which a guest writes to its own page tables, and what they would do.
//!
//! A guest that has asked for *writable page tables* may write to a table as if it were ordinary memory. The write faults; the
//! hypervisor finds out here what the instruction would have written, has it validated like every other update, and goes on behind the
//! instruction. The place in memory isn't worked out again from the operands: the processor has said it (CR2), and should a
//! guest change its code meanwhile, it only deceives itself, since whatever comes out is validated.
//!
//! Recognised is what compilers and kernels make of a store or an atomic operation on a table entry: moves of a register or a
//! constant, `xchg`, `cmpxchg`, `xadd`, `add`, `or`, `and`, `sub`, `xor`, `bts`, `btr`, `btc`; of 1, 2, 4 or 8 bytes, with any
//! addressing mode. Everything else stays a page fault of the guest's, as does what the bytes at hand don't hold whole.
//!
//! Source: Intel SDM volume 2, chapter 2 (formats) and the instructions' own pages (flags).

mod decoder;

pub use decoder::{decode, decode_words};

/// Most bytes of an instruction.
pub const LONGEST: usize = 15;

/// Flags that arithmetic changes: carry, parity, auxiliary carry, zero, sign, overflow.
const CARRY: u64 = 1 << 0;
const PARITY: u64 = 1 << 2;
const AUXILIARY: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;
const ARITHMETIC: u64 = CARRY | PARITY | AUXILIARY | ZERO | SIGN | OVERFLOW;

/// What an instruction does with the operand in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Replaces it.
    Move,
    /// Replaces it; the register gets what was there.
    Exchange,
    /// Replaces it if it equals the accumulator, which otherwise gets what was there.
    CompareExchange,
    /// Adds to it; the register gets what was there.
    ExchangeAdd,
    /// Adds to it.
    Add,
    /// Sets bits.
    Or,
    /// Keeps bits.
    And,
    /// Subtracts from it.
    Subtract,
    /// Inverts bits.
    ExclusiveOr,
    /// Sets one bit; the carry says what it was.
    BitSet,
    /// Clears one bit.
    BitReset,
    /// Inverts one bit.
    BitComplement,
}

/// The operand that isn't in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A general register, 0 (rax) to 15 (r15).
    Register(u8),
    /// Bits 8 to 15 of a general register, 0 (ah) to 3 (bh).
    HighByte(u8),
    /// A constant of the instruction's, sign-extended.
    Constant(u64),
}

/// An instruction that writes to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// What it does.
    pub operation: Operation,
    /// Bytes that it writes: 1, 2, 4 or 8.
    pub size: u8,
    /// What it does it with.
    pub source: Source,
    /// Bytes of the instruction.
    pub length: u8,
}

/// What comes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effect {
    /// What memory holds afterwards; `None` if nothing is written.
    pub memory: Option<u64>,
    /// What the register gets (for `cmpxchg`, the accumulator), as wide as the operand.
    pub register: Option<u64>,
    /// Which flags change, and to what.
    pub flags: Flags,
}

/// Flags that change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    changed: u64,
    values: u64,
}

impl Flags {
    /// The flags register afterwards.
    pub const fn apply(self, flags: u64) -> u64 {
        flags & !self.changed | self.values
    }
}

impl Write {
    /// What the instruction does to `memory`, with the values of its source and of the accumulator. All are taken as wide as the
    /// operand; higher bits are ignored.
    pub fn effect(&self, memory: u64, source: u64, accumulator: u64) -> Effect {
        let width = Width(self.size);
        let (old, source) = (width.cut(memory), width.cut(source));
        let writes =
            |value: u64| Effect { memory: Some(width.cut(value)), register: None, flags: Flags::default() };
        match self.operation {
            Operation::Move => writes(source),
            Operation::Exchange => Effect { register: Some(old), ..writes(source) },
            Operation::CompareExchange => {
                let expected = width.cut(accumulator);
                let flags = width.subtracted(expected, old);
                match expected == old {
                    true => Effect { flags, ..writes(source) },
                    false => Effect { memory: None, register: Some(old), flags },
                }
            }
            Operation::ExchangeAdd => Effect {
                register: Some(old),
                flags: width.added(old, source),
                ..writes(old.wrapping_add(source))
            },
            Operation::Add => Effect { flags: width.added(old, source), ..writes(old.wrapping_add(source)) },
            Operation::Subtract => {
                Effect { flags: width.subtracted(old, source), ..writes(old.wrapping_sub(source)) }
            }
            Operation::Or => Effect { flags: width.logical(old | source), ..writes(old | source) },
            Operation::And => Effect { flags: width.logical(old & source), ..writes(old & source) },
            Operation::ExclusiveOr => Effect { flags: width.logical(old ^ source), ..writes(old ^ source) },
            Operation::BitSet | Operation::BitReset | Operation::BitComplement => {
                let bit = 1u64 << (source & (width.bits() - 1));
                let new = match self.operation {
                    Operation::BitSet => old | bit,
                    Operation::BitReset => old & !bit,
                    _ => old ^ bit,
                };
                let values = if old & bit != 0 { CARRY } else { 0 };
                Effect { flags: Flags { changed: CARRY, values }, ..writes(new) }
            }
        }
    }
}

/// Puts what an instruction gives to a register into it: 4 bytes clear the upper half, 1 or 2 leave the rest as it was.
pub const fn merged(register: u64, value: u64, size: u8) -> u64 {
    match size {
        1 => register & !0xff | value & 0xff,
        2 => register & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// The part of an 8-byte entry that a write of `size` bytes at byte `offset` means; `None` if it isn't within the entry.
pub fn part(entry: u64, offset: u64, size: u8) -> Option<u64> {
    (offset + u64::from(size) <= 8).then(|| Width(size).cut(entry >> (offset * 8)))
}

/// The entry with that part replaced.
pub fn with_part(entry: u64, offset: u64, size: u8, value: u64) -> u64 {
    let shift = (offset & 7) * 8;
    let mask = Width(size).mask() << shift;
    entry & !mask | value << shift & mask
}

/// How wide an operand is, in bytes.
#[derive(Clone, Copy)]
struct Width(u8);

impl Width {
    const fn bits(self) -> u64 {
        self.0 as u64 * 8
    }

    const fn mask(self) -> u64 {
        match self.0 {
            1 => 0xff,
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }

    const fn cut(self, value: u64) -> u64 {
        value & self.mask()
    }

    const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// Parity, zero and sign of a result.
    const fn common(self, result: u64) -> u64 {
        let result = self.cut(result);
        let parity = if (result as u8).count_ones().is_multiple_of(2) { PARITY } else { 0 };
        let zero = if result == 0 { ZERO } else { 0 };
        let sign = if result & self.sign() != 0 { SIGN } else { 0 };
        parity | zero | sign
    }

    /// After a logical operation: no carry, no overflow. (The auxiliary carry is undefined.)
    const fn logical(self, result: u64) -> Flags {
        Flags { changed: ARITHMETIC, values: self.common(result) }
    }

    /// After `left + right`.
    const fn added(self, left: u64, right: u64) -> Flags {
        let result = self.cut(left.wrapping_add(right));
        let carry = if result < left { CARRY } else { 0 };
        let overflow = if !(left ^ right) & (left ^ result) & self.sign() != 0 { OVERFLOW } else { 0 };
        self.with(result, left ^ right ^ result, carry | overflow)
    }

    /// After `left - right`.
    const fn subtracted(self, left: u64, right: u64) -> Flags {
        let result = self.cut(left.wrapping_sub(right));
        let carry = if left < right { CARRY } else { 0 };
        let overflow = if (left ^ right) & (left ^ result) & self.sign() != 0 { OVERFLOW } else { 0 };
        self.with(result, left ^ right ^ result, carry | overflow)
    }

    const fn with(self, result: u64, carries: u64, more: u64) -> Flags {
        let auxiliary = if carries & 0x10 != 0 { AUXILIARY } else { 0 };
        Flags { changed: ARITHMETIC, values: self.common(result) | auxiliary | more }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn write(operation: Operation, size: u8, source: Source, length: u8) -> Option<Write> {
        Some(Write { operation, size, source, length })
    }

    /// What a stock Debian kernel executes, and what compilers make of other updates; bytes from GNU as.
    #[test]
    fn recognises_what_kernels_execute() {
        use Operation::*;
        use Source::*;
        let cases: [(&[u8], Option<Write>); 26] = [
            // xchg %rax,(%rdi); xchg %r12,0x10(%r13)
            (&[0x48, 0x87, 0x07], write(Exchange, 8, Register(0), 3)),
            (&[0x4d, 0x87, 0x65, 0x10], write(Exchange, 8, Register(12), 4)),
            // lock andb $0xfd,(%rdx); lock andq $-3,0x12345678(%rax,%rbx,8)
            (&[0xf0, 0x80, 0x22, 0xfd], write(And, 1, Constant(!2), 4)),
            (&[0xf0, 0x48, 0x83, 0xa4, 0xd8, 0x78, 0x56, 0x34, 0x12, 0xfd], write(And, 8, Constant(!2), 10)),
            // mov %rsi,(%rdi); mov %r8,0x8(%rsp); mov %rax,0x10(%rip); mov %eax,(,%rcx,4)
            (&[0x48, 0x89, 0x37], write(Move, 8, Register(6), 3)),
            (&[0x4c, 0x89, 0x44, 0x24, 0x08], write(Move, 8, Register(8), 5)),
            (&[0x48, 0x89, 0x05, 0x10, 0, 0, 0], write(Move, 8, Register(0), 7)),
            (&[0x89, 0x04, 0x8d, 0, 0, 0, 0], write(Move, 4, Register(0), 7)),
            // movq $0,(%rbx); movl $-1,(%rbx); movw $0x1234,(%rbx); movb $7,(%rbx)
            (&[0x48, 0xc7, 0x03, 0, 0, 0, 0], write(Move, 8, Constant(0), 7)),
            (&[0xc7, 0x03, 0xff, 0xff, 0xff, 0xff], write(Move, 4, Constant(u64::MAX), 6)),
            (&[0x66, 0xc7, 0x03, 0x34, 0x12], write(Move, 2, Constant(0x1234), 5)),
            (&[0xc6, 0x03, 0x07], write(Move, 1, Constant(7), 3)),
            // mov %ah,(%rbx); mov %spl,(%rbx); mov %r9b,(%rbx)
            (&[0x88, 0x23], write(Move, 1, HighByte(0), 2)),
            (&[0x40, 0x88, 0x23], write(Move, 1, Register(4), 3)),
            (&[0x44, 0x88, 0x0b], write(Move, 1, Register(9), 3)),
            // lock cmpxchg %rdx,(%rdi); lock xadd %ecx,(%rdi)
            (&[0xf0, 0x48, 0x0f, 0xb1, 0x17], write(CompareExchange, 8, Register(2), 5)),
            (&[0xf0, 0x0f, 0xc1, 0x0f], write(ExchangeAdd, 4, Register(1), 4)),
            // lock btrq $5,(%rdi); lock btsq %rax,(%rdi); btcw $1,(%rdi)
            (&[0xf0, 0x48, 0x0f, 0xba, 0x37, 0x05], write(BitReset, 8, Constant(5), 6)),
            (&[0xf0, 0x48, 0x0f, 0xab, 0x07], write(BitSet, 8, Register(0), 5)),
            (&[0x66, 0x0f, 0xba, 0x3f, 0x01], write(BitComplement, 2, Constant(1), 5)),
            // orq $0x1000,(%rdi); addl $1,%fs:(%rdi); subq %rax,(%rdi); xorb $-1,(%rdi)
            (&[0x48, 0x81, 0x0f, 0, 0x10, 0, 0], write(Or, 8, Constant(0x1000), 7)),
            (&[0x64, 0x83, 0x07, 0x01], write(Add, 4, Constant(1), 4)),
            (&[0x48, 0x29, 0x07], write(Subtract, 8, Register(0), 3)),
            (&[0x80, 0x37, 0xff], write(ExclusiveOr, 1, Constant(u64::MAX), 3)),
            // movabs %rax,0x1122334455667788; mov %eax,0x11223344 (short address)
            (&[0x48, 0xa3, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11], write(Move, 8, Register(0), 10)),
            (&[0x67, 0xa3, 0x44, 0x33, 0x22, 0x11], write(Move, 4, Register(0), 6)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode(bytes), expected, "{bytes:02x?}");
            // Bytes beyond the instruction change nothing; a byte less is no instruction.
            let mut longer = bytes.to_vec();
            longer.extend([0xcc; 8]);
            assert_eq!(decode(&longer), expected, "{bytes:02x?}");
            for length in 0..bytes.len() {
                assert_eq!(decode(&bytes[..length]), None, "{:02x?}", &bytes[..length]);
            }
        }
    }

    #[test]
    fn leaves_the_rest_to_the_guest() {
        let others: [&[u8]; 10] = [
            // Between registers; a comparison; adc; a locked move; push; a vector store; a repeated string; 16 bytes; test; nothing
            &[0x48, 0x89, 0xc3],
            &[0x48, 0x39, 0x07],
            &[0x48, 0x11, 0x07],
            &[0xf0, 0x48, 0x89, 0x07],
            &[0xff, 0x37],
            &[0x0f, 0x11, 0x07],
            &[0xf3, 0x48, 0xab],
            &[0xf0, 0x48, 0x0f, 0xc7, 0x0f],
            &[0xf6, 0x07, 0x01],
            &[],
        ];
        for bytes in others {
            assert_eq!(decode(bytes), None, "{bytes:02x?}");
        }
        // A REX prefix that isn't the last prefix means nothing.
        assert_eq!(decode(&[0x48, 0x66, 0x89, 0x07]).unwrap().size, 2);
    }

    #[test]
    fn an_instruction_of_more_than_15_bytes_is_none() {
        let mut bytes = [0x2e; 16];
        bytes[13..].copy_from_slice(&[0x48, 0x89, 0x07]);
        assert_eq!(decode(&bytes), None);
        assert!(decode(&bytes[1..]).is_some());
    }

    #[test]
    fn parts_of_an_entry() {
        assert_eq!(part(0x1122_3344_5566_7788, 1, 2), Some(0x6677));
        assert_eq!(part(0, 7, 2), None);
        assert_eq!(part(0, 4, 8), None);
        assert_eq!(with_part(0x1122_3344_5566_7788, 1, 2, 0xfff_abcd), 0x1122_3344_55ab_cd88);
        assert_eq!(with_part(0, 0, 8, u64::MAX), u64::MAX);
        assert_eq!(with_part(u64::MAX, 7, 1, 0), u64::MAX >> 8);
    }

    #[test]
    fn registers_are_merged_as_the_processor_does() {
        let register = 0xaaaa_bbbb_cccc_dddd;
        assert_eq!(merged(register, 0x11, 1), 0xaaaa_bbbb_cccc_dd11);
        assert_eq!(merged(register, 0x1122, 2), 0xaaaa_bbbb_cccc_1122);
        assert_eq!(merged(register, 0x1122_3344, 4), 0x1122_3344);
        assert_eq!(merged(register, 1, 8), 1);
    }

    proptest! {
        /// Whatever the bytes, nothing panics, and an instruction is as long as it can be.
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20), memory in any::<u64>(), source in any::<u64>()) {
            if let Some(write) = decode(&bytes) {
                prop_assert!(usize::from(write.length) <= bytes.len().min(LONGEST));
                prop_assert!(matches!(write.size, 1 | 2 | 4 | 8));
                let _ = write.effect(memory, source, memory);
                let _ = part(memory, source & 7, write.size).map(|_| with_part(memory, source & 7, write.size, source));
            }
        }

        /// At a glance or byte by byte, it is the same instruction.
        #[test]
        fn both_ways_find_the_same(
            first in prop::sample::select(vec![0x48u8, 0x49, 0x4a, 0x4c, 0x4f, 0x40, 0x66, 0xf0, 0x89]),
            opcode in prop::sample::select(vec![0x89u8, 0x87, 0x88, 0xc7, 0x0f, 0x89, 0x87]),
            rest in any::<[u8; 14]>(),
        ) {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&[first, opcode]);
            bytes[2..].copy_from_slice(&rest);
            prop_assert_eq!(decode_words(&bytes), decode(&bytes));
        }

        /// The same, for bytes that begin as instructions do that are recognised.
        #[test]
        fn near_instructions_never_panic(
            prefixes in proptest::collection::vec(prop::sample::select(vec![0xf0u8, 0x66, 0x67, 0x48, 0x44, 0x41, 0x64, 0x2e]), 0..5),
            opcode in prop::sample::select(vec![0x0fu8, 0x80, 0x81, 0x83, 0x86, 0x87, 0x88, 0x89, 0xa2, 0xa3, 0xc6, 0xc7, 0x01]),
            rest in proptest::collection::vec(any::<u8>(), 0..12),
        ) {
            let bytes: Vec<u8> = prefixes.into_iter().chain([opcode]).chain(rest).collect();
            if let Some(write) = decode(&bytes) {
                prop_assert!(usize::from(write.length) <= bytes.len().min(LONGEST));
            }
        }
    }
}
