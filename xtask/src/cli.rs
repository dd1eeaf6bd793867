//! The command line, as clap reads it.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Build, run and test Penumbra.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Boot the hypervisor with a control domain and a second domain in an emulated machine
    Run(RunOptions),
    /// Run every test there is: style, host tests, whole machines
    Test(TestOptions),
    /// Let hostile domains try everything, beside one that looks after its memory
    Soak(SoakOptions),
    /// Random operations on the modelled machine, with new seeds, until the time is up or something is found
    Fuzz(FuzzOptions),
    /// Leave the hypervisor, the guest kernels and a disc that boots them (penumbra.iso) in target/penumbra
    Image(ImageOptions),
    /// Format, lints and house rules
    Check,
    /// Install what is missing: emulators, bare-metal toolchain
    Setup,
    /// Measure sizes and instruction counts, side by side with Debian's Xen (judged only with --strict)
    Bench(BenchOptions),
    /// Say in which functions of the hypervisor one row of the benchmark spends its instructions
    Profile(ProfileOptions),
}

/// An architecture that Penumbra runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Arch {
    #[value(name = "aarch64")]
    Aarch64,
    #[value(name = "x86_64")]
    X86_64,
}

impl Arch {
    /// Both, in the order in which things are built and tested.
    pub const ALL: [Arch; 2] = [Arch::Aarch64, Arch::X86_64];

    /// The chosen one, or both.
    pub fn chosen(choice: Option<Arch>) -> Vec<Arch> {
        choice.map_or_else(|| Arch::ALL.to_vec(), |arch| vec![arch])
    }

    pub fn name(self) -> &'static str {
        match self {
            Arch::Aarch64 => "aarch64",
            Arch::X86_64 => "x86_64",
        }
    }

    /// What a hypervisor's command line begins with, so that Debian's Xen, too, uses the serial line.
    pub fn console_words(self) -> &'static str {
        match self {
            Arch::Aarch64 => "",
            Arch::X86_64 => "console=com1 com1=115200 ",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a domain gets its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// The guest's own page tables, validated, run on the hardware
    Direct,
    /// The hypervisor keeps a cache of shadow tables
    Shadow,
    /// Guest stage 1 under hypervisor stage 2
    #[value(name = "stage-2")]
    Stage2,
}

impl Mode {
    /// As a hypervisor's command line has it.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Direct => "direct",
            Mode::Shadow => "shadow",
            Mode::Stage2 => "stage-2",
        }
    }
}

/// Which kernel a benchmark runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum BenchGuest {
    /// Our guest kernel: single hypercalls and faults
    Builtin,
    /// Debian's kernel, natively, on Xen and on Penumbra (x86_64 unless told)
    Debian,
}

/// Cargo's two profiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Profile {
    Release,
    Dev,
}

#[derive(Args)]
pub struct RunOptions {
    /// The machine: `virt` (aarch64) or `q35` (x86_64)
    #[arg(long, value_enum, default_value = "aarch64")]
    pub arch: Arch,
    /// Memory mode of the first domain (its kernel's own, if nothing is said: stage-2 for those of aarch64 that aren't paravirtual)
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// The first domain's kernel: `builtin`, `debian` (fetched by apt), or a file
    #[arg(long, value_name = "builtin|debian|FILE", default_value = "builtin")]
    pub guest: String,
    /// The first domain's initial ramdisk; with `debian`, instead of the one that is made for it
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The first domain's command line, instead of the tour's; with `debian`, added to what it needs
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// The machine's memory: in MiB, or with K, M or G behind it
    #[arg(long, value_name = "SIZE", default_value = "1024", value_parser = clap_mebibytes)]
    pub mem: u64,
    /// The first domain's memory, likewise (256 for the builtin guest, 512 for others, but not more than half of the machine's)
    #[arg(long, value_name = "SIZE", value_parser = clap_mebibytes)]
    pub dom0_mem: Option<u64>,
    /// Virtual CPUs of the first domain, at most 8
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub vcpus: u32,
    /// CPUs of the machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: u32,
    /// Version of the interrupt controller (aarch64; 3 unless told)
    #[arg(long, value_name = "2|3", value_parser = clap::value_parser!(u8).range(2..=3))]
    pub gic: Option<u8>,
    /// Description of further domains
    #[arg(long, value_name = "FILE")]
    pub domains: Option<PathBuf>,
    /// Words added to the hypervisor's command line
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub hyp_append: Option<String>,
    /// Stop the machine after so many seconds (without a terminal 120 for the builtin guest, 600 for others; no limit on one)
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Where the serial output goes besides the terminal
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Count instructions: one guest instruction is one nanosecond of guest time
    #[arg(long)]
    pub icount: bool,
    /// Cargo's profile for the hypervisor and the guests
    #[arg(long, value_enum, default_value = "release")]
    pub profile: Profile,
}

#[derive(Args)]
pub struct TestOptions {
    /// Only this machine's tests
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// Only the tests whose name contains this, such as `tour`, `style/format` or `host/ring` (`host`: all host tests)
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// How long each fuzz target runs
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub fuzz_seconds: u64,
    /// How long each machine's soak goes on with further seeds
    #[arg(long, value_name = "S", default_value_t = 120)]
    pub soak_seconds: u64,
    /// Cargo's profile for everything that is built
    #[arg(long, value_enum, default_value = "release")]
    pub profile: Profile,
    /// Operations of the tests on the modelled machine, in all
    #[arg(long, value_name = "N", default_value_t = 10_200_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub model_operations: u64,
}

