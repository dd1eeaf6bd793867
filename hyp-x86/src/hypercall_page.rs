//! The page of hypercalls: code that the hypervisor gives a guest which doesn't execute `syscall` itself.
//!
//! A guest calls the n-th 32 bytes for hypercall n. `syscall` changes rcx and r11, which are kept for it; `iret` doesn't come back, and
//! finds on the stack what it needs: rcx, r11 and rax, pushed in this order (`arch-x86/xen-x86_64.h`).

/// Bytes of each call.
pub const CALL_BYTES: usize = 32;
/// How many there are on a page.
pub const CALLS: usize = 128;

/// The one that doesn't come back.
const IRET: u32 = penumbra_abi::hypercall::IRET as u32;

/// The code of a call.
pub const fn call(number: u32) -> [u8; CALL_BYTES] {
    let [a, b, c, d] = number.to_le_bytes();
    match number {
        // push %rcx; push %r11; push %rax; mov $number, %eax; syscall
        IRET => padded([0x51, 0x41, 0x53, 0x50, 0xb8, a, b, c, d, 0x0f, 0x05]),
        // push %rcx; push %r11; mov $number, %eax; syscall; pop %r11; pop %rcx; ret
        _ => padded([0x51, 0x41, 0x53, 0xb8, a, b, c, d, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3]),
    }
}

/// Behind the code stand breakpoints.
const fn padded<const LENGTH: usize>(code: [u8; LENGTH]) -> [u8; CALL_BYTES] {
    let (mut bytes, mut index) = ([0xcc; CALL_BYTES], 0);
    while index < LENGTH {
        bytes[index] = code[index];
        index += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_the_abis() {
        let version = call(17);
        assert_eq!(version[..14], [0x51, 0x41, 0x53, 0xb8, 17, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3]);
        assert!(version[14..].iter().all(|byte| *byte == 0xcc));
        let iret = call(23);
        assert_eq!(iret[..11], [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0x0f, 0x05]);
        assert_eq!(CALLS * CALL_BYTES, 4096);
    }
}
