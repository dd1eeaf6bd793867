//! AArch64 as a direct-mode guest sees it: EL1 with the MMU on, `hvc` for hypercalls, entries in VMSAv8-64 format.

use crate::{
    aarch32, bench, confined, entries, events, forbidden, made_up, registers, table_writes, traps, unseen,
};
use core::arch::asm;
use core::marker::PhantomData;
use core::mem::offset_of;
use guest_core::Architecture;
use guest_core::architecture::{
    CODE_WORDS, Death, Forbidden, ForbiddenBits, ForbiddenStart, Level, Mapping, Unseen,
};
use guest_core::bench::ArchitectureRow;
use guest_core::events::SharedLayout;
use guest_core::soak::Random;
use guest_core::tests::Test;
use penumbra_abi::Errno;
use penumbra_abi::aarch64::{HVC_IMMEDIATE, MACH2PHYS_VIRT_START};
use penumbra_abi::shared_info::ArmSharedInfo;

/// Virtual address of pseudo-physical frame 0.
pub const VIRT_BASE: u64 = 0xffff_ffc0_0000_0000;

/// What is below the kernel.
pub trait Below: 'static {
    /// Nothing is: tables are written directly.
    const NATIVE: bool;
    /// As [`Architecture::hypercall`].
    fn hypercall(number: u64, arguments: [u64; 6]) -> u64;
}

unsafe extern "C" {
    /// Where the image begins, and where what may be written begins: places that the linker script names.
    static __image_start: u8;
    static image_read_only_end: u8;
}

/// Penumbra.
pub struct Penumbra;

/// The architecture of this kernel, on `B`.
pub struct Kernel<B>(PhantomData<B>);

/// The kernel in a domain.
pub type Arm = Kernel<Penumbra>;

impl Below for Penumbra {
    const NATIVE: bool = false;

    #[inline(always)]
    fn hypercall(number: u64, arguments: [u64; 6]) -> u64 {
        let result;
        // SAFETY: `hvc` enters the hypervisor, which changes x0 and the memory that the arguments name; the trait's
        // contract says that such memory is the caller's to give.
        unsafe {
            asm!(
                "hvc #{tag}",
                tag = const HVC_IMMEDIATE,
                inout("x0") arguments[0] => result,
                inout("x1") arguments[1] => _,
                inout("x2") arguments[2] => _,
                inout("x3") arguments[3] => _,
                inout("x4") arguments[4] => _,
                inout("x5") arguments[5] => _,
                inout("x16") number => _,
                out("x17") _,
            );
        }
        result
    }
}

