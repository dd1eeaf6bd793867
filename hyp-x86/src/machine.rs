//! The machine, as the core sees it.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::address::{GuestVirtual, MachineFrame, PAGE_SIZE};
use hyp_core::hypercall::{Arguments, Call, Outcome};
use hyp_core::machine::{
    Board, FlushScope, FrameMemory, GuestFault, GuestMemory, Machine, Mmu, SharedInfoLayout,
};
use hyp_core::time::published::GuestClock;
use hyp_core::{Hypervisor, Vcpu};
use hyp_x86::format::X86Format;
use hyp_x86::{descriptor_tables, hypercall_page, layout};
use penumbra_abi::errno::Errno;
use penumbra_abi::shared_info::{X86ArchSharedInfo, X86SharedInfo, X86VcpuInfo};
use penumbra_abi::vcpu::X86GuestContext;
use penumbra_abi::vm_assist;
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

use crate::context::GuestContext;
use crate::{access, clock, console, cpu, guest_descriptors, hypercall, interrupts, memory};

/// An x86-64 machine with ring-3 guests.
pub struct X86;

/// The hypervisor.
pub static HYPERVISOR: Hypervisor<X86> = Hypervisor::new(X86);

impl Machine for X86 {
    type Format = X86Format;
    type Context = GuestContext;

    const M2P_WINDOW: GuestVirtual = GuestVirtual::new(layout::M2P_WINDOW);
    const PLATFORM: &'static str = "x86_64";
    // EM_X86_64.
    const ELF_MACHINE: u16 = 62;
    /// Those that Xen has for 64-bit guests; the ones about segments and extended roots mean nothing to these, and no guest has a
    /// use for the I/O privilege level. Hiding the M2P from user mode isn't done, so it isn't promised.
    const ASSISTS: u64 = 1 << vm_assist::VMASST_TYPE_4GB_SEGMENTS
        | 1 << vm_assist::VMASST_TYPE_4GB_SEGMENTS_NOTIFY
        | 1 << vm_assist::VMASST_TYPE_WRITABLE_PAGETABLES
        | 1 << vm_assist::VMASST_TYPE_PAE_EXTENDED_CR3
        | 1 << vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL
        | 1 << vm_assist::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;
    const SHARED_INFO: SharedInfoLayout = SharedInfoLayout {
        vcpu_infos: 32,
        vcpu_info_bytes: size_of::<X86VcpuInfo>(),
        has_upcall_mask: true,
        pending: offset_of!(X86SharedInfo, evtchn_pending),
        mask: offset_of!(X86SharedInfo, evtchn_mask),
    };

    const SHARED_INFO_MAX_PFN: Option<usize> =
        Some(offset_of!(X86SharedInfo, arch) + offset_of!(X86ArchSharedInfo, max_pfn));

    const VCPU_TIME: Option<usize> = Some(offset_of!(X86VcpuInfo, time));
    const WALL_CLOCK: Option<usize> = Some(offset_of!(X86SharedInfo, wc_version));

    fn write_hypercall_page(&self, frame: MachineFrame) {
        for number in 0..hypercall_page::CALLS {
            let code = hypercall_page::call(number as u32);
            self.write_frame(frame, number * hypercall_page::CALL_BYTES, &code);
        }
    }

    /// The kernel's root maps both halves.
    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        _user: Option<MachineFrame>,
    ) -> Option<MachineFrame> {
        kernel.filter(|_| layout::is_canonical(address.bytes()))
    }

    fn hypercall(call: &Call<'_, Self>, number: u64, arguments: &Arguments) -> Outcome {
        hypercall::own(call, number, arguments)
    }

    fn start_descriptors(
        call: &Call<'_, Self>,
        vcpu: &Vcpu<Self>,
        start: &X86GuestContext,
    ) -> Result<(), Errno> {
        guest_descriptors::start(call, vcpu, start)
    }

    fn start_cost(start: &X86GuestContext) -> u32 {
        descriptor_tables::cost(start.gdt_ents)
    }

    fn set_local_descriptors(call: &Call<'_, Self>, base: GuestVirtual, entries: u32) -> Result<(), Errno> {
        guest_descriptors::set_local(call, base, entries)
    }
}

