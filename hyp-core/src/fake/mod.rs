//! The fake machine: the third implementation of the machine traits, for tests on the host.
//!
//! Its page tables resemble no hardware ([`format`]): three levels of unequal size, other bit positions, an inverted right.
//! A mix-up of levels or bits in the core can't pass unnoticed here. Memory is a vector of words; a guest's access walks
//! the tables that are loaded, exactly as an MMU without a TLB would.

mod context;
pub mod format;
pub mod kernel;

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use penumbra_abi::vm_assist;

pub use context::{FakeContext, FakeStart};
pub use format::FakeFormat;

use crate::address::{GuestVirtual, MachineFrame, PAGE_SHIFT, PAGE_SIZE};
use crate::frame::{BootMemory, FrameRecord, Memory, allocator};
use crate::hypervisor::Hypervisor;
use crate::machine::{
    Board, Entry, FlushScope, FrameMemory, GuestFault, GuestMemory, Machine, Mmu, PageTableFormat,
    SharedInfoLayout,
};
use crate::time::published::{GuestClock, Scale};

/// Number of the first frame of fake RAM: not 0, so that an index is never mistaken for a frame number.
pub const FIRST_FRAME: u64 = 512;
const WORDS: usize = PAGE_SIZE / 8;
/// What the hypervisor's own entries of a root hold: present, read-only, leading to no frame of RAM.
pub const RESERVED_ENTRY: u64 = 1 << 63 | 7 << 20;

/// A machine made of a vector.
pub struct Fake {
    words: Vec<AtomicU64>,
    kernel_root: AtomicU64,
    clock: AtomicU64,
    flushes: AtomicU64,
    scrubbed: AtomicU64,
    harmed: AtomicU64,
    output: Mutex<Vec<u8>>,
}

impl Fake {
    /// A machine with so many frames of RAM, from [`FIRST_FRAME`] on, full of rubbish.
    pub fn new(frames: usize) -> Self {
        Self {
            words: (0..frames * WORDS).map(|word| AtomicU64::new(0xdead_beef ^ word as u64)).collect(),
            kernel_root: AtomicU64::new(0),
            clock: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            scrubbed: AtomicU64::new(0),
            harmed: AtomicU64::new(0),
            output: Mutex::new(Vec::new()),
        }
    }

    /// Lets so many nanoseconds pass; returns the time then.
    pub fn advance(&self, nanoseconds: u64) -> u64 {
        self.clock.fetch_add(nanoseconds, Ordering::Relaxed) + nanoseconds
    }

    /// How often everything was flushed.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// How many frames were scrubbed.
    pub fn scrubbed(&self) -> u64 {
        self.scrubbed.load(Ordering::Relaxed)
    }

    /// How often a reserved slot was written in the root that was loaded, to something that isn't the hypervisor's: on a real
    /// machine that is the end.
    pub fn harmed_roots(&self) -> u64 {
        self.harmed.load(Ordering::Relaxed)
    }

    /// What was written to the serial line so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
            .into_owned()
    }

    /// Makes a root the one that guests' accesses use, without any check.
    pub fn set_root(&self, root: MachineFrame) {
        self.kernel_root.store(root.number(), Ordering::Relaxed);
    }

    fn word(&self, frame: MachineFrame, index: usize) -> Option<&AtomicU64> {
        let base = usize::try_from(frame.number().checked_sub(FIRST_FRAME)?).ok()?.checked_mul(WORDS)?;
        self.words.get(base + index % WORDS)
    }

    /// Where the MMU would find the byte at `address`: the frame, if the guest may access it in that way.
    pub fn translate(&self, address: GuestVirtual, write: bool) -> Option<MachineFrame> {
        let mut read_only = false;
        if address.bytes() >> format::ADDRESS_BITS != 0 {
            return None;
        }
        let mut table = MachineFrame::new(self.kernel_root.load(Ordering::Relaxed))?;
        // The hypervisor's part is no place for a guest's buffers.
        let slot = FakeFormat::index(address, FakeFormat::LEVELS);
        if format::RESERVED_SLOTS.contains(&slot) {
            return None;
        }
        for level in (1..=FakeFormat::LEVELS).rev() {
            let raw = self.read_entry(table, FakeFormat::index(address, level));
            match FakeFormat::decode(level, raw) {
                Entry::Table(next) => {
                    table = next;
                    read_only |= FakeFormat::is_read_only_table(raw);
                }
                Entry::Leaf(leaf) if !write || (leaf.writable && !read_only) => {
                    let page = (address.bytes() >> PAGE_SHIFT) % FakeFormat::span(level);
                    return leaf.frame.checked_add(page);
                }
                Entry::Leaf(_) | Entry::Absent => return None,
            }
        }
        None
    }

    /// Calls `copy(frame, offset in it, range of the buffer)` for each page that the bytes from `address` on touch.
    fn each_page(
        &self,
        address: GuestVirtual,
        length: usize,
        write: bool,
        mut copy: impl FnMut(MachineFrame, usize, core::ops::Range<usize>),
    ) -> Result<(), GuestFault> {
        let mut done = 0;
        while done < length {
            let at = address.checked_add(done as u64).ok_or(GuestFault)?;
            let frame = self.translate(at, write).ok_or(GuestFault)?;
            let offset = (at.bytes() % PAGE_SIZE as u64) as usize;
            let count = (PAGE_SIZE - offset).min(length - done);
            copy(frame, offset, done..done + count);
            done += count;
        }
        Ok(())
    }
}

