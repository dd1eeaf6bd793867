//! What is done to a machine from outside: the emulator's debugger interface, over a socket of the machine's own.
//!
//! While somebody is connected, the machine stands still; with the last packet it goes on. The protocol is gdb's: `$packet#sum`, each
//! confirmed by a `+`. Of it these are used: `qXfer` (before which registers can't be written), `qRcmd` (a command of the emulator's
//! monitor), `P` (a register), `M` and `m` (memory; physical since `Qqemu.PhyMemMode`), `Z0` and `z0` (a breakpoint), `c` and `s` (on, or by one
//! instruction, until `T05`), and `D` (the end).
//!
//! Source: the GDB manual, appendix E, "GDB Remote Serial Protocol"; QEMU's manual, "GDB usage".

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use machine_tests::case::Deed;

/// How long the emulator may take for an answer: it only has to look at a machine that stands still.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a machine's state is looked at before it is given up, and how long the machine may go on between.
const LOOKS: usize = 300;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// An instruction, by its address and the code there, since programs have addresses in common.
pub struct Breakpoint {
    /// Where it is.
    pub address: u64,
    /// What is there.
    pub code: Vec<u8>,
}

/// A machine's debugger. The socket's name goes when this does.
pub struct Debugger {
    socket: PathBuf,
}

impl Debugger {
    /// A way to the machine that `command` starts.
    pub fn of(command: &mut Command) -> Debugger {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Not among the artefacts: such names must be short.
        let name = format!("penumbra-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let socket = std::env::temp_dir().join(name);
        let mut device = OsString::from("unix:");
        device.push(&socket);
        device.push(",server=on,wait=off");
        command.arg("-gdb").arg(device);
        Debugger { socket }
    }

    /// Stops the machine, does all of this, and lets it go on.
    pub fn carry_out(&self, deeds: &[Deed]) -> Result<()> {
        let mut connection = self.connect()?;
        for deed in deeds {
            match deed {
                Deed::Await(state) => connection = self.wait(connection, state)?,
                Deed::Monitor(command) => {
                    let said = connection.monitor(command)?;
                    ensure!(said.is_empty(), "the emulator says to {command:?}: {said}");
                }
                Deed::Write { address, value } => {
                    connection.must_be_ok("Qqemu.PhyMemMode:1")?;
                    connection.must_be_ok(&format!("M{address:x},4:{:08x}", value.swap_bytes()))?;
                }
                Deed::Register { number, value } => {
                    connection.must_be_ok(&format!("P{number:x}={:016x}", value.swap_bytes()))?;
                }
            }
        }
        connection.must_be_ok("D")
    }

    /// Lets a machine that stands still go on to an instruction, for the first time; returns how many it has executed, of which the emulator has to
    /// keep a record. Then the machine is switched off.
    pub fn executed_until(&self, breakpoint: &Breakpoint, limit: Duration) -> Result<u64> {
        let mut connection = self.connect_in_time()?;
        connection.stream.set_read_timeout(Some(limit))?;
        let counted =
            connection.run_to(breakpoint).and_then(|()| executed(&connection.monitor("info replay")?));
        // The emulator ends before it can confirm that.
        let _ = connection.monitor("quit");
        counted
    }

    /// A connection to an emulator that has just been started.
    fn connect_in_time(&self) -> Result<Connection> {
        for _ in 0..LOOKS {
            if self.socket.exists() {
                break;
            }
            thread::sleep(BETWEEN_LOOKS);
        }
        self.connect()
    }

    fn connect(&self) -> Result<Connection> {
        let stream = UnixStream::connect(&self.socket).context("cannot connect to the machine's debugger")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Connection { stream };
        connection.ask("qXfer:features:read:target.xml:0,1000")?;
        Ok(connection)
    }

    /// Lets the machine go on and looks at it now and then, until it stands still where its registers say this.
    fn wait(&self, mut connection: Connection, state: &str) -> Result<Connection> {
        for _ in 0..LOOKS {
            if connection.monitor("info registers")?.contains(state) {
                return Ok(connection);
            }
            connection.must_be_ok("D")?;
            drop(connection);
            thread::sleep(BETWEEN_LOOKS);
            connection = self.connect()?;
        }
        bail!("the machine's registers never say {state}")
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        // The emulator may have taken it away itself.
        let _ = fs::remove_file(&self.socket);
    }
}

struct Connection {
    stream: UnixStream,
}

impl Connection {
    fn must_be_ok(&mut self, packet: &str) -> Result<()> {
        let answer = self.ask(packet)?;
        ensure!(answer == "OK", "the emulator answers {answer:?} to the debugger's {packet:?}");
        Ok(())
    }

