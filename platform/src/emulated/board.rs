//! The board that a domain with a machine of its own sees: what is where.
//!
//! The places and interrupts are those of QEMU's `virt` board, since kernels and firmware exist that know them by heart. Everything that
//! has to agree about them takes them from here: the emulation that is chosen by address, the virtual interrupt controller, and
//! the device tree that the guest is given. All addresses are the guest's own.

/// A device's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Address of the first byte.
    pub start: u64,
    /// How many bytes.
    pub size: u64,
}

impl Place {
    /// How far into the device an address is; `None` when it is outside.
    pub const fn offset(self, address: u64) -> Option<u64> {
        match address.checked_sub(self.start) {
            Some(offset) if offset < self.size => Some(offset),
            _ => None,
        }
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.start + self.size
    }
}

/// How many vCPUs a domain has at most. A vCPU's affinity (`MPIDR_EL1`, Aff0) is its number.
pub const MAX_VCPUS: usize = 8;

/// The interrupt controller's distributor, version 2 or 3.
pub const DISTRIBUTOR: Place = Place { start: 0x0800_0000, size: 0x1_0000 };
/// The CPU interface of version 2.
pub const CPU_INTERFACE: Place = Place { start: 0x0801_0000, size: 0x1_0000 };
/// Version 3's redistributors, one after another. The board has room for 123; past the last vCPU's there is nothing.
pub const REDISTRIBUTORS: Place = Place { start: 0x080a_0000, size: 0x00f6_0000 };
/// Bytes of one redistributor: its control frame and its SGI frame.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// The UART, a PL011.
pub const UART: Place = Place { start: 0x0900_0000, size: 0x1000 };
/// INTID of the UART: shared, level-triggered.
pub const UART_INTERRUPT: u32 = 33;

/// The real-time clock, a PL031.
pub const CLOCK: Place = Place { start: 0x0901_0000, size: 0x1000 };
/// INTID of the real-time clock: shared, level-triggered.
pub const CLOCK_INTERRUPT: u32 = 34;

/// Hertz of the clock that UART and real-time clock are said to run on.
pub const PERIPHERAL_HERTZ: u32 = 24_000_000;

/// Where RAM starts.
pub const RAM_START: u64 = 0x4000_0000;

/// INTID of the secure physical timer: named for completeness, a guest has no secure side.
pub const SECURE_TIMER_INTERRUPT: u32 = 29;
/// INTID of the physical timer at EL1.
pub const PHYSICAL_TIMER_INTERRUPT: u32 = 30;
/// INTID of the virtual timer.
pub const VIRTUAL_TIMER_INTERRUPT: u32 = 27;
/// INTID of EL2's physical timer: named for completeness, a guest has no EL2.
pub const HYPERVISOR_TIMER_INTERRUPT: u32 = 26;
/// INTID of the performance monitors' overflow.
pub const MONITOR_INTERRUPT: u32 = 23;
/// INTID by which a vCPU learns that it has events, where Xen's services are on: the last private one, which the board leaves free.
pub const EVENT_INTERRUPT: u32 = 31;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Place; 5] = [DISTRIBUTOR, CPU_INTERFACE, REDISTRIBUTORS, UART, CLOCK];

    #[test]
    fn devices_are_apart_and_below_ram() {
        for (index, place) in ALL.iter().enumerate() {
            assert_eq!((place.start % 4096, place.size % 4096), (0, 0), "{place:x?} is whole pages");
            assert!(place.end() <= RAM_START);
            for other in ALL.get(index + 1..).unwrap_or(&[]) {
                assert!(place.end() <= other.start, "{place:x?} ends before {other:x?}");
            }
        }
    }

    #[test]
    fn an_address_belongs_to_one_device_up_to_its_last_byte() {
        assert_eq!(UART.offset(0x08ff_ffff), None);
        assert_eq!(UART.offset(0x0900_0018), Some(0x18));
        assert_eq!(UART.offset(0x0900_0fff), Some(0xfff));
        assert_eq!(UART.offset(0x0900_1000), None);
        assert_eq!(UART.offset(0), None);
    }
}
