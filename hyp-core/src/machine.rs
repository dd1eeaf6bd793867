//! What the core asks of a machine.
//!
//! Five small traits, and [`Machine`] that binds them together. They are implemented three times: by `hyp-el2`, by
//! `hyp-x86`, and by the fake machine of the tests, whose table format resembles neither. The core never names
//! an architecture: what differs between them is said here, as a constant or a method.

use core::ops::Range;
use core::sync::atomic::AtomicU64;

use penumbra_abi::errno::Errno;

use crate::address::{GuestVirtual, MachineFrame};
use crate::domain::vcpu::Vcpu;
use crate::hypercall::{Arguments, Call, Outcome};
use crate::time::published::GuestClock;

pub use crate::context::{Context, GuestStart, Roots, StartOfDay};

/// One kind of machine.
///
/// The implementor is a zero-sized name for the hardware; methods take `&self` and are safe on many CPUs at once.
pub trait Machine: Mmu + FrameMemory + GuestMemory + Board + Sized + Send + Sync + 'static {
    /// How page tables are laid out.
    type Format: PageTableFormat;
    /// A virtual CPU's registers.
    type Context: Context;

    /// Where a guest finds the read-only machine-to-physical table: an array of 8-byte pseudo-physical frame
    /// numbers, one for each machine frame from 0.
    const M2P_WINDOW: GuestVirtual;
    /// The architecture's name in Xen's ABI (`start_info.magic`, capabilities).
    const PLATFORM: &'static str;
    /// The architecture's number in ELF files (`e_machine`, the ELF specification's `EM_...`): kernels of others are refused.
    const ELF_MACHINE: u16;
    /// How the page is laid out that a domain shares with the hypervisor.
    const SHARED_INFO: SharedInfoLayout;
    /// What an entry of the M2P holds for a frame that has no pseudo-physical number.
    const INVALID_M2P_ENTRY: u64 = !0;

    /// The kinds of assistance that domains may switch on, one bit each (`VMASST_TYPE_*`, see [`crate::domain::Domain::assists`]).
    const ASSISTS: u64;
    /// Free memory that the domain builder maps after a new domain's boot stack, at least: bytes. A guest's kernel counts on
    /// Xen's 512 KiB (`xen.h`, "Start-of-day memory layout"); only a test's machine has less.
    const START_SLACK: u64 = 512 << 10;
    /// What the end of the region that is mapped at the start is rounded up to: bytes, Xen's 4 MiB.
    const START_ALIGNMENT: u64 = 4 << 20;

    /// Where in the shared-info page a guest says how many entries of its P2M are valid, if there is such a place on this architecture.
    const SHARED_INFO_MAX_PFN: Option<usize> = None;

    /// Where in a `vcpu_info` a guest reads the time ([`crate::time::published`]), if there is such a place on this architecture: offset in
    /// bytes, a multiple of 8.
    const VCPU_TIME: Option<usize> = None;
    /// Where in the shared-info page a guest reads the time of day: as above.
    const WALL_CLOCK: Option<usize> = None;

    /// Fills a frame with code by which kernels issue hypercalls, where an architecture has such a page: pieces of 32 bytes, each for the
    /// hypercall of its number. Elsewhere the frame stays as it is.
    fn write_hypercall_page(&self, frame: MachineFrame) {
        let _ = frame;
    }

    /// Which of a vCPU's roots translates `address` for the guest's kernel; `None` if the address is none
    /// (not canonical), or that root isn't set.
    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        user: Option<MachineFrame>,
    ) -> Option<MachineFrame>;

    /// Carries out a hypercall that only this architecture has, or refuses it.
    ///
    /// # Errors
    /// As any hypercall; ENOSYS for a number that isn't the architecture's either.
    fn hypercall(call: &Call<'_, Self>, number: u64, arguments: &Arguments) -> Outcome {
        let _ = (call, number, arguments);
        Err(Errno::ENOSYS.into())
    }

    /// Takes the segment descriptors with which `vcpu`, which doesn't run, is to start: judged, and held like any others of its. That can't
    /// be cut in pieces, and costs no more of the budget than [`Self::start_cost`].
    ///
    /// # Errors
    /// EINVAL: they are no good.
    fn start_descriptors(
        call: &Call<'_, Self>,
        vcpu: &Vcpu<Self>,
        start: &GuestStart<Self>,
    ) -> Result<(), Errno> {
        let _ = (call, vcpu, start);
        Ok(())
    }

    /// What [`Self::start_descriptors`] may cost.
    fn start_cost(start: &GuestStart<Self>) -> u32 {
        let _ = start;
        0
    }

    /// Installs a table of segment descriptors for the vCPU that asks: `entries` of them from `base` on, none to take it away.
    ///
    /// # Errors
    /// The arguments are no good; ENOSYS on an architecture without such tables.
    fn set_local_descriptors(call: &Call<'_, Self>, base: GuestVirtual, entries: u32) -> Result<(), Errno> {
        let _ = (call, base, entries);
        Err(Errno::ENOSYS)
    }
}