impl<B: Below> Architecture for Kernel<B> {
    const NATIVE: bool = B::NATIVE;
    const NAME: &'static str = "aarch64";
    const VIRT_BASE: u64 = VIRT_BASE;
    const M2P_WINDOW: u64 = MACH2PHYS_VIRT_START;
    /// The PL011 of QEMU's `virt`.
    const DEVICE_FRAME: u64 = 0x9000;
    const HARDWARE_BITS: u64 = entries::HARDWARE_BITS;
    const FORBIDDEN: &'static [Forbidden] = forbidden::FORBIDDEN;
    const WAITS: &'static [(&'static str, fn())] = forbidden::WAITS;
    const BENCHES: &'static [ArchitectureRow<Self>] = bench::rows::<B>();
    /// The counter runs at 62.5 MHz of a time in which an instruction takes a nanosecond.
    const COUNTER_UNIT: u64 = 16;

    #[inline(never)]
    fn hypercall(number: u64, arguments: [u64; 6]) -> u64 {
        B::hypercall(number, arguments)
    }

    #[inline(never)]
    fn no_hypercall(number: u64, arguments: [u64; 6]) -> u64 {
        // SAFETY: no instruction at all; the registers are those of `hypercall`, so that the code around them is the same.
        unsafe {
            asm!(
                "",
                inout("x0") arguments[0] => _,
                inout("x1") arguments[1] => _,
                inout("x2") arguments[2] => _,
                inout("x3") arguments[3] => _,
                inout("x4") arguments[4] => _,
                inout("x5") arguments[5] => _,
                inout("x16") number => _,
                out("x17") _,
            );
        }
        0
    }

    // `cargo xtask profile` finds the measured stretch by this function's address.
    #[inline(never)]
    fn counter() -> u64 {
        let value;
        // SAFETY: reads the virtual counter, which the hypervisor leaves to its guests.
        unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack, nomem)) };
        value
    }

    fn read_word(address: u64) -> u64 {
        let value;
        // SAFETY: a load from mapped memory, as the trait asks for, has no effect but on its register.
        unsafe {
            asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack, readonly, preserves_flags))
        };
        value
    }

    fn write_word(address: u64, value: u64) {
        // SAFETY: the trait's contract: no Rust object lives there.
        unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack, preserves_flags)) };
    }

    fn try_read_word(address: u64) -> Option<u64> {
        traps::try_read(address)
    }

    fn try_write_word(address: u64, value: u64) -> bool {
        traps::try_write(address, value)
    }

    fn install_traps() -> bool {
        traps::install();
        true
    }

    fn remove_traps() {
        traps::remove();
    }

    const SHARED_INFO: SharedLayout = SharedLayout {
        pending: offset_of!(ArmSharedInfo, evtchn_pending) as u64,
        mask: offset_of!(ArmSharedInfo, evtchn_mask) as u64,
    };

    fn change_word(address: u64, keep: u64, set: u64) -> u64 {
        events::change_word(address, keep, set)
    }

    fn install_events(vcpu: u64) {
        events::install(vcpu);
    }

    fn vcpu_number() -> u64 {
        events::vcpu_number()
    }

    fn mask_events(_info: u64, masked: bool) {
        events::mask(masked);
    }

    fn initialise_vcpu(vcpu: u64, root: u64, entry: events::Entry, stack: u64) -> Result<(), Errno> {
        events::initialise(vcpu, root, entry, stack)
    }

    const FORBIDDEN_STARTS: &'static [ForbiddenStart] = events::FORBIDDEN_STARTS;
    const STARTS_THAT_XEN_TAKES: &'static [ForbiddenStart] = &[];

    fn decode(_level: Level, entry: u64) -> Option<Mapping> {
        entries::decode(entry)
    }

    fn leaf(frame: u64, writable: bool) -> u64 {
        entries::leaf(frame, writable)
    }

    fn superpage(frame: u64, writable: bool) -> u64 {
        entries::superpage(frame, writable)
    }

    const FORBIDDEN_BITS: ForbiddenBits = entries::FORBIDDEN_BITS;
    const MEMORY_TYPES: &'static [u64] = entries::MEMORY_TYPES;
    const WRITABLE_BY_HARDWARE: u64 = entries::DIRTY_BIT_MODIFIER;

    fn table(frame: u64) -> u64 {
        entries::table(frame)
    }

    fn with_frame(entry: u64, frame: u64) -> u64 {
        entries::with_frame(entry, frame)
    }

    fn read_only_image() -> core::ops::Range<u64> {
        (&raw const __image_start) as u64..(&raw const image_read_only_end) as u64
    }

    fn executable(frame: u64) -> u64 {
        entries::executable(frame)
    }

    fn made_up_code(random: &mut Random) -> [u64; CODE_WORDS] {
        made_up::code(random)
    }

    fn execute(code: u64, data: u64) {
        made_up::execute(code, data);
    }

    const TESTS: &'static [Test<Self>] =
        &[("table-writes", table_writes::run::<B>), ("confined", confined::run::<B>)];
    const DEATHS: &'static [Death<Self>] = aarch32::deaths::<B>();
    const SEEN: &'static [Unseen] = unseen::SEEN;

    fn fill_registers(seed: u64) {
        registers::fill(seed);
    }

    fn changed_register(seed: u64) -> Option<&'static str> {
        registers::changed(seed)
    }

    const UNSEEN: &'static [Unseen] = unseen::UNSEEN;
    const USER_CODE: [u64; 2] = unseen::USER_CODE;

    fn user_executable(frame: u64) -> u64 {
        entries::user_executable_leaf(frame)
    }

    fn forbidden_instruction() {
        // SAFETY: writing the MMU's root is what the hypervisor traps; the value names nothing that it would load.
        unsafe { asm!("msr ttbr1_el1, xzr", "isb", options(nostack)) };
    }

    fn halt() -> ! {
        loop {
            guest_core::hypercalls::block::<Self>();
        }
    }
}
