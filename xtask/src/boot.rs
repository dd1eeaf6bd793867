//! The emulator's command line: a machine, a hypervisor, and the modules that a boot loader would bring.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::cli::Arch;
use crate::image;
use crate::process;
use crate::setup;
use crate::workspace;

/// What a module is to the control domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Kernel,
    Ramdisk,
}

/// A file that the boot loader leaves in memory, with its string of words.
#[derive(Clone, Debug)]
pub struct Module {
    pub file: PathBuf,
    pub words: String,
    pub kind: Kind,
}

impl Module {
    pub fn kernel(file: impl Into<PathBuf>, words: impl Into<String>) -> Module {
        Module { file: file.into(), words: words.into(), kind: Kind::Kernel }
    }
}

/// A machine before it is switched on.
#[derive(Clone, Debug)]
pub struct Machine {
    pub arch: Arch,
    /// In MiB.
    pub memory: u64,
    /// Version of the interrupt controller; aarch64 only.
    pub gic: u8,
    /// The processor, where it isn't the usual one (cortex-a72, qemu64).
    pub cpu: Option<&'static str>,
    /// How many processors there are.
    pub cpus: u32,
    /// `hypervisor` is a kernel that has the machine for itself; on aarch64 there is no EL2 then.
    pub bare: bool,
    /// Count instructions: one is one nanosecond of guest time.
    pub icount: bool,
    pub hypervisor: PathBuf,
    /// The hypervisor's command line.
    pub words: String,
    /// The control domain's kernel first.
    pub modules: Vec<Module>,
}

impl Machine {
    /// The emulator's command, with the serial line on its standard input and output.
    pub fn command(&self) -> Result<Command> {
        let mut command = process::bound(setup::emulator(self.arch).0);
        // Short names for our own files, wherever the workspace is.
        command.current_dir(workspace::artefacts()?);
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"]);
        // Nobody here uses a network card, and on Arm its ROM is in a package that the emulator's only recommends.
        command.args(["-nic", "none"]);
        command.args(["-m", &self.memory.to_string()]);
        if self.cpus > 1 {
            command.args(["-smp", &self.cpus.to_string()]);
        }
        if self.icount {
            command.args(["-icount", "shift=0,sleep=off"]);
            // The time of day is of the machine's own time, and begins on the same day: whatever depends on it is the same each time.
            command.args(["-rtc", "base=2026-01-01,clock=vm"]);
            // And so are random numbers, such as those in the device tree, by which a kernel mixes up its memory.
            command.args(["-seed", "1"]);
        }
        if self.hypervisor.extension().is_some_and(|end| end == "iso") {
            // What is on a disc has its words there, and its modules.
            command.args(["-boot", "d", "-cdrom"]).arg(&self.hypervisor);
        } else {
            command.arg("-kernel").arg(&self.hypervisor).args(["-append", &self.words]);
        }
        match self.arch {
            Arch::Aarch64 => self.virt(&mut command)?,
            Arch::X86_64 => self.q35(&mut command)?,
        }
        Ok(command)
    }

    fn virt(&self, command: &mut Command) -> Result<()> {
        let virtualization = if self.bare { "off" } else { "on" };
        let machine = format!("virt,virtualization={virtualization},gic-version={}", self.gic);
        command.args(["-M", &machine, "-cpu", self.cpu.unwrap_or("cortex-a72")]);
        if self.bare {
            return self.ramdisk(command);
        }
        for (module, address) in self.modules.iter().zip(self.module_addresses()?) {
            let file = doubled_commas(&name(module)?);
            let words = doubled_commas(&module.words);
            let device = match module.kind {
                Kind::Kernel => format!("guest-loader,addr={address:#x},kernel={file},bootargs={words}"),
                Kind::Ramdisk => format!("guest-loader,addr={address:#x},initrd={file}"),
            };
            command.args(["-device", &device]);
        }
        Ok(())
    }

    /// Where each module goes on the `virt` machine: above QEMU's device tree, which stands at half of the memory
    /// but no higher than 128 MiB, and out of the way of small machines' ends.
    fn module_addresses(&self) -> Result<Vec<u64>> {
        const MEMORY: u64 = 0x4000_0000;
        const ALIGNMENT: u64 = 2 << 20;
        let memory = self.memory << 20;
        let mut next = MEMORY + if memory >= 512 << 20 { 256 << 20 } else { memory / 4 * 3 };
        let mut addresses = Vec::new();
        for module in &self.modules {
            next = next.next_multiple_of(ALIGNMENT);
            addresses.push(next);
            next += image::size(&workspace::artefacts()?.join(&module.file))?;
        }
        ensure!(next <= MEMORY + memory, "the modules do not fit into a machine of {} MiB", self.memory);
        Ok(addresses)
    }

