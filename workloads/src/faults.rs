//! Signals on faults: each comes with the right address and reason, its handler mends what is wrong, and the instruction is done again.
//!
//! The faults that have no address (a division by zero, a breakpoint, an undefined instruction) end a child each, by the right signal;
//! a breakpoint is also handled, a hundred times.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use nix::libc::{c_int, c_void, siginfo_t};
use nix::sys::mman::{ProtFlags, mprotect};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::WaitStatus;

use crate::memory::{Mapping, PAGE, Rights, Sharing};
use crate::processes::{child, wait};
use crate::{Fate, Spoil};

const PAGES: usize = 512;
const BREAKPOINTS: usize = 100;
/// Why an access failed (`si_code` of SIGSEGV; Linux, include/uapi/asm-generic/siginfo.h): nothing is there, or not with that right.
const NOTHING_THERE: c_int = 1;
const NO_RIGHT: c_int = 2;
/// With what the handler ends a process that it can't help, the reason added.
const UNMENDED: c_int = 50;

/// What the handlers saw: the address and the code of the last fault, and how many there were.
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static CODE: AtomicUsize = AtomicUsize::new(0);
static FAULTS: AtomicUsize = AtomicUsize::new(0);

/// Notes a fault and gives the page all rights, so that the access succeeds when it is done again.
extern "C" fn mend(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands a valid `siginfo_t` to a handler set with SA_SIGINFO; for SIGSEGV it holds an address.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    ADDRESS.store(address, Ordering::Relaxed);
    CODE.store(code as usize, Ordering::Relaxed);
    FAULTS.fetch_add(1, Ordering::Relaxed);
    let page = std::ptr::NonNull::new((address & !(PAGE - 1)) as *mut c_void);
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the page is one of the mapping that this file protects; a fault elsewhere can't be mended, and ends the process.
    let mended = page.is_some_and(|page| unsafe { mprotect(page, PAGE, rights) }.is_ok());
    if !mended {
        // SAFETY: `_exit` may be called from a handler.
        unsafe { nix::libc::_exit(UNMENDED + code) }
    }
}

/// Counts a breakpoint, and has the program go on behind it.
extern "C" fn count(_signal: c_int, _info: *mut siginfo_t, context: *mut c_void) {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    instruction::step_over_breakpoint(context);
}

pub fn run(spoil: Spoil) -> Result<Fate> {
    let memory = Mapping::new(PAGES, Sharing::Private)?;
    set(Signal::SIGSEGV, SigHandler::SigAction(mend))?;
    for page in 0..PAGES {
        memory.fill(page, 5, Spoil(false));
    }
    // Every other page on its own, so that neighbouring pages have different rights.
    for page in (0..PAGES).step_by(2) {
        memory.protect(page..page + 1, if page % 4 == 0 { Rights::Read } else { Rights::None })?;
    }
    for page in 0..PAGES {
        access(&memory, page, spoil.only(page == PAGES / 2))?;
    }
    for page in 0..PAGES {
        memory.check(page, page, 6)?;
    }
    set(Signal::SIGSEGV, SigHandler::SigDfl)?;
    breakpoints()?;
    deaths(&memory)?;
    Ok(Fate::Passed(format!("{} faults mended, {BREAKPOINTS} breakpoints", PAGES / 2)))
}

/// Writes to a page, and sees exactly the fault that its rights ask for.
fn access(memory: &Mapping, page: usize, spoil: Spoil) -> Result<()> {
    let before = FAULTS.load(Ordering::Relaxed);
    memory.fill(page, 6, Spoil(false));
    let faults = FAULTS.load(Ordering::Relaxed) - before;
    ensure!(faults == usize::from(page.is_multiple_of(2)), "page {page}: {faults} faults");
    if faults == 1 {
        let (address, code) = (ADDRESS.load(Ordering::Relaxed) as u64, CODE.load(Ordering::Relaxed));
        let expected = spoil.word(memory.address(page) as u64);
        ensure!(address == expected, "page {page}: a fault at {address:#x} instead of {expected:#x}");
        ensure!(code == NO_RIGHT as usize, "page {page}: the fault's code is {code}");
    }
    Ok(())
}

fn set(signal: Signal, handler: SigHandler) -> Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handlers of this file touch only atomics and pages of its own mapping, and call only `mprotect` and `_exit`.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("a handler for {signal}"))?;
    Ok(())
}

