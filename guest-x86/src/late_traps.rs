//! Traps that come while tables are out of their trees: the hypervisor hooks those in before it uses this kernel's stack, and that takes
//! long, with other domains' turns in between. Each trap must come all the same, once, and with everything as it was.
//!
//! Four tables are out each time, emptied, so that they come back one by one (`guest_core::emptied`).

use core::arch::{asm, global_asm};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use guest_core::architecture::Architecture;
use guest_core::emptied::EmptiedTables;
use guest_core::events::{self, Events};
use guest_core::guest::Guest;
use guest_core::hypercalls::{call, yield_cpu};
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::vcpu::{VCPUOP_DOWN, VCPUOP_IS_UP, VCPUOP_UP};
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64};

use crate::machine::X86;
use crate::user::{KERNEL_STACK, User};
use crate::user_mode::came::{MASKS_EVENTS, PAGE_FAULT};
use crate::{direction, traps};

const DEBUG: u8 = 1;
const BREAKPOINT: u8 = 3;
/// Nothing is mapped there.
const NOWHERE: u64 = 0x7000_0000_0000;
/// The kernel's own code segment, as `iret` wants it.
const KERNEL_CODE: u64 = FLAT_RING3_CS64 as u64 & !3;
/// What the registers hold that a trap's frame has a place of its own for.
const RCX: u64 = 0x1234_5678_9abc_def0;
const R11: u64 = 0x0fed_cba9_8765_4321;
const RAX: u64 = 0x1111_2222_3333_4444;
/// Units of the counter after which somebody else has had a turn: instructions, of which a turn takes ten million.
const A_TURN: u64 = 5_000_000;
/// Traps that another domain's turn came into the middle of, and how many are tried for that.
const INTERRUPTED: usize = 3;
const TRIES: usize = 150;

/// `1: dec rbx; jnz 1b; syscall; jmp .`: a user that counts before its system call.
const COUNTING: [u64; 2] = [
    u64::from_le_bytes([0x48, 0xff, 0xcb, 0x75, 0xfb, 0x0f, 0x05, 0xeb]),
    u64::from_le_bytes([0xfe, 0, 0, 0, 0, 0, 0, 0]),
];
/// The same, before a page fault: `1: dec rbx; jnz 1b; mov rax, [0x5000]; jmp .`.
const COUNTING_TO_A_FAULT: [u64; 2] = [
    u64::from_le_bytes([0x48, 0xff, 0xcb, 0x75, 0xfb, 0x48, 0x8b, 0x04]),
    u64::from_le_bytes([0x25, 0, 0x50, 0, 0, 0xeb, 0xfe, 0]),
];
/// How far it counts, two instructions each: for several turns, in one of which the other vCPU takes the tables out.
const FAR: u64 = 40_000_000;
/// How often the other vCPU is asked whether it is down.
const PATIENCE: u32 = 1000;

/// The tables that the other vCPU takes out as soon as there are any; and how that went: 1 well, 2 not.
static TABLES: AtomicPtr<EmptiedTables<'static, X86>> = AtomicPtr::new(ptr::null_mut());
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// The other vCPU's stack; 8 KiB.
static STACK: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// Traps that came, and what the last one's frame held: rcx, r11, rip, rsp.
static COUNT: AtomicU64 = AtomicU64::new(0);
static SEEN: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss.
    late_trap:
        incq {count}(%rip)
        popq {seen}(%rip)
        popq {seen} + 8(%rip)
        pushq %rax
        movq 8(%rsp), %rax
        movq %rax, {seen} + 16(%rip)
        movq 32(%rsp), %rax
        movq %rax, {seen} + 24(%rip)
        popq %rax
        movq {seen}(%rip), %rcx
        movq {seen} + 8(%rip), %r11
        // No single steps from here on.
        andq $~0x100, 16(%rsp)
        orq $3, 8(%rsp)
        iretq
    // A user's page fault, which ends the user; the kernel's own are dealt with as ever. Stack, lowest first: rcx, r11, error code, rip, cs.
    late_user_fault:
        testb $3, 32(%rsp)
        jz {page_fault}
        incq {count}(%rip)
        movq {kernel_stack}(%rip), %rsp
        ret
    "#,
    count = sym COUNT,
    seen = sym SEEN,
    kernel_stack = sym KERNEL_STACK,
    page_fault = sym traps::trap_page_fault,
    options(att_syntax)
);

unsafe extern "C" {
    fn late_trap();
    fn late_user_fault();
}

/// A way into the hypervisor that ends in this kernel: `true` if it came, once, and everything was as it should be.
type Way = fn() -> bool;

const WAYS: &[(&str, Way)] = &[
    ("a page fault", || X86::try_read_word(NOWHERE).is_none()),
    ("a page fault of a write", || !X86::try_write_word(NOWHERE, 1)),
    ("a breakpoint", breakpoint),
    ("a single step", single_step),
    ("an undefined instruction", direction::fault),
    ("an instruction that is carried out", direction::cpuid),
    ("iret", || iret(KERNEL_CODE)),
];