/// Says whether some CPU may have a vCPU's roots loaded, for a test that schedules by itself.
pub fn place_on_cpu<M: Machine>(vcpu: &crate::Vcpu<M>, on_cpu: bool) {
    vcpu.set_on_cpu(on_cpu);
}

/// A hypervisor on a fake machine with so many frames, all of them free, for as long as the process lives.
pub fn hypervisor(frames: usize) -> &'static Hypervisor<Fake> {
    let zeros = |count: usize| -> &'static [AtomicU64] {
        Box::leak((0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().into_boxed_slice())
    };
    let records = (0..frames).map(|_| FrameRecord::new()).collect::<Vec<_>>();
    // A static of a real machine; here it is made on a stack, which has to be larger than a test's.
    let make = move || Box::leak(Box::new(Hypervisor::new(Fake::new(frames))));
    let thread = std::thread::Builder::new().stack_size(16 << 20).spawn(make);
    let Ok(Ok(hypervisor)) = thread.map(std::thread::JoinHandle::join) else {
        panic!("no thread to make a hypervisor on");
    };
    let hypervisor: &'static Hypervisor<Fake> = hypervisor;
    let mut boot = BootMemory::new();
    // One range always fits.
    let _ = boot.add_ram(FIRST_FRAME << 12, (FIRST_FRAME + frames as u64) << 12);
    let Some(first) = MachineFrame::new(FIRST_FRAME) else { return hypervisor };
    let memory = Memory {
        first,
        records: Box::leak(records.into_boxed_slice()),
        free_map: zeros(allocator::words(frames)),
        m2p: zeros(frames),
    };
    hypervisor.initialise(memory, &boot);
    hypervisor
}

impl Machine for Fake {
    type Format = FakeFormat;
    type Context = FakeContext;
    const M2P_WINDOW: GuestVirtual = GuestVirtual::new((format::RESERVED_SLOTS.start as u64) << 19);
    const PLATFORM: &'static str = "x86_64";
    const ELF_MACHINE: u16 = kernel::ELF_MACHINE;
    const ASSISTS: u64 = 1 << vm_assist::VMASST_TYPE_WRITABLE_PAGETABLES
        | 1 << vm_assist::VMASST_TYPE_RUNSTATE_UPDATE_FLAG
        | 1 << vm_assist::VMASST_TYPE_M2P_STRICT;
    // Fewer than there are vCPUs, and all else where no architecture has it.
    const SHARED_INFO: SharedInfoLayout = SharedInfoLayout {
        vcpu_infos: 2,
        vcpu_info_bytes: 56,
        has_upcall_mask: true,
        pending: 1024,
        mask: 256,
    };

    const VCPU_TIME: Option<usize> = Some(24);
    const WALL_CLOCK: Option<usize> = Some(2048);

    fn write_hypercall_page(&self, frame: MachineFrame) {
        self.write_frame(frame, 0, &[7; PAGE_SIZE]);
    }

    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        _: Option<MachineFrame>,
    ) -> Option<MachineFrame> {
        kernel.filter(|_| address.bytes() >> format::ADDRESS_BITS == 0)
    }
}

impl Mmu for Fake {
    type Table = MachineFrame;

    fn table(&self, table: MachineFrame) -> Option<MachineFrame> {
        self.word(table, 0).map(|_| table)
    }

    fn read_in(&self, table: MachineFrame, index: usize) -> u64 {
        self.read_entry(table, index)
    }

