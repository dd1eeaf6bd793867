//! What few programs use, and a hypervisor must keep apart for each vCPU all the same: segments of a process's own, single steps,
//! breakpoints in the processor's registers.
//!
//! - Processes side by side have a local descriptor table each, of two pages, in which the same selectors lead to other memory.
//! - A debugger takes its child through a loop one instruction at a time, and counts them.
//! - It has the child stopped at an instruction, and by a write to a word, by the debug registers, and sees which it was.

use anyhow::Result;

use crate::{Fate, Spoil};

#[cfg(target_arch = "x86_64")]
pub fn run(spoil: Spoil) -> Result<Fate> {
    pc::segments(spoil)?;
    let steps = pc::steps(spoil)?;
    pc::breakpoints(spoil)?;
    Ok(Fate::Passed(format!(
        "segments of {} processes, {steps} steps, {} breakpoints",
        pc::PROCESSES,
        2 * pc::ROUNDS
    )))
}

#[cfg(not(target_arch = "x86_64"))]
pub fn run(_spoil: Spoil) -> Result<Fate> {
    Ok(Fate::Skipped("it is written for x86-64".into()))
}

#[cfg(target_arch = "x86_64")]
mod pc {
    use std::arch::asm;
    use std::mem::offset_of;
    use std::num::NonZeroUsize;

    use anyhow::{Context, Result, bail, ensure};
    use nix::libc::{SYS_modify_ldt, c_void, syscall, user, user_regs_struct};
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    use nix::sys::ptrace;
    use nix::sys::signal::Signal;
    use nix::sys::wait::WaitStatus;
    use nix::unistd::Pid;

    use crate::Spoil;
    use crate::memory::PAGE;
    use crate::processes::{child, expect, wait};

    /// Processes with a descriptor table each.
    pub const PROCESSES: u32 = 4;
    /// Entries that are used: in the table's first page and in its second.
    const ENTRIES: [u32; 2] = [3, 600];
    /// How often each process looks.
    const LOOKS: u32 = 200;
    /// Turns of the loop that is gone through by single steps.
    const TURNS: u64 = 100;
    /// How often the child meets both breakpoints.
    pub const ROUNDS: u64 = 16;

    /// `struct user_desc` (Linux, arch/x86/include/uapi/asm/ldt.h).
    #[repr(C)]
    struct Segment {
        entry: u32,
        base: u32,
        limit: u32,
        flags: u32,
    }

    /// In [`Segment::flags`]: 32 bits; free for the system's use.
    const WIDE: u32 = 1;
    const USEABLE: u32 = 1 << 6;
    /// `modify_ldt`: write an entry.
    const WRITE: u64 = 0x11;

    /// Each process sees its own memory and its own limit by selectors that all of them use.
    pub fn segments(spoil: Spoil) -> Result<()> {
        // Each has a page of its own here, with its number in it. Segments begin below 4 GiB.
        let length = NonZeroUsize::new(PROCESSES as usize * PAGE).context("no processes")?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT;
        // SAFETY: fresh memory, wherever the kernel likes; it stays mapped as long as the process lives.
        let memory = unsafe { mmap_anonymous(None, length, rights, flags) }.context("memory below 4 GiB")?;
        let mut children = Vec::new();
        for number in 0..PROCESSES {
            let page = memory.as_ptr() as usize + number as usize * PAGE;
            // SAFETY: the first word of a page of the mapping above, which nobody else uses.
            unsafe { (page as *mut u64).write_volatile(word(number)) };
            children.push(child(move || {
                look(number, u32::try_from(page).context("memory above 4 GiB")?, spoil.only(number == 2))?;
                Ok(0)
            })?);
        }
        children.into_iter().try_for_each(|child| expect(child, 0))
    }

    fn word(number: u32) -> u64 {
        u64::from(number) << 40 | 0x5e6
    }

    fn look(number: u32, base: u32, spoil: Spoil) -> Result<()> {
        for entry in ENTRIES {
            let segment = Segment { entry, base, limit: number * 16 + 15, flags: WIDE | USEABLE };
            // SAFETY: the call reads the structure and changes this process's own table.
            let done = unsafe { syscall(SYS_modify_ldt, WRITE, &raw const segment, size_of::<Segment>()) };
            ensure!(done == 0, "modify_ldt: {}", std::io::Error::last_os_error());
        }
        let expected = spoil.word(word(number));
        for turn in 0..LOOKS {
            for entry in ENTRIES {
                let (found, limit) = through(entry << 3 | 7);
                ensure!(found == expected, "entry {entry}, look {turn}: {found:#x} instead of {expected:#x}");
                ensure!(limit == number * 16 + 15, "entry {entry}, look {turn}: the limit is {limit}");
            }
        }
        Ok(())
    }

    /// The first word of a segment, read after the others have had a turn; and the segment's limit, as the processor tells it.
    fn through(selector: u32) -> (u64, u32) {
        let (word, limit): (u64, u32);
        // SAFETY: nobody else uses `gs` in a 64-bit program; the segment's first word is readable. `sched_yield` (24) takes nothing, and changes
        // the registers that are named.
        unsafe {
            asm!(
                "mov gs, {selector:e}",
                "syscall",
                "mov {word}, gs:[0]",
                "lsl {limit:e}, {selector:e}",
                "mov gs, {none:e}",
                selector = in(reg) selector,
                none = in(reg) 0,
                word = out(reg) word,
                limit = out(reg) limit,
                inout("rax") 24u64 => _,
                out("rcx") _,
                out("r11") _,
            );
        }
        (word, limit)
    }

