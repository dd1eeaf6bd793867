//! From an instruction's bytes to what it does.
//!
//! Prefixes, the opcode, the byte that names the operands (of which the place in memory is passed over), a constant.

use super::{LONGEST, Operation, Source, Write};

/// The bytes of an instruction, from first to last.
struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    #[inline(always)]
    fn next(&mut self) -> Option<u8> {
        let byte = *self.all.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A sign-extended constant of 1, 2 or 4 bytes.
    fn constant(&mut self, bytes: usize) -> Option<u64> {
        let mut value = [0u8; 4];
        for slot in value.iter_mut().take(bytes) {
            *slot = self.next()?;
        }
        let [low, second, ..] = value;
        Some(match bytes {
            1 => i64::from(low as i8) as u64,
            2 => i64::from(i16::from_le_bytes([low, second])) as u64,
            _ => i64::from(i32::from_le_bytes(value)) as u64,
        })
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.at += bytes;
        (self.at <= self.all.len()).then_some(())
    }
}

/// What the prefixes say.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    word: bool,
    lock: bool,
    short_address: bool,
    rex: u8,
}

const REX_WIDE: u8 = 1 << 3;
const REX_REGISTER: u8 = 1 << 2;

impl Prefixes {
    /// Reads the prefixes; returns them and the opcode's first byte. A REX prefix counts only right before the opcode.
    #[inline(always)]
    fn read(bytes: &mut Bytes<'_>) -> Option<(Self, u8)> {
        let mut prefixes = Self::default();
        loop {
            let byte = bytes.next()?;
            match byte {
                0x40..=0x4f => {
                    prefixes.rex = byte;
                    continue;
                }
                0xf0 => prefixes.lock = true,
                0x66 => prefixes.word = true,
                0x67 => prefixes.short_address = true,
                // Segments: the address is known already.
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
                _ => return Some((prefixes, byte)),
            }
            prefixes.rex = 0;
        }
    }

    /// Size of the operand, for an opcode whose lowest bit says that it is wider than a byte.
    const fn size(self, opcode: u8) -> u8 {
        match (opcode & 1, self.rex & REX_WIDE, self.word) {
            (0, ..) => 1,
            (_, REX_WIDE, _) => 8,
            (_, _, true) => 2,
            _ => 4,
        }
    }
}

/// The byte that names the operands: its middle field, and the memory operand's length, which is skipped.
#[inline(always)]
fn operands(bytes: &mut Bytes<'_>) -> Option<u8> {
    let byte = bytes.next()?;
    let (kind, base) = (byte >> 6, byte & 7);
    let displacement = match kind {
        0 if base == 5 => 4,
        0 if base == 4 => match bytes.next()? & 7 {
            5 => 4,
            _ => 0,
        },
        0 => 0,
        1 | 2 => {
            if base == 4 {
                bytes.next()?;
            }
            if kind == 1 { 1 } else { 4 }
        }
        // Two registers: this instruction doesn't write to memory.
        _ => return None,
    };
    bytes.skip(displacement)?;
    Some(byte >> 3 & 7)
}

/// As [`decode`], of the 16 bytes from its start on. What kernels write entries with is found at a glance: a move or an exchange of 8
/// bytes with a register, whose only prefix is REX.W.
#[inline(always)]
pub fn decode_words(bytes: &[u8; 16]) -> Option<Write> {
    let [rex, opcode, operands, scale, ..] = *bytes;
    let operation = match (rex & 0xf8, opcode) {
        (0x48, 0x89) => Operation::Move,
        (0x48, 0x87) => Operation::Exchange,
        _ => return decode_any(bytes),
    };
    let (kind, base) = (operands >> 6, operands & 7);
    let displacement = match kind {
        0 if base == 5 || base == 4 && scale & 7 == 5 => 4,
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return None,
    };
    let length = 3 + u8::from(base == 4) + displacement;
    let source = Source::Register(operands >> 3 & 7 | (rex & REX_REGISTER) << 1);
    Some(Write { operation, size: 8, source, length })
}

#[inline(never)]
fn decode_any(bytes: &[u8; 16]) -> Option<Write> {
    decode(bytes)
}