impl Mmu for X86 {
    type Table = &'static memory::Words;

    #[inline(always)]
    fn table(&self, table: MachineFrame) -> Option<Self::Table> {
        memory::words(table)
    }

    #[inline(always)]
    fn read_in(&self, table: Self::Table, index: usize) -> u64 {
        // Acquire: what the entry leads to was written before.
        table.get(index).map_or(0, |entry| entry.load(Ordering::Acquire))
    }

    #[inline(always)]
    fn are_zero(&self, table: Self::Table, first: usize, count: usize) -> bool {
        // Relaxed: nothing is reached by what is zero. All are read, since that is faster than asking after each.
        let run = table.get(first..first.saturating_add(count)).unwrap_or(&[]);
        run.iter().fold(0, |all, entry| all | entry.load(Ordering::Relaxed)) == 0
    }

    #[inline(always)]
    fn write_in(&self, table: Self::Table, index: usize, raw: u64) {
        if let Some(entry) = table.get(index) {
            // Release: what it leads to is written before the walker can find it.
            entry.store(raw, Ordering::Release);
        }
    }

    #[inline(always)]
    fn write_data_in(&self, frame: Self::Table, index: usize, word: u64) {
        if let Some(place) = frame.get(index) {
            // Relaxed: data, as any other that is copied.
            place.store(word, Ordering::Relaxed);
        }
    }

    #[inline]
    fn read_entry(&self, table: MachineFrame, index: usize) -> u64 {
        // Acquire: as in `read_in`.
        memory::entry(table, index).map_or(0, |entry| entry.load(Ordering::Acquire))
    }

    #[inline]
    fn write_entry(&self, table: MachineFrame, index: usize, raw: u64) {
        if let Some(entry) = memory::entry(table, index) {
            // Release: as in `write_in`.
            entry.store(raw, Ordering::Release);
        }
    }

    #[inline]
    fn exchange_entry(&self, table: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        self.exchange_in(memory::words(table).ok_or(0u64)?, index, current, new)
    }

    #[inline(always)]
    fn exchange_in(&self, table: Self::Table, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let entry = table.get(index).ok_or(0u64)?;
        // What it finds is acquired, and what it writes released, as in the two above; whoever fails has read as well.
        entry.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    fn reserved_entry(&self, slot: usize) -> u64 {
        cpu::own_root().map_or(0, |own| self.read_entry(own, slot))
    }

    fn load_roots(&self, kernel: MachineFrame, user: Option<MachineFrame>) {
        let in_user_mode = cpu::current().is_some_and(|vcpu| vcpu.context().user_mode.get());
        let root = if in_user_mode { user.unwrap_or(kernel) } else { kernel };
        // SAFETY: the core loads validated roots only, whose reserved slots hold `reserved_entry`, which no guest
        // can change.
        unsafe { cpu::load_root(root) };
    }

    #[inline]
    fn flush(&self, scope: FlushScope) {
        match scope {
            FlushScope::Page(address) => tlb::flush(VirtAddr::new_truncate(address.bytes())),
            // No entry is global, neither a guest's nor the hypervisor's, so this drops all there is. One CPU is started.
            FlushScope::Local | FlushScope::Everything => tlb::flush_all(),
        }
    }

    fn write_back_caches(&self) -> bool {
        // SAFETY: the caches' content goes to memory, none of it is lost.
        unsafe { core::arch::asm!("wbinvd", options(nostack, preserves_flags)) };
        true
    }
}

/// The part of a frame from `offset` on that `length` bytes can use: where it starts, and how many.
fn part(frame: MachineFrame, offset: usize, length: usize) -> Option<(*mut u8, usize)> {
    let room = PAGE_SIZE.checked_sub(offset)?;
    let page = memory::page(frame)?;
    Some((page.wrapping_add(offset), length.min(room)))
}

impl FrameMemory for X86 {
    fn read_frame(&self, frame: MachineFrame, offset: usize, into: &mut [u8]) {
        into.fill(0);
        if let Some((from, length)) = part(frame, offset, into.len()) {
            // SAFETY: `part` stays within a page of RAM, which the direct map always shows; `into` is the caller's alone and at
            // least as long.
            unsafe { from.cast_const().copy_to(into.as_mut_ptr(), length) };
        }
    }

