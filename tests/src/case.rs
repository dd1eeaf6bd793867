//! One test: a machine, what is done with it, and what it must say.

use crate::verdict;

/// A board of the emulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Board {
    /// aarch64.
    Virt,
    /// x86-64.
    Q35,
}

/// What stands between the machine and the guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hypervisor {
    /// Ours.
    Penumbra,
    /// Ours, built to judge every frame that a guest reaches by a second stage of translation (aarch64; hyp-el2/src/oracle.rs).
    PenumbraWithOracle,
    /// Ours, on the disc that `cargo xtask image` makes, by GRUB and multiboot 2 (x86-64); its menu has the words and the modules.
    PenumbraOnDisc,
    /// The Xen that Debian ships, unchanged.
    DebianXen,
    /// Nothing: a kernel has the machine for itself, Debian's where its ramdisk is a module, else our guest kernel (aarch64); [`Case::words`] are its own.
    Nothing,
}

/// A boot module's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum File {
    /// Our guest kernel for this machine.
    Guest,
    /// Our guest kernel, cut off after half of its bytes.
    CutGuest,
    /// Our guest kernel's first bytes: not even the ELF header is whole.
    FirstBytesOfGuest,
    /// A text.
    Text,
    /// A file without a byte in it.
    Empty,
    /// Our guest kernel, whose header says that it is for the other architecture.
    OtherMachine,
    /// Not a kernel: [`ramdisk`].
    Ramdisk,
    /// Our guest kernel, with something changed in the file.
    Changed(Change),
    /// Our guest kernel as a bzImage (x86-64), whole or damaged.
    Packed(Packing, Damage),
    /// Not a kernel: 9 MiB of zeros.
    LargeRamdisk,
    /// Debian's Linux kernel, as its package brings it.
    DebianKernel,
    /// GRUB's own image for Xen's paravirtual guests, as its package brings it (x86-64).
    DebianGrub,
    /// The ramdisk that goes with Debian's kernel: busybox, `workloads/init` and the workloads.
    DebianRamdisk,
}

/// What is changed in a kernel's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The second segment to load wants the memory of the first.
    OverlappingSegments,
    /// The last segment to load says that it goes nearly to the end of all addresses.
    EndlessSegment,
    /// Neither a program header nor a section has notes.
    NoNotes,
    /// A thousand program headers more lead to notes, all to the same megabyte.
    EndlessNotes,
    /// One more note wants code that issues hypercalls in the page where the kernel begins.
    HypercallPage,
    /// One more note wants the P2M in the lower half of all addresses.
    LowP2m,
    /// No program header leads to the notes, which are in a section.
    NotesInSection,
    /// In place of notes there are words, as before there were notes (x86-64).
    Words,
    /// The notes name another ABI.
    OtherAbi,
}

/// The compression of a bzImage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// LZMA2 in an XZ stream, with the filter for x86 code.
    Xz,
    /// Deflate.
    Gzip,
    /// Zstandard.
    Zstd,
    /// LZ4, legacy frame.
    Lz4,
}

/// What is wrong with a bzImage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// Nothing.
    None,
    /// Its second half is missing.
    CutShort,
    /// The payload's first half is other bytes, but for its header.
    Corrupt,
    /// The check behind the content is another: the format's own, or the whole file's where the format has none.
    Check,
    /// It says that 4 GiB would come out.
    TooLarge,
    /// It says that one byte less would come out.
    WrongLength,
    /// It follows boot protocol 2.07.
    TooOld,
    /// The payload is in no compression.
    NoFormat,
    /// The payload is another, of zstd, which exceeds its window by a block's literals.
    LongLiterals,
    /// The same by a sequence.
    LongSequence,
}

/// Bytes of a ramdisk: more than a page, and not a whole number of words.
const RAMDISK_LENGTH: u32 = 5003;

/// Content of a ramdisk, in which no two pages are the same.
pub fn ramdisk() -> Vec<u8> {
    (0..RAMDISK_LENGTH).map(|index| (index * index / 7 + index) as u8).collect()
}

/// How the machine must come to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// By itself: switched off or reset from inside.
    Off,
    /// The hypervisor says that it stops ([`verdict::is_stop`]); the machine may stand still then.
    Stopped,
    /// It says this, and the machine may stand still then.
    Says(&'static str),
}

