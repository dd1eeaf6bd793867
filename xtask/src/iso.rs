//! A disc that a PC boots: GRUB, the hypervisor and kernels for it, by multiboot 2.
//!
//! The menu stands on the serial line too. Its first entry is the builtin tour; whatever kernel was given comes second. The entries have the
//! form that Xen's have: the hypervisor with its options, then a line for each module, whose words are the domain's.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cli::{Arch, ImageOptions};
use crate::debian::{self, Debian};
use crate::image::Artefacts;
use crate::process;
use crate::setup;
use crate::workspace;

/// Where GRUB keeps what a PC with a BIOS needs, and the package that brings it.
const GRUB_FILES: (&str, &str) = ("/usr/lib/grub/i386-pc", "grub-pc-bin");
/// The programs that make a disc, and the packages that bring them.
const PROGRAMS: [(&str, &str); 2] = [("grub-mkrescue", "grub-common"), ("xorriso", "xorriso")];
/// Memory of a kernel that was given, in MiB.
const MEMORY: u64 = 512;
/// Seconds until the first entry is taken.
const TIMEOUT: u32 = 2;

/// A kernel for the second entry.
pub struct Guest {
    /// What the menu calls it.
    pub name: String,
    pub kernel: PathBuf,
    pub ramdisk: Option<PathBuf>,
    /// Its command line.
    pub words: String,
}

impl Guest {
    /// The one that somebody asks for, if anybody does.
    pub fn chosen(options: &ImageOptions) -> Result<Option<Guest>> {
        let Some(choice) = &options.guest else { return Ok(None) };
        let words = options.append.clone();
        if choice == "debian" {
            let Debian { kernel, ramdisk, name } = debian::ready(Arch::X86_64)?;
            let ramdisk = options.initrd.clone().unwrap_or(ramdisk);
            let words = words.unwrap_or_else(|| format!("{} then=shell", debian::CONSOLE));
            return Ok(Some(Guest { name, kernel, ramdisk: Some(ramdisk), words }));
        }
        let kernel = PathBuf::from(choice);
        let name = kernel.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let ramdisk = options.initrd.clone();
        Ok(Some(Guest { name, kernel, ramdisk, words: words.unwrap_or_default() }))
    }
}

fn missing() -> Vec<&'static str> {
    let programs = PROGRAMS.iter().filter(|(program, _)| which::which(program).is_err());
    let files = (!Path::new(GRUB_FILES.0).exists()).then_some(GRUB_FILES.1);
    programs.map(|(_, package)| *package).chain(files).collect()
}

/// Installs what is missing.
pub fn tools() -> Result<()> {
    let missing = missing();
    if missing.is_empty() { Ok(()) } else { setup::packages("what makes discs", &missing) }
}

/// Makes a disc, by way of a folder beside it.
pub fn make(artefacts: &Artefacts, guest: Option<&Guest>, disc: &Path) -> Result<()> {
    tools()?;
    let _lock = workspace::lock(&disc.with_extension("lock"), || {
        eprintln!("waiting for another call that makes {} ...", workspace::shown(disc));
    })?;
    let tree = disc.with_extension("disc");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    let boot = workspace::folder(tree.join("boot/grub"))?;
    let mut files =
        vec![("hyp-x86.elf", artefacts.hypervisor.as_path()), ("guest-x86.elf", &artefacts.guest)];
    if let Some(guest) = guest {
        files.push(("kernel", &guest.kernel));
        files.extend(guest.ramdisk.as_deref().map(|ramdisk| ("ramdisk", ramdisk)));
    }
    for (name, file) in files {
        let to = tree.join("boot").join(name);
        fs::copy(file, &to).with_context(|| format!("cannot copy {} to {}", file.display(), to.display()))?;
    }
    fs::write(boot.join("grub.cfg"), menu(guest)).context("cannot write GRUB's menu")?;
    let partial = disc.with_extension("partial");
    let mut command = Command::new("grub-mkrescue");
    command.args(["--directory", GRUB_FILES.0, "--output"]).arg(&partial).arg(&tree);
    write(&mut command, &partial, disc)
}

/// Runs what makes a disc under the name `partial`, and gives it its own.
fn write(command: &mut Command, partial: &Path, disc: &Path) -> Result<()> {
    // A run that was ended may have left one.
    if partial.exists() {
        fs::remove_file(partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    process::step("making a disc: grub-mkrescue", command)?;
    // grub-mkrescue has been seen to end well without a disc when xorriso failed.
    ensure!(partial.exists(), "grub-mkrescue made no disc");
    fs::rename(partial, disc).with_context(|| format!("cannot name {}", disc.display()))
}

/// GRUB's menu.
fn menu(guest: Option<&Guest>) -> String {
    let mut menu = format!(
        "serial --unit=0 --speed=115200\nterminal_input console serial\nterminal_output console serial\n\
         set timeout={TIMEOUT}\nset default=0\n"
    );
    let tour = ["guest-x86.elf tour then=poweroff", "guest-x86.elf domain=guest memory=64M tour"];
    entry(&mut menu, "Penumbra: the tour", 256, &tour.map(str::to_owned));
    if let Some(guest) = guest {
        let mut modules = vec![format!("kernel {}", guest.words)];
        modules.extend(guest.ramdisk.is_some().then(|| "ramdisk".to_owned()));
        entry(&mut menu, &format!("Penumbra: {}", guest.name), MEMORY, &modules);
    }
    menu
}

fn entry(menu: &mut String, name: &str, memory: u64, modules: &[String]) {
    let console = Arch::X86_64.console_words();
    let _ = writeln!(menu, "menuentry {} {{", quoted(name));
    let _ = writeln!(menu, "\tmultiboot2 /boot/hyp-x86.elf {console}dom0_mem={memory}M");
    for module in modules {
        let (file, words) = module.split_once(' ').unwrap_or((module, ""));
        let words: String = words.split_whitespace().map(|word| format!(" {}", quoted(word))).collect();
        let _ = writeln!(menu, "\tmodule2 /boot/{file}{words}");
    }
    menu.push_str("}\n");
}

/// A word as GRUB's language takes it, whatever is in it (GRUB manual, "Quoting").
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_disc_of_an_earlier_run_is_taken_for_this_ones() {
        let folder = workspace::tests::scratch("disc");
        let (partial, disc) = (folder.join("a.partial"), folder.join("a.iso"));
        fs::write(&partial, "old").unwrap();
        let error = write(&mut Command::new("true"), &partial, &disc).unwrap_err();
        assert_eq!(error.to_string(), "grub-mkrescue made no disc");
        assert!(!disc.exists());
        write(Command::new("cp").arg("/dev/null").arg(&partial), &partial, &disc).unwrap();
        assert!(disc.exists() && !partial.exists());
    }

    #[test]
    fn the_menu_has_a_line_for_each_module() {
        let guest = Guest {
            name: "Debian's".into(),
            kernel: "vmlinuz".into(),
            ramdisk: Some("initrd".into()),
            words: "console=hvc0 a=$b".into(),
        };
        let menu = menu(Some(&guest));
        assert_eq!(menu.matches("menuentry ").count(), 2);
        assert!(menu.contains("\tmodule2 /boot/guest-x86.elf 'domain=guest' 'memory=64M' 'tour'\n"));
        assert!(menu.contains("menuentry 'Penumbra: Debian'\\''s' {\n"));
        let expected =
            "dom0_mem=512M\n\tmodule2 /boot/kernel 'console=hvc0' 'a=$b'\n\tmodule2 /boot/ramdisk\n}\n";
        assert!(menu.ends_with(expected), "{menu}");
    }
}
