//! Penumbra's x86-64 guest kernel: a Xen paravirtual kernel.
//!
//! It speaks Xen's ABI and nothing else, so it boots unchanged on Penumbra and on stock Xen. What it does is in
//! `guest-core`; here are the instructions.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod absent_entries;
#[cfg(target_os = "none")]
mod assembly;
#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod death;
#[cfg(target_os = "none")]
mod descriptor_stretches;
#[cfg(target_os = "none")]
mod descriptors;
#[cfg(target_os = "none")]
mod direction;
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
mod interface;
#[cfg(target_os = "none")]
mod late_traps;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod made_up;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod table_writes;
#[cfg(target_os = "none")]
mod timers;
#[cfg(target_os = "none")]
mod traps;
#[cfg(target_os = "none")]
mod user;
#[cfg(target_os = "none")]
mod user_mode;

/// Called on the kernel's own stack.
///
/// # Safety
/// `info` is the start-info page's address, as the domain builder passed it.
#[cfg(target_os = "none")]
unsafe extern "C" fn rust_main(info: *const penumbra_abi::start_info::StartInfo) -> ! {
    // SAFETY: the builder's promise: a start-info page, mapped for as long as the domain lives; nobody writes to it.
    let info = unsafe { &*info };
    guest_core::run::<machine::X86>(info)
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    guest_core::panic::<machine::X86>(info)
}

#[cfg(not(target_os = "none"))]
fn main() {}
