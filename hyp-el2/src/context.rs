//! A vCPU's registers.
//!
//! The general registers, the program counter and PSTATE are here whenever EL2 executes: `vectors.s` stores them on the way
//! in and loads them on the way out. EL1's system registers and the SIMD registers stay in the CPU until another vCPU
//! gets it ([`GuestContext::save`], [`GuestContext::load`]). The hypervisor itself is compiled without SIMD.

use core::arch::asm;
use core::cell::{Cell, UnsafeCell};
use core::fmt;
use core::mem::offset_of;

use aarch64_cpu::registers::{ELR_EL1, ESR_EL1, FAR_EL1, Readable};
use hyp_core::address::MachineFrame;
use hyp_core::hypercall::Arguments;
use hyp_core::machine::{Context, FlushScope, Mmu, Roots, StartOfDay};
use hyp_el2::first_registers;
use penumbra_abi::errno::Errno;
use penumbra_abi::vcpu::ArmGuestContext;

use crate::control;
use crate::cpu::Cpu;
use crate::machine::El2;

/// EL1 with its own stack pointer; D, A, I and F masked.
const START_PSTATE: u64 = 0x3c5;
/// PSTATE.I: no interrupts.
const IRQ_MASKED: u64 = 1 << 7;
/// Bytes of the instruction that makes a hypercall.
const INSTRUCTION: u64 = 4;

/// x0 to x30.
const GENERAL: usize = 31;

/// 32 SIMD registers of 128 bits, FPCR and FPSR, as `save_vectors` lays them out.
#[repr(C, align(16))]
struct Vectors([u64; 66]);

/// The registers of a vCPU. `vectors.s` knows the first three fields.
#[repr(C, align(16))]
pub struct GuestContext {
    general: [Cell<u64>; GENERAL],
    pc: Cell<u64>,
    pstate: Cell<u64>,
    _padding: u64,
    system: [Cell<u64>; SYSTEM_REGISTERS],
    vectors: UnsafeCell<Vectors>,
}

const _: () = assert!(offset_of!(GuestContext, pc) == 248 && offset_of!(GuestContext, pstate) == 256);

// SAFETY: only the CPU that runs the vCPU, or the one that has it stopped, touches it (`Context`'s contract).
unsafe impl Sync for GuestContext {}

unsafe extern "C" {
    fn save_vectors(into: *mut Vectors);
    fn load_vectors(from: *const Vectors);
}

/// Defines how the listed registers are saved and loaded.
macro_rules! system_registers {
    ($($index:literal $name:literal),* $(,)?) => {
        const SYSTEM_REGISTERS: usize = [$($name),*].len();

        impl GuestContext {
            fn save_system_registers(&self) {
                $({
                    let value: u64;
                    // SAFETY: reads a register of EL1, which has no effect.
                    unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
                    self.system[$index].set(value);
                })*
            }

            fn load_system_registers(&self) {
                $({
                    let value = self.system[$index].get();
                    // SAFETY: writes a register that only EL1 and EL0 use; none of them gives a guest memory.
                    unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nomem, nostack)) };
                })*
            }
        }
    };
}

system_registers! {
    0 "sp_el0", 1 "sp_el1", 2 "elr_el1", 3 "spsr_el1", 4 "esr_el1", 5 "far_el1", 6 "vbar_el1",
    7 "tpidr_el0", 8 "tpidrro_el0", 9 "tpidr_el1", 10 "contextidr_el1", 11 "par_el1", 12 "cpacr_el1",
    13 "cntkctl_el1", 14 "csselr_el1", 15 "afsr0_el1", 16 "afsr1_el1", 17 "cntv_cval_el0", 18 "cntv_ctl_el0",
}

const SP_EL0: usize = 0;
const SP_EL1: usize = 1;
const ELR_EL1_PLACE: usize = 2;
const SPSR_EL1: usize = 3;
const CPACR_EL1: usize = 12;
/// FPEN: no traps of floating point (EL1's own matter).
const FLOATING_POINT_ON: u64 = 0b11 << 20;

impl GuestContext {
    /// A general register; 31 is the zero register.
    pub fn register(&self, number: u8) -> u64 {
        self.general.get(usize::from(number)).map_or(0, Cell::get)
    }

    /// Writes a general register; 31 swallows it.
    pub fn set_register(&self, number: u8, value: u64) {
        if let Some(register) = self.general.get(usize::from(number)) {
            register.set(value);
        }
    }

    /// A hypercall's arguments: x0 to x5.
    #[inline(always)]
    pub fn arguments(&self) -> &Arguments {
        const { assert!(GENERAL >= 6) };
        // SAFETY: the first six of the array's elements.
        unsafe { &*self.general.as_ptr().cast() }
    }

    /// The next instruction.
    pub fn pc(&self) -> u64 {
        self.pc.get()
    }