    /// A child that waits, at a breakpoint, for what is done to it.
    struct Traced(Pid);

    impl Traced {
        fn new(deed: fn()) -> Result<Traced> {
            let traced = Traced(child(|| {
                ptrace::traceme().context("being traced")?;
                deed();
                Ok(0)
            })?);
            traced.stops().map(|()| traced)
        }

        fn stops(&self) -> Result<()> {
            match wait(self.0)? {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => Ok(()),
                found => bail!("instead of a trap: {found:?}"),
            }
        }

        fn step(&self) -> Result<user_regs_struct> {
            ptrace::step(self.0, None).context("a single step")?;
            self.stops()?;
            self.registers()
        }

        fn go(&self) -> Result<user_regs_struct> {
            ptrace::cont(self.0, None).context("on")?;
            self.stops()?;
            self.registers()
        }

        fn registers(&self) -> Result<user_regs_struct> {
            ptrace::getregs(self.0).context("registers")
        }

        fn debug_register(&self, number: usize) -> *mut c_void {
            (offset_of!(user, u_debugreg) + number * 8) as *mut c_void
        }

        fn set(&self, number: usize, value: u64) -> Result<()> {
            ptrace::write_user(self.0, self.debug_register(number), value as i64)
                .with_context(|| format!("debug register {number}"))
        }

        /// What was met, by the status register, which is clear afterwards.
        fn met(&self) -> Result<u64> {
            let status = ptrace::read_user(self.0, self.debug_register(6)).context("debug register 6")?;
            self.set(6, 0)?;
            Ok(status as u64 & 0xf)
        }

        fn ends(self) -> Result<()> {
            ptrace::cont(self.0, None).context("on")?;
            expect(self.0, 0)
        }
    }

    /// Traps, counts down, makes a system call, and traps again; rdi says where.
    fn counted() {
        // SAFETY: the traps are the debugger's; `getppid` (110) takes nothing, and changes the registers that are named.
        unsafe {
            asm!(
                "lea rdi, [rip + 3f]",
                "int3",
                "2:",
                "dec rsi",
                "jnz 2b",
                "syscall",
                "nop",
                "3: int3",
                inout("rsi") TURNS => _,
                inout("rax") 110u64 => _,
                out("rdi") _,
                out("rcx") _,
                out("r11") _,
            );
        }
    }

    /// Through [`counted`], one instruction at a time.
    pub fn steps(spoil: Spoil) -> Result<u64> {
        let traced = Traced::new(counted)?;
        let end = traced.registers()?.rdi;
        // The loop's, and two behind it.
        let expected = spoil.word(2 * TURNS + 2);
        let mut steps = 0;
        loop {
            let registers = traced.step()?;
            steps += 1;
            if registers.rip == end {
                break;
            }
            let turns = TURNS - (steps / 2 + steps % 2).min(TURNS);
            ensure!(
                registers.rsi == turns,
                "step {steps}: {} turns are left instead of {turns}",
                registers.rsi
            );
            ensure!(steps < 10 * TURNS, "{steps} steps, and no end");
        }
        ensure!(steps == expected, "{steps} steps instead of {expected}");
        traced.go()?;
        traced.ends()?;
        Ok(steps)
    }

    /// Traps, then writes to a word and comes by an instruction, again and again; rdi says where that is, rsi where the word is.
    fn watched() {
        let mut word = 0u64;
        // SAFETY: the traps are the debugger's; the word is written, and the registers that are changed are named.
        unsafe {
            asm!(
                "lea rdi, [rip + 3f]",
                "int3",
                "2:",
                "mov [rsi], rdx",
                "nop",
                "nop",
                "3: nop",
                "dec rdx",
                "jnz 2b",
                in("rsi") &raw mut word,
                inout("rdx") ROUNDS => _,
                out("rdi") _,
            );
        }
    }

    /// In the control register: register 0 stops before an instruction, register 1 after a write of eight bytes.
    const INSTRUCTION_AND_WRITE: u64 = 1 | 1 << 2 | 0b1001 << 20;

    /// Through [`watched`], by the debug registers.
    pub fn breakpoints(spoil: Spoil) -> Result<()> {
        let traced = Traced::new(watched)?;
        let registers = traced.registers()?;
        let (instruction, word) = (registers.rdi, registers.rsi);
        traced.set(0, instruction)?;
        traced.set(1, word)?;
        traced.set(7, INSTRUCTION_AND_WRITE)?;
        for round in (1..=ROUNDS).rev() {
            let registers = traced.go()?;
            ensure!(
                traced.met()? == 2,
                "round {round}: the write isn't what was met, at {:#x}",
                registers.rip
            );
            let found = ptrace::read(traced.0, word as *mut c_void).context("the word")? as u64;
            let expected = spoil.only(round == 3).word(round);
            ensure!(found == expected, "round {round}: {found} was written instead of {expected}");
            let registers = traced.go()?;
            ensure!(traced.met()? == 1, "round {round}: the instruction isn't what was met");
            ensure!(registers.rip == instruction, "round {round}: stopped at {:#x}", registers.rip);
        }
        traced.ends()
    }
}