#[derive(Args)]
pub struct FuzzOptions {
    /// Go on for so many hours
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub hours: u64,
    /// Go on for so many minutes (one, if nothing is said)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub minutes: u64,
    /// The first seed (chosen by the clock if nothing is said)
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
}

#[derive(Args)]
pub struct SoakOptions {
    /// Begin runs for so many minutes; each ends by itself
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub minutes: u64,
    /// Only this machine; both by turns if nothing is said
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// The first run's seed, decimal or with 0x in front (chosen by the clock if nothing is said)
    #[arg(long, value_name = "S", value_parser = clap_number)]
    pub seed: Option<u64>,
    /// One run only, the one of --seed
    #[arg(long, requires = "seed")]
    pub once: bool,
    /// Operations of each hostile domain
    #[arg(long, value_name = "N", default_value_t = machine_tests::soak::OPERATIONS, value_parser = clap::value_parser!(u64).range(1..))]
    pub operations: u64,
}

/// Reads a number, decimal or with `0x` in front.
fn clap_number(text: &str) -> Result<u64, std::num::ParseIntError> {
    text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16))
}

/// Reads a size: MiB, or another unit by its letter. From 1 MiB to 1 TiB, in whole MiB.
fn clap_mebibytes(text: &str) -> Result<u64, String> {
    let bytes = hyp_core::options::parse_size(text, 20).ok_or("not a size, such as 512, 512M or 1G")?;
    let whole = bytes.is_multiple_of(1 << 20).then_some(bytes >> 20).ok_or("not a whole number of MiB")?;
    (1..=1 << 20).contains(&whole).then_some(whole).ok_or_else(|| "not between 1 MiB and 1 TiB".into())
}

#[derive(Args)]
pub struct ImageOptions {
    /// Only this architecture's artefacts
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// Cargo's profile
    #[arg(long, value_enum, default_value = "release")]
    pub profile: Profile,
    /// A kernel for the second entry of the disc's menu (x86_64): `debian`, or a file
    #[arg(long, value_name = "debian|FILE")]
    pub guest: Option<String>,
    /// Its initial ramdisk
    #[arg(long, value_name = "FILE", requires = "guest")]
    pub initrd: Option<PathBuf>,
    /// Its command line
    #[arg(long, value_name = "STR", allow_hyphen_values = true, requires = "guest")]
    pub append: Option<String>,
}

#[derive(Args)]
pub struct BenchOptions {
    /// Only this machine
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,
    /// Whose operations are counted
    #[arg(long, value_enum, default_value = "builtin")]
    pub guest: BenchGuest,
    /// Write the figures there as well
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Put the tables into docs/measurements.md, and Debian's into README.md
    #[arg(long)]
    pub docs: bool,
    /// Fail when a row misses its target
    #[arg(long)]
    pub strict: bool,
}

#[derive(Args)]
pub struct ProfileOptions {
    /// The machine
    #[arg(long, value_enum, default_value = "x86_64")]
    pub arch: Arch,
    /// Whose operation it is
    #[arg(long, value_enum, default_value = "builtin")]
    pub guest: BenchGuest,
    /// The row, by its name in the guest's output, such as `batch-map`, or `fork-exit` of Debian's
    pub row: String,
    /// How many functions and lines are shown
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub top: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_every_option_of_its_description() {
        let line = "xtask run --arch x86_64 --mode stage-2 --guest debian --initrd i --append -v --mem 512 \
                    --dom0-mem 100 --vcpus 2 --cpus 2 --gic 2 --domains d --hyp-append x=y --timeout 9 --log l --icount";
        let Ok(cli) = Cli::try_parse_from(line.split_whitespace()) else { panic!("refused") };
        let Command::Run(options) = cli.command else { panic!("another command") };
        assert_eq!((options.arch, options.mode, options.mem), (Arch::X86_64, Some(Mode::Stage2), 512));
        assert_eq!(options.dom0_mem, Some(100));
        assert_eq!(options.append.as_deref(), Some("-v"));
    }

    #[test]
    fn sizes_are_in_mib_unless_told_otherwise() {
        for (text, size) in [("512", 512), ("512M", 512), ("1g", 1024), ("2048K", 2)] {
            assert_eq!(clap_mebibytes(text), Ok(size), "{text}");
        }
        for text in ["0", "lots", "", "1000K", "1G2", "-5", "2048G", "99999999999999999999"] {
            assert!(clap_mebibytes(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for line in [
            "--gic 4",
            "--mem 0",
            "--mem lots",
            "--dom0-mem 1.5G",
            "--arch riscv64",
            "--cpus 0",
            "--vcpus 9",
            "--timeout 0",
            "--mode fast",
        ] {
            let words = ["xtask", "run"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line} was taken");
        }
        for line in
            ["test --model-operations 0", "test --fuzz-seconds 0", "soak --operations 0", "soak --minutes 0"]
        {
            let words = ["xtask"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line} was taken");
        }
    }
}
