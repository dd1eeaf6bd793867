//! Child processes: started by a fork, judged by their exit status; and a gate at which many of them wait.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};

/// What a child ends with if what it did returned an error.
const CHILD_FAILED: i32 = 101;

/// Forks a child that does `work` and ends with the status that it returns. Only for processes with a single thread.
pub fn child(work: impl FnOnce() -> Result<i32>) -> Result<Pid> {
    // SAFETY: this process has one thread, so that the child finds no lock held by another.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // The child must never go on with what its parent does, whatever happens.
            let status = match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(status)) => status,
                Ok(Err(error)) => {
                    println!("child {}: {error:#}", std::process::id());
                    CHILD_FAILED
                }
                Err(_) => CHILD_FAILED,
            };
            // SAFETY: `_exit` ends the process at once; nothing of the parent's is run or flushed by the child.
            unsafe { nix::libc::_exit(status) }
        }
    }
}

/// Waits for a child, which has to end with `status`.
pub fn expect(child: Pid, status: i32) -> Result<()> {
    match wait(child)? {
        WaitStatus::Exited(_, found) if found == status => Ok(()),
        found => bail!("process {child} should end with status {status}, but: {found:?}"),
    }
}

/// Waits for a child.
pub fn wait(child: Pid) -> Result<WaitStatus> {
    waitpid(child, None).context("waitpid")
}

/// A pipe at which children wait until their parent lets them go on.
pub struct Gate {
    reader: std::fs::File,
    writer: std::fs::File,
}

impl Gate {
    pub fn new() -> Result<Gate> {
        let (reader, writer): (OwnedFd, OwnedFd) = pipe().context("pipe")?;
        Ok(Gate { reader: reader.into(), writer: writer.into() })
    }

    /// Waits to be let through.
    pub fn pass(&self) -> Result<()> {
        let length = (&self.reader).read(&mut [0]).context("waiting at the gate")?;
        ensure!(length == 1, "the gate is broken");
        Ok(())
    }

    /// Lets `count` through.
    pub fn open(&self, count: usize) -> Result<()> {
        (&self.writer).write_all(&vec![0; count]).context("opening the gate")
    }
}
