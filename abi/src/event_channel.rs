//! Event channels (`event_channel.h`), and the virtual interrupts that are bound to them (`xen.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Connects to a port that waits for us: [`BindInterdomain`].
pub const EVTCHNOP_BIND_INTERDOMAIN: u64 = 0;
/// Binds a virtual interrupt: [`BindVirq`].
pub const EVTCHNOP_BIND_VIRQ: u64 = 1;
/// Binds a physical interrupt.
pub const EVTCHNOP_BIND_PIRQ: u64 = 2;
/// Closes a port: [`Port`].
pub const EVTCHNOP_CLOSE: u64 = 3;
/// Signals the other side: [`Port`].
pub const EVTCHNOP_SEND: u64 = 4;
/// What a port is: [`Status`].
pub const EVTCHNOP_STATUS: u64 = 5;
/// Opens a port that waits for another domain: [`AllocUnbound`].
pub const EVTCHNOP_ALLOC_UNBOUND: u64 = 6;
/// Opens a port from vCPU to vCPU: [`BindIpi`].
pub const EVTCHNOP_BIND_IPI: u64 = 7;
/// Chooses the vCPU that is told: [`BindVcpu`].
pub const EVTCHNOP_BIND_VCPU: u64 = 8;
/// Unmasks a port: [`Port`].
pub const EVTCHNOP_UNMASK: u64 = 9;
/// Closes all ports: [`Reset`].
pub const EVTCHNOP_RESET: u64 = 10;
/// Changes to the FIFO ABI.
pub const EVTCHNOP_INIT_CONTROL: u64 = 11;
/// Enlarges the FIFO ABI's array.
pub const EVTCHNOP_EXPAND_ARRAY: u64 = 12;
/// Sets a priority (FIFO ABI).
pub const EVTCHNOP_SET_PRIORITY: u64 = 13;

/// Not in use.
pub const EVTCHNSTAT_CLOSED: u32 = 0;
/// Waits for another domain.
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
/// Connected to another domain.
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
/// Bound to a physical interrupt.
pub const EVTCHNSTAT_PIRQ: u32 = 3;
/// Bound to a virtual interrupt.
pub const EVTCHNSTAT_VIRQ: u32 = 4;
/// Bound to an interrupt between vCPUs.
pub const EVTCHNSTAT_IPI: u32 = 5;

/// The vCPU's timer has expired.
pub const VIRQ_TIMER: u32 = 0;
/// Asks the guest for its state.
pub const VIRQ_DEBUG: u32 = 1;
/// Bytes were typed for the control domain.
pub const VIRQ_CONSOLE: u32 = 2;
/// Something happened to a domain: to the control domain.
pub const VIRQ_DOM_EXC: u32 = 3;
/// Profiling.
pub const VIRQ_XENOPROF: u32 = 7;
/// Performance counters.
pub const VIRQ_XENPMU: u32 = 13;
/// Virtual interrupts there can be.
pub const NR_VIRQS: u32 = 24;

/// Ports that the two-level ABI has room for, on 64-bit machines.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty),* $(,)? } $size:literal)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

structures! {
    /// [`EVTCHNOP_ALLOC_UNBOUND`].
    AllocUnbound {
        /// Whose the port will be.
        dom: u16,
        /// Who may connect to it.
        remote_dom: u16,
        /// Out: the port.
        port: u32,
    } 8
    /// [`EVTCHNOP_BIND_INTERDOMAIN`].
    BindInterdomain {
        /// Whose port waits.
        remote_dom: u16,
        /// Padding that C inserts.
        pad: u16,
        /// The port that waits.
        remote_port: u32,
        /// Out: our own.
        local_port: u32,
    } 12
    /// [`EVTCHNOP_BIND_VIRQ`].
    BindVirq {
        /// `VIRQ_*`.
        virq: u32,
        /// The vCPU whose interrupt it is.
        vcpu: u32,
        /// Out: the port.
        port: u32,
    } 12
    /// [`EVTCHNOP_BIND_IPI`].
    BindIpi {
        /// The vCPU that is told.
        vcpu: u32,
        /// Out: the port.
        port: u32,
    } 8
    /// [`EVTCHNOP_CLOSE`], [`EVTCHNOP_SEND`], [`EVTCHNOP_UNMASK`].
    Port {
        /// The port.
        port: u32,
    } 4
    /// [`EVTCHNOP_STATUS`].
    Status {
        /// Whose port.
        dom: u16,
        /// Padding that C inserts.
        pad: u16,
        /// The port.
        port: u32,
        /// Out: `EVTCHNSTAT_*`.
        status: u32,
        /// Out: the vCPU that is told.
        vcpu: u32,
        /// Out: the domain that may connect, or is connected (the low 16 bits); the virtual interrupt.
        detail: u32,
        /// Out: the other side's port.
        remote_port: u32,
    } 24
    /// [`EVTCHNOP_BIND_VCPU`].
    BindVcpu {
        /// The port.
        port: u32,
        /// The vCPU that is told from now on.
        vcpu: u32,
    } 8
    /// [`EVTCHNOP_RESET`].
    Reset {
        /// Whose ports.
        dom: u16,
    } 2
}