/// A trap that is handled, and returned from behind its instruction.
fn breakpoints() -> Result<()> {
    set(Signal::SIGTRAP, SigHandler::SigAction(count))?;
    FAULTS.store(0, Ordering::Relaxed);
    for _ in 0..BREAKPOINTS {
        instruction::breakpoint();
    }
    set(Signal::SIGTRAP, SigHandler::SigDfl)?;
    let seen = FAULTS.load(Ordering::Relaxed);
    ensure!(seen == BREAKPOINTS, "{seen} of {BREAKPOINTS} breakpoints were seen");
    Ok(())
}

/// Children that die of what they do, by the right signal.
fn deaths(memory: &Mapping) -> Result<()> {
    dies(Signal::SIGILL, instruction::undefined)?;
    dies(Signal::SIGTRAP, instruction::breakpoint)?;
    dies(instruction::PRIVILEGED_SIGNAL, instruction::privileged)?;
    #[cfg(target_arch = "x86_64")]
    dies(Signal::SIGFPE, instruction::divide_by_zero)?;
    memory.unmap(0..1)?;
    dies(Signal::SIGSEGV, || {
        memory.read(0, 0);
    })?;
    set(Signal::SIGSEGV, SigHandler::SigAction(mend))?;
    // What is not mapped at all can't be mended: the handler finds that out, by the right reason.
    let unmapped = child(|| {
        memory.read(0, 0);
        Ok(0)
    })?;
    let fate = wait(unmapped)?;
    set(Signal::SIGSEGV, SigHandler::SigDfl)?;
    match fate {
        WaitStatus::Exited(_, status) if status == UNMENDED + NOTHING_THERE => Ok(()),
        found => bail!("an access to a page that is not there came to {found:?}"),
    }
}

fn dies(signal: Signal, deed: impl FnOnce()) -> Result<()> {
    let doomed = child(|| {
        deed();
        Ok(0)
    })?;
    match wait(doomed)? {
        WaitStatus::Signaled(_, found, _) if found == signal => Ok(()),
        found => bail!("a child that should die by {signal} came to {found:?}"),
    }
}

/// Instructions that trap.
#[cfg(target_arch = "x86_64")]
mod instruction {
    use std::arch::asm;

    use nix::libc::c_void;
    use nix::sys::signal::Signal;

    /// A general protection fault.
    pub const PRIVILEGED_SIGNAL: Signal = Signal::SIGSEGV;

    pub fn breakpoint() {
        // SAFETY: the trap's handler, if there is one, returns behind the instruction and changes nothing.
        unsafe { asm!("int3", options(nomem, nostack)) }
    }

    /// The trap comes from behind the instruction.
    pub fn step_over_breakpoint(_context: *mut c_void) {}

    pub fn undefined() {
        // SAFETY: the kernel ends the process.
        unsafe { asm!("ud2", options(nomem, nostack)) }
    }

    pub fn privileged() {
        // SAFETY: the kernel ends the process.
        unsafe { asm!("hlt", options(nomem, nostack)) }
    }

    pub fn divide_by_zero() {
        // SAFETY: the kernel ends the process; the registers that the instruction uses are named.
        unsafe { asm!("div {zero:e}", zero = in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _) }
    }
}

/// Instructions that trap.
#[cfg(target_arch = "aarch64")]
mod instruction {
    use std::arch::asm;

    use nix::libc::{c_void, ucontext_t};
    use nix::sys::signal::Signal;

    /// An undefined instruction at EL0.
    pub const PRIVILEGED_SIGNAL: Signal = Signal::SIGILL;

    pub fn breakpoint() {
        // SAFETY: the trap's handler, if there is one, steps over the instruction and changes nothing.
        unsafe { asm!("brk #0", options(nomem, nostack)) }
    }

    /// The trap comes from the instruction itself.
    pub fn step_over_breakpoint(context: *mut c_void) {
        // SAFETY: the kernel hands a handler set with SA_SIGINFO the state to which it returns, which nobody else uses meanwhile.
        unsafe { (*context.cast::<ucontext_t>()).uc_mcontext.pc += 4 }
    }

    pub fn undefined() {
        // SAFETY: the kernel ends the process.
        unsafe { asm!("udf #0", options(nomem, nostack)) }
    }

    pub fn privileged() {
        // SAFETY: the kernel ends the process.
        unsafe { asm!("tlbi vmalle1", options(nomem, nostack)) }
    }
}
