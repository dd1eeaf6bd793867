//! Events, as a kernel takes them: the shared-info page, the upcall's handler, and a count for each port.
//!
//! The handler does nothing but count; whoever waits looks at the counts. So that no wake-up is lost, events are masked while
//! somebody looks, and the hypervisor unmasks them when it puts the vCPU to sleep.

use crate::architecture::{Architecture, PAGE_SHIFT};
use crate::guest::Guest;
use crate::hypercalls::{self, address_of, address_of_mut, call, update_va_mapping};
use crate::pages::Page;
use core::sync::atomic::{AtomicU64, Ordering};
use penumbra_abi::event_channel::{
    self as abi, AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, Status,
};
use penumbra_abi::sched::{SCHEDOP_POLL, SchedPoll};
use penumbra_abi::vcpu::{RunstateInfo, VCPUOP_GET_RUNSTATE_INFO};
use penumbra_abi::{Errno, hypercall as number};

/// Where the parts of shared memory lie, in bytes.
#[derive(Clone, Copy)]
pub struct SharedLayout {
    /// The pending bits.
    pub pending: u64,
    /// The mask bits.
    pub mask: u64,
}

/// vCPUs that the handler knows.
pub const VCPUS: usize = 2;
/// Ports that are counted.
const PORTS: usize = 64;

/// Where the shared-info page is mapped.
static SHARED: AtomicU64 = AtomicU64::new(0);
/// Where each vCPU's `vcpu_info` is mapped.
static INFO: [AtomicU64; VCPUS] = [const { AtomicU64::new(0) }; VCPUS];
/// Events taken at each port, and which vCPU took the last.
static COUNT: [AtomicU64; PORTS] = [const { AtomicU64::new(0) }; PORTS];
static TAKER: [AtomicU64; PORTS] = [const { AtomicU64::new(0) }; PORTS];
/// Upcalls taken.
static UPCALLS: AtomicU64 = AtomicU64::new(0);

/// The handler: the architecture's stub calls it with events masked.
pub fn handle<A: Architecture>() {
    let vcpu = A::vcpu_number();
    UPCALLS.fetch_add(1, Ordering::Relaxed);
    loop {
        let info = info(vcpu);
        A::change_word(info, !0xff, 0);
        let selected = A::change_word(info + 8, 0, 0);
        if selected == 0 {
            break;
        }
        each_bit(selected, |word| take_word::<A>(vcpu, word));
    }
    // Where the processor has to be told that nothing is pending any more, each hypercall does so.
    let _ = hypercalls::interface_version::<A>();
}

