//! From boot modules to the first domains.
//!
//! A boot loader leaves kernels and ramdisks, each with a line of words. The first kernel is that of the first domain; each later one that
//! has a name becomes a domain, too. What is wrong with a module costs its own domain only, but for the first, without which there is
//! nothing to do.

use core::fmt;
use core::iter::Peekable;

use penumbra_abi::start_info::MAX_GUEST_CMDLINE;

use crate::domain::MAX_VCPUS;
use crate::domain::builder::{BuildError, Plan};
use crate::domain::image::KernelImage;
use crate::domain::unpacker::{AsTheyAre, Unpacker};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use crate::options::{Options, parse_size, parse_vcpus};

/// Memory of a further domain that doesn't say how much it wants: 64 MiB, in frames.
const DEFAULT_MEMORY: u64 = 16384;
/// Modules that are looked at.
const MAX_MODULES: usize = 32;

/// What a boot module is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModuleKind {
    /// A kernel: the first one is the first domain's, others need `domain=NAME` in their arguments.
    Kernel,
    /// A ramdisk for the kernel before it.
    Ramdisk,
    /// One that can't be used, whatever it was meant to be: passed over, with the ramdisk behind it, which may have been its own.
    Unusable,
}

/// A boot module.
#[derive(Clone, Copy)]
pub struct Module<'a> {
    /// Its bytes, wherever the boot loader has put them.
    pub content: &'a [u8],
    /// Its arguments, without a file name.
    pub arguments: &'a str,
    /// What it is.
    pub kind: ModuleKind,
}

/// What the boot loader has handed over.
pub struct BootInformation<'a> {
    /// The hypervisor's command line.
    pub command_line: &'a str,
    /// The modules, in order.
    pub modules: &'a [Module<'a>],
}

/// Why there is nothing to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// There is no module that could be the first domain's kernel.
    NoKernel,
    /// The first kernel says that it is for another domain: the first domain's own is missing.
    NotFirst,
    /// The first domain can't be built.
    FirstDomain(BuildError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKernel => write!(f, "there is no boot module with a kernel for the first domain"),
            Self::NotFirst => {
                write!(f, "the first kernel's arguments say domain=: the first domain's kernel is missing")
            }
            Self::FirstDomain(error) => write!(f, "the first domain can't start: {error}"),
        }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Builds the first domain, and then the other domains, from boot modules that are ELF files; see [`Self::start_domains_from`].
    ///
    /// # Errors
    /// There is nothing to run.
    pub fn start_domains(&self, boot: &BootInformation<'_>) -> Result<(), BootError> {
        self.start_domains_from(boot, &mut AsTheyAre)
    }

    /// Builds the first domain, and then the other domains, from the boot modules. The first one is the control domain, unless its kernel
    /// is Linux, which would then look for a PC's devices; the option `dom0=` decides otherwise. Each kernel is opened by `unpacker`
    /// when its turn has come.
    ///
    /// # Errors
    /// There is nothing to run. A further domain that can't be built is only logged.
    pub fn start_domains_from<'f>(
        &self,
        boot: &BootInformation<'f>,
        unpacker: &mut dyn Unpacker<'f>,
    ) -> Result<(), BootError> {
        self.keep_command_line(boot.command_line);
        let options = Options::parse(boot.command_line, |text| log::warn!("{text}"));
        let mut modules = boot.modules.iter().take(MAX_MODULES).peekable();
        let first = modules.next().filter(|module| module.kind == ModuleKind::Kernel);
        let first = first.ok_or(BootError::NoKernel)?;
        if word(first.arguments, "domain").is_some() {
            return Err(BootError::NotFirst);
        }
        let ramdisk = next_ramdisk(&mut modules, &"the first domain");
        self.start_first(first, ramdisk, &options, unpacker).map_err(BootError::FirstDomain)?;
        while let Some(module) = modules.next() {
            match (module.kind, word(module.arguments, "domain")) {
                (ModuleKind::Kernel, Some(name)) => {
                    let ramdisk = next_ramdisk(&mut modules, &format_args!("domain {name}"));
                    self.start_further(name, module, ramdisk, unpacker);
                }
                (ModuleKind::Ramdisk, _) => {
                    log::warn!("a further module without domain=NAME in its arguments is ignored");
                }
                (kind, _) => {
                    let and_ramdisk =
                        next_if_ramdisk(&mut modules).map_or("", |_| ", and the ramdisk behind it");
                    let which = match kind {
                        ModuleKind::Unusable => "that can't be used",
                        _ => "without domain=NAME in its arguments",
                    };
                    log::warn!("a further module {which} is ignored{and_ramdisk}");
                }
            }
        }
        Ok(())
    }

    fn start_first<'f>(
        &self,
        module: &Module<'f>,
        ramdisk: &[u8],
        options: &Options,
        unpacker: &mut dyn Unpacker<'f>,
    ) -> Result<(), BuildError> {
        let pages = options.control_memory.unwrap_or_else(|| self.default_control_memory());
        let kernel = unpacker.open(module.content)?;
        tell_of_cut(&"the first domain", module.arguments);
        let control = options.first_is_control.unwrap_or_else(|| !is_linux::<M>(kernel));
        let domain =
            self.build_domain(&Plan { kernel, ramdisk, arguments: module.arguments, pages, control })?;
        domain.set_vcpu_count(options.control_vcpus.unwrap_or(1));
        log::info!("{domain}; its own page tables are validated and loaded");
        Ok(())
    }

    /// A quarter of what is free, at most 512 MiB.
    fn default_control_memory(&self) -> u64 {
        (self.frames.free_frames() as u64 / 4).min(131_072)
    }

    fn start_further<'f>(
        &self,
        name: &str,
        module: &Module<'f>,
        ramdisk: &[u8],
        unpacker: &mut dyn Unpacker<'f>,
    ) {
        let pages = match word(module.arguments, "memory") {
            None => DEFAULT_MEMORY,
            Some(text) => {
                parse_size(text, 10).map(|bytes| bytes >> crate::address::PAGE_SHIFT).unwrap_or_else(|| {
                    log::warn!("domain {name}: memory={text} is no size; it gets 64 MiB");
                    DEFAULT_MEMORY
                })
            }
        };
        let arguments = module.arguments;
        tell_of_cut(&format_args!("domain {name}"), arguments);
        let built = unpacker.open(module.content).map_err(BuildError::from).and_then(|kernel| {
            self.build_domain(&Plan { kernel, ramdisk, arguments, pages, control: false })
        });
        match built {
            Ok(domain) => {
                domain.set_vcpu_count(vcpus(module.arguments));
                log::info!("{domain}: {name}");
            }
            Err(error) => log::error!("domain {name} can't start: {error}"),
        }
    }
}