    /// A Linux kernel that has the machine for itself takes one ramdisk, whose name is no list.
    fn ramdisk(&self, command: &mut Command) -> Result<()> {
        for module in &self.modules {
            command.args(["-initrd", &name(module)?]);
        }
        Ok(())
    }

    fn q35(&self, command: &mut Command) -> Result<()> {
        command.args(["-M", "q35", "-cpu", self.cpu.unwrap_or("qemu64")]);
        if self.bare {
            return self.ramdisk(command);
        }
        let mut list = Vec::new();
        for module in &self.modules {
            let file = name(module)?;
            // The first blank ends the file's name.
            ensure!(
                !file.contains(' '),
                "the emulator's module list cannot hold a file name with blanks: {file}"
            );
            list.push(doubled_commas(format!("{file} {}", module.words).trim_end()));
        }
        if !list.is_empty() {
            command.args(["-initrd", &list.join(",")]);
        }
        Ok(())
    }
}

/// A module's file as text: without its folder where it is one of our artefacts.
fn name(module: &Module) -> Result<String> {
    let short = module.file.strip_prefix(workspace::artefacts()?).unwrap_or(&module.file);
    match short.to_str() {
        Some(name) => Ok(name.to_owned()),
        None => bail!("the file name {} is no UTF-8", short.display()),
    }
}

/// QEMU's lists are parted by commas; a comma within an item is written twice.
fn doubled_commas(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(arch: Arch, memory: u64) -> Machine {
        let file = workspace::root().join("Cargo.toml");
        Machine {
            arch,
            memory,
            gic: 2,
            cpu: None,
            cpus: 1,
            bare: false,
            icount: false,
            hypervisor: "hyp".into(),
            words: "dom0_mem=64M".into(),
            modules: vec![Module::kernel(&file, "a=1,2 b"), Module::kernel(&file, "domain=guest")],
        }
    }

    fn arguments(machine: &Machine) -> String {
        let command = machine.command().unwrap();
        command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn virt_gets_a_loader_for_each_module_with_commas_doubled() {
        let line = arguments(&machine(Arch::Aarch64, 1024));
        assert!(line.contains("virt,virtualization=on,gic-version=2"));
        assert!(line.contains("guest-loader,addr=0x50000000,kernel=") && line.contains("bootargs=a=1,,2 b"));
        assert!(line.contains("guest-loader,addr=0x50200000,"));
    }

    #[test]
    fn no_machine_has_a_network_card() {
        for arch in Arch::ALL {
            assert!(arguments(&machine(arch, 1024)).contains("-nic\nnone"), "{arch}");
        }
    }

    #[test]
    fn a_bare_machine_has_no_second_exception_level_and_a_processor_can_be_chosen() {
        let machine = Machine { bare: true, cpu: Some("max"), cpus: 4, ..machine(Arch::Aarch64, 256) };
        let line = arguments(&machine);
        assert!(line.contains("virtualization=off") && line.contains("-cpu\nmax"), "{line}");
        assert!(line.contains("-smp\n4") && line.contains("-initrd\n") && !line.contains("guest-loader"));
    }

    #[test]
    fn modules_stay_inside_small_machines() {
        assert!(arguments(&machine(Arch::Aarch64, 40)).contains("addr=0x41e00000"));
        assert!(machine(Arch::Aarch64, 1).command().is_err());
    }

    #[test]
    fn q35_gets_one_list() {
        let line = arguments(&machine(Arch::X86_64, 1024));
        assert!(line.contains("Cargo.toml a=1,,2 b,/"), "{line}");
        assert!(line.ends_with("Cargo.toml domain=guest"));
    }

    #[test]
    fn a_bare_pc_gets_its_ramdisk_by_name() {
        let mut machine = Machine { bare: true, ..machine(Arch::X86_64, 64) };
        machine.modules = vec![Module { file: "a,b".into(), words: String::new(), kind: Kind::Ramdisk }];
        assert!(arguments(&machine).ends_with("-initrd\na,b"));
    }

    #[test]
    fn icount_is_exact() {
        let mut machine = machine(Arch::X86_64, 64);
        machine.icount = true;
        let line = arguments(&machine);
        assert!(line.contains("-icount\nshift=0,sleep=off") && line.contains("-seed\n"), "{line}");
    }
}