/// What the instruction in `bytes` (as many of [`LONGEST`] as can be read) does to its operand in memory.
#[inline]
pub fn decode(bytes: &[u8]) -> Option<Write> {
    let mut bytes = Bytes { all: bytes.get(..LONGEST).unwrap_or(bytes), at: 0 };
    let (prefixes, opcode) = Prefixes::read(&mut bytes)?;
    let (operation, size, source) = match opcode {
        0x0f => two_byte(&mut bytes, prefixes)?,
        _ => one_byte(&mut bytes, prefixes, opcode)?,
    };
    // A locked move is an undefined instruction.
    if prefixes.lock && operation == Operation::Move {
        return None;
    }
    Some(Write { operation, size, source, length: bytes.at as u8 })
}

type Decoded = (Operation, u8, Source);

#[inline(always)]
fn one_byte(bytes: &mut Bytes<'_>, prefixes: Prefixes, opcode: u8) -> Option<Decoded> {
    let size = prefixes.size(opcode);
    let with_register = |bytes: &mut Bytes<'_>, operation| {
        let field = operands(bytes)?;
        Some((operation, size, register(prefixes, field, size)))
    };
    match opcode {
        0x88 | 0x89 => with_register(bytes, Operation::Move),
        0x86 | 0x87 => with_register(bytes, Operation::Exchange),
        0x00 | 0x01 => with_register(bytes, Operation::Add),
        0x08 | 0x09 => with_register(bytes, Operation::Or),
        0x20 | 0x21 => with_register(bytes, Operation::And),
        0x28 | 0x29 => with_register(bytes, Operation::Subtract),
        0x30 | 0x31 => with_register(bytes, Operation::ExclusiveOr),
        0xc6 | 0xc7 => match operands(bytes)? {
            0 => constant(bytes, Operation::Move, size, usize::from(size.min(4))),
            _ => None,
        },
        0x80 | 0x81 | 0x83 => {
            let operation = group_one(operands(bytes)?)?;
            let length = if opcode == 0x81 { usize::from(size.min(4)) } else { 1 };
            constant(bytes, operation, size, length)
        }
        // The accumulator to an absolute address.
        0xa2 | 0xa3 => {
            bytes.skip(if prefixes.short_address { 4 } else { 8 })?;
            Some((Operation::Move, size, Source::Register(0)))
        }
        _ => None,
    }
}

fn two_byte(bytes: &mut Bytes<'_>, prefixes: Prefixes) -> Option<Decoded> {
    let opcode = bytes.next()?;
    let size = prefixes.size(opcode);
    let operation = match opcode {
        0xb0 | 0xb1 => Operation::CompareExchange,
        0xc0 | 0xc1 => Operation::ExchangeAdd,
        0xab => Operation::BitSet,
        0xb3 => Operation::BitReset,
        0xbb => Operation::BitComplement,
        0xba => {
            let operation = match operands(bytes)? {
                5 => Operation::BitSet,
                6 => Operation::BitReset,
                7 => Operation::BitComplement,
                _ => return None,
            };
            return constant(bytes, operation, prefixes.size(1), 1);
        }
        _ => return None,
    };
    let field = operands(bytes)?;
    Some((operation, size, register(prefixes, field, size)))
}

fn constant(bytes: &mut Bytes<'_>, operation: Operation, size: u8, length: usize) -> Option<Decoded> {
    Some((operation, size, Source::Constant(bytes.constant(length)?)))
}

const fn group_one(field: u8) -> Option<Operation> {
    match field {
        0 => Some(Operation::Add),
        1 => Some(Operation::Or),
        4 => Some(Operation::And),
        5 => Some(Operation::Subtract),
        6 => Some(Operation::ExclusiveOr),
        _ => None,
    }
}

/// Bytes without a REX prefix can be the second ones of the first four registers.
const fn register(prefixes: Prefixes, field: u8, size: u8) -> Source {
    match (prefixes.rex, size, field) {
        (0, 1, 4..) => Source::HighByte(field - 4),
        (rex, ..) if rex & REX_REGISTER != 0 => Source::Register(field + 8),
        _ => Source::Register(field),
    }
}
