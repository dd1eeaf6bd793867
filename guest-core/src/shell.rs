//! The control domain's prompt.

use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::{hypercalls, say, tour, words};
use penumbra_abi::Errno;
use penumbra_abi::domctl::{DOMINF_BLOCKED, DOMINF_DYING, DOMINF_RUNNING, DOMINF_SHUTDOWN, DomainInfo};
use penumbra_abi::sched::{SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT};

/// Bytes of the longest command.
const COMMAND_CAPACITY: usize = 120;
/// Domains that `xm list` shows.
const DOMAINS: usize = 16;

/// Reads and obeys commands until one of them ends the domain.
pub fn run<A: Architecture>(guest: &Guest<A>) -> ! {
    say!(A, "Control domain's prompt; type 'help'.");
    loop {
        prompt::<A>();
        let mut buffer = [0; COMMAND_CAPACITY];
        obey(guest, read_line(guest, &mut buffer));
    }
}

fn prompt<A: Architecture>() {
    let _ = hypercalls::console_write::<A>(b"penumbra# ");
}

/// Sleeps until something is typed. Penumbra wakes its control domain for that; Xen would want an event channel.
fn idle<A: Architecture>(guest: &Guest<A>) {
    if guest.on_penumbra { hypercalls::block::<A>() } else { hypercalls::yield_cpu::<A>() }
}

/// Reads a line, with echo and backspace, giving way to other domains while nothing is typed.
fn read_line<'b, A: Architecture>(guest: &Guest<A>, buffer: &'b mut [u8; COMMAND_CAPACITY]) -> &'b str {
    let mut length = 0;
    loop {
        let mut byte = [0];
        match (hypercalls::console_read::<A>(&mut byte), byte[0]) {
            (Ok(0) | Err(_), _) => idle(guest),
            (Ok(_), b'\r' | b'\n') => break,
            (Ok(_), 8 | 127) if length > 0 => {
                length -= 1;
                let _ = hypercalls::console_write::<A>(b"\x08 \x08");
            }
            (Ok(_), b' '..=b'~') if length < COMMAND_CAPACITY => {
                buffer[length] = byte[0];
                length += 1;
                let _ = hypercalls::console_write::<A>(&byte);
            }
            (Ok(_), _) => {}
        }
    }
    let _ = hypercalls::console_write::<A>(b"\n");
    str::from_utf8(&buffer[..length]).unwrap_or("")
}

fn obey<A: Architecture>(guest: &Guest<A>, command: &str) {
    let mut parts = command.split_ascii_whitespace();
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => {}
        (Some("help" | "?"), ..) => help::<A>(),
        (Some("xm"), Some("list"), None) => complain::<A>(list::<A>()),
        (Some("xm"), Some("dmesg"), None) => complain::<A>(print_log::<A>().map(drop)),
        (Some("xm"), Some("audit"), None) => complain::<A>(audit::<A>()),
        (Some("xm"), Some("memlist"), Some(domain)) => match words::number(domain) {
            Some(number) if number < 0x7ff0 => complain::<A>(memory_list::<A>(number as u16)),
            _ => say!(A, "{domain}: no domain number"),
        },
        (Some("tour"), None, None) => tour::control(guest),
        (Some("poweroff"), None, None) => hypercalls::shutdown::<A>(SHUTDOWN_POWEROFF),
        (Some("reboot"), None, None) => hypercalls::shutdown::<A>(SHUTDOWN_REBOOT),
        _ => say!(A, "{command}: not understood; 'help' lists the commands"),
    }
}

fn complain<A: Architecture>(result: Result<(), Errno>) {
    if let Err(error) = result {
        say!(A, "refused: {error}");
    }
}

fn help<A: Architecture>() {
    say!(A, "  xm list         the domains");
    say!(A, "  xm dmesg        the hypervisor's log");
    say!(A, "  xm memlist N    the machine frames of domain N");
    say!(A, "  xm audit        recount every reference and type");
    say!(
        A,
        "  tour            the documented experiment (once: domain 1 must have been started with 'tour')"
    );
    say!(A, "  poweroff, reboot");
}

/// Lists the domains.
fn list<A: Architecture>() -> Result<(), Errno> {
    let mut domains = [DomainInfo::default(); DOMAINS];
    let count = hypercalls::domain_list::<A>(0, &mut domains)?;
    say!(A, "  ID     Pages      MiB  vCPUs  State      CPU time");
    for domain in domains.iter().take(count) {
        say!(
            A,
            "  {:<4} {:>7} {:>8} {:>6}  {:<9} {:>6} ms",
            domain.domain,
            domain.tot_pages,
            domain.tot_pages / 256,
            domain.nr_online_vcpus,
            state(domain.flags),
            domain.cpu_time / 1_000_000
        );
    }
    Ok(())
}

fn state(flags: u32) -> &'static str {
    let states = [
        (DOMINF_DYING, "dying"),
        (DOMINF_SHUTDOWN, "shut down"),
        (DOMINF_BLOCKED, "blocked"),
        (DOMINF_RUNNING, "running"),
    ];
    states.iter().find(|(bit, _)| flags & bit != 0).map_or("runnable", |(_, name)| name)
}

/// Prints the hypervisor's log; returns its bytes.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn print_log<A: Architecture>() -> Result<usize, Errno> {
    let (mut total, mut index) = (0, 0);
    let mut text = crate::console::Console::<A>::writer();
    loop {
        let mut buffer = [0; 512];
        let (count, next) = hypercalls::read_log::<A>(index, &mut buffer)?;
        text.push(&buffer[..count]);
        total += count;
        // Printing may itself add to the log: never go further than one ring's worth.
        if count == 0 || next == index || total > 256 * 1024 {
            return Ok(total);
        }
        index = next;
    }
}

fn audit<A: Architecture>() -> Result<(), Errno> {
    let findings = hypercalls::audit::<A>()?;
    say!(A, "  audit: {findings} findings");
    Ok(())
}

/// Lists a domain's frames, runs of consecutive numbers as one.
fn memory_list<A: Architecture>(domain: u16) -> Result<(), Errno> {
    let (mut total, mut run): (u64, Option<(u64, u64)>) = (0, None);
    loop {
        let mut frames = [0; 512];
        let count = hypercalls::memory_list::<A>(domain, total, &mut frames)?;
        for &frame in frames.iter().take(count) {
            run = match run {
                Some((first, length)) if first + length == frame => Some((first, length + 1)),
                finished => {
                    print_run::<A>(finished);
                    Some((frame, 1))
                }
            };
        }
        total += count as u64;
        if count < frames.len() {
            break;
        }
    }
    print_run::<A>(run);
    say!(A, "  {total} frames");
    Ok(())
}

fn print_run<A: Architecture>(run: Option<(u64, u64)>) {
    if let Some((first, length)) = run {
        say!(A, "  mfn {first:#x} to {:#x}", first + length - 1);
    }
}
