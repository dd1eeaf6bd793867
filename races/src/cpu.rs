//! A machine with as many CPUs as loom has threads, one translation cache, and memory that knows whether it is clean.
//!
//! Of the machine's traits only what the frame table calls does anything: flushes and scrubbing.

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::fake::{Fake, FakeContext, FakeFormat};
use hyp_core::machine::{
    Board, FlushScope, FrameMemory, GuestFault, GuestMemory, Machine, Mmu, SharedInfoLayout,
};
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::address::DomainId;
use crate::frame::allocator::words;
use crate::frame::{BootMemory, FrameRecord, FrameTable, Memory};
use crate::sync::atomic::AtomicU64 as Word;

/// The first frame of RAM.
pub const FIRST: u64 = 512;

/// The machine.
pub struct Cpus {
    /// One bit a frame: some CPU's translation cache lets a guest write to it.
    writable: AtomicU64,
    /// One bit a frame: a guest has written to it, and nobody has scrubbed it since.
    dirty: AtomicU64,
}

/// A machine and its frame table, as long as the process lives: a model leaks a few hundred bytes each time.
pub struct World {
    /// The machine.
    pub machine: Cpus,
    /// Its frames.
    pub frames: FrameTable,
}

impl World {
    /// A world of so many frames, all free.
    pub fn new(frames: u64) -> &'static Self {
        let zeros =
            |count: u64| -> &'static [Word] { (0..count).map(|_| Word::new(0)).collect::<Vec<_>>().leak() };
        let world: &'static Self = Box::leak(Box::new(Self {
            machine: Cpus { writable: AtomicU64::new(0), dirty: AtomicU64::new(0) },
            frames: FrameTable::new(),
        }));
        let records = (0..frames).map(|_| FrameRecord::new()).collect::<Vec<_>>().leak();
        let mut boot = BootMemory::new();
        boot.add_ram(FIRST << 12, (FIRST + frames) << 12).expect("one range");
        let first = frame(0);
        let memory =
            Memory { first, records, free_map: zeros(words(frames as usize) as u64), m2p: zeros(frames) };
        world.frames.initialise(memory, &boot, !0);
        // Every atomic is made before there are other threads.
        for index in 0..frames {
            let _ = (world.frames.hold(frame(index)), world.frames.usage(frame(index)));
        }
        let first = world.allocate(ONE).expect("a free frame");
        if world.frames.unclaim(first) {
            world.frames.put(first, &world.machine);
        }
        let _ = (world.frames.owned(ONE), world.frames.owned(TWO), world.frames.scrub_ticks());
        world
    }

    /// Gives a free frame to `owner`, with no limit.
    pub fn allocate(&self, owner: DomainId) -> Option<MachineFrame> {
        self.frames.allocate(owner, 64, &self.machine)
    }

    /// A guest writes to a frame through a mapping that it just made: the translation is cached.
    pub fn use_mapping(&self, frame: MachineFrame) {
        self.machine.writable.fetch_or(bit(frame), Ordering::SeqCst);
        self.machine.dirty.fetch_or(bit(frame), Ordering::SeqCst);
    }

    /// Whether some CPU could still write to the frame by a translation that it has cached.
    pub fn is_cached_writable(&self, frame: MachineFrame) -> bool {
        self.machine.writable.load(Ordering::SeqCst) & bit(frame) != 0
    }

    /// Whether a guest's bytes are in the frame.
    pub fn is_dirty(&self, frame: MachineFrame) -> bool {
        self.machine.dirty.load(Ordering::SeqCst) & bit(frame) != 0
    }
}

/// Two domains.
pub const ONE: DomainId = DomainId::new(1);
/// The other.
pub const TWO: DomainId = DomainId::new(2);

/// Frame number `index` of the RAM.
pub fn frame(index: u64) -> MachineFrame {
    MachineFrame::new(FIRST + index).expect("a small number")
}

fn bit(frame: MachineFrame) -> u64 {
    1 << (frame.number() - FIRST)
}

impl Mmu for Cpus {
    type Table = MachineFrame;

    fn table(&self, table: MachineFrame) -> Option<MachineFrame> {
        Some(table)
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

    fn read_entry(&self, _: MachineFrame, _: usize) -> u64 {
        0
    }
    fn write_entry(&self, _: MachineFrame, _: usize, _: u64) {}
    fn exchange_entry(&self, _: MachineFrame, _: usize, _: u64, _: u64) -> Result<(), u64> {
        Ok(())
    }
    fn exchange_in(&self, _: MachineFrame, _: usize, _: u64, _: u64) -> Result<(), u64> {
        Ok(())
    }
    fn reserved_entry(&self, _: usize) -> u64 {
        0
    }
    fn load_roots(&self, _: MachineFrame, _: Option<MachineFrame>) {}
    fn flush(&self, _: FlushScope) {
        self.writable.store(0, Ordering::SeqCst);
    }
}

impl FrameMemory for Cpus {
    fn read_frame(&self, _: MachineFrame, _: usize, _: &mut [u8]) {}
    fn write_frame(&self, _: MachineFrame, _: usize, _: &[u8]) {}
    fn scrub_frame(&self, frame: MachineFrame) {
        self.dirty.fetch_and(!bit(frame), Ordering::SeqCst);
    }
    fn copy_frame(&self, _: MachineFrame, _: MachineFrame) {}
    fn read_word(&self, _: MachineFrame, _: usize) -> u64 {
        0
    }
    fn exchange_word(&self, _: MachineFrame, _: usize, _: u64, _: u64) -> Result<(), u64> {
        Ok(())
    }
    fn shared_word(&self, _: MachineFrame, _: usize) -> Option<&std::sync::atomic::AtomicU64> {
        None
    }
}

impl GuestMemory for Cpus {
    fn read_guest(&self, _: GuestVirtual, _: &mut [u8]) -> Result<(), GuestFault> {
        Err(GuestFault)
    }
    fn write_guest(&self, _: GuestVirtual, _: &[u8]) -> Result<(), GuestFault> {
        Err(GuestFault)
    }
}

impl Board for Cpus {
    fn console_write(&self, _: &[u8]) {}
    fn now(&self) -> u64 {
        0
    }
    fn ticks(&self) -> u64 {
        0
    }
    fn power_off(&self) -> ! {
        panic!("switched off")
    }
    fn reboot(&self) -> ! {
        panic!("rebooted")
    }
}

impl Machine for Cpus {
    type Format = FakeFormat;
    type Context = FakeContext;
    const M2P_WINDOW: GuestVirtual = GuestVirtual::new(0);
    const PLATFORM: &'static str = "loom";
    const ASSISTS: u64 = 0;
    const SHARED_INFO: SharedInfoLayout = Fake::SHARED_INFO;
    const ELF_MACHINE: u16 = Fake::ELF_MACHINE;

    fn root_of(_: GuestVirtual, _: Option<MachineFrame>, _: Option<MachineFrame>) -> Option<MachineFrame> {
        None
    }
}