/// The parts of a shared-info page (`struct shared_info`) and of a `struct vcpu_info`. Offsets and sizes in bytes, multiples of 8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedInfoLayout {
    /// How many `vcpu_info` there are, at the page's start. vCPUs beyond them register places of their own.
    pub vcpu_infos: usize,
    /// Size of one.
    pub vcpu_info_bytes: usize,
    /// Whether `evtchn_upcall_mask` masks upcalls. Otherwise a flag in the guest's processor does.
    pub has_upcall_mask: bool,
    /// Offset of the bits that say which channels are pending.
    pub pending: usize,
    /// Offset of the bits that say which channels are masked.
    pub mask: usize,
}

/// Which level a table is at: 1 maps pages, [`PageTableFormat::LEVELS`] is the root.
pub type Level = u8;

/// A page-table entry in neutral form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The MMU takes a fault here, whatever the other bits say.
    Absent,
    /// Leads to a table one level down.
    Table(MachineFrame),
    /// Maps memory.
    Leaf(Leaf),
}

/// A mapping of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The first frame that is mapped.
    pub frame: MachineFrame,
    /// Level of the table in which the leaf stands: 1 for a single page, more for a superpage.
    pub level: Level,
    /// Whether anyone at all could write through this entry, by any bit that the hardware might honour
    /// (a dirty-bit modifier counts as writable).
    pub writable: bool,
}

/// Why an entry that a guest proposes may not stand in a table, whatever it leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryFault {
    /// A bit that is reserved, or that guests may not choose, is set.
    ForbiddenBits(u64),
    /// The entry's kind can't stand at this level (for instance a leaf at the root).
    WrongLevel,
}

/// The layout of page tables: levels, entries, and how an entry is read and written.
///
/// Entries are 8 bytes. All functions are total: any `u64` may be passed, no level panics.
pub trait PageTableFormat {
    /// Level of the root table. Tables of level 1 hold only leaves.
    const LEVELS: Level;

    /// log2 of the number of entries in a table of `level` (1 to `LEVELS`; at most 9).
    fn index_bits(level: Level) -> u32;

    /// The part of a root table, as a range of indices, that belongs to the hypervisor: guests can't write there.
    fn reserved_root_slots() -> Range<usize>;

    /// Reads an entry as the MMU would. For entries that were admitted before.
    fn decode(level: Level, raw: u64) -> Entry;

    /// Judges an entry that a guest proposes for a table of `level`.
    ///
    /// Returns the bits that shall stand in memory (some may be forced, as the user bit on x86) with their
    /// meaning. Whether the frame may be reached at all isn't judged here.
    ///
    /// # Errors
    /// An [`EntryFault`] when no frame whatever could make this entry acceptable.
    fn admit(level: Level, raw: u64) -> Result<(u64, Entry), EntryFault>;

    /// An entry, as the domain builder writes it into a guest's first tables: admitted by [`Self::admit`], a kernel mapping,
    /// accessed (and dirty, where there is such a bit), executable.
    fn encode(level: Level, entry: Entry) -> u64;

    /// Whether nothing below this entry of a root can be written through it, whatever stands there: only then may it lead to the
    /// root itself (a *linear* table, by which a guest reads its own tables).
    fn is_read_only_table(raw: u64) -> bool {
        let _ = raw;
        false
    }

    /// A present leaf of level 1, as it stands but for the right to write.
    fn with_write(raw: u64, writable: bool) -> u64;

    /// What stands in place of an entry that leads to a table while that table is unhooked: [`Self::decode`] says absent, whoever
    /// goes there in a guest takes a fault; as little else as possible is changed.
    fn hidden(raw: u64) -> u64;

    /// An entry of level 1 for a granted frame: data, never executable where that can be said, accessed and dirty. User mode may use it if
    /// `application`; the lowest bits of `available` go into bits that are the guest's own, as many as there are.
    fn granted(leaf: Leaf, application: bool, available: u32) -> u64 {
        let _ = (application, available);
        Self::encode(1, Entry::Leaf(leaf))
    }