/// Runs the test `late-traps`. The word `spinner` says that domain 1 never gives the CPU away, that this one has two
/// vCPUs, and that instructions are counted.
pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    if !guest.on_penumbra {
        return check.that("Xen has no such tables", true);
    }
    check.done("a handler for breakpoints", traps::install_one(BREAKPOINT, 0, late_trap));
    check.done("and for single steps", traps::install_one(DEBUG, 0, late_trap));
    for &(name, way) in WAYS {
        check.that(name, matches!(with_tables_out(guest, way), Ok((true, _))));
    }
    upcall(guest, check);
    check.that("iret to a user", iret_to_user(guest) == Ok(true));
    if guest.words().has("spinner") {
        check.that("a user's system call", way_from_user(guest, &COUNTING) == Ok(true));
        check.that("a user's page fault", fault_of_user(guest) == Ok(true));
        interrupted(guest, check);
    }
}

/// Comes that way while the tables are out: whether it went well, and all tables were in afterwards; and how long it took.
fn with_tables_out(guest: &Guest<X86>, mut way: impl FnMut() -> bool) -> Result<(bool, u64), Errno> {
    let tables = EmptiedTables::new(guest)?;
    tables.take_out()?;
    let start = X86::counter();
    let good = way();
    let taken = X86::counter().wrapping_sub(start);
    let good = good && tables.are_in();
    tables.put_back()?;
    Ok((good, taken))
}

/// One instruction that traps, between a place where the registers are loaded and one that the frame must name.
macro_rules! traps_once {
    ($($line:literal),+) => {{
        let (place, stack, rcx, r11): (u64, u64, u64, u64);
        COUNT.store(0, Ordering::Relaxed);
        // SAFETY: the trap's handler goes on at label 2 with every register as it was; the stack is as it was before.
        unsafe {
            asm!(
                "lea {place}, [rip + 2f]",
                "mov {stack}, rsp",
                $($line,)+
                "2:",
                place = out(reg) place,
                stack = out(reg) stack,
                inout("rcx") RCX => rcx,
                inout("r11") R11 => r11,
            );
        }
        let seen = [0, 1, 2, 3].map(|index: usize| SEEN[index].load(Ordering::Relaxed));
        COUNT.load(Ordering::Relaxed) == 1 && seen == [RCX, R11, place, stack] && (rcx, r11) == (RCX, R11)
    }};
}

fn breakpoint() -> bool {
    traps_once!("int3")
}

/// The trap flag takes effect after the instruction that follows.
fn single_step() -> bool {
    traps_once!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop")
}

/// The hypercall that takes all registers from the stack, with this code segment of the kernel's.
pub fn iret(code: u64) -> bool {
    let (rax, rcx, r11): (u64, u64, u64);
    // SAFETY: it goes on at label 2 with this stack; rax, rcx and r11 are those that it changes.
    unsafe {
        asm!(
            "mov {stack}, rsp",
            "lea {place}, [rip + 2f]",
            "push {data}",
            "push {stack}",
            "pushfq",
            "push {code}",
            "push {place}",
            "push 0",
            "push {rcx_value}",
            "push {r11_value}",
            "push {rax_value}",
            "mov eax, {iret}",
            "syscall",
            "ud2",
            "2:",
            stack = out(reg) _,
            place = out(reg) _,
            data = in(reg) u64::from(FLAT_RING3_SS64),
            code = in(reg) code,
            rcx_value = in(reg) RCX,
            r11_value = in(reg) R11,
            rax_value = in(reg) RAX,
            iret = const number::IRET,
            out("rax") rax,
            out("rcx") rcx,
            out("r11") r11,
        );
    }
    (rax, rcx, r11) == (RAX, RCX, R11)
}

/// An event that was sent while events were masked, and comes when they no longer are.
fn upcall(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(events) = Events::open(guest) else { return check.that("a page for events", false) };
    let Some(port) = check.done("a port", events::bind_ipi::<X86>(0)) else { return };
    check.done("it is unmasked", events::unmask::<X86>(port));
    events.mask(true);
    check.done("an event", events::send::<X86>(port));
    let (upcalls, count) = (events.upcalls(), events.count(port));
    let came = with_tables_out(guest, || {
        let before = events.upcalls();
        events.mask(false);
        before == upcalls && (events.upcalls(), events.count(port)) == (upcalls + 1, count + 1)
    });
    check.that("an upcall", matches!(came, Ok((true, _))));
    check.done("close the port", events::close::<X86>(port));
    check.done("give the page back", events.close());
}

