//! The few instructions that the hypervisor carries out for a guest's kernel.
//!
//! A ring-3 kernel faults on privileged instructions. Those that Xen's PV ABI promises to carry out are recognised here,
//! from the bytes at the faulting address; everything else stays a fault of the guest's. Bytes may be cut short
//! (the page after may not be readable): then nothing is recognised that they don't hold whole.
//!
//! Port accesses are recognised for users, too: whether one is theirs to make is decided where they are carried out.

/// An instruction, and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// What to carry out.
    pub instruction: Instruction,
    /// Bytes to skip afterwards.
    pub length: u64,
}

/// Where an access to a port gets the port's number from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// From the instruction.
    Number(u8),
    /// From dx.
    Dx,
}

/// Accesses to a port that also go to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringAccess {
    /// From the port to memory at rdi; otherwise to the port, from rsi.
    pub input: bool,
    /// Bytes of each.
    pub size: u8,
    /// As often as rcx says.
    pub repeated: bool,
    /// The registers are those of 32 bits.
    pub short_address: bool,
    /// What output reads lies at the base of `fs` (4) or `gs` (5).
    pub segment: Option<u8>,
}

/// What a guest's kernel asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// `cpuid`, behind Xen's forced-emulation prefix, or where the processor was told to let it fault.
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
    /// Write a control register from a general one.
    WriteControl {
        /// 0, 2, 3, 4 or 8.
        control: u8,
        /// 0 (rax) to 15 (r15).
        general: u8,
    },
    /// Read a debug register.
    ReadDebug {
        /// 0 to 7.
        debug: u8,
        /// 0 (rax) to 15 (r15).
        general: u8,
    },
    /// Write a debug register.
    WriteDebug {
        /// 0 to 7.
        debug: u8,
        /// 0 (rax) to 15 (r15).
        general: u8,
    },
    /// Clear the task-switched flag.
    ClearTaskSwitched,
    /// Write the caches back. Has no effect: nothing of a guest's is uncached.
    WriteBackCaches,
    /// Mask interrupts. Has no effect: the mask is a word in shared memory.
    DisableInterrupts,
    /// Unmask interrupts. Has no effect, as above.
    EnableInterrupts,
    /// Read the time-stamp counter, and with `rdtscp` the processor's number too.
    ReadCounter {
        /// `rdtscp`
        with_processor: bool,
    },
    /// Read `size` bytes from a port into rax.
    In {
        /// Which one.
        port: Port,
        /// 1, 2 or 4.
        size: u8,
    },
    /// Write `size` bytes of rax to a port.
    Out {
        /// Which one.
        port: Port,
        /// 1, 2 or 4.
        size: u8,
    },
    /// From or to a port, to or from memory.
    InOutString(StringAccess),
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

/// What the prefixes say. A REX prefix counts only right before the opcode.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    rex: u8,
    word: bool,
    short_address: bool,
    repeated: bool,
    segment: Option<u8>,
}

impl Prefixes {
    /// Whether the byte is a prefix, which is taken in.
    fn take(&mut self, byte: u8) -> bool {
        let rex = core::mem::take(&mut self.rex);
        match byte {
            0x40..=0x4f => self.rex = byte,
            0x66 => self.word = true,
            0x67 => self.short_address = true,
            0xf2 | 0xf3 => self.repeated = true,
            // Those of four segments mean nothing in 64-bit mode.
            0x26 | 0x2e | 0x36 | 0x3e => {}
            0x64 => self.segment = Some(4),
            0x65 => self.segment = Some(5),
            _ => {
                self.rex = rex;
                return false;
            }
        }
        true
    }

    /// Bytes of a port's access, by the lowest bit of its opcode.
    const fn size(self, opcode: u8) -> u8 {
        match (opcode & 1, self.word) {
            (0, _) => 1,
            (_, true) => 2,
            _ => 4,
        }
    }

    /// The special register and the general one that an operand byte names. Its mod field is ignored by hardware.
    const fn registers(self, operands: u8) -> (u8, u8) {
        (operands >> 3 & 7 | (self.rex & 0b100) << 1, operands & 7 | (self.rex & 0b001) << 3)
    }
}

