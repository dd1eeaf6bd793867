//! How this kernel can come to its end besides: by a page fault of its user's for which there is no handler any more.
//!
//! There was one, and it masked events: the hypervisor's short way for such faults goes by that.

use guest_core::architecture::{Architecture, Death};
use guest_core::guest::Guest;
use guest_core::say;

use crate::machine::X86;
use crate::traps;
use crate::user::User;
use crate::user_mode::came::{MASKS_EVENTS, PAGE_FAULT};

/// `mov rax, [0x5000]`, where nothing is: not at 0, at which a kernel would fault that is entered where no handler is.
const FAULTING: u64 = 0x0000_5000_2504_8b48;

/// The ways to die that need user mode.
pub const DEATHS: &[Death<X86>] = &[("user-fault", fault_of_a_user)];

fn fault_of_a_user(guest: &Guest<X86>) {
    say!(X86, "going to user mode, to fault there with no handler");
    let user = User::new(guest, &[FAULTING]);
    let installed = traps::install_one(PAGE_FAULT as u8, MASKS_EVENTS, handler);
    let (Ok(user), Ok(())) = (user, installed) else {
        return say!(X86, "still alive: there is no user, or no handler");
    };
    X86::remove_traps();
    user.run(0);
    say!(X86, "still alive after the user");
}

unsafe extern "C" fn handler() {
    say!(X86, "still alive in a handler that was taken away");
    X86::halt()
}