    fn write_frame(&self, frame: MachineFrame, offset: usize, from: &[u8]) {
        if let Some((to, length)) = part(frame, offset, from.len()) {
            // SAFETY: as in `read_frame`. The core writes to frames that it knows the use of; the hypervisor's own were never
            // given to it.
            unsafe { to.copy_from(from.as_ptr(), length) };
        }
    }

    fn scrub_frame(&self, frame: MachineFrame) {
        if let Some(page) = memory::page(frame) {
            // SAFETY: a whole page of RAM, to which nobody has a reference. Most are nobody's at the time; one that a guest has had cleared is
            // its own, and its other vCPUs may use it meanwhile, which `zero` allows. Caches are coherent on x86.
            unsafe { memory::zero(page, PAGE_SIZE / 8) };
        }
    }

    fn copy_frame(&self, from: MachineFrame, to: MachineFrame) {
        if let (Some(from), Some(to)) = (memory::page(from), memory::page(to)) {
            // SAFETY: two whole pages of RAM, to which nobody has a reference; if they are the same one, each word is written with what it
            // holds. Guests that own them may write at the same time, which `copy_page` allows.
            unsafe { memory::copy_page(from.cast(), to.cast()) };
        }
    }

    fn read_word(&self, frame: MachineFrame, index: usize) -> u64 {
        // Acquire: what a guest has written before it made this word what it is, is read after it (grants).
        memory::entry(frame, index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn exchange_word(&self, frame: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let word = memory::entry(frame, index).ok_or(0u64)?;
        // SeqCst: between domains, for which nothing weaker is promised by the ABI; in x86's instructions it is the same.
        word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).map(drop)
    }

    #[inline]
    fn shared_word(&self, frame: MachineFrame, index: usize) -> Option<&AtomicU64> {
        memory::entry(frame, index)
    }

    #[inline(always)]
    fn shared_words(&self, frame: MachineFrame, [first, second]: [usize; 2]) -> Option<[&AtomicU64; 2]> {
        let words = memory::words(frame)?;
        Some([words.get(first)?, words.get(second)?])
    }
}

impl GuestMemory for X86 {
    #[inline(always)]
    fn read_guest(&self, from: GuestVirtual, into: &mut [u8]) -> Result<(), GuestFault> {
        access::read(from.bytes(), into)
    }

    #[inline(always)]
    fn write_guest(&self, to: GuestVirtual, from: &[u8]) -> Result<(), GuestFault> {
        access::write(to.bytes(), from)
    }
}

impl Board for X86 {
    fn console_write(&self, bytes: &[u8]) {
        console::write(bytes);
    }

    fn now(&self) -> u64 {
        clock::now()
    }

    fn guest_clock(&self) -> Option<GuestClock> {
        Some(clock::of_guests())
    }

    fn interrupt_by(&self, deadline: u64) {
        interrupts::interrupt_by(deadline);
    }

    fn wall_clock(&self) -> Option<u64> {
        clock::time_of_day()
    }

    #[inline]
    fn ticks(&self) -> u64 {
        clock::counter()
    }

    fn power_off(&self) -> ! {
        // SAFETY: the log has been written by then, and there is nothing else to lose.
        unsafe { platform::q35::power::off() };
        halt()
    }

    fn reboot(&self) -> ! {
        // SAFETY: as above.
        unsafe { platform::q35::power::reset() };
        halt()
    }
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
