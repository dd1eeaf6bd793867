//! Users in 32-bit segments whose base isn't zero: what they execute stands at the base's distance from where rip says.

use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of, call};
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::hypercall::SET_GDT;

use super::Bytes;
use super::came::{
    self, CS, Came, ERROR, FOR_USERS, GENERAL_PROTECTION, INVALID_OPCODE, RIP, VECTOR, user_mode_system_call,
};
use crate::machine::X86;
use crate::user::{USER_CODE, User};

/// 32-bit code for ring 3 from this address on, up to 4 GiB; the descriptor's place, and its selector.
const BASE: usize = 0x80;
const SEGMENT: u64 = 0x00cf_fb00_0000_ffff | (BASE as u64) << 16;
const PLACE: usize = 5;
const SELECTOR: u64 = (PLACE as u64) << 3 | 3;
/// `int 0x80`; `ud2`, the letters "xen" and `cpuid`; `in al, dx`.
const INT: &[u8] = &[0xcd, FOR_USERS as u8];
const CPUID: &[u8] = &[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2];
const IN: &[u8] = &[0xec];
const CPUID_AND_UNDEFINED: &[u8] = &[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2, 0x0f, 0x0b];
/// `ud2`
const UNDEFINED: &[u8] = &[0x0f, 0x0b];

/// Runs the chapter of the test `user-mode`.
pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(page) = guest.zeroed_page() else { return check.that("a page for segments", false) };
    guest.write(&page, PLACE, SEGMENT);
    check.done("the page is read-only", guest.set_writable(&page, false));
    let set = |frames: &[u64], count: u64| call::<X86>(SET_GDT, &[address_of(frames), count]).map(drop);
    check.done("segments", set(&[guest.frame(&page)], 512));
    // Where rip says stands something else.
    let comes = |here: &[u8], there: &[u8]| first(guest, here, there).unwrap_or_default();
    let behind = USER_CODE + INT.len() as u64;
    check.that("int in a segment with a base", comes(UNDEFINED, INT) == [FOR_USERS, 0, behind, SELECTOR]);
    let undefined = [INVALID_OPCODE, 0, USER_CODE, SELECTOR];
    check.that("ud2, where rip alone would say int", comes(INT, UNDEFINED) == undefined);
    let refused = [GENERAL_PROTECTION, 0, USER_CODE, SELECTOR];
    check.that("a privileged instruction", comes(UNDEFINED, IN) == refused);
    if guest.on_penumbra {
        // Xen 4.17 looks for the prefix where rip alone says.
        check.that("what rip alone would say is cpuid", comes(CPUID, UNDEFINED) == undefined);
        let behind = [INVALID_OPCODE, 0, USER_CODE + CPUID.len() as u64, SELECTOR];
        check.that("cpuid behind the prefix, and ud2", comes(UNDEFINED, CPUID_AND_UNDEFINED) == behind);
    }
    check.done("no segments", set(&[], 0));
    check.done("the page is one again", guest.set_writable(&page, true));
    guest.pages.free(page);
}

/// Runs a user in that segment, with these instructions where rip says, and those at the base's distance: vector, error code, place and code
/// segment of the first trap that comes.
fn first(guest: &Guest<X86>, here: &[u8], there: &[u8]) -> Result<[u64; 4], Errno> {
    let mut code = Bytes { bytes: [0; 256], length: 0 };
    code.add(here);
    code.length = BASE;
    code.add(there);
    let user = User::with_entry(guest, &code.words(), user_mode_system_call)?;
    came::begin(0);
    user.run_in(SELECTOR, 1);
    user.end()?;
    let Came { first, .. } = came::end();
    Ok([first[VECTOR], first[ERROR], first[RIP], first[CS] & 0xffff])
}
