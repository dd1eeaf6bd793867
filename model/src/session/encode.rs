//! An operation as a hypercall: its arguments in the window, its registers.

use hyp_core::fake::FakeStart;
use penumbra_abi::hypercall as call;
use penumbra_abi::memory::{self, MemoryReservation};
use penumbra_abi::mmu::{MmuUpdate, MmuextOp};
use penumbra_abi::multicall::MulticallEntry;
use penumbra_abi::vcpu::{self, RegisterVcpuInfo};
use zerocopy::IntoBytes;

use super::{DONE, LIST, RESERVATION, Session};
use crate::format::Hardware;
use crate::operation::Operation;
use crate::spec::vcpus::OnVcpu;

/// Bytes of the window for the arguments of each entry of a multicall.
const ENTRY_ARGUMENTS: usize = 1024;

impl<F: Hardware> Session<F> {
    /// Writes an operation's arguments into the window.
    pub(super) fn encode(&self, operation: &Operation) -> (u64, [u64; 6]) {
        let done = self.put(DONE, &0u64.to_le_bytes());
        match operation {
            Operation::Updates(domains, list) => {
                let list: Vec<_> =
                    list.iter().map(|one| MmuUpdate { pointer: one.pointer, value: one.value }).collect();
                let at = self.put(LIST, list.as_bytes());
                (call::MMU_UPDATE, [at, list.len() as u64, done, *domains, 0, 0])
            }
            Operation::Extended(of, list) => {
                let one = |one: &crate::spec::operations::Extended| MmuextOp {
                    command: one.command,
                    pad: 0,
                    argument1: one.argument,
                    argument2: one.second,
                };
                let list: Vec<_> = list.iter().map(one).collect();
                let at = self.put(LIST, list.as_bytes());
                (call::MMUEXT_OP, [at, list.len() as u64, done, u64::from(*of), 0, 0])
            }
            Operation::Remap(address, raw, flags, None) => {
                (call::UPDATE_VA_MAPPING, [*address, *raw, *flags, 0, 0, 0])
            }
            Operation::Remap(address, raw, flags, Some(of)) => {
                (call::UPDATE_VA_MAPPING_OTHERDOMAIN, [*address, *raw, *flags, u64::from(*of), 0, 0])
            }
            Operation::Increase(count) => {
                self.encode_memory(memory::XENMEM_INCREASE_RESERVATION, &vec![0; *count])
            }
            Operation::Populate(list) => self.encode_memory(memory::XENMEM_POPULATE_PHYSMAP, list),
            Operation::Decrease(list) => self.encode_memory(memory::XENMEM_DECREASE_RESERVATION, list),
            Operation::SetGlobal(list, entries) => {
                (call::SET_GDT, [self.put(LIST, list.as_bytes()), *entries, 0, 0, 0, 0])
            }
            Operation::UpdateDescriptor(place, raw) => (call::UPDATE_DESCRIPTOR, [*place, *raw, 0, 0, 0, 0]),
            Operation::OnVcpu(number, one) => self.encode_on_vcpu(*number, *one),
            Operation::Event(event) => self.encode_event(*event),
            Operation::Grant(grant) => self.encode_grant(grant),
            Operation::Extents(extents) => self.encode_extents(extents),
            Operation::Unhook(address) => (call::PENUMBRA, [call::PENUMBRA_UNHOOK, *address, 0, 0, 0, 0]),
            Operation::Hook(address) => (call::PENUMBRA, [call::PENUMBRA_HOOK, *address, 0, 0, 0, 0]),
            Operation::Multicall(list) => self.encode_multicall(list),
            other => unreachable!("{other:?} is no hypercall"),
        }
    }

    fn encode_on_vcpu(&self, number: u64, operation: OnVcpu) -> (u64, [u64; 6]) {
        let (command, place) = match operation {
            OnVcpu::Initialise { entry, kernel, user } => {
                let start = FakeStart { entry, kernel_root: kernel, user_root: user };
                (vcpu::VCPUOP_INITIALISE, self.machine().put(LIST, start.as_bytes()))
            }
            OnVcpu::Up => (vcpu::VCPUOP_UP, 0),
            OnVcpu::Down => (vcpu::VCPUOP_DOWN, 0),
            OnVcpu::IsUp => (vcpu::VCPUOP_IS_UP, 0),
            OnVcpu::RegisterInfo { frame, offset } => {
                let request = RegisterVcpuInfo { mfn: frame, offset, ..RegisterVcpuInfo::default() };
                (vcpu::VCPUOP_REGISTER_VCPU_INFO, self.machine().put(LIST, request.as_bytes()))
            }
        };
        (call::VCPU_OP, [command, number, place, 0, 0, 0])
    }

    pub(super) fn encode_memory(&self, command: u64, list: &[u64]) -> (u64, [u64; 6]) {
        let at = self.put(LIST, list.as_bytes());
        let reservation = MemoryReservation {
            extent_start: at,
            nr_extents: list.len() as u64,
            domid: 0x7ff0,
            ..MemoryReservation::default()
        };
        let at = self.put(RESERVATION, reservation.as_bytes());
        (call::MEMORY_OP, [command, at, 0, 0, 0, 0])
    }

    /// Each entry's own arguments stand one after another behind the list.
    pub(super) fn encode_multicall(&self, list: &[Operation]) -> (u64, [u64; 6]) {
        let mut entries = Vec::new();
        for (index, operation) in list.iter().enumerate() {
            self.base.set((index + 1) * ENTRY_ARGUMENTS);
            let (number, arguments) = self.encode(operation);
            entries.push(MulticallEntry { operation: number, result: 0x5555, arguments });
        }
        self.base.set(0);
        let at = self.put(LIST, entries.as_bytes());
        (call::MULTICALL, [at, list.len() as u64, 0, 0, 0, 0])
    }

    /// Writes to the window, behind what belongs to others; returns the address.
    pub(super) fn put(&self, place: usize, bytes: &[u8]) -> u64 {
        self.machine().put(self.base.get() + place, bytes)
    }
}
