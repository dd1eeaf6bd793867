//! Penumbra's AArch64 guest kernel: a paravirtual kernel at EL1.
//!
//! Its page tables hold machine frames and are walked by the MMU as they are, with no second stage behind them. What it
//! does is in `guest-core`; here are the instructions. The same file, as a flat image, also boots without a hypervisor ([`bare`]),
//! so that the kernel's own operations can be measured natively.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod aarch32;
#[cfg(target_os = "none")]
mod bare;
#[cfg(target_os = "none")]
mod bare_boot;
#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod confined;
#[cfg(any(target_os = "none", test))]
#[cfg_attr(test, expect(dead_code, reason = "the kernel uses it, the host only tests it"))]
mod entries;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod events;
#[cfg(target_os = "none")]
mod forbidden;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod made_up;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod saved_registers;
#[cfg(target_os = "none")]
mod table_writes;
#[cfg(target_os = "none")]
mod traps;
#[cfg(target_os = "none")]
mod unseen;
#[cfg(target_os = "none")]
mod upcall;

/// Called on the kernel's own stack.
///
/// # Safety
/// `info` is the start-info page's address, as the domain builder passed it.
#[cfg(target_os = "none")]
unsafe extern "C" fn rust_main(info: *const penumbra_abi::start_info::StartInfo) -> ! {
    // SAFETY: the builder's promise: a start-info page, mapped for as long as the domain lives; nobody writes to it.
    let info = unsafe { &*info };
    guest_core::run::<machine::Arm>(info)
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if bare::is_native() {
        guest_core::panic::<bare::Bare>(info)
    }
    guest_core::panic::<machine::Arm>(info)
}

#[cfg(not(target_os = "none"))]
fn main() {}
