//! What the hypervisor says of itself, by hypercall and by `cpuid`; and the time that it publishes.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_core::events::Events;
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of_mut, call};
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::hypercall::{PHYSDEV_OP, TMEM_OP, XEN_VERSION};
use penumbra_abi::physdev::PHYSDEVOP_SET_IOPL;
use penumbra_abi::shared_info::{VcpuTimeInfo, X86SharedInfo, X86VcpuInfo};
use penumbra_abi::version::{
    FeatureInfo, XENFEAT_GNTTAB_MAP_AVAIL_BITS, XENFEAT_MMU_PT_UPDATE_PRESERVE_AD, XENVER_CHANGESET,
    XENVER_COMMANDLINE, XENVER_COMPILE_INFO, XENVER_GET_FEATURES, XENVER_GUEST_HANDLE, XENVER_PAGESIZE,
};

use crate::machine::X86;

pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    versions(check);
    cpuid(check);
    time(guest, check);
    let mut level = 4u32;
    let refused = call::<X86>(PHYSDEV_OP, &[PHYSDEVOP_SET_IOPL, address_of_mut(&mut level)]);
    check.refused("there are four levels of port access", refused, &[Errno::EINVAL]);
    level = 1;
    let done = call::<X86>(PHYSDEV_OP, &[PHYSDEVOP_SET_IOPL, address_of_mut(&mut level)]);
    check.done("the kernel may access ports", done);
    check.refused("a hypercall that is gone", call::<X86>(TMEM_OP, &[0]), &[Errno::ENOSYS]);
}

fn versions(check: &mut Check<X86>) {
    let mut buffer = [0xa5u8; 1024];
    for operation in [XENVER_COMPILE_INFO, XENVER_CHANGESET, XENVER_GUEST_HANDLE, XENVER_COMMANDLINE] {
        let result = call::<X86>(XEN_VERSION, &[operation, address_of_mut(&mut buffer)]);
        check.that("xen_version fills a buffer", result == Ok(0));
    }
    check.that("pages of 4096 bytes", call::<X86>(XEN_VERSION, &[XENVER_PAGESIZE, 0]) == Ok(4096));
    let mut info = FeatureInfo::default();
    check.done("features", call::<X86>(XEN_VERSION, &[XENVER_GET_FEATURES, address_of_mut(&mut info)]));
    let needed = 1 << XENFEAT_MMU_PT_UPDATE_PRESERVE_AD | 1 << XENFEAT_GNTTAB_MAP_AVAIL_BITS;
    check.that("without these Linux doesn't start", info.submap & needed == needed);
}

/// `cpuid` behind the prefix that makes the hypervisor answer.
pub fn emulated_cpuid(leaf: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u64, u32, u32);
    // SAFETY: the hypervisor executes `cpuid` and goes on behind it; rbx, which may not be an operand, is kept by hand.
    unsafe {
        asm!(
            "xchg {b}, rbx",
            "ud2", ".ascii \"xen\"", "cpuid",
            "xchg {b}, rbx",
            b = inout(reg) 0u64 => b,
            inout("eax") leaf => a, inout("ecx") 0u32 => c, out("edx") d,
            options(nostack)
        );
    }
    [a, b as u32, c, d]
}

fn cpuid(check: &mut Check<X86>) {
    let [last, b, c, d] = emulated_cpuid(0x4000_0000);
    check.that("XenVMMXenVMM", [b, c, d] == [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e]);
    check.that("leaves up to that of PV guests", last >= 0x4000_0005);
    check.that("version 4.17", emulated_cpuid(0x4000_0001)[0] == 0x0004_0011);
    let elsewhere = |base| emulated_cpuid(base)[1] == 0x566e_6558;
    check.that("and nowhere else", !(0x4000_0100..0x4001_0000).step_by(0x100).any(elsewhere));
    let [_, _, c, d] = emulated_cpuid(1);
    // A domain that has the devices may have memory-type ranges (bit 12), too.
    check.that("no superpages, no global pages, no fast entry", d & 0x2_2808 == 0);
    check.that("no x2APIC, no virtual machines", c & 0x20_0020 == 0);
    check.that("a hypervisor", c >> 31 == 1);
    check.that("no pages of 1 GiB, no virtual machines", emulated_cpuid(0x8000_0001)[3] & 1 << 26 == 0);
    check.that("the width of machine addresses", emulated_cpuid(0x4000_0005)[1] & 0xff >= 28);
}

/// Reads what is published, as guests do: again, as long as it is being changed.
fn published(info: u64) -> VcpuTimeInfo {
    let at = info + core::mem::offset_of!(X86VcpuInfo, time) as u64;
    // SAFETY: the events' page is mapped, and holds nothing but integers that the hypervisor writes: read as atomics.
    let word =
        |index: u64| unsafe { AtomicU64::from_ptr((at + index * 8) as *mut u64) }.load(Ordering::Acquire);
    // SAFETY: as above.
    let version = || unsafe { AtomicU32::from_ptr(at as *mut u32) }.load(Ordering::Acquire);
    loop {
        let before = version();
        let (stamp, system, scale) = (word(1), word(2), word(3));
        if before & 1 == 0 && version() == before {
            return VcpuTimeInfo {
                version: before,
                tsc_timestamp: stamp,
                system_time: system,
                tsc_to_system_mul: scale as u32,
                tsc_shift: (scale >> 32) as i8,
                ..VcpuTimeInfo::default()
            };
        }
    }
}

/// System time by the counter.
pub fn system_time(info: u64) -> u64 {
    let time = published(info);
    // SAFETY: reads a counter.
    let delta = unsafe { _rdtsc() }.wrapping_sub(time.tsc_timestamp);
    let places = u32::from(time.tsc_shift.unsigned_abs());
    let shifted = if time.tsc_shift < 0 { delta >> places } else { delta << places };
    time.system_time + ((u128::from(shifted) * u128::from(time.tsc_to_system_mul)) >> 32) as u64
}

fn time(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(events) = Events::open(guest) else { return check.that("a page for events", false) };
    let info = events.address();
    let first = published(info);
    check.that("the clock's scale", first.tsc_to_system_mul >> 31 == 1 && first.version != 0);
    // What the runstate says is the hypervisor's own clock: nothing may be before it, nor after.
    let before = guest_core::events::now::<X86>();
    let between = system_time(info);
    let after = guest_core::events::now::<X86>();
    // What the runstate says is behind by as long as it took to read once; on a machine with much to do that can be long.
    let slack = 500_000_000;
    check.that("system time is the hypervisor's", before <= between + slack && between <= after + slack);
    let again = system_time(info);
    check.that("it doesn't go back", again >= between);
    let seconds_at = info + core::mem::offset_of!(X86SharedInfo, wc_sec) as u64;
    // SAFETY: as in `published`.
    let seconds = unsafe { AtomicU32::from_ptr(seconds_at as *mut u32) }.load(Ordering::Acquire);
    // After the first of January 2020.
    check.that("the time of day", seconds > 1_577_836_800);
    check.done("give the page back", events.close());
}