    fn write_in(&self, table: MachineFrame, index: usize, raw: u64) {
        self.write_entry(table, index, raw);
    }

    fn write_data_in(&self, frame: MachineFrame, index: usize, word: u64) {
        self.write_entry(frame, index, word);
    }

    fn read_entry(&self, table: MachineFrame, index: usize) -> u64 {
        self.word(table, index).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    fn write_entry(&self, table: MachineFrame, index: usize, raw: u64) {
        let loaded = self.kernel_root.load(Ordering::Relaxed) == table.number();
        if loaded && format::RESERVED_SLOTS.contains(&index) && raw != RESERVED_ENTRY {
            self.harmed.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(word) = self.word(table, index) {
            word.store(raw, Ordering::SeqCst);
        }
    }

    fn exchange_in(&self, table: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        self.exchange_entry(table, index, current, new)
    }

    fn exchange_entry(&self, table: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let Some(word) = self.word(table, index) else { return Ok(()) };
        word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).map(drop)
    }

    fn reserved_entry(&self, _: usize) -> u64 {
        RESERVED_ENTRY
    }

    fn load_roots(&self, kernel: MachineFrame, _user: Option<MachineFrame>) {
        self.set_root(kernel);
    }

    fn flush(&self, scope: FlushScope) {
        if scope == FlushScope::Everything {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write_back_caches(&self) -> bool {
        true
    }
}

impl FrameMemory for Fake {
    fn read_frame(&self, frame: MachineFrame, offset: usize, into: &mut [u8]) {
        for (at, byte) in (offset..PAGE_SIZE).zip(into) {
            *byte = self.read_entry(frame, at / 8).to_le_bytes()[at % 8];
        }
    }

    fn write_frame(&self, frame: MachineFrame, offset: usize, from: &[u8]) {
        for (at, byte) in (offset..PAGE_SIZE).zip(from) {
            let mut bytes = self.read_entry(frame, at / 8).to_le_bytes();
            bytes[at % 8] = *byte;
            self.write_entry(frame, at / 8, u64::from_le_bytes(bytes));
        }
    }

    fn scrub_frame(&self, frame: MachineFrame) {
        self.scrubbed.fetch_add(1, Ordering::Relaxed);
        for index in 0..WORDS {
            self.write_entry(frame, index, 0);
        }
    }

    fn copy_frame(&self, from: MachineFrame, to: MachineFrame) {
        for index in 0..WORDS {
            self.write_entry(to, index, self.read_entry(from, index));
        }
    }

    fn read_word(&self, frame: MachineFrame, index: usize) -> u64 {
        self.read_entry(frame, index)
    }

    fn exchange_word(&self, frame: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        self.exchange_entry(frame, index, current, new)
    }

    fn shared_word(&self, frame: MachineFrame, index: usize) -> Option<&AtomicU64> {
        self.word(frame, index)
    }
}

impl GuestMemory for Fake {
    fn read_guest(&self, from: GuestVirtual, into: &mut [u8]) -> Result<(), GuestFault> {
        self.each_page(from, into.len(), false, |frame, offset, range| {
            self.read_frame(frame, offset, &mut into[range]);
        })
    }

    fn write_guest(&self, to: GuestVirtual, from: &[u8]) -> Result<(), GuestFault> {
        self.each_page(to, from.len(), true, |frame, offset, range| {
            self.write_frame(frame, offset, &from[range]);
        })
    }

    fn word_place(&self, to: GuestVirtual) -> Option<(MachineFrame, usize)> {
        let offset = (to.bytes() % PAGE_SIZE as u64) as usize;
        let frame = self.translate(to, true).filter(|_| offset.is_multiple_of(8))?;
        Some((frame, offset / 8))
    }
}

impl Board for Fake {
    fn console_write(&self, bytes: &[u8]) {
        self.output.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend_from_slice(bytes);
    }

    fn now(&self) -> u64 {
        self.ticks()
    }

    fn guest_clock(&self) -> Option<GuestClock> {
        Some(GuestClock { start: 12_345, scale: Scale { multiplier: 1 << 31, shift: -3 } })
    }

    fn wall_clock(&self) -> Option<u64> {
        Some((7 << 32) + 11)
    }

    fn ticks(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn power_off(&self) -> ! {
        panic!("the fake machine was switched off")
    }

    fn reboot(&self) -> ! {
        panic!("the fake machine was rebooted")
    }
}