    /// A command of the monitor's, and what it says, which comes in packets before the last.
    fn monitor(&mut self, command: &str) -> Result<String> {
        let mut packet = String::from("qRcmd,");
        for byte in command.bytes() {
            write!(packet, "{byte:02x}")?;
        }
        let (mut answer, mut said) = (self.ask(&packet)?, String::new());
        while let Some(text) = answer.strip_prefix('O').filter(|rest| *rest != "K") {
            said.push_str(&text_of(text));
            answer = self.answer()?;
        }
        ensure!(answer == "OK", "the emulator answers {answer:?} to {command:?}");
        Ok(said.trim().to_owned())
    }

    /// Lets the machine go on until it is at the breakpoint; the instruction there is not executed yet.
    fn run_to(&mut self, Breakpoint { address, code }: &Breakpoint) -> Result<()> {
        let wanted: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        let (set, removed) = (format!("Z0,{address:x},1"), format!("z0,{address:x},1"));
        loop {
            self.must_be_ok(&set)?;
            self.go("c")?;
            self.must_be_ok(&removed)?;
            if self.ask(&format!("m{address:x},{:x}", code.len()))? == wanted {
                return Ok(());
            }
            // Another program's code: past it.
            self.go("s")?;
        }
    }

    /// Lets the machine go on until it stops by itself.
    fn go(&mut self, how: &str) -> Result<()> {
        self.send(how)?;
        while !self.packet()?.starts_with("T05") {}
        Ok(())
    }

    fn ask(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        self.answer()
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        Ok(write!(self.stream, "${packet}#{:02x}", sum(packet.as_bytes()))?)
    }

    /// The next packet that is an answer: that the machine stands still, too, is told by one.
    fn answer(&mut self) -> Result<String> {
        loop {
            let packet = self.packet()?;
            if !packet.starts_with('T') {
                return Ok(packet);
            }
        }
    }

    /// The next packet's content.
    fn packet(&mut self) -> Result<String> {
        // What comes before the packet says only that ours was received.
        while self.byte()? != b'$' {}
        let mut content = Vec::new();
        loop {
            match self.byte()? {
                b'#' => break,
                byte => content.push(byte),
            }
        }
        let told = [self.byte()?, self.byte()?];
        if told != *format!("{:02x}", sum(&content)).as_bytes() {
            bail!("a packet of the debugger's was garbled");
        }
        self.stream.write_all(b"+")?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).context("the machine's debugger is silent")?;
        Ok(byte[0])
    }
}

/// The count in what the monitor says of its record: `Recording execution 'FILE': instruction count = N`.
fn executed(said: &str) -> Result<u64> {
    let count = said.rsplit_once("instruction count = ").and_then(|(_, count)| count.trim().parse().ok());
    count.with_context(|| format!("the emulator doesn't say what was executed: {said:?}"))
}

fn sum(packet: &[u8]) -> u8 {
    packet.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The text that hexadecimal digits stand for.
fn text_of(digits: &str) -> String {
    let pairs = digits.as_bytes().chunks_exact(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    let bytes: Vec<u8> = pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the debugger gets to read, and what comes of `task`.
    fn against<T>(answers: &'static str, task: impl FnOnce(&mut Connection) -> T) -> (T, String) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answers.as_bytes()).unwrap();
        let mut connection = Connection { stream: ours };
        let outcome = task(&mut connection);
        drop(connection);
        let heard = thread::spawn(move || {
            let mut heard = String::new();
            theirs.read_to_string(&mut heard).unwrap();
            heard
        });
        (outcome, heard.join().unwrap())
    }

    #[test]
    fn packets_have_their_sum_and_are_confirmed() {
        let (outcome, heard) = against("+$OK#9a", |connection| connection.must_be_ok("D"));
        assert!(outcome.is_ok());
        assert_eq!(heard, "$D#44+");
        assert!(against("+$OK#9b", |connection| connection.must_be_ok("D")).0.is_err());
        assert!(against("+$E22#a9", |connection| connection.must_be_ok("D")).0.is_err());
    }

    #[test]
    fn what_the_monitor_says_comes_before_its_answer() {
        let monitor = |connection: &mut Connection| connection.monitor("nmi");
        let (outcome, heard) = against("$T05#b9+$OK#9a", monitor);
        assert_eq!(outcome.unwrap(), "");
        assert!(heard.starts_with("$qRcmd,6e6d69#"));
        assert_eq!(against("+$O6e6f0a#17$OK#9a", monitor).0.unwrap(), "no");
        assert!(against("+$E01#a6", monitor).0.is_err());
    }
}
