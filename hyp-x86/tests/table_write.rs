//! What `table_write` says that an instruction does, against the processor's own answer: memory, register and flags afterwards.
#![cfg(target_arch = "x86_64")]

use std::arch::asm;

use hyp_x86::table_write::{Operation, Source, Write, merged, with_part};
use proptest::prelude::*;

const CARRY: u64 = 1 << 0;
const AUXILIARY: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
/// Carry, parity, auxiliary carry, zero, sign, overflow.
const ARITHMETIC: u64 = CARRY | 1 << 2 | AUXILIARY | ZERO | SIGN | 1 << 11;

macro_rules! execute {
    ($instruction:literal, $memory:expr, $source:expr, $accumulator:expr) => {{
        let (mut memory, mut source, mut accumulator) = ($memory, $source, $accumulator);
        let flags: u64;
        // SAFETY: the instruction works on three variables of this function's, and the flags.
        unsafe {
            asm!($instruction, "pushfq", "pop {flags}", memory = in(reg) &mut memory, source = inout(reg) source,
                 flags = out(reg) flags, inout("rax") accumulator);
        }
        (memory, source, accumulator, flags & ARITHMETIC)
    }};
}
macro_rules! both {
    ($operation:expr, $memory:expr, $source:expr, $accumulator:expr, $i8:literal, $i4:literal, $i1:literal) => {
        for (size, (memory, source, accumulator, flags)) in [
            (8, execute!($i8, $memory, $source, $accumulator)),
            (4, execute!($i4, $memory, $source, $accumulator)),
            (1, execute!($i1, $memory, $source, $accumulator)),
        ] {
            let write = Write { operation: $operation, size, source: Source::Register(1), length: 3 };
            let effect = write.effect($memory, $source, $accumulator);
            let after = effect.memory.map_or($memory, |value| with_part($memory, 0, size, value));
            prop_assert_eq!(after, memory, "memory {:?} {}", $operation, size);
            let to_accumulator = $operation == Operation::CompareExchange;
            let register = if to_accumulator { $accumulator } else { $source };
            let register = effect.register.map_or(register, |value| merged(register, value, size));
            prop_assert_eq!(register, if to_accumulator { accumulator } else { source });
            // The auxiliary carry is undefined after logical operations, and so is all but the carry after bit ones.
            let defined = match $operation {
                Operation::And | Operation::Or | Operation::ExclusiveOr => ARITHMETIC & !AUXILIARY,
                Operation::BitSet | Operation::BitReset | Operation::BitComplement => CARRY,
                Operation::Move | Operation::Exchange => 0,
                _ => ARITHMETIC,
            };
            prop_assert_eq!(effect.flags.apply(0) & defined, flags & defined, "{:?} {}", $operation, size);
        }
    };
}

proptest! {
    #[test]
    fn effects_are_the_processors(memory in any::<u64>(), source in any::<u64>(), accumulator in any::<u64>(), equal in any::<bool>()) {
        let accumulator = if equal { memory } else { accumulator };
        both!(Operation::Add, memory, source, accumulator, "add [{memory}], {source}", "add [{memory}], {source:e}", "add [{memory}], {source:l}");
        both!(Operation::Subtract, memory, source, accumulator, "sub [{memory}], {source}", "sub [{memory}], {source:e}", "sub [{memory}], {source:l}");
        both!(Operation::And, memory, source, accumulator, "and [{memory}], {source}", "and [{memory}], {source:e}", "and [{memory}], {source:l}");
        both!(Operation::Or, memory, source, accumulator, "or [{memory}], {source}", "or [{memory}], {source:e}", "or [{memory}], {source:l}");
        both!(Operation::ExclusiveOr, memory, source, accumulator, "xor [{memory}], {source}", "xor [{memory}], {source:e}", "xor [{memory}], {source:l}");
        both!(Operation::Exchange, memory, source, accumulator, "xchg [{memory}], {source}", "xchg [{memory}], {source:e}", "xchg [{memory}], {source:l}");
        both!(Operation::ExchangeAdd, memory, source, accumulator, "xadd [{memory}], {source}", "xadd [{memory}], {source:e}", "xadd [{memory}], {source:l}");
        if equal || accumulator as u32 != memory as u32 && accumulator as u8 != memory as u8 {
            both!(Operation::CompareExchange, memory, source, accumulator, "cmpxchg [{memory}], {source}", "cmpxchg [{memory}], {source:e}", "cmpxchg [{memory}], {source:l}");
        }
        both!(Operation::Move, memory, source, accumulator, "mov [{memory}], {source}", "mov [{memory}], {source:e}", "mov [{memory}], {source:l}");
    }

    #[test]
    fn bits_are_the_processors(memory in any::<u64>(), bit in 0u64..32) {
        macro_rules! bits {
            ($operation:expr, $i8:literal, $i4:literal) => {
                for (size, (after, _, _, flags)) in [(8, execute!($i8, memory, bit, 0u64)), (4, execute!($i4, memory, bit, 0u64))] {
                    let effect = Write { operation: $operation, size, source: Source::Register(1), length: 3 }.effect(memory, bit, 0);
                    prop_assert_eq!(with_part(memory, 0, size, effect.memory.unwrap()), after);
                    prop_assert_eq!(effect.flags.apply(0), flags & CARRY);
                    prop_assert_eq!(effect.flags.apply(ZERO | SIGN) & !CARRY, ZERO | SIGN);
                }
            };
        }
        bits!(Operation::BitSet, "bts [{memory}], {source}", "bts [{memory}], {source:e}");
        bits!(Operation::BitReset, "btr [{memory}], {source}", "btr [{memory}], {source:e}");
        bits!(Operation::BitComplement, "btc [{memory}], {source}", "btc [{memory}], {source:e}");
    }
}
