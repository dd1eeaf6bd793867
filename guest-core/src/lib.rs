//! What Penumbra's two guest kernels share: everything but the instructions.
//!
//! The kernel is a paravirtual one of the kind that the model was made for. It runs as the control domain (a shell, the
//! second half of the tour, the tests) and as an ordinary domain (the first half of the tour, dying on request); its
//! command line says which. The same x86-64 binary also boots on stock Xen, which proves that the ABI is the real one.
//!
//! Words of the command line:
//! - `tour`: the documented experiment; in both domains.
//! - `test=NAME[+NAME...]`: run tests of [`tests`]; `test=all` runs all of them. Most are for the control domain.
//! - `number=N` (other domains): their own number, which some tests have to know.
//! - `bench` (control domain): what each operation costs; see [`bench`].
//! - `stretches` (control domain): the longest stretch without a preemption point of the longest operations, one of which is the end of domain 1.
//! - `profile=NAME` (control domain): one row of the benchmark, once, when a key is pressed.
//! - `then=poweroff|reboot|shell` (control domain): what comes afterwards; `shell` if nothing is said.
//! - `echo=N` (other domains): answer N events, then shut down; see [`events`].
//! - `lend` (other domains): lend two pages to the control domain; see [`grants`].
//! - `spin` (other domains): never give the CPU away.
//! - `registers=SEED` (other domains): fill all registers again and again, and look; see [`tests`].
//! - `die=shutdown|crash|fault|table-write`, or one of the architecture's own: how to come to an end; see [`death`].
//! - `soak=control|witness|hostile`: a part in the soak; see [`soak`].
//! - `device=0xMFN`: machine frame of a device, for the tour's attempts.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod architecture;
pub mod bench;
pub mod console;
pub mod death;
pub mod emptied;
pub mod events;
pub mod grants;
pub mod guest;
pub mod hypercalls;
pub mod pages;
mod ramdisk;
pub mod shell;
pub mod soak;
pub mod tests;
pub mod tour;
pub mod words;

pub use architecture::Architecture;

use core::panic::PanicInfo;
use guest::Guest;
use penumbra_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT};
use penumbra_abi::start_info::StartInfo;
use penumbra_abi::version;

/// The kernel's main function, once it has a stack and zeroed data.
pub fn run<A: Architecture>(info: &'static StartInfo) -> ! {
    let guest = Guest::<A>::new(info);
    greet(&guest);
    if guest.is_control() { run_control(&guest) } else { run_domain(&guest) }
}

/// The kernel's main function where nothing is below it: of the words, `bench` alone means anything there, and nothing else
/// need be in the image once more.
pub fn run_native<A: Architecture>(info: &'static StartInfo) -> ! {
    let guest = Guest::<A>::new(info);
    greet(&guest);
    if guest.words().has("bench") {
        bench::run_native(&guest);
    }
    hypercalls::shutdown::<A>(SHUTDOWN_POWEROFF)
}

/// What a kernel's panic handler does: say what happened, and crash the domain.
pub fn panic<A: Architecture>(info: &PanicInfo<'_>) -> ! {
    say!(A, "guest kernel: {info}");
    hypercalls::shutdown::<A>(SHUTDOWN_CRASH)
}

fn greet<A: Architecture>(guest: &Guest<A>) {
    let (major, minor) = hypercalls::interface_version::<A>().unwrap_or((0, 0));
    let mut extra = [0; version::XEN_EXTRAVERSION_LEN];
    let _ = hypercalls::version_string::<A>(version::XENVER_EXTRAVERSION, &mut extra);
    let extra = extra.split(|&byte| byte == 0).next().and_then(|e| str::from_utf8(e).ok()).unwrap_or("");
    let role = if guest.is_control() { "control domain" } else { "domain" };
    say!(
        A,
        "guest kernel ({}): {role}, {} pages, interface {major}.{minor}{extra}, words: {}",
        A::NAME,
        guest.info.nr_pages,
        guest.words().line()
    );
    ramdisk::report(guest);
}

fn run_control<A: Architecture>(guest: &Guest<A>) -> ! {
    let words = guest.words();
    if words.has("tour") {
        tour::control(guest);
    }
    if let Some(names) = words.value("test") {
        tests::run(guest, names);
    }
    if words.has("bench") {
        bench::run(guest);
    }
    soak::take_part(guest);
    if words.has("stretches") {
        bench::stretches::run(guest);
    }
    if let Some(name) = words.value("profile") {
        bench::profile(guest, name);
    }
    death::die_if_asked(guest);
    match words.value("then") {
        Some("poweroff") => hypercalls::shutdown::<A>(SHUTDOWN_POWEROFF),
        Some("reboot") => hypercalls::shutdown::<A>(SHUTDOWN_REBOOT),
        _ => shell::run(guest),
    }
}

fn run_domain<A: Architecture>(guest: &Guest<A>) -> ! {
    if guest.words().has("tour") {
        tour::domain(guest);
    }
    if let Some(names) = guest.words().value("test") {
        tests::run(guest, names);
    }
    if let Some(count) = guest.words().value("echo").and_then(|count| count.parse().ok()) {
        events::echo(guest, count);
        hypercalls::shutdown::<A>(SHUTDOWN_POWEROFF);
    }
    if guest.words().has("lend") {
        grants::lend(guest);
        hypercalls::shutdown::<A>(SHUTDOWN_POWEROFF);
    }
    if let Some(seed) = guest.words().value("registers").and_then(|seed| seed.parse().ok()) {
        tests::keep_registers::<A>(seed);
    }
    if guest.words().has("spin") {
        tour::spin(guest);
    }
    soak::take_part(guest);
    death::die_if_asked(guest);
    loop {
        hypercalls::block::<A>();
    }
}