/// What a general-protection fault asks for, if it is something that is carried out.
pub fn privileged(bytes: &[u8]) -> Option<Decoded> {
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    let mut prefixes = Prefixes::default();
    let at = bytes.iter().position(|byte| !prefixes.take(*byte))?;
    let rest = bytes.get(at..)?;
    let (instruction, length) = match *rest {
        [0xfa, ..] => (Instruction::DisableInterrupts, 1),
        [0xfb, ..] => (Instruction::EnableInterrupts, 1),
        [opcode @ 0x6c..=0x6f, ..] => (string(prefixes, opcode), 1),
        [opcode @ 0xe4..=0xe7, number, ..] => (port(prefixes, opcode, Port::Number(number)), 2),
        [opcode @ 0xec..=0xef, ..] => (port(prefixes, opcode, Port::Dx), 1),
        [0x0f, 0x01, 0xf9, ..] => (Instruction::ReadCounter { with_processor: true }, 3),
        [0x0f, 0x20..=0x23, operands, ..] => (special(prefixes, rest.get(1).copied()?, operands)?, 3),
        [0x0f, opcode, ..] => (two_byte(opcode)?, 2),
        _ => return None,
    };
    Some(Decoded { instruction, length: at as u64 + length })
}

/// The same in code that isn't 64-bit, where other bytes are prefixes, and registers are narrower: `cpuid` alone, which any program may use.
pub fn privileged_in_short_code(bytes: &[u8]) -> Option<Decoded> {
    let is_cpuid = bytes.starts_with(&[0x0f, 0xa2]);
    is_cpuid.then_some(Decoded { instruction: Instruction::CpuId, length: 2 })
}

fn two_byte(opcode: u8) -> Option<Instruction> {
    Some(match opcode {
        0x06 => Instruction::ClearTaskSwitched,
        0x09 => Instruction::WriteBackCaches,
        0x30 => Instruction::WriteMsr,
        0x31 => Instruction::ReadCounter { with_processor: false },
        0x32 => Instruction::ReadMsr,
        0xa2 => Instruction::CpuId,
        _ => return None,
    })
}

/// Moves between a control or debug register and a general one.
fn special(prefixes: Prefixes, opcode: u8, operands: u8) -> Option<Instruction> {
    let (special, general) = prefixes.registers(operands);
    Some(match opcode {
        0x20 => Instruction::ReadControl { control: special, general },
        0x22 => Instruction::WriteControl { control: special, general },
        // There are eight.
        _ if special > 7 => return None,
        0x21 => Instruction::ReadDebug { debug: special, general },
        _ => Instruction::WriteDebug { debug: special, general },
    })
}

/// In one-byte opcodes of port accesses the second bit says that it is output.
fn port(prefixes: Prefixes, opcode: u8, port: Port) -> Instruction {
    let size = prefixes.size(opcode);
    if opcode & 2 == 0 { Instruction::In { port, size } } else { Instruction::Out { port, size } }
}

