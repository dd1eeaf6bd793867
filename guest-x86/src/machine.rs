//! x86-64 as a direct-mode guest sees it: ring 3, `syscall` for hypercalls, entries of the hardware's own format.

use crate::{
    absent_entries, bench, death, descriptor_stretches, descriptors, entries, events, forbidden, interface,
    late_traps, made_up, registers, table_writes, timers, traps, user_mode,
};
use core::arch::asm;
use core::mem::offset_of;
use guest_core::Architecture;
use guest_core::architecture::{
    CODE_WORDS, Death, Forbidden, ForbiddenBits, ForbiddenStart, Level, Mapping, PointerCall,
};
use guest_core::bench::ArchitectureRow;
use guest_core::bench::stretches::Operation;
use guest_core::events::SharedLayout;
use guest_core::hypercalls::call;
use guest_core::soak::Random;
use guest_core::tests::Test;
use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::shared_info::X86SharedInfo;
use penumbra_abi::x86_64::MACH2PHYS_VIRT_START;

/// Virtual address of pseudo-physical frame 0.
pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

unsafe extern "C" {
    /// Where the image begins, and where what may be written begins: places that the linker script names.
    static image_start: u8;
    static image_read_only_end: u8;
}

/// The architecture of this kernel.
pub struct X86;

impl Architecture for X86 {
    const NAME: &'static str = "x86-64";
    const VIRT_BASE: u64 = VIRT_BASE;
    const M2P_WINDOW: u64 = MACH2PHYS_VIRT_START;
    /// The local APIC.
    const DEVICE_FRAME: u64 = 0xfee00;
    const HARDWARE_BITS: u64 = entries::HARDWARE_BITS;
    const HAS_CACHE_FLUSH: bool = true;
    const HAS_SEGMENTS: bool = true;
    const FORBIDDEN: &'static [Forbidden] = forbidden::FORBIDDEN;