/// `iret` to a user, which finds out whether the tables are in by writing to one of them. Its fault comes to a handler that masks events, as
/// those do to whom the hypervisor has short ways, here and back.
fn iret_to_user(guest: &Guest<X86>) -> Result<bool, Errno> {
    let tables = EmptiedTables::new(guest)?;
    // `movabs rdi, place; mov [rdi], rbx; syscall`
    let mut code = [0; 16];
    code[..2].copy_from_slice(&[0x48, 0xbf]);
    code[2..10].copy_from_slice(&tables.place().to_le_bytes());
    code[10..15].copy_from_slice(&[0x48, 0x89, 0x1f, 0x0f, 0x05]);
    let (low, high) = (code.first_chunk().ok_or(Errno::EINVAL)?, code.last_chunk().ok_or(Errno::EINVAL)?);
    let user = User::new(guest, &[u64::from_le_bytes(*low), u64::from_le_bytes(*high)])?;
    user.share_kernel()?;
    let faults = with_faults_of_user(|| {
        tables.take_out()?;
        user.run(0);
        Ok(())
    })?;
    user.end()?;
    tables.put_back()?;
    Ok(faults == 1)
}

/// A user's page fault, as [`way_from_user`], to a handler that masks events.
fn fault_of_user(guest: &Guest<X86>) -> Result<bool, Errno> {
    let mut came = false;
    let faults = with_faults_of_user(|| {
        came = way_from_user(guest, &COUNTING_TO_A_FAULT)?;
        Ok(())
    })?;
    Ok(came && faults == 1)
}

/// How many page faults of users come meanwhile.
fn with_faults_of_user(run: impl FnOnce() -> Result<(), Errno>) -> Result<u64, Errno> {
    COUNT.store(0, Ordering::Relaxed);
    traps::install_one(PAGE_FAULT as u8, MASKS_EVENTS, late_user_fault)?;
    let ran = run();
    X86::install_traps();
    ran.map(|()| COUNT.load(Ordering::Relaxed))
}

/// A user's system call, or page fault: while the user counts, the second vCPU takes the tables out. (That it is told to only a few instructions before
/// the user begins makes no difference here, where instructions are counted: a turn never ends between the two.)
fn way_from_user(guest: &Guest<X86>, code: &[u64]) -> Result<bool, Errno> {
    let tables = EmptiedTables::new(guest)?;
    let user = User::new(guest, code)?;
    let stack = STACK.as_ptr_range().end as u64;
    // It stays what it has become.
    let first = X86::initialise_vcpu(1, guest.root_frame(), take_out, stack);
    first.or_else(|error| if error == Errno::EEXIST { Ok(()) } else { Err(error) })?;
    TAKEN.store(0, Ordering::Release);
    let up = |operation| call::<X86>(number::VCPU_OP, &[operation, 1]);
    up(VCPUOP_UP)?;
    TABLES.store(ptr::from_ref(&tables).cast_mut().cast(), Ordering::Release);
    user.run(FAR);
    let came = TAKEN.load(Ordering::Acquire) == 1 && tables.are_in();
    TABLES.store(ptr::null_mut(), Ordering::Release);
    let down = (0..PATIENCE).any(|_| {
        yield_cpu::<X86>();
        up(VCPUOP_IS_UP) == Ok(0)
    });
    user.end()?;
    tables.put_back()?;
    Ok(came && down)
}

/// The second vCPU: takes the tables out and keeps the CPU for as long as it may, until there is nothing to be taken out any more. Then it goes
/// down, and when it comes up again there is something else.
extern "C" fn take_out(vcpu: u64) -> ! {
    // SAFETY: vCPU 0 keeps the tables until this vCPU is down; `take_out` needs them by reference alone.
    let tables = || unsafe { TABLES.load(Ordering::Acquire).as_ref() };
    loop {
        while tables().is_none() {
            core::hint::spin_loop();
        }
        let taken = tables().map(EmptiedTables::take_out);
        TAKEN.store(if taken == Some(Ok(())) { 1 } else { 2 }, Ordering::Release);
        while tables().is_some() {
            core::hint::spin_loop();
        }
        let _ = call::<X86>(number::VCPU_OP, &[VCPUOP_DOWN, vcpu]);
    }
}

/// Breakpoints, until another domain's turn has come into the middle of some of them.
fn interrupted(guest: &Guest<X86>, check: &mut Check<X86>) {
    let (mut good, mut interrupted) = (true, 0);
    for _ in 0..TRIES {
        let (came, taken) = with_tables_out(guest, breakpoint).unwrap_or((false, 0));
        good &= came;
        interrupted += usize::from(taken > A_TURN);
        if interrupted == INTERRUPTED {
            break;
        }
    }
    check.that("each breakpoint comes once", good);
    check.that("another domain had its turn before some of them came", interrupted == INTERRUPTED);
}

/// What is measured as `breakpoint-4-emptied-tables`.
pub fn measured_breakpoint(guest: &Guest<X86>) -> Result<(), Errno> {
    traps::install_one(BREAKPOINT, 0, late_trap)?;
    if with_tables_out(guest, breakpoint)?.0 { Ok(()) } else { Err(Errno::EFAULT) }
}

/// What is measured as `page-fault-4-emptied-tables`.
pub fn measured_page_fault(guest: &Guest<X86>) -> Result<(), Errno> {
    if with_tables_out(guest, || X86::try_read_word(NOWHERE).is_none())?.0 {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}