    /// The bits of an entry that hardware may change by itself (accessed, dirty), which an update that
    /// "preserves A/D" carries over.
    fn hardware_bits(level: Level) -> u64;

    /// As [`Self::admit`], of an entry of level 1 that maps a page; `None` of any other, and if it isn't admitted.
    #[inline(always)]
    fn admit_page(raw: u64) -> Option<(u64, Leaf)> {
        let (admitted, entry) = Self::admit(1, raw).ok()?;
        if let Entry::Leaf(leaf) = entry { Some((admitted, leaf)) } else { None }
    }

    /// What [`Self::decode`] says of two entries of level 1, if both map a page, and the same.
    #[inline(always)]
    fn same_page(first: u64, second: u64) -> Option<(Leaf, Leaf)> {
        match (Self::decode(1, first), Self::decode(1, second)) {
            (Entry::Leaf(was), Entry::Leaf(is)) if was.frame == is.frame => Some((was, is)),
            _ => None,
        }
    }

    /// Which entry of a table of `level` translates `address`.
    fn index(address: GuestVirtual, level: Level) -> usize {
        let shift = crate::address::PAGE_SHIFT
            .saturating_add((1..level).map(Self::index_bits).fold(0, u32::saturating_add));
        let mask = 1u64.checked_shl(Self::index_bits(level)).unwrap_or(0).wrapping_sub(1);
        (address.bytes().checked_shr(shift).unwrap_or(0) & mask) as usize
    }

    /// How many frames one leaf in a table of `level` maps: 1 at level 1, the entries of a table below at level 2, and so on.
    fn span(level: Level) -> u64 {
        let bits = (1..level).map(Self::index_bits).fold(0, u32::saturating_add);
        1u64.checked_shl(bits).unwrap_or(0)
    }

    /// How many entries a table of `level` has.
    fn entries(level: Level) -> usize {
        1usize.checked_shl(Self::index_bits(level)).unwrap_or(0)
    }
}

/// How much of the translation caches has to forget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushScope {
    /// One page of the address space that is loaded now, on this CPU.
    Page(GuestVirtual),
    /// All of the running guest's translations, on this CPU.
    Local,
    /// Everything any guest has cached, on every CPU, walks in progress and cached table entries included.
    Everything,
}

/// The memory-management unit.
pub trait Mmu {
    /// A table that was found once, to be read and written many times.
    type Table: Copy;

    /// Finds a table; `None` if the frame isn't RAM.
    fn table(&self, table: MachineFrame) -> Option<Self::Table>;

    /// As [`Self::read_entry`].
    fn read_in(&self, table: Self::Table, index: usize) -> u64;

    /// Whether `count` entries from `first` on are all zero, so that none of them leads anywhere.
    fn are_zero(&self, table: Self::Table, first: usize, count: usize) -> bool {
        (first..first.saturating_add(count)).all(|index| self.read_in(table, index) == 0)
    }

    /// As [`Self::write_entry`].
    fn write_in(&self, table: Self::Table, index: usize, raw: u64);

    /// Writes a word of a frame that is no table, found in the same way, and held by the caller as *writable*: atomically, as data to which
    /// nothing else is ordered.
    fn write_data_in(&self, frame: Self::Table, index: usize, word: u64);

    /// Reads an entry of a table, atomically. `index` is below 512.
    fn read_entry(&self, table: MachineFrame, index: usize) -> u64;

    /// Writes an entry of a table, atomically, and makes it visible to the table walkers of every CPU.
    fn write_entry(&self, table: MachineFrame, index: usize, raw: u64);

