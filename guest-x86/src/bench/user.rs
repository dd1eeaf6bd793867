//! A system call of a user's: through the hypervisor to the kernel, and by the `iret` hypercall back.

use guest_core::architecture::Architecture;
use guest_core::guest::Guest;
use penumbra_abi::Errno;

use crate::machine::X86;
use crate::user::User;

/// `1: syscall; dec rbx; jnz 1b; syscall; jmp .`
const LOOP: [u64; 2] = [
    u64::from_le_bytes([0x0f, 0x05, 0x48, 0xff, 0xcb, 0x75, 0xf9, 0x0f]),
    u64::from_le_bytes([0x05, 0xeb, 0xfe, 0, 0, 0, 0, 0]),
];

/// `count` system calls of a user's, the loop around them taken away.
pub fn system_calls(guest: &Guest<X86>, count: u64) -> Result<u64, Errno> {
    let user = User::new(guest, &LOOP)?;
    let taken = run(&user, count).saturating_sub(run(&user, 0)).saturating_sub(empty_loop(count));
    user.end()?;
    Ok(taken)
}

/// Units of the counter from the kernel to the user and back, with `count` system calls in between. With none, the user's first
/// one is the last: its count is zero.
fn run(user: &User<'_>, count: u64) -> u64 {
    let start = X86::counter();
    user.run(count);
    X86::counter().wrapping_sub(start)
}

/// The user's loop without the system call.
fn empty_loop(count: u64) -> u64 {
    // Two instructions a round.
    count * 2
}
