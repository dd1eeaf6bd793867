//! Event channels and vCPUs, as guests use them.

use hyp_core::Vcpu;
use hyp_core::fake::{Fake, FakeStart};
use hyp_core::machine::{FrameMemory, Machine};
use penumbra_abi::errno::Errno;
use penumbra_abi::event_channel::{
    self as abi, AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, Status,
};
use penumbra_abi::hypercall as number;
use zerocopy::{FromBytes, IntoBytes};

use super::{Rig, SELF};

/// Where the operations' structures are prepared.
const PLACE: u64 = 2048;

impl Rig {
    /// `event_channel_op` on a structure; what it holds afterwards.
    pub fn channel<T: IntoBytes + FromBytes + zerocopy::Immutable>(
        &self,
        who: usize,
        operation: u64,
        argument: T,
    ) -> Result<T, Errno> {
        let at = self.give(who, PLACE, argument.as_bytes());
        self.call(who, number::EVENT_CHANNEL_OP, [operation, at, 0, 0, 0, 0])?;
        Ok(self.take(who, PLACE))
    }

    /// Reads a structure from a guest's scratch memory.
    pub fn take<T: FromBytes + IntoBytes>(&self, who: usize, offset: u64) -> T {
        let mut value = T::new_zeroed();
        for (index, byte) in value.as_mut_bytes().iter_mut().enumerate() {
            let at = offset + index as u64;
            *byte = self.word(who, at & !7).to_le_bytes()[(at % 8) as usize];
        }
        value
    }

    pub fn alloc_unbound(&self, who: usize, dom: u64, remote: u64) -> Result<u32, Errno> {
        let request = AllocUnbound { dom: dom as u16, remote_dom: remote as u16, port: 0 };
        self.channel(who, abi::EVTCHNOP_ALLOC_UNBOUND, request).map(|answer| answer.port)
    }

    pub fn bind_interdomain(&self, who: usize, remote: u64, port: u32) -> Result<u32, Errno> {
        let request = BindInterdomain { remote_dom: remote as u16, remote_port: port, ..Default::default() };
        self.channel(who, abi::EVTCHNOP_BIND_INTERDOMAIN, request).map(|answer| answer.local_port)
    }

    pub fn bind_virq(&self, who: usize, virq: u32, vcpu: u32) -> Result<u32, Errno> {
        self.channel(who, abi::EVTCHNOP_BIND_VIRQ, BindVirq { virq, vcpu, port: 0 }).map(|answer| answer.port)
    }

    pub fn bind_ipi(&self, who: usize, vcpu: u32) -> Result<u32, Errno> {
        self.channel(who, abi::EVTCHNOP_BIND_IPI, BindIpi { vcpu, port: 0 }).map(|answer| answer.port)
    }

    pub fn bind_vcpu(&self, who: usize, port: u32, vcpu: u32) -> Result<(), Errno> {
        self.channel(who, abi::EVTCHNOP_BIND_VCPU, BindVcpu { port, vcpu }).map(drop)
    }

    /// Close, send, unmask.
    pub fn on_port(&self, who: usize, operation: u64, port: u32) -> Result<(), Errno> {
        self.channel(who, operation, abi::Port { port }).map(drop)
    }

    pub fn send(&self, who: usize, port: u32) -> Result<(), Errno> {
        self.on_port(who, abi::EVTCHNOP_SEND, port)
    }

    pub fn close(&self, who: usize, port: u32) -> Result<(), Errno> {
        self.on_port(who, abi::EVTCHNOP_CLOSE, port)
    }

    pub fn port_status(&self, who: usize, dom: u64, port: u32) -> Result<Status, Errno> {
        self.channel(who, abi::EVTCHNOP_STATUS, Status { dom: dom as u16, port, ..Default::default() })
    }