    /// Writes `new` if the entry still holds `current`.
    ///
    /// # Errors
    /// What the entry holds instead (hardware may have set an accessed or dirty bit).
    fn exchange_entry(&self, table: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64>;

    /// As [`Self::exchange_entry`], with its errors.
    fn exchange_in(&self, table: Self::Table, index: usize, current: u64, new: u64) -> Result<(), u64>;

    /// What stands in a reserved slot of every guest's root: the hypervisor's own entry (for one, the M2P window).
    fn reserved_entry(&self, slot: usize) -> u64;

    /// Makes the running vCPU use these roots from now on: `kernel` for the guest kernel's mode, `user` for its user
    /// mode (on AArch64: TTBR1 and TTBR0). They are validated, and the core holds references for as long as they are
    /// loaded. The old roots' references are dropped after this returns.
    fn load_roots(&self, kernel: MachineFrame, user: Option<MachineFrame>);

    /// Makes cached translations disappear. When this returns, none remain.
    fn flush(&self, scope: FlushScope);

    /// Writes back and empties the data caches of every CPU; `false` where no guest can have use for that, since all that it maps is
    /// cached and coherent.
    fn write_back_caches(&self) -> bool {
        false
    }
}

/// The content of machine frames, which the hypervisor reaches without any guest's help.
///
/// Offsets are bytes from the start of the frame; a range that leaves the frame is cut off at its end. Frames that aren't RAM
/// read as zero and swallow writes.
pub trait FrameMemory {
    /// Copies bytes out of a frame.
    fn read_frame(&self, frame: MachineFrame, offset: usize, into: &mut [u8]);
    /// Copies bytes into a frame.
    fn write_frame(&self, frame: MachineFrame, offset: usize, from: &[u8]);
    /// Fills a frame with zeros, and makes sure that no cache holds anything else (clean to the point of coherency).
    fn scrub_frame(&self, frame: MachineFrame);
    /// Copies a whole frame.
    fn copy_frame(&self, from: MachineFrame, to: MachineFrame);
    /// Reads the 8-byte word `index` (below 512) of a frame, atomically: memory that a guest changes at the same time.
    fn read_word(&self, frame: MachineFrame, index: usize) -> u64;
    /// Writes `new` if the word still holds `current`, atomically and ordered before and after everything else. Unlike
    /// [`Mmu::exchange_entry`] it is for data: no table walker reads it.
    ///
    /// # Errors
    /// What the word holds instead.
    fn exchange_word(&self, frame: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64>;
    /// The 8-byte word number `index` (below 512) of a frame that guests may change at the same time; `None` if the frame isn't RAM. The
    /// caller holds the frame as *writable* for as long as it uses the word.
    fn shared_word(&self, frame: MachineFrame, index: usize) -> Option<&AtomicU64>;
    /// Two words of one frame, as [`Self::shared_word`].
    fn shared_words(&self, frame: MachineFrame, indices: [usize; 2]) -> Option<[&AtomicU64; 2]> {
        let [first, second] = indices;
        Some([self.shared_word(frame, first)?, self.shared_word(frame, second)?])
    }
}

/// The guest's address can't be used as asked, under the guest's own rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestFault;

/// Copies between the hypervisor and the running guest's virtual memory, under the rights of the guest's kernel.
pub trait GuestMemory {
    /// Copies `into.len()` bytes from the guest.
    ///
    /// # Errors
    /// [`GuestFault`] when any byte isn't readable by the guest; what was copied before is lost.
    fn read_guest(&self, from: GuestVirtual, into: &mut [u8]) -> Result<(), GuestFault>;

    /// Copies `from` to the guest. Never writes to a frame that isn't of type *writable*.
    ///
    /// # Errors
    /// [`GuestFault`] when any byte isn't writable by the guest; bytes before it may have been written.
    fn write_guest(&self, to: GuestVirtual, from: &[u8]) -> Result<(), GuestFault>;

    /// Where the 8-byte word at `to` lies, if the tables let the guest write it at this moment: the frame, and the word's number in it. For
    /// several writes, which may then hold the frame from one to the next; nothing is held yet, and the frame's owner and type
    /// haven't been asked. `None`: [`Self::write_guest`] is to write it, or to refuse.
    #[inline(always)]
    fn word_place(&self, _to: GuestVirtual) -> Option<(MachineFrame, usize)> {
        None
    }
}

/// The rest of the board: console, time, power.
pub trait Board {
    /// Sends bytes to the serial line, waiting while it is full. A newline is one byte `\n`.
    fn console_write(&self, bytes: &[u8]);
    /// Nanoseconds since boot, never going back.
    fn now(&self) -> u64;
    /// The counter that guests read by themselves, by which [`Self::now`] counts, too; `None` where they have no need of it.
    fn guest_clock(&self) -> Option<GuestClock> {
        None
    }
    /// The time of day when [`Self::now`] was zero: seconds since 1970; `None` if nobody knows.
    fn wall_clock(&self) -> Option<u64> {
        None
    }
    /// Asks for a tick no later than `deadline` (as [`Self::now`] counts), if that can be had: by default there is the next
    /// ordinary tick. Each tick comes to [`crate::Hypervisor::tick`].
    fn interrupt_by(&self, _deadline: u64) {}
    /// Executed instructions or cycles: the finest counter there is, in its own unit, for benchmarks.
    fn ticks(&self) -> u64;
    /// Switches the machine off.
    fn power_off(&self) -> !;
    /// Starts the machine anew.
    fn reboot(&self) -> !;
}