/// How a machine came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// By itself, and the emulator was content.
    Off,
    /// It said [`Case::last_words`], or that the hypervisor stops, and was switched off then.
    SaidLastWords,
    /// The emulator ended with an error.
    Failed,
    /// The time was up.
    TimedOut,
}

/// Something to be found out from the whole output; the error says what is wrong.
pub type Finding = fn(&str) -> Result<(), String>;

/// What the emulator's debugger does to a machine, from outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Nothing, but what follows waits until the monitor's `info registers` has this in it.
    Await(&'static str),
    /// A command of the emulator's monitor, which says nothing if it could be carried out.
    Monitor(&'static str),
    /// A write to a physical address, as a device might do it.
    Write {
        /// The address.
        address: u64,
        /// What is written.
        value: u32,
    },
    /// A register of the first CPU's, by the debugger's number of it, gets this value.
    Register {
        /// x86-64: 7 is `rsp`, 16 `rip`; AArch64: 31 is `sp`, 32 `pc`.
        number: u8,
        /// What it holds from then on.
        value: u64,
    },
}

/// Something that is typed, and what it waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys {
    /// All these texts have to appear.
    pub after: Vec<&'static str>,
    /// Then this is done, while the machine stands still.
    pub deeds: Vec<Deed>,
    /// Then this is typed.
    pub typed: &'static str,
    /// Their order doesn't matter, neither among each other nor with those of neighbouring steps of this kind.
    pub overtaken: bool,
}

/// A test.
#[derive(Clone, Debug)]
pub struct Case {
    /// `architecture/what/variant`: says what broke.
    pub name: String,
    /// The machine.
    pub board: Board,
    /// Its memory in MiB.
    pub memory: u64,
    /// Version of its interrupt controller (aarch64).
    pub gic: u8,
    /// The processor, where it isn't the usual one.
    pub cpu: Option<&'static str>,
    /// How many processors it has.
    pub cpus: u32,
    /// Instructions are counted: each takes a nanosecond of the machine's time.
    pub icount: bool,
    /// What boots.
    pub hypervisor: Hypervisor,
    /// The hypervisor's command line, apart from the console's options.
    pub words: &'static str,
    /// Modules with their words; the control domain's kernel first.
    pub modules: Vec<(File, &'static str)>,
    /// What is typed.
    pub keys: Vec<Keys>,
    /// The machine is stopped after so many seconds.
    pub limit: u64,
    /// How it must end.
    pub end: End,
    /// Texts that must appear in this order, each within a line.
    pub story: Vec<&'static str>,
    /// Texts that must not appear.
    pub forbidden: Vec<&'static str>,
    /// What else must hold.
    pub finding: Option<Finding>,
}

/// Texts that are a failure wherever they appear.
const NEVER: [&str; 6] =
    ["panic", "hypervisor fault", "error: audit", "error: oracle", "TRACE LEFT", "ALLOWED"];

impl Case {
    /// A machine with 512 MiB, a control domain that is told `control`, and nothing more.
    pub fn new(board: Board, name: &str, control: &'static str) -> Case {
        Case {
            name: format!("{}/{name}", architecture(board)),
            board,
            memory: 512,
            gic: 3,
            cpu: None,
            cpus: 1,
            icount: false,
            hypervisor: Hypervisor::Penumbra,
            words: "dom0_mem=64M",
            modules: vec![(File::Guest, control)],
            keys: Vec::new(),
            limit: 120,
            end: End::Off,
            story: Vec::new(),
            forbidden: NEVER.to_vec(),
            finding: None,
        }
    }

    /// Adds a domain.
    #[must_use]
    pub fn domain(mut self, words: &'static str) -> Case {
        self.modules.push((File::Guest, words));
        self
    }

