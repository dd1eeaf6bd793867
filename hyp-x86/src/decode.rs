//! The few instructions that the hypervisor carries out for a guest's kernel.
//!
//! A ring-3 kernel faults on privileged instructions. Those that Xen's PV ABI promises to carry out are recognised here,
//! from the bytes at the faulting address; everything else stays a fault of the guest's. Bytes may be cut short
//! (the page after may not be readable): then nothing is recognised that they don't hold whole.

/// An instruction, and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// What to carry out.
    pub instruction: Instruction,
    /// Bytes to skip afterwards.
    pub length: u64,
}

/// What a guest's kernel asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// `cpuid` behind Xen's forced-emulation prefix.
    CpuId,
    /// Write a model-specific register.
    WriteMsr,
    /// Read a model-specific register.
    ReadMsr,
    /// Read a control register into a general register (numbered as in the instruction).
    ReadControl {
        /// 0, 2, 3, 4 or 8.
        control: u8,
        /// 0 (rax) to 15 (r15).
        general: u8,
    },
    /// Mask interrupts. Has no effect: the mask is a word in shared memory.
    DisableInterrupts,
    /// Unmask interrupts. Has no effect, as above.
    EnableInterrupts,
}

/// `ud2` and the letters "xen": what comes next is carried out by the hypervisor.
const FORCED_EMULATION: [u8; 5] = [0x0f, 0x0b, b'x', b'e', b'n'];

/// Most bytes that [`undefined`] and [`privileged`] look at.
pub const LONGEST: usize = 15;

/// What an invalid-opcode fault asks for, if it is one of ours.
pub fn undefined(bytes: &[u8]) -> Option<Decoded> {
    let rest = bytes.strip_prefix(&FORCED_EMULATION)?;
    let instruction = rest.starts_with(&[0x0f, 0xa2]).then_some(Instruction::CpuId)?;
    Some(Decoded { instruction, length: FORCED_EMULATION.len() as u64 + 2 })
}

/// What a general-protection fault asks for, if it is something that is carried out.
pub fn privileged(bytes: &[u8]) -> Option<Decoded> {
    let (rex, rest) = match bytes {
        [rex @ 0x40..=0x4f, rest @ ..] => (*rex, rest),
        _ => (0, bytes),
    };
    let prefix = u64::from(rex != 0);
    let (instruction, length) = match rest {
        [0xfa, ..] => (Instruction::DisableInterrupts, 1),
        [0xfb, ..] => (Instruction::EnableInterrupts, 1),
        [0x0f, 0x30, ..] => (Instruction::WriteMsr, 2),
        [0x0f, 0x32, ..] => (Instruction::ReadMsr, 2),
        [0x0f, 0x20, operands, ..] => (read_control(rex, *operands), 3),
        _ => return None,
    };
    Some(Decoded { instruction, length: prefix + length })
}

/// The mod field is ignored by hardware; REX.R and REX.B widen the two register numbers.
fn read_control(rex: u8, operands: u8) -> Instruction {
    let control = operands >> 3 & 7 | (rex & 0b100) << 1;
    let general = operands & 7 | (rex & 0b001) << 3;
    Instruction::ReadControl { control, general }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn recognises_what_linux_executes() {
        let cpuid = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];
        assert_eq!(undefined(&cpuid), Some(Decoded { instruction: Instruction::CpuId, length: 7 }));
        assert_eq!(privileged(&[0x0f, 0x30, 0x90]).unwrap().instruction, Instruction::WriteMsr);
        // mov %cr4, %rax; mov %cr0, %r10; mov %cr8, %rbx
        let control = |bytes: &[u8]| privileged(bytes).unwrap();
        let expected = |control, general, length| Decoded {
            instruction: Instruction::ReadControl { control, general },
            length,
        };
        assert_eq!(control(&[0x0f, 0x20, 0xe0]), expected(4, 0, 3));
        assert_eq!(control(&[0x41, 0x0f, 0x20, 0xc2]), expected(0, 10, 4));
        assert_eq!(control(&[0x44, 0x0f, 0x20, 0xc3]), expected(8, 3, 4));
        assert_eq!(privileged(&[0xfa]).unwrap().length, 1);
    }

    #[test]
    fn leaves_the_rest_to_the_guest() {
        assert_eq!(undefined(&[0x0f, 0x0b]), None);
        assert_eq!(undefined(&[0x0f, 0x0b, b'x', b'e', b'n', 0x0f]), None);
        assert_eq!(undefined(&[0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0x30]), None);
        // mov %rax, %cr3; hlt; lgdt; iretq; nothing
        for bytes in [&[0x0f, 0x22, 0xd8][..], &[0xf4], &[0x0f, 0x01, 0x10], &[0x48, 0xcf], &[]] {
            assert_eq!(privileged(bytes), None);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            for decoded in [undefined(&bytes), privileged(&bytes)].into_iter().flatten() {
                prop_assert!(decoded.length as usize <= bytes.len());
            }
        }
    }
}