    /// A connected pair of ports: of domain `a`, and of domain `b`.
    pub fn connect(&self, a: usize, b: usize) -> (u32, u32) {
        let [a_id, b_id] = [a, b].map(|who| u64::from(self.domains[who].id().number()));
        let first = self.alloc_unbound(a, SELF, b_id).expect("a port");
        let second = self.bind_interdomain(b, a_id, first).expect("its other end");
        self.acknowledge(b, 0);
        self.clear_pending(b, second);
        (first, second)
    }

    fn shared(&self, who: usize, offset: usize, port: u32) -> (&std::sync::atomic::AtomicU64, u64) {
        let page = self.domains[who].domain.shared_info().expect("a shared-info page");
        let word = self.hv.machine().shared_word(page, offset / 8 + port as usize / 64).expect("memory");
        (word, 1 << (port % 64))
    }

    pub fn is_pending(&self, who: usize, port: u32) -> bool {
        let (word, bit) = self.shared(who, Fake::SHARED_INFO.pending, port);
        word.load(std::sync::atomic::Ordering::SeqCst) & bit != 0
    }

    pub fn clear_pending(&self, who: usize, port: u32) {
        let (word, bit) = self.shared(who, Fake::SHARED_INFO.pending, port);
        word.fetch_and(!bit, std::sync::atomic::Ordering::SeqCst);
    }

    /// The guest masks a port.
    pub fn mask(&self, who: usize, port: u32) {
        let (word, bit) = self.shared(who, Fake::SHARED_INFO.mask, port);
        word.fetch_or(bit, std::sync::atomic::Ordering::SeqCst);
    }

    /// A word of a vCPU's `vcpu_info`.
    pub fn info(&self, vcpu: &Vcpu<Fake>, index: usize) -> &std::sync::atomic::AtomicU64 {
        let (frame, offset) = vcpu.info_place().expect("a vcpu_info");
        self.hv.machine().shared_word(frame, offset / 8 + index).expect("memory")
    }

    /// The guest takes its upcall: what was selected.
    pub fn acknowledge(&self, who: usize, vcpu: usize) -> u64 {
        let vcpu = &self.domains[who].domain.vcpus[vcpu];
        self.info(vcpu, 0).fetch_and(!0xff, std::sync::atomic::Ordering::SeqCst);
        self.info(vcpu, 1).swap(0, std::sync::atomic::Ordering::SeqCst)
    }

    /// The guest masks or unmasks upcalls of a vCPU.
    pub fn mask_upcalls(&self, who: usize, vcpu: usize, mask: bool) {
        let word = self.info(&self.domains[who].domain.vcpus[vcpu], 0);
        word.fetch_and(!0xff00, std::sync::atomic::Ordering::SeqCst);
        word.fetch_or(u64::from(mask) << 8, std::sync::atomic::Ordering::SeqCst);
    }

    /// Whether a vCPU's upcall is pending, masked or not.
    pub fn upcall_pending(&self, who: usize, vcpu: usize) -> bool {
        self.info(&self.domains[who].domain.vcpus[vcpu], 0).load(std::sync::atomic::Ordering::SeqCst) & 0xff
            != 0
    }

    /// `vcpu_op`, with a structure.
    pub fn vcpu_op<T: IntoBytes + zerocopy::Immutable>(
        &self,
        who: usize,
        operation: u64,
        vcpu: u64,
        argument: T,
    ) -> Result<u64, Errno> {
        let at = self.give(who, PLACE, argument.as_bytes());
        self.call(who, number::VCPU_OP, [operation, vcpu, at, 0, 0, 0])
    }

    /// Gives a vCPU its first registers, with these roots.
    pub fn initialise(&self, who: usize, vcpu: u64, kernel_root: u64) -> Result<u64, Errno> {
        let start = FakeStart { entry: 0x1000, kernel_root, user_root: 0 };
        self.vcpu_op(who, penumbra_abi::vcpu::VCPUOP_INITIALISE, vcpu, start)
    }
}