    /// Adds to what must appear.
    #[must_use]
    pub fn says(mut self, texts: &[&'static str]) -> Case {
        self.story.extend(texts);
        self
    }

    /// Adds to what is typed: after the first text has appeared, behind the one before it, the second.
    #[must_use]
    pub fn types(mut self, keys: &[(&'static str, &'static str)]) -> Case {
        self.keys.extend(keys.iter().map(|(after, typed)| Keys {
            after: vec![after],
            deeds: Vec::new(),
            typed,
            overtaken: false,
        }));
        self
    }

    /// Adds to what is typed: when all these texts have appeared, in whatever order. Texts of steps of this kind that follow each other
    /// may overtake each other; each appearance counts once.
    #[must_use]
    pub fn types_after_all(mut self, after: &[&'static str], typed: &'static str) -> Case {
        self.keys.push(Keys { after: after.to_vec(), deeds: Vec::new(), typed, overtaken: true });
        self
    }

    /// After this text, behind what was waited for before, the debugger does something, and something is typed.
    #[must_use]
    pub fn does(mut self, after: &'static str, deeds: Vec<Deed>, typed: &'static str) -> Case {
        self.keys.push(Keys { after: vec![after], deeds, typed, overtaken: false });
        self
    }

    /// The text after which nothing more is to be waited for, where it isn't the hypervisor's that it stops.
    pub fn last_words(&self) -> Option<&'static str> {
        if let End::Says(text) = self.end { Some(text) } else { None }
    }

    /// Whether the machine was as it must be; the error says what was not.
    ///
    /// # Errors
    /// In words for the person who reads the test's line.
    pub fn judge(&self, text: &str, ended: Ended) -> Result<(), String> {
        self.judge_text(text)?;
        let good = match self.end {
            End::Off => ended == Ended::Off,
            End::Stopped | End::Says(_) => matches!(ended, Ended::Off | Ended::SaidLastWords),
        };
        if good {
            Ok(())
        } else {
            Err(format!("everything was said, but the machine's end was wrong: {ended:?}"))
        }
    }

    fn judge_text(&self, text: &str) -> Result<(), String> {
        if let Some(line) = text.lines().find(|line| self.forbidden.iter().any(|bad| line.contains(bad))) {
            return Err(format!("it says: {line}"));
        }
        if self.end != End::Stopped
            && let Some(line) = verdict::stopped(text)
        {
            return Err(format!("the hypervisor stopped: {line}"));
        }
        follow(text, &self.story)?;
        self.finding.map_or(Ok(()), |finding| finding(text))
    }
}

/// Looks for each text after the one before.
fn follow(text: &str, story: &[&str]) -> Result<(), String> {
    let mut rest = text;
    for (index, wanted) in story.iter().enumerate() {
        let Some(at) = rest.find(wanted) else {
            let before = if index == 0 { String::new() } else { format!(" after {:?}", story[index - 1]) };
            return Err(format!("it never says {wanted:?}{before}"));
        };
        rest = &rest[at + wanted.len()..];
    }
    Ok(())
}

/// The architecture's name on a command line.
pub fn architecture(board: Board) -> &'static str {
    match board {
        Board::Virt => "aarch64",
        Board::Q35 => "x86_64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        Case::new(Board::Q35, "example", "").says(&["one", "two"])
    }

    #[test]
    fn the_story_must_be_told_in_order() {
        assert_eq!(case().judge("one\ntwo\n", Ended::Off), Ok(()));
        assert!(case().judge("two\none\n", Ended::Off).unwrap_err().contains("\"two\" after \"one\""));
        assert!(case().judge("", Ended::Off).is_err());
    }

    #[test]
    fn a_wrong_end_is_a_failure() {
        for ended in [Ended::TimedOut, Ended::Failed, Ended::SaidLastWords] {
            assert!(case().judge("one\ntwo\n", ended).is_err(), "{ended:?}");
        }
        let stopping = Case { end: End::Stopped, ..case() };
        assert_eq!(stopping.judge("one two", Ended::SaidLastWords), Ok(()));
        assert!(stopping.judge("one two", Ended::TimedOut).is_err());
    }

    #[test]
    fn a_machine_that_gives_up_is_a_failure_unless_that_is_what_must_happen() {
        let text = "one\ntwo\n(PEN) error: the first domain can't start: no memory\n";
        assert!(case().judge(text, Ended::Off).is_err());
        assert!(Case { end: End::Says("two"), ..case() }.judge(text, Ended::SaidLastWords).is_err());
        assert_eq!(Case { end: End::Stopped, ..case() }.judge(text, Ended::SaidLastWords), Ok(()));
    }

    #[test]
    fn a_panic_is_a_failure_whatever_else_is_said() {
        assert!(case().judge("one\ntwo\n(PEN) hypervisor panic: x\n", Ended::Off).is_err());
        assert!(case().judge("one\n(d1) guest kernel: panicked at\ntwo\n", Ended::Off).is_err());
    }

    #[test]
    fn a_finding_has_the_last_word() {
        let strict = Case { finding: Some(|_| Err("no".into())), ..case() };
        assert_eq!(strict.judge("one\ntwo\n", Ended::Off), Err("no".into()));
    }
}
