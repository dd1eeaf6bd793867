//! What a guest kernel needs from its processor.
//!
//! Everything else in this crate is the same on both architectures and free of unsafe code: memory that isn't a Rust
//! object (page tables, the M2P, pages that are mapped and unmapped) is reached word by word through this trait, whose
//! implementations in `guest-el1` and `guest-x86` are a few instructions each.

use crate::bench::ArchitectureRow;
use crate::bench::stretches::Operation;
use crate::events::SharedLayout;
use crate::guest::Guest;
use crate::soak::Random;
use penumbra_abi::Errno;

/// Which level a page table is at: 1 maps pages, [`ROOT_LEVEL`] is the root.
pub type Level = u8;

/// Level of the root table on both architectures.
pub const ROOT_LEVEL: Level = 4;
/// Entries of a table of any level, on both architectures.
pub const TABLE_ENTRIES: usize = 512;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// 8-byte words of a sequence of made-up instructions.
pub const CODE_WORDS: usize = 8;

/// What a present page-table entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The *machine* frame that the entry leads to.
    pub frame: u64,
    /// Whether the kernel may write through it. Meaningless for an entry that leads to a table.
    pub writable: bool,
}

/// An instruction that must be refused: its name, and a function that executes it and says whether it faulted.
pub type Forbidden = (&'static str, fn() -> bool);

/// Something that a kernel does without its hypervisor: its name, how many instructions one operation takes, and a function that does
/// it so many times and says how many units of the counter that took. The first argument is the address of a page that user
/// mode may execute, with [`Architecture::USER_CODE`] at its start.
pub type Unseen = (&'static str, u64, fn(u64, u64) -> u64);

/// A function that tries to start a vCPU (number, root, stack) in a state that guests must not have.
pub type ForbiddenStart = fn(u64, u64, u64) -> Result<(), Errno>;

/// A way for a domain to die: its name, and what does it.
pub type Death<A> = (&'static str, fn(&Guest<A>));

/// A hypercall that takes a pointer: its name, and what it comes to with this one.
pub type PointerCall = (&'static str, fn(u64) -> Result<u64, Errno>);

/// Bits of an entry by number, each with its name.
pub type Bits = &'static [(u32, &'static str)];

/// Bits that no guest may choose, by the kind of entry, in one list or more. Whatever stands there in a good entry, the other value is
/// refused.
pub struct ForbiddenBits {
    /// Of entries that map a page.
    pub pages: &'static [Bits],
    /// Of entries that map a superpage.
    pub superpages: &'static [Bits],
    /// Of entries that lead to a table.
    pub tables: &'static [Bits],
}

/// A processor in direct mode: its page-table entries, and the instructions that Rust has no word for.
pub trait Architecture: Sized + 'static {
    /// Name, for the greeting.
    const NAME: &'static str;
    /// Whether nothing is below this kernel: it owns the machine, and writes its tables directly. Hypercalls other than console
    /// output and shutdown answer ENOSYS then.
    const NATIVE: bool = false;
    /// Virtual address at which pseudo-physical frame 0 is mapped (the kernel's `VIRT_BASE` note).
    const VIRT_BASE: u64;
    /// Where the hypervisor maps the machine-to-physical table.
    const M2P_WINDOW: u64;
    /// First slot of a root table that belongs to the hypervisor.
    const RESERVED_SLOTS: core::ops::Range<usize> = 256..272;
    /// Machine frame of a device that is there on the usual board: what a guest must not get at.
    const DEVICE_FRAME: u64;

    /// Whether memory can be mapped uncached, so that the control domain may want caches flushed.
    const HAS_CACHE_FLUSH: bool = false;
    /// Whether there are segments, and what else hypercalls have for them.
    const HAS_SEGMENTS: bool = false;

    /// Issues a hypercall; returns what the hypervisor put into the result register.
    ///
    /// Addresses among the arguments must be those of buffers which the caller owns for as long as the call lasts, or
    /// such that the hypervisor is bound to refuse them.
    fn hypercall(number: u64, arguments: [u64; 6]) -> u64;

    /// Does everything that [`Self::hypercall`] does but for the one instruction that enters the hypervisor, and returns 0:
    /// what is left is what a hypercall costs its caller.
    fn no_hypercall(number: u64, arguments: [u64; 6]) -> u64;

    /// A counter that grows with time. When the machine counts instructions, its units are [`Self::COUNTER_UNIT`] of those.
    fn counter() -> u64;
    /// Instructions in a unit of [`Self::counter`].
    const COUNTER_UNIT: u64;

    /// Tests that only this architecture has; each needs one domain and nothing else.
    const TESTS: &'static [crate::tests::Test<Self>] = &[];
    /// Rows of the benchmark that only this architecture has.
    const BENCHES: &'static [ArchitectureRow<Self>] = &[];

    /// Operations that only this architecture has, whose longest stretches are measured beside the others'.
    const STRETCHES: &'static [(&'static str, Operation<Self>)] = &[];

    /// Reads an aligned word of mapped memory.
    fn read_word(address: u64) -> u64;
    /// Writes an aligned word of memory in which no Rust object lives.
    fn write_word(address: u64, value: u64);
    /// Reads an aligned word, or says that the read faulted. Only after [`Self::install_traps`] returned true.
    fn try_read_word(address: u64) -> Option<u64>;
    /// Writes an aligned word, or says that the write faulted. Only after [`Self::install_traps`] returned true.
    fn try_write_word(address: u64, value: u64) -> bool;

    /// Installs fault handlers. False when the hypervisor has no way to deliver faults (yet).
    fn install_traps() -> bool;
    /// Takes the fault handlers away again: the next fault finds nobody.
    fn remove_traps();

    /// How shared memory is laid out.
    const SHARED_INFO: SharedLayout;
    /// Keeps the bits `keep` of an aligned word and sets the bits `set`, atomically; returns what it held before. No Rust object
    /// but atomics lives there.
    fn change_word(address: u64, keep: u64, set: u64) -> u64;
    /// Installs what calls [`crate::events::handle`], for the vCPU of that number, which executes this.
    fn install_events(vcpu: u64);
    /// Which vCPU executes this. Only after [`Self::install_events`].
    fn vcpu_number() -> u64;
    /// Keeps events from the vCPU that executes this, or lets them through; `info` is where its `vcpu_info` is mapped.
    fn mask_events(info: u64, masked: bool);
    /// Gives vCPU number `vcpu` its first registers: it will call `entry` with its number, on the stack that ends at `stack`, with
    /// the tables of the root in machine frame `root`.
    ///
    /// # Errors
    /// Why the hypervisor refuses.
    fn initialise_vcpu(vcpu: u64, root: u64, entry: extern "C" fn(u64) -> !, stack: u64)
    -> Result<(), Errno>;
    /// Tries to start a vCPU (number, root, stack) in states that guests must not have.
    const FORBIDDEN_STARTS: &'static [ForbiddenStart];
    /// Further ones, in which Xen starts it all the same.
    const STARTS_THAT_XEN_TAKES: &'static [ForbiddenStart];

    /// Reads an entry of a table of `level`, `None` when it isn't present.
    fn decode(level: Level, entry: u64) -> Option<Mapping>;
    /// An entry that maps machine frame `frame` for the kernel's data.
    fn leaf(frame: u64, writable: bool) -> u64;
    /// Bits of [`Self::leaf`] that the hypervisor adds, if a guest leaves them out.
    const ADDED_TO_LEAVES: u64 = 0;
    /// An entry that leads to the table in machine frame `frame`.
    fn table(frame: u64) -> u64;
    /// As [`Self::table`], for a root that leads to itself: nothing can be written through it.
    fn linear_table(frame: u64) -> u64 {
        Self::table(frame)
    }
    /// An entry of level 2 that maps the 2 MiB from machine frame `frame` on for the kernel's data.
    fn superpage(frame: u64, writable: bool) -> u64;

    /// The same for code, read-only, if that can be told apart; and whether the processor is one on which the hypervisor lets it be.
    fn superpage_of_code(frame: u64) -> (u64, bool) {
        (Self::superpage(frame, false), true)
    }
    /// Bits of entries that are refused.
    const FORBIDDEN_BITS: ForbiddenBits;
    /// What makes a page's entry one with another memory type, by exclusive or.
    const MEMORY_TYPES: &'static [u64];
    /// The bits by which hardware may make a read-only entry writable by itself, if there are such.
    const WRITABLE_BY_HARDWARE: u64 = 0;
    /// Hypercalls with pointers that only this architecture has.
    const POINTER_CALLS: &'static [PointerCall] = &[];
    /// `entry` with its frame number replaced, all attribute bits kept.
    fn with_frame(entry: u64, frame: u64) -> u64;
    /// The bits that hardware may set by itself (accessed, dirty).
    const HARDWARE_BITS: u64;

    /// Instructions that would break out of the domain, or change what its isolation rests on, if they did what they say.
    ///
    /// Only after [`Self::install_traps`] returned true.
    const FORBIDDEN: &'static [Forbidden];

    /// Instructions by which a kernel waits, if it may execute such: each must let other domains run, and come back.
    const WAITS: &'static [(&'static str, fn())] = &[];

    /// The part of the kernel's image that nobody writes to, as addresses.
    fn read_only_image() -> core::ops::Range<u64>;
    /// As [`Self::leaf`], read-only, for code.
    fn executable(frame: u64) -> u64;
    /// Instructions as a hostile kernel would make them up: privileged ones above all, then such as fault. For
    /// [`Self::execute`].
    fn made_up_code(random: &mut Random) -> [u64; CODE_WORDS];
    /// Executes the made-up instructions at `code` with `data`, the address of a page of no value, in most registers; comes
    /// back at the first fault. Only after [`Self::install_traps`] returned true.
    fn execute(code: u64, data: u64);

    /// Fills every register that is the domain's while it runs, and that this kernel doesn't live on, with what a seed says.
    fn fill_registers(seed: u64);
    /// The name of one that doesn't hold what [`Self::fill_registers`] has put there.
    fn changed_register(seed: u64) -> Option<&'static str>;

    /// Instructions that a hypervisor answers, though the answer may look as if it had not: the least instructions that one takes then.
    const SEEN: &'static [Unseen] = &[];
    /// What no hypervisor takes part in, on an architecture where there is such.
    const UNSEEN: &'static [Unseen] = &[];
    /// Code that [`Self::UNSEEN`] wants in user mode.
    const USER_CODE: [u64; 2] = [0; 2];
    /// As [`Self::leaf`], read-only, for code of user mode.
    fn user_executable(frame: u64) -> u64 {
        Self::leaf(frame, false)
    }

    /// Ways to die that only this architecture has.
    const DEATHS: &'static [Death<Self>] = &[];
    /// Does what kills the domain if nobody handles it: an instruction that no guest may execute.
    fn forbidden_instruction();
    /// Stops for ever.
    fn halt() -> !;
}

/// Which entry of a table of `level` translates `address`.
pub const fn table_index(address: u64, level: Level) -> usize {
    ((address >> (PAGE_SHIFT + 9 * (level as u32 - 1))) & 511) as usize
}

#[cfg(test)]
mod tests {
    use super::table_index;

    #[test]
    fn an_address_splits_into_nine_bits_a_level() {
        let address = 0xffff_8765_4321_0000;
        let rebuilt =
            (1..=4).fold(0, |sum, level| sum | (table_index(address, level) as u64) << (3 + 9 * level));
        assert_eq!(rebuilt, address & 0xffff_ffff_f000);
    }
}