fn take_word<A: Architecture>(vcpu: u64, word: u64) {
    let base = SHARED.load(Ordering::Relaxed) + word * 8;
    let (pending, mask) = (base + A::SHARED_INFO.pending, base + A::SHARED_INFO.mask);
    each_bit(A::read_word(pending) & !A::read_word(mask), |bit| {
        A::change_word(pending, !(1 << bit), 0);
        if let (Some(count), Some(taker)) =
            (COUNT.get((word * 64 + bit) as usize), TAKER.get((word * 64 + bit) as usize))
        {
            taker.store(vcpu, Ordering::Relaxed);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
}

fn each_bit(bits: u64, mut visit: impl FnMut(u64)) {
    (0..64).filter(|bit| bits >> bit & 1 != 0).for_each(&mut visit);
}

/// Where a vCPU's `vcpu_info` is mapped.
fn info(vcpu: u64) -> u64 {
    INFO.get(vcpu as usize).map_or(0, |info| info.load(Ordering::Relaxed))
}

/// Says where a vCPU's `vcpu_info` is mapped from now on.
pub fn set_info(vcpu: u64, address: u64) {
    if let Some(info) = INFO.get(vcpu as usize) {
        info.store(address, Ordering::Relaxed);
    }
}

/// Events taken at a port so far.
pub fn count_at(port: u32) -> u64 {
    COUNT.get(port as usize).map_or(0, |count| count.load(Ordering::Relaxed))
}

/// Events, ready to be taken by vCPU 0. [`Self::close`] gives the page back.
pub struct Events<'a, A: Architecture> {
    guest: &'a Guest<A>,
    page: Page,
}

impl<'a, A: Architecture> Events<'a, A> {
    /// Maps the shared-info page, installs the handler, and lets events through.
    pub fn open(guest: &'a Guest<A>) -> Option<Self> {
        let page = guest.pages.allocate()?;
        let address = guest.address(&page);
        let frame = guest.info.shared_info >> PAGE_SHIFT;
        update_va_mapping::<A>(address, A::leaf(frame, true)).ok()?;
        SHARED.store(address, Ordering::Relaxed);
        set_info(0, address);
        for counter in COUNT.iter().chain([&UPCALLS]) {
            counter.store(0, Ordering::Relaxed);
        }
        A::install_events(0);
        let events = Self { guest, page };
        events.mask(false);
        Some(events)
    }

    /// Keeps events away, and gives the page back.
    ///
    /// # Errors
    /// The page's own frame can't be mapped again.
    pub fn close(self) -> Result<(), Errno> {
        self.mask(true);
        self.guest.release(self.page)
    }

    /// Where the shared-info page is mapped, which begins with vCPU 0's `vcpu_info`.
    pub const fn address(&self) -> u64 {
        self.guest.address(&self.page)
    }

    /// Keeps events from the vCPU that executes this, or lets them through.
    pub fn mask(&self, masked: bool) {
        A::mask_events(info(A::vcpu_number()), masked);
    }

    /// Events taken at a port so far.
    pub fn count(&self, port: u32) -> u64 {
        count_at(port)
    }

    /// The vCPU that took the last event at a port.
    pub fn taker(&self, port: u32) -> u64 {
        TAKER.get(port as usize).map_or(0, |taker| taker.load(Ordering::Relaxed))
    }

    /// Upcalls taken so far.
    pub fn upcalls(&self) -> u64 {
        UPCALLS.load(Ordering::Relaxed)
    }

    /// Whether an upcall is pending.
    pub fn is_upcall_pending(&self) -> bool {
        A::read_word(info(A::vcpu_number())) & 0xff != 0
    }

    /// Whether a port is pending.
    pub fn is_pending(&self, port: u32) -> bool {
        let word = SHARED.load(Ordering::Relaxed) + A::SHARED_INFO.pending + u64::from(port / 64) * 8;
        A::read_word(word) >> (port % 64) & 1 != 0
    }

    /// Masks a port.
    pub fn mask_port(&self, port: u32) {
        let word = SHARED.load(Ordering::Relaxed) + A::SHARED_INFO.mask + u64::from(port / 64) * 8;
        A::change_word(word, !0, 1 << (port % 64));
    }

    /// Sleeps until `done`, which events bring about.
    pub fn wait_until(&self, mut done: impl FnMut() -> bool) {
        loop {
            self.mask(true);
            if done() {
                return self.mask(false);
            }
            hypercalls::block::<A>();
        }
    }
}

/// `event_channel_op` on a structure.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn operation<A: Architecture, T>(command: u64, mut argument: T) -> Result<T, Errno> {
    call::<A>(number::EVENT_CHANNEL_OP, &[command, address_of_mut(&mut argument)]).map(|_| argument)
}

/// A port of `dom` that waits for `remote_dom`.
///
/// # Errors
/// As [`operation`]; so with all that follow.
pub fn alloc_unbound<A: Architecture>(dom: u16, remote_dom: u16) -> Result<u32, Errno> {
    let request = AllocUnbound { dom, remote_dom, port: 0 };
    operation::<A, _>(abi::EVTCHNOP_ALLOC_UNBOUND, request).map(|answer| answer.port)
}

/// Connects to a port that waits for us.
pub fn bind_interdomain<A: Architecture>(remote_dom: u16, remote_port: u32) -> Result<u32, Errno> {
    let request = BindInterdomain { remote_dom, remote_port, ..BindInterdomain::default() };
    operation::<A, _>(abi::EVTCHNOP_BIND_INTERDOMAIN, request).map(|answer| answer.local_port)
}

/// Binds a virtual interrupt.
pub fn bind_virq<A: Architecture>(virq: u32, vcpu: u32) -> Result<u32, Errno> {
    operation::<A, _>(abi::EVTCHNOP_BIND_VIRQ, BindVirq { virq, vcpu, port: 0 }).map(|answer| answer.port)
}

/// A port by which vCPUs tell `vcpu`.
pub fn bind_ipi<A: Architecture>(vcpu: u32) -> Result<u32, Errno> {
    operation::<A, _>(abi::EVTCHNOP_BIND_IPI, BindIpi { vcpu, port: 0 }).map(|answer| answer.port)
}

/// Chooses the vCPU that is told.
pub fn bind_vcpu<A: Architecture>(port: u32, vcpu: u32) -> Result<(), Errno> {
    operation::<A, _>(abi::EVTCHNOP_BIND_VCPU, BindVcpu { port, vcpu }).map(drop)
}

/// Signals the other end.
pub fn send<A: Architecture>(port: u32) -> Result<(), Errno> {
    operation::<A, _>(abi::EVTCHNOP_SEND, abi::Port { port }).map(drop)
}

/// Closes a port, and forgets its count.
pub fn close<A: Architecture>(port: u32) -> Result<(), Errno> {
    operation::<A, _>(abi::EVTCHNOP_CLOSE, abi::Port { port })?;
    // The port may be another channel's next.
    if let Some(count) = COUNT.get(port as usize) {
        count.store(0, Ordering::Relaxed);
    }
    Ok(())
}

/// Unmasks a port.
pub fn unmask<A: Architecture>(port: u32) -> Result<(), Errno> {
    operation::<A, _>(abi::EVTCHNOP_UNMASK, abi::Port { port }).map(drop)
}

/// What a port is.
pub fn status<A: Architecture>(dom: u16, port: u32) -> Result<Status, Errno> {
    operation::<A, _>(abi::EVTCHNOP_STATUS, Status { dom, port, ..Status::default() })
}

/// Sleeps until one of the ports has an event, masked or not, or until `timeout` (nanoseconds of system time; 0: for ever).
pub fn poll<A: Architecture>(ports: &[u32], timeout: u64) -> Result<(), Errno> {
    let request = SchedPoll { ports: address_of(ports), nr_ports: ports.len() as u32, pad: 0, timeout };
    call::<A>(number::SCHED_OP, &[SCHEDOP_POLL, address_of(&request)]).map(drop)
}

/// System time, in nanoseconds, by vCPU 0's account, whose four times add up to all the time since some moment. It may be behind by the
/// time that it takes to find that moment out ([`start`]).
pub fn now<A: Architecture>() -> u64 {
    static START: AtomicU64 = AtomicU64::new(0);
    if START.load(Ordering::Relaxed) == 0 {
        START.store(start::<A>().max(1), Ordering::Relaxed);
    }
    START.load(Ordering::Relaxed) + total(runstate::<A>().unwrap_or_default())
}

/// All the time that a vCPU's account has.
fn total(account: RunstateInfo) -> u64 {
    account.time.iter().sum()
}

/// When the account began, in system time. It says when the vCPU was last given the CPU, but not how long ago that was: at most as long as it has
/// run since before it slept. So it sleeps until that was short; whoever runs this machine may have let it wait in between.
fn start<A: Architecture>() -> u64 {
    const SHORT: u64 = 500_000;
    let account = || runstate::<A>().unwrap_or_default();
    let mut best = (u64::MAX, 0);
    for _ in 0..50 {
        // A time that is certainly yet to come, so that the vCPU really sleeps.
        let before = account();
        let _ = poll::<A>(&[], before.state_entry_time + before.time[0] + 1_000_000);
        let after = account();
        let slept = after.state_entry_time > before.state_entry_time;
        let ran = if slept { after.time[0].saturating_sub(before.time[0]) } else { u64::MAX };
        best = best.min((ran, after.state_entry_time.saturating_sub(total(after))));
        if best.0 < SHORT {
            break;
        }
    }
    best.1
}

/// vCPU 0's account of time.
pub fn runstate<A: Architecture>() -> Result<RunstateInfo, Errno> {
    let mut info = RunstateInfo::default();
    call::<A>(number::VCPU_OP, &[VCPUOP_GET_RUNSTATE_INFO, 0, address_of_mut(&mut info)]).map(|_| info)
}

/// What the word `echo=N` asks a domain for: each event is answered at the port where it came, and after N of them it is enough.
pub fn echo<A: Architecture>(guest: &Guest<A>, count: u64) {
    let Some(events) = Events::open(guest) else { return };
    let mut answered = [0; PORTS];
    while answered.iter().sum::<u64>() < count {
        let waiting = |answered: &[u64; PORTS]| {
            (1..PORTS as u32).find(|port| events.count(*port) > answered[*port as usize])
        };
        events.wait_until(|| waiting(&answered).is_some());
        while let Some(port) = waiting(&answered) {
            answered[port as usize] += 1;
            let _ = send::<A>(port);
        }
    }
    let _ = events.close();
}