fn string(prefixes: Prefixes, opcode: u8) -> Instruction {
    let Prefixes { short_address, repeated, segment, .. } = prefixes;
    let input = opcode & 2 == 0;
    // Input always goes to `es`.
    let segment = segment.filter(|_| !input);
    Instruction::InOutString(StringAccess {
        input,
        size: prefixes.size(opcode),
        repeated,
        short_address,
        segment,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn in_short_code_nothing_but_cpuid_is_carried_out() {
        let decoded = privileged_in_short_code(&[0x0f, 0xa2, 0x90]);
        assert_eq!(decoded, Some(Decoded { instruction: Instruction::CpuId, length: 2 }));
        // `in al, dx`; `inc eax`, which is a prefix in 64-bit code, and `cpuid`; nothing.
        for bytes in [&[0xec][..], &[0x40, 0x0f, 0xa2], &[0x0f], &[]] {
            assert_eq!(privileged_in_short_code(bytes), None, "{bytes:x?}");
        }
    }

    fn recognised(bytes: &[u8]) -> Instruction {
        let decoded = privileged(bytes).unwrap();
        assert_eq!(decoded.length, bytes.len() as u64, "{bytes:x?}");
        decoded.instruction
    }

    #[test]
    fn recognises_what_linux_executes() {
        let cpuid = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];
        assert_eq!(undefined(&cpuid), Some(Decoded { instruction: Instruction::CpuId, length: 7 }));
        assert_eq!(recognised(&[0x0f, 0xa2]), Instruction::CpuId, "where the processor lets it fault");
        assert_eq!(privileged(&[0x0f, 0x30, 0x90]).unwrap().instruction, Instruction::WriteMsr);
        // mov %cr4, %rax; mov %cr0, %r10; mov %cr8, %rbx
        let control = |control, general| Instruction::ReadControl { control, general };
        assert_eq!(recognised(&[0x0f, 0x20, 0xe0]), control(4, 0));
        assert_eq!(recognised(&[0x41, 0x0f, 0x20, 0xc2]), control(0, 10));
        assert_eq!(recognised(&[0x44, 0x0f, 0x20, 0xc3]), control(8, 3));
        assert_eq!(privileged(&[0xfa]).unwrap().length, 1);
    }

    /// Bytes from the assembler.
    #[test]
    fn recognises_accesses_to_ports() {
        let by_dx = |size| Instruction::In { port: Port::Dx, size };
        assert_eq!(recognised(&[0xec]), by_dx(1));
        assert_eq!(recognised(&[0x66, 0xed]), by_dx(2));
        assert_eq!(recognised(&[0xed]), by_dx(4));
        assert_eq!(recognised(&[0xe4, 0x61]), Instruction::In { port: Port::Number(0x61), size: 1 });
        assert_eq!(recognised(&[0xe6, 0x80]), Instruction::Out { port: Port::Number(0x80), size: 1 });
        assert_eq!(recognised(&[0x66, 0xef]), Instruction::Out { port: Port::Dx, size: 2 });
        // REX.W makes no access of 8 bytes.
        assert_eq!(recognised(&[0x48, 0xef]), Instruction::Out { port: Port::Dx, size: 4 });
        let access =
            StringAccess { input: true, size: 2, repeated: true, short_address: false, segment: None };
        // rep insw; insb; rep outsl %fs:(%esi); insb with a prefix for %fs
        assert_eq!(recognised(&[0xf3, 0x66, 0x6d]), Instruction::InOutString(access));
        let once = StringAccess { size: 1, repeated: false, ..access };
        assert_eq!(recognised(&[0x6c]), Instruction::InOutString(once));
        let out =
            StringAccess { input: false, size: 4, repeated: true, short_address: true, segment: Some(4) };
        assert_eq!(recognised(&[0xf3, 0x64, 0x67, 0x6f]), Instruction::InOutString(out));
        assert_eq!(recognised(&[0x64, 0x6c]), Instruction::InOutString(once));
    }

    #[test]
    fn recognises_writes_of_registers() {
        // mov %rax, %cr3; mov %r9, %cr4; mov %rcx, %dr7; mov %dr6, %rdi
        assert_eq!(recognised(&[0x0f, 0x22, 0xd8]), Instruction::WriteControl { control: 3, general: 0 });
        assert_eq!(
            recognised(&[0x41, 0x0f, 0x22, 0xe1]),
            Instruction::WriteControl { control: 4, general: 9 }
        );
        assert_eq!(recognised(&[0x0f, 0x23, 0xf9]), Instruction::WriteDebug { debug: 7, general: 1 });
        assert_eq!(recognised(&[0x0f, 0x21, 0xf7]), Instruction::ReadDebug { debug: 6, general: 7 });
        assert_eq!(privileged(&[0x44, 0x0f, 0x23, 0xc0]), None, "there is no debug register 8");
        assert_eq!(recognised(&[0x0f, 0x06]), Instruction::ClearTaskSwitched);
        assert_eq!(recognised(&[0x0f, 0x09]), Instruction::WriteBackCaches);
        assert_eq!(recognised(&[0x0f, 0x31]), Instruction::ReadCounter { with_processor: false });
        assert_eq!(recognised(&[0x0f, 0x01, 0xf9]), Instruction::ReadCounter { with_processor: true });
    }

    #[test]
    fn leaves_the_rest_to_the_guest() {
        assert_eq!(undefined(&[0x0f, 0x0b]), None);
        assert_eq!(undefined(&[0x0f, 0x0b, b'x', b'e', b'n', 0x0f]), None);
        assert_eq!(undefined(&[0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0x30]), None);
        // hlt; lgdt; invlpg; swapgs; sysret; iretq; nothing; an access that is cut short; prefixes alone
        for bytes in [
            &[0xf4][..],
            &[0x0f, 0x01, 0x10],
            &[0x0f, 0x01, 0x38],
            &[0x0f, 0x01, 0xf8],
            &[0x48, 0x0f, 0x07],
            &[0x48, 0xcf],
            &[],
            &[0xe4],
            &[0x66, 0x66],
        ] {
            assert_eq!(privileged(bytes), None);
        }
        assert_eq!(privileged(&[[0x66; 15], [0xec; 15]].concat()), None, "no instruction is so long");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            for decoded in [undefined(&bytes), privileged(&bytes)].into_iter().flatten() {
                prop_assert!(decoded.length as usize <= bytes.len().min(LONGEST));
            }
        }
    }
}