    const TESTS: &'static [Test<Self>] = &[
        ("table-writes", table_writes::run),
        ("descriptors", descriptors::run),
        ("absent-entries", absent_entries::run),
        ("late-traps", late_traps::run),
        ("user-mode", user_mode::run),
        ("timers", timers::run),
        ("interface", interface::run),
    ];
    const BENCHES: &'static [ArchitectureRow<Self>] = bench::ROWS;
    /// Ring 3 has to reach it.
    const ADDED_TO_LEAVES: u64 = entries::USER;
    const DEATHS: &'static [Death<Self>] = death::DEATHS;
    const STRETCHES: &'static [(&'static str, Operation<Self>)] = &[
        ("multicall-trap-table", descriptor_stretches::trap_tables),
        ("multicall-set-gdt", descriptor_stretches::known_tables),
        ("multicall-set-gdt-anew", descriptor_stretches::new_tables),
        ("multicall-set-ldt-anew", descriptor_stretches::new_local_tables),
        ("set-gdt-then-superpage", descriptor_stretches::global_table_then_superpage),
        ("set-ldt-then-superpage", descriptor_stretches::local_table_then_superpage),
        ("breakpoint-4-emptied-tables", late_traps::measured_breakpoint),
        ("page-fault-4-emptied-tables", late_traps::measured_page_fault),
    ];
    /// QEMU's time-stamp counter counts nanoseconds.
    const COUNTER_UNIT: u64 = 1;

    #[inline(never)]
    fn hypercall(number: u64, arguments: [u64; 6]) -> u64 {
        let result;
        // SAFETY: `syscall` enters the hypervisor, which changes rax, rcx, r11 and the memory that the arguments name;
        // the trait's contract says that such memory is the caller's to give.
        unsafe {
            asm!(
                "syscall",
                inout("rax") number => result,
                inout("rdi") arguments[0] => _,
                inout("rsi") arguments[1] => _,
                inout("rdx") arguments[2] => _,
                inout("r10") arguments[3] => _,
                inout("r8") arguments[4] => _,
                inout("r9") arguments[5] => _,
                out("rcx") _,
                out("r11") _,
            );
        }
        result
    }

    #[inline(never)]
    fn no_hypercall(number: u64, arguments: [u64; 6]) -> u64 {
        // SAFETY: no instruction at all; the registers are those of `hypercall`, so that the code around them is the same.
        unsafe {
            asm!(
                "",
                inout("rax") number => _,
                inout("rdi") arguments[0] => _,
                inout("rsi") arguments[1] => _,
                inout("rdx") arguments[2] => _,
                inout("r10") arguments[3] => _,
                inout("r8") arguments[4] => _,
                inout("r9") arguments[5] => _,
                out("rcx") _,
                out("r11") _,
            );
        }
        0
    }

    // `cargo xtask profile` finds the measured stretch by this function's address.
    #[inline(never)]
    fn counter() -> u64 {
        // SAFETY: reads a counter; neither hypervisor forbids it.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    fn read_word(address: u64) -> u64 {
        let value;
        // SAFETY: a load from mapped memory, as the trait asks for, has no effect but on its register.
        unsafe {
            asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack, readonly, preserves_flags))
        };
        value
    }

    fn write_word(address: u64, value: u64) {
        // SAFETY: the trait's contract: no Rust object lives there.
        unsafe { asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack, preserves_flags)) };
    }

    fn try_read_word(address: u64) -> Option<u64> {
        traps::try_read(address)
    }

    fn try_write_word(address: u64, value: u64) -> bool {
        traps::try_write(address, value)
    }

    fn install_traps() -> bool {
        traps::install()
    }

    fn remove_traps() {
        traps::remove();
    }

    const SHARED_INFO: SharedLayout = SharedLayout {
        pending: offset_of!(X86SharedInfo, evtchn_pending) as u64,
        mask: offset_of!(X86SharedInfo, evtchn_mask) as u64,
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

    fn mask_events(info: u64, masked: bool) {
        events::mask(info, masked);
    }

    fn initialise_vcpu(vcpu: u64, root: u64, entry: events::Entry, stack: u64) -> Result<(), Errno> {
        events::initialise(vcpu, root, entry, stack)
    }

    const FORBIDDEN_STARTS: &'static [ForbiddenStart] = events::FORBIDDEN_STARTS;
    const STARTS_THAT_XEN_TAKES: &'static [ForbiddenStart] = events::STARTS_THAT_XEN_TAKES;

    fn decode(_level: Level, entry: u64) -> Option<Mapping> {
        entries::decode(entry)
    }

    fn leaf(frame: u64, writable: bool) -> u64 {
        entries::leaf(frame, writable)
    }

    fn superpage(frame: u64, writable: bool) -> u64 {
        entries::superpage(frame, writable)
    }

    fn superpage_of_code(frame: u64) -> (u64, bool) {
        (entries::superpage_of_code(frame), entries::is_code_allowed_in_superpages())
    }

    const FORBIDDEN_BITS: ForbiddenBits = entries::FORBIDDEN_BITS;
    const MEMORY_TYPES: &'static [u64] = entries::MEMORY_TYPES;
    const POINTER_CALLS: &'static [PointerCall] = &[
        ("set_trap_table", |p| call::<Self>(number::SET_TRAP_TABLE, &[p])),
        ("set_gdt", |p| call::<Self>(number::SET_GDT, &[p, 1])),
        ("set_gdt, large", |p| call::<Self>(number::SET_GDT, &[p, 512 * 14])),
        ("callback_op register", |p| call::<Self>(number::CALLBACK_OP, &[0, p])),
        ("callback_op unregister", |p| call::<Self>(number::CALLBACK_OP, &[1, p])),
    ];

    fn table(frame: u64) -> u64 {
        entries::table(frame)
    }

    fn linear_table(frame: u64) -> u64 {
        const WRITABLE: u64 = 1 << 1;
        entries::table(frame) & !WRITABLE
    }

    fn with_frame(entry: u64, frame: u64) -> u64 {
        entries::with_frame(entry, frame)
    }

    fn read_only_image() -> core::ops::Range<u64> {
        (&raw const image_start) as u64..(&raw const image_read_only_end) as u64
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

    fn fill_registers(seed: u64) {
        registers::fill(seed);
    }

    fn changed_register(seed: u64) -> Option<&'static str> {
        registers::changed(seed)
    }

    fn forbidden_instruction() {
        // SAFETY: an undefined instruction; it changes nothing.
        unsafe { asm!("ud2", options(nostack, nomem)) };
    }

    fn halt() -> ! {
        loop {
            guest_core::hypercalls::block::<Self>();
        }
    }
}
