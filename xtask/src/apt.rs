//! Debian packages, fetched by apt and unpacked into the target folder; nothing of them is installed, and no root is needed while apt's lists
//! are there.
//!
//! Those of x86-64 are asked for as this system knows them. Those of AArch64 are for machines that mostly know no such architecture, and need
//! not: apt gets lists of its own for them, in the target folder, from the same sources, and doesn't look at what is installed.
//!
//! A package stands in `target/penumbra/debian/NAME` (AArch64: `debian/arm64/NAME`) once and for all, with its version in a file beside its content. Everything is made under
//! another name first, so that an interrupted download leaves nothing that looks whole, and under a lock, so that two calls don't
//! fetch the same. Whoever wants a newer version removes the folder; what is made of a package stands inside, so that it goes as well.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use crate::cli::Arch;
use crate::process;
use crate::progress::Step;
use crate::setup;
use crate::workspace;

/// A package on the disk.
pub struct Package {
    /// Everything of it, and what is made of it.
    pub folder: PathBuf,
    /// Its content, as it would stand below `/`.
    pub files: PathBuf,
    /// Debian's version.
    pub version: String,
}

/// The file that tells a package's version: it comes last.
const VERSION: &str = "version";

/// Whether a package is in this folder of packages.
pub fn is_there(cache: &Path, name: &str) -> bool {
    cache.join(name).join(VERSION).exists()
}

/// Where an architecture's packages are kept, and what is made of them.
pub fn cache(arch: Arch) -> Result<PathBuf> {
    let debian = workspace::artefacts()?.join("debian");
    workspace::folder(match arch {
        Arch::Aarch64 => debian.join("arm64"),
        Arch::X86_64 => debian,
    })
}

/// Whether this system's package manager could bring Debian's packages.
fn can_be_had() -> bool {
    ["apt-get", "apt-cache", "dpkg-deb"].iter().all(|program| which::which(program).is_ok())
}

/// Why the package can't be had here, if that is so. Trouble on the way (no network, no root) is no such reason: who then asks for the package
/// is told. The answer is found once.
pub fn obstacle(arch: Arch, name: &'static str) -> Option<String> {
    static ANSWERS: Mutex<BTreeMap<String, Option<String>>> = Mutex::new(BTreeMap::new());
    let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    answers.entry(qualified(arch, name)).or_insert_with(|| find_obstacle(arch, name)).clone()
}

fn find_obstacle(arch: Arch, name: &str) -> Option<String> {
    if cache(arch).is_ok_and(|cache| is_there(&cache, name)) {
        return None;
    }
    if !can_be_had() {
        return Some(format!("{name} comes from Debian, by apt-get and dpkg-deb, which this system lacks"));
    }
    let ask = || {
        apt("apt-cache", arch)
            .and_then(|mut apt| run(apt.args(["show", &qualified(arch, name)])))
            .is_ok_and(|text| !text.is_empty())
    };
    (!known(ask, || update(arch))).then(|| format!("this system's package manager knows no {name}"))
}

/// Whether the lists have a package, or may have it: fresh ones are asked before that is denied.
fn known(mut ask: impl FnMut() -> bool, update: impl FnOnce() -> Result<()>) -> bool {
    ask() || update().is_err() || ask()
}

/// Brings fresh lists.
fn update(arch: Arch) -> Result<()> {
    match arch {
        // They are ours: nobody has to be root.
        Arch::Aarch64 => run(apt("apt-get", arch)?.arg("update")).map(drop),
        Arch::X86_64 => run(setup::as_root()?.args(["apt-get", "update"])).map(drop),
    }
}

/// One of apt's programs, which looks at the lists that have this architecture's packages.
fn apt(program: &str, arch: Arch) -> Result<Command> {
    let mut command = Command::new(program);
    if arch == Arch::Aarch64 {
        let state = workspace::folder(cache(arch)?.join("apt"))?;
        workspace::folder(state.join("lists/partial"))?;
        workspace::folder(state.join("archives/partial"))?;
        // What is installed here is another architecture's.
        let status = state.join("status");
        workspace::replace(&status, b"")?;
        let options = [
            format!("Dir::State={}", state.display()),
            format!("Dir::State::status={}", status.display()),
            format!("Dir::Cache={}", state.display()),
            "APT::Architecture=arm64".into(),
            "APT::Architectures=arm64".into(),
            // The user whom apt becomes may not write to the target folder.
            "APT::Sandbox::User=".into(),
        ];
        for option in &options {
            command.args(["-o", option]);
        }
    }
    Ok(command)
}

/// Holds others off, in this process and in others, until it is dropped.
pub fn lock() -> Result<File> {
    workspace::lock(&cache(Arch::X86_64)?.join("lock"), || {
        eprintln!("waiting for another call that is fetching packages ...")
    })
}

