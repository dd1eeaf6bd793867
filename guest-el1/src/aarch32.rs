//! User mode in AArch32, which guests don't have: the ID registers say so, but a processor that has it lets a kernel return there.
//!
//! Some of AArch64's traps have no counterpart there. So the domain ends when it is found in that state, by whatever trap or interrupt
//! comes first.

use core::arch::asm;
use guest_core::Architecture;
use guest_core::architecture::Death;
use guest_core::guest::Guest;
use guest_core::hypercalls::mmuext;
use guest_core::pages::Page;
use penumbra_abi::Errno;
use penumbra_abi::mmu::MMUEXT_NEW_USER_BASEPTR;

use crate::entries;
use crate::machine::{Below, Kernel};

/// Where the user's code is mapped.
const ADDRESS: u64 = 0x1000;
/// AArch32, user mode.
const USER_32: u64 = 0x10;
/// `b .`, twice.
const SPIN: u64 = 0xeaff_fffe_eaff_fffe;
/// `mrc p15, 0, r0, c13, c0, 3`, the user's own thread register, and then `svc #0`: if the first doesn't trap, the second is an
/// exception to EL1.
const COPROCESSOR: u64 = 0xef00_0000_ee1d_0f70;

/// The ways to die that need user mode in AArch32.
pub const fn deaths<B: Below>() -> &'static [Death<Kernel<B>>] {
    &[("aarch32", |guest| die(guest, SPIN)), ("aarch32-coprocessor", |guest| die(guest, COPROCESSOR))]
}

fn die<B: Below>(guest: &Guest<Kernel<B>>, code: u64) {
    guest_core::say!(Kernel<B>, "going to user mode in AArch32");
    if user_tables(guest, code).is_none() {
        return guest_core::say!(Kernel<B>, "still alive: there are no tables for user mode");
    }
    Kernel::<B>::remove_traps();
    // SAFETY: nothing of this kernel is needed any more.
    unsafe {
        asm!(
            "msr elr_el1, {code}",
            "msr spsr_el1, {state}",
            "isb",
            "eret",
            code = in(reg) ADDRESS,
            state = in(reg) USER_32,
            options(noreturn)
        )
    }
}

/// Loads a user root that maps a page of code.
fn user_tables<B: Below>(guest: &Guest<Kernel<B>>, code: u64) -> Option<()> {
    let pages: [Option<Page>; 5] = core::array::from_fn(|_| guest.zeroed_page());
    let [Some(page), Some(first), Some(second), Some(third), Some(root)] = pages else { return None };
    guest.write(&page, 0, code);
    guest.write(&first, 1, entries::user_executable_leaf(guest.frame(&page)));
    for (table, below) in [(&second, &first), (&third, &second), (&root, &third)] {
        guest.write(table, 0, entries::table(guest.frame(below)));
    }
    let load = || -> Result<(), Errno> {
        for table in [&first, &second, &third, &root] {
            guest.set_writable(table, false)?;
        }
        mmuext::<Kernel<B>>(MMUEXT_NEW_USER_BASEPTR, guest.frame(&root), 0)
    };
    load().ok()
}
