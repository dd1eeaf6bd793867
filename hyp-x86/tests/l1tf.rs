//! XSA-273 by the format itself, in a program of its own: the rule is the machine's, and in force from then on.

use hyp_core::machine::{Entry, EntryFault, PageTableFormat};
use hyp_x86::format::X86Format;
use hyp_x86::l1tf::{INTEL, Processor, enforce};

/// RAM of the machine, in bytes.
const END: u64 = 2 << 30;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Linux 6.1's swap entry (`arch/x86/include/asm/pgtable_64.h`): the type from bit 59 on, the offset inverted from bit 14 on.
fn swap_entry(kind: u64, offset: u64) -> u64 {
    !offset << 14 << 5 >> 5 | kind << 59
}

/// Linux 6.1's `PROT_NONE` entry (`pgtable-invert.h`): a page's bits with bit 8 for bit 0, the frame's number inverted.
fn prot_none(frame: u64) -> u64 {
    !(frame << 12) & ADDRESS | 0x160
}

/// XSA-273: an entry that isn't present still named a frame, and the processor read its content by speculation.
///
/// The attacker proposes absent entries with every frame of the machine that a bit can make, at each level, with the bits that a present one
/// would have, and with the superpage bit, by which one entry names 2 MiB or 1 GiB. The guest that means no harm writes what Linux writes.
#[test]
fn xsa_273_absent_entries_name_no_memory_on_a_processor_with_the_fault() {
    // Until the rule is in force, whatever stands there is the guest's own.
    assert_eq!(X86Format::admit(1, 0x1234_5066), Ok((0x1234_5066, Entry::Absent)));
    let processor = Processor { vendor: INTEL, capabilities: None, address_bits: 40 };
    enforce(processor.rule(END).expect("it has the fault"));
    for level in 1..=4 {
        for bit in 12..31 {
            for bits in [0, 0x66, 0x8000_0000_0000_0166, 0x0070_0000_0000_0e00] {
                let raw = 1 << bit | bits;
                assert!(
                    matches!(X86Format::admit(level, raw), Err(EntryFault::ForbiddenBits(_))),
                    "{level} {raw:#x}"
                );
            }
        }
        assert!(X86Format::admit(level, END - 4096).is_err() && X86Format::admit(level, END).is_ok());
        assert_eq!(X86Format::admit(level, 0x80).is_err(), level > 1, "a superpage from frame 0 on");
        assert_eq!(X86Format::admit(level, ADDRESS | 0x80).is_err(), level > 1);
        assert_eq!(X86Format::admit(level, 0), Ok((0, Entry::Absent)), "nothing at all");
        assert_eq!(X86Format::admit(level, 0x160), Ok((0x160, Entry::Absent)), "no address");
    }
    for frame in [0, 1, 0x1_2345, (END >> 12) - 1] {
        assert_eq!(
            X86Format::admit(1, prot_none(frame)),
            Ok((prot_none(frame), Entry::Absent)),
            "{frame:#x}"
        );
    }
    for offset in [0, 1, 1 << 20, 1 << 24] {
        for kind in [0, 1, 31] {
            let raw = swap_entry(kind, offset);
            assert_eq!(X86Format::admit(1, raw), Ok((raw, Entry::Absent)), "swap entry {kind} {offset:#x}");
        }
    }
    // What is present is judged as ever.
    assert!(X86Format::admit(1, 0x1234_5067).is_ok());
}