/// The package `name`, fetched unless it is there. The caller holds the [`lock`].
pub fn package(arch: Arch, name: &str, _lock: &File) -> Result<Package> {
    let folder = cache(arch)?.join(name);
    let files = folder.join("files");
    if let Ok(version) = fs::read_to_string(folder.join(VERSION)) {
        return Ok(Package { folder, files, version: version.trim().to_owned() });
    }
    ensure!(can_be_had(), "{name} comes from Debian, by apt-get and dpkg-deb, which this system lacks");
    let partial = cache(arch)?.join(format!("{name}.partial"));
    remove(&partial)?;
    let version =
        Step::around(format!("fetching {name}: apt-get download"), |_| fetch(arch, name, &partial))?;
    remove(&folder)?;
    fs::rename(&partial, &folder).with_context(|| format!("cannot name {}", folder.display()))?;
    Ok(Package { folder, files, version })
}

fn remove(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// Downloads and unpacks; the file that tells the version comes last.
fn fetch(arch: Arch, name: &str, folder: &Path) -> Result<String> {
    let folder = workspace::folder(folder.to_owned())?;
    let wanted = qualified(arch, name);
    with_lists(arch, || run(apt("apt-get", arch)?.args(["download", &wanted]).current_dir(&folder)))
        .with_context(|| format!("cannot fetch {name}"))?;
    let mut found = fs::read_dir(&folder).context("cannot read the package's folder")?.flatten();
    let archive = found.find(|file| file.path().extension().is_some_and(|end| end == "deb"));
    let archive = archive.context("apt-get download left no package")?.path();
    let unpacked = || format!("cannot unpack {}", archive.display());
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(folder.join("files"))).with_context(unpacked)?;
    let version = run(Command::new("dpkg-deb").arg("-f").arg(&archive).arg("Version"))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    fs::write(folder.join(VERSION), &version).context("cannot note the package's version")?;
    Ok(version.trim().to_owned())
}

/// The first package that `name` depends on, whose name begins with `prefix`: what a metapackage stands for.
pub fn dependency(arch: Arch, name: &str, prefix: &str) -> Result<String> {
    ensure!(can_be_had(), "{name} comes from Debian, by apt-get and dpkg-deb, which this system lacks");
    let found = with_lists(arch, || {
        let text = run(apt("apt-cache", arch)?.args(["depends", "--important", &qualified(arch, name)]))?;
        first_dependency(&text, prefix).with_context(|| format!("apt knows no package {name}"))
    });
    found.with_context(|| format!("cannot find out what {name} is"))
}

/// Reads `apt-cache depends`: `  Depends: linux-image-6.1.0-56-amd64`, perhaps with an architecture behind it.
fn first_dependency(text: &str, prefix: &str) -> Option<String> {
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let name = names.map(str::trim).find(|name| name.starts_with(prefix))?;
    Some(name.split(':').next().unwrap_or(name).to_owned())
}

/// Packages are those of the machine that is emulated, whatever this computer is.
fn qualified(arch: Arch, name: &str) -> String {
    match arch {
        Arch::Aarch64 => format!("{name}:arm64"),
        Arch::X86_64 => format!("{name}:amd64"),
    }
}

/// Tries again with fresh lists: a new machine may have none yet, or old ones.
fn with_lists<T>(arch: Arch, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let first = match work() {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    if let Err(error) = update(arch) {
        bail!("{first:#}; and the package lists could not be updated: {error:#}");
    }
    work()
}

/// Runs a program to its end and returns what it said; its complaint is the error.
fn run(command: &mut Command) -> Result<String> {
    let output = process::output(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.lines().find(|line| line.starts_with("E: ")).unwrap_or(complaint.trim());
    bail!("{} says: {complaint}", command.get_program().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_behind_a_metapackage_is_found() {
        let text = "linux-image-amd64\n  Depends: linux-base\n  Depends: linux-image-6.1.0-56-amd64\n";
        let found = first_dependency(text, "linux-image-");
        assert_eq!(found.as_deref(), Some("linux-image-6.1.0-56-amd64"));
        let foreign = "linux-image-amd64:amd64\n  Depends: linux-image-6.1.0-56-amd64:amd64\n";
        assert_eq!(first_dependency(foreign, "linux-image-"), found);
        assert_eq!(
            first_dependency("linux-image-amd64\n  Suggests: linux-image-doc\n", "linux-image-"),
            None
        );
    }

    #[test]
    fn a_package_is_unknown_only_by_fresh_lists() {
        let lists = |answers: &[bool]| {
            let mut answers = answers.to_vec();
            move || answers.remove(0)
        };
        assert!(known(lists(&[true]), || panic!("there is no need of fresh lists")));
        assert!(known(lists(&[false, true]), || Ok(())), "there were none yet");
        assert!(!known(lists(&[false, false]), || Ok(())), "another distribution");
        assert!(known(lists(&[false]), || bail!("no network")), "nothing is known");
    }

    #[test]
    fn what_a_program_complains_of_is_the_error() {
        let error = run(Command::new("sh").args(["-c", "echo warning >&2; echo E: none >&2; exit 3"]));
        assert_eq!(error.unwrap_err().to_string(), "sh says: E: none");
    }
}