    /// The execution state.
    pub fn pstate(&self) -> u64 {
        self.pstate.get()
    }

    /// Continues elsewhere, in another state. The caller has seen to it that the state is EL1 or EL0.
    pub fn resume_at(&self, pc: u64, pstate: u64) {
        self.pc.set(pc);
        self.pstate.set(pstate);
    }

    /// Goes on after the instruction that has trapped.
    pub fn skip_instruction(&self) {
        self.pc.set(self.pc().wrapping_add(INSTRUCTION));
    }

    /// Keeps what is in the CPU, for another vCPU will use it.
    pub fn save(&self) {
        self.save_system_registers();
        // SAFETY: this CPU runs the vCPU, so nobody else touches `vectors`, which has the layout the routine expects.
        unsafe { save_vectors(self.vectors.get()) };
    }

    /// Puts into the CPU what [`Self::save`] kept.
    pub fn load(&self) {
        self.load_system_registers();
        // SAFETY: as in `save`.
        unsafe { load_vectors(self.vectors.get()) };
    }
}

impl GuestContext {
    /// All registers zero, of a vCPU that doesn't run.
    fn clear(&self) {
        for register in self.general.iter().chain(&self.system) {
            register.set(0);
        }
        // SAFETY: the core resets and starts only a vCPU that doesn't run, so nobody else touches `vectors`.
        unsafe { *self.vectors.get() = Vectors([0; 66]) };
    }
}

impl Context for GuestContext {
    #[allow(clippy::declare_interior_mutable_const)]
    const EMPTY: Self = Self {
        general: [const { Cell::new(0) }; GENERAL],
        pc: Cell::new(0),
        pstate: Cell::new(0),
        _padding: 0,
        system: [const { Cell::new(0) }; SYSTEM_REGISTERS],
        vectors: UnsafeCell::new(Vectors([0; 66])),
    };

    fn reset(&self, start: &StartOfDay) {
        self.clear();
        self.set_register(0, start.start_info.bytes());
        self.system[SP_EL1].set(start.stack.bytes());
        self.system[CPACR_EL1].set(FLOATING_POINT_ON);
        self.resume_at(start.entry.bytes(), START_PSTATE);
        // The domain's VMID may have been another's before. This also empties the instruction caches, after the domain builder has
        // written the kernel and cleaned it to where they read: once for each vCPU, which is cheaper than once for each page.
        El2.flush(FlushScope::Everything);
    }

    /// Nothing to remember: the core is asked whether an upcall is due.
    fn set_vcpu_info(&self, _frame: MachineFrame, _offset: usize) {}

    fn unmask_events(&self) {
        self.pstate.set(self.pstate() & !IRQ_MASKED);
    }

    fn are_events_masked(&self) -> bool {
        self.pstate() & IRQ_MASKED != 0
    }

    type GuestStart = ArmGuestContext;

    /// The kernel starts at EL1 in AArch64, with the translation registers that all guests have: the MMU on.
    fn judge_start(start: &ArmGuestContext) -> Result<Roots, Errno> {
        first_registers::judge(start, control::tcr())
    }

    fn start(&self, start: &ArmGuestContext) {
        let registers = &start.user_regs;
        self.clear();
        for (number, value) in (0..).zip(registers.x) {
            self.set_register(number, value);
        }
        let system = [
            (SP_EL0, registers.sp_el0),
            (SP_EL1, registers.sp_el1),
            (ELR_EL1_PLACE, registers.elr_el1),
            (SPSR_EL1, registers.spsr_el1),
            (CPACR_EL1, FLOATING_POINT_ON),
        ];
        for (place, value) in system {
            self.system[place].set(value);
        }
        self.resume_at(registers.pc, registers.cpsr);
    }

    fn set_result(&self, value: u64) {
        self.set_register(0, value);
    }

    fn restart_hypercall(&self, arguments: [u64; 6]) {
        for (number, argument) in (0..).zip(arguments) {
            self.set_register(number, argument);
        }
        // The preferred return address of `hvc` is the next instruction.
        self.pc.set(self.pc().wrapping_sub(INSTRUCTION));
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "pc {:#x}  pstate {:#x}", self.pc(), self.pstate())?;
        let running = Cpu::this().current().is_some_and(|vcpu| core::ptr::eq(vcpu.context(), self));
        if running {
            let (address, syndrome) = (FAR_EL1.get(), ESR_EL1.get());
            write!(out, "  elr_el1 {:#x}  esr_el1 {syndrome:#x}  far_el1 {address:#x}", ELR_EL1.get())?;
        }
        for number in 0..31 {
            let separator = if number % 6 == 0 { "\n" } else { "  " };
            write!(out, "{separator}x{number} {:#x}", self.register(number))?;
        }
        Ok(())
    }
}