/// The module that belongs to the kernel before it, if there is one.
fn next_if_ramdisk<'a>(
    modules: &mut Peekable<impl Iterator<Item = &'a Module<'a>>>,
) -> Option<&'a Module<'a>> {
    modules.next_if(|module| module.kind == ModuleKind::Ramdisk)
}

/// Its content. Nobody reads a ramdisk's words: where there are some, a kernel may have been meant.
fn next_ramdisk<'a>(
    modules: &mut Peekable<impl Iterator<Item = &'a Module<'a>>>,
    whose: &dyn fmt::Display,
) -> &'a [u8] {
    let Some(module) = next_if_ramdisk(modules) else { return &[] };
    if !module.arguments.is_empty() {
        let words = module.arguments;
        log::warn!(
            "{whose}: its ramdisk's words are left out, a kernel of a domain's own would have domain=NAME: {words}"
        );
    }
    module.content
}

/// Says it where a kernel's arguments are longer than what start info has for them, so that the rest is left out.
fn tell_of_cut(who: &dyn fmt::Display, arguments: &str) {
    let left_out = arguments.len().saturating_sub(MAX_GUEST_CMDLINE.saturating_sub(1));
    if left_out > 0 {
        let length = arguments.len();
        log::warn!("{who}: its kernel's arguments are {length} bytes long; the last {left_out} are left out");
    }
}

/// Whether a file is a Linux kernel, as far as it says so itself.
fn is_linux<M: Machine>(kernel: &[u8]) -> bool {
    KernelImage::parse(kernel, M::ELF_MACHINE).is_ok_and(|image| image.identity.is_linux())
}

/// How many vCPUs the word `vcpus=` asks for; one if it makes no sense.
fn vcpus(line: &str) -> u8 {
    let Some(text) = word(line, "vcpus") else { return 1 };
    parse_vcpus(text).unwrap_or_else(|| {
        log::warn!("vcpus={text} is no number from 1 to {MAX_VCPUS}; it gets 1");
        1
    })
}

/// The value of `name=value` among the words of a line.
fn word<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}
