//! Instructions that the x86-64 backend carries out: the decoder must agree with an independent one (iced) on what it decodes.
#![no_main]

use hyp_x86::{decode, table_write};
use iced_x86::{Decoder, DecoderOptions, MemorySize, OpKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(decoded) = decode::privileged(bytes) {
        assert_eq!(decoded.length, length(bytes), "{bytes:02x?}");
    }
    let _ = decode::undefined(bytes);
    let Some(write) = table_write::decode(bytes) else { return };
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "decoded, but undefined: {bytes:02x?}");
    assert_eq!(u64::from(write.length), instruction.len() as u64, "{instruction} {bytes:02x?}");
    assert_eq!(instruction.op0_kind(), OpKind::Memory, "no write to memory: {instruction} {bytes:02x?}");
    assert_eq!(Some(write.size), bytes_of(instruction.memory_size()), "{instruction} {bytes:02x?}");
    for offset in 0..8 {
        let Some(old) = table_write::part(7, offset, write.size) else { continue };
        let effect = write.effect(old, u64::from(bytes[0]), 3);
        if let Some(new) = effect.memory {
            let whole = table_write::with_part(7, offset, write.size, new);
            assert_eq!(table_write::part(whole, offset, write.size), Some(new));
        }
    }
});

fn bytes_of(size: MemorySize) -> Option<u8> {
    match size {
        MemorySize::UInt8 | MemorySize::Int8 => Some(1),
        MemorySize::UInt16 | MemorySize::Int16 => Some(2),
        MemorySize::UInt32 | MemorySize::Int32 => Some(4),
        MemorySize::UInt64 | MemorySize::Int64 => Some(8),
        _ => None,
    }
}

fn length(bytes: &[u8]) -> u64 {
    Decoder::new(64, bytes, DecoderOptions::NONE).decode().len() as u64
}
