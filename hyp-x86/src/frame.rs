//! The registers that entering the hypervisor saves: the first part of a vCPU's context.
//!
//! The processor pushes the last five, `entry.s` the rest; what lies there is the guest's state, changed in place.

use core::cell::Cell;
use core::fmt;

use hyp_core::hypercall::Arguments;

/// What the processor and `entry.s` push, lowest address first. The order is that of `entry.s`.
#[repr(C)]
pub struct Frame {
    pub r15: Cell<u64>,
    pub r14: Cell<u64>,
    pub r13: Cell<u64>,
    pub r12: Cell<u64>,
    pub rbp: Cell<u64>,
    pub rbx: Cell<u64>,
    pub r11: Cell<u64>,
    pub rax: Cell<u64>,
    pub rcx: Cell<u64>,
    /// rdi, rsi, rdx, r10, r8, r9: side by side, as a hypercall's arguments are taken.
    pub arguments: Arguments,
    /// How the guest came here: an interrupt vector, or one of the `BY_` constants.
    pub vector: Cell<u64>,
    pub error: Cell<u64>,
    pub rip: Cell<u64>,
    pub cs: Cell<u64>,
    pub rflags: Cell<u64>,
    pub rsp: Cell<u64>,
    pub ss: Cell<u64>,
}

impl Frame {
    pub fn rdi(&self) -> &Cell<u64> {
        &self.arguments[0]
    }

    pub fn rsi(&self) -> &Cell<u64> {
        &self.arguments[1]
    }

    pub fn rdx(&self) -> &Cell<u64> {
        &self.arguments[2]
    }

    pub fn r10(&self) -> &Cell<u64> {
        &self.arguments[3]
    }

    pub fn r8(&self) -> &Cell<u64> {
        &self.arguments[4]
    }

    pub fn r9(&self) -> &Cell<u64> {
        &self.arguments[5]
    }

    /// The general register that an instruction calls `number` (0 is rax, 15 is r15).
    pub fn general(&self, number: u8) -> &Cell<u64> {
        match number & 15 {
            0 => &self.rax,
            1 => &self.rcx,
            2 => self.rdx(),
            3 => &self.rbx,
            4 => &self.rsp,
            5 => &self.rbp,
            6 => self.rsi(),
            7 => self.rdi(),
            8 => self.r8(),
            9 => self.r9(),
            10 => self.r10(),
            11 => &self.r11,
            12 => &self.r12,
            13 => &self.r13,
            14 => &self.r14,
            _ => &self.r15,
        }
    }

    /// All registers, for the log.
    pub fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let get = |cell: &Cell<u64>| cell.get();
        writeln!(
            out,
            "rip {:#018x} cs {:#06x} rflags {:#x} vector {:#x} error {:#x}",
            get(&self.rip),
            get(&self.cs),
            get(&self.rflags),
            get(&self.vector),
            get(&self.error)
        )?;
        writeln!(
            out,
            "rax {:#018x} rbx {:#018x} rcx {:#018x}",
            get(&self.rax),
            get(&self.rbx),
            get(&self.rcx)
        )?;
        writeln!(
            out,
            "rdx {:#018x} rsi {:#018x} rdi {:#018x}",
            get(self.rdx()),
            get(self.rsi()),
            get(self.rdi())
        )?;
        writeln!(
            out,
            "rbp {:#018x} rsp {:#018x} r8  {:#018x}",
            get(&self.rbp),
            get(&self.rsp),
            get(self.r8())
        )?;
        writeln!(
            out,
            "r9  {:#018x} r10 {:#018x} r11 {:#018x}",
            get(self.r9()),
            get(self.r10()),
            get(&self.r11)
        )?;
        writeln!(
            out,
            "r12 {:#018x} r13 {:#018x} r14 {:#018x}",
            get(&self.r12),
            get(&self.r13),
            get(&self.r14)
        )?;
        write!(out, "r15 {:#018x} ss  {:#06x}", get(&self.r15), get(&self.ss))
    }
}
