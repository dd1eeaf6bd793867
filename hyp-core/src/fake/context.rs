//! The fake machine's registers: what the core has set, for tests to look at.

use core::fmt;
use std::sync::Mutex;

use penumbra_abi::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::address::MachineFrame;
use crate::machine::{Context, Roots, StartOfDay};

/// What happened to a vCPU's registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// Where it starts, once it has been reset.
    pub start: Option<StartOfDay>,
    /// What the last hypercall returned.
    pub result: Option<u64>,
    /// The arguments of a hypercall that was preempted.
    pub again: Option<[u64; 6]>,
    /// Where the `vcpu_info` lies.
    pub vcpu_info: Option<(MachineFrame, usize)>,
    /// The entry that a guest has given.
    pub entry: u64,
    /// How often events were unmasked.
    pub unmasked: u32,
    /// How many non-maskable interrupts have come.
    pub non_maskable: u32,
}

/// What a guest gives a vCPU to start with.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct FakeStart {
    /// First instruction; 0 is the state that guests must not have.
    pub entry: u64,
    /// Frame of the kernel's root.
    pub kernel_root: u64,
    /// Frame of the user mode's, or 0.
    pub user_root: u64,
}

/// A vCPU's registers on the fake machine.
#[derive(Debug, Default)]
pub struct FakeContext {
    registers: Mutex<Registers>,
    /// Pages of segment descriptors that it holds.
    descriptors: Mutex<Vec<MachineFrame>>,
}

impl FakeContext {
    /// Reads the registers, and forgets the last hypercall's outcome.
    pub fn take(&self) -> Registers {
        let mut registers = self.registers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let seen = *registers;
        *registers = Registers { result: None, again: None, ..seen };
        seen
    }

    /// Says that the vCPU holds a page of segment descriptors, of which the caller has taken a reference and a use.
    pub fn hold_descriptors(&self, frame: MachineFrame) {
        self.descriptors.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(frame);
    }

    fn change(&self, change: impl FnOnce(&mut Registers)) {
        change(&mut self.registers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl Context for FakeContext {
    const EMPTY: Self = Self {
        registers: Mutex::new(Registers {
            start: None,
            result: None,
            again: None,
            vcpu_info: None,
            entry: 0,
            unmasked: 0,
            non_maskable: 0,
        }),
        descriptors: Mutex::new(Vec::new()),
    };

    fn reset(&self, start: &StartOfDay) {
        self.change(|registers| {
            let vcpu_info = registers.vcpu_info;
            *registers = Registers { start: Some(*start), vcpu_info, ..Registers::default() };
        });
    }

    fn set_vcpu_info(&self, frame: MachineFrame, offset: usize) {
        self.change(|registers| registers.vcpu_info = Some((frame, offset)));
    }

    fn unmask_events(&self) {
        self.change(|registers| registers.unmasked += 1);
    }

    fn are_events_masked(&self) -> bool {
        false
    }

    const NON_MASKABLE: bool = true;

    fn interrupt_unmaskably(&self) {
        self.change(|registers| registers.non_maskable += 1);
    }

    type GuestStart = FakeStart;

    fn judge_start(start: &FakeStart) -> Result<Roots, Errno> {
        let frame = |number| MachineFrame::new(number).ok_or(Errno::EINVAL);
        if start.entry == 0 {
            return Err(Errno::EINVAL);
        }
        let user = if start.user_root == 0 { None } else { Some(frame(start.user_root)?) };
        Ok(Roots { kernel: frame(start.kernel_root)?, user })
    }

    fn start(&self, start: &FakeStart) {
        self.change(|registers| {
            let vcpu_info = registers.vcpu_info;
            *registers = Registers { entry: start.entry, vcpu_info, ..Registers::default() };
        });
    }

    fn for_each_descriptor_page(&self, visit: &mut dyn FnMut(MachineFrame)) {
        let held = self.descriptors.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        held.into_iter().for_each(visit);
    }

    fn forget_descriptor_pages(&self) {
        self.descriptors.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
    }

    fn set_result(&self, value: u64) {
        self.change(|registers| registers.result = Some(value));
    }

    fn restart_hypercall(&self, arguments: [u64; 6]) {
        self.change(|registers| registers.again = Some(arguments));
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "fake registers")
    }
}
