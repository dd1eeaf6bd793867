//! Domains on the fake machine: built, used, torn down; the auditor agrees all along.

use hyp_core::address::{DomainId, PAGE_SIZE};
use hyp_core::domain::Life;
use hyp_core::domain::builder::{BuildError, Plan};
use hyp_core::fake::{self, Fake, kernel};
use hyp_core::{BootError, BootInformation, Hypervisor, Module, ModuleKind, Next};

const FRAMES: usize = 4096;

fn plan(kernel: &[u8], control: bool) -> Plan<'_> {
    Plan { kernel, ramdisk: b"", arguments: "hello", pages: kernel::MINIMUM_FRAMES, control }
}

fn audit_is_clean(hypervisor: &Hypervisor<Fake>) {
    let report = hypervisor.audit();
    assert_eq!(report.findings, 0, "{report}");
}

#[test]
fn a_new_domain_is_validated_and_its_books_are_right() {
    let hypervisor = fake::hypervisor(FRAMES);
    let file = kernel::image(3 * PAGE_SIZE);
    let domain = hypervisor.build_domain(&plan(&file, true)).unwrap();
    assert_eq!((domain.id(), domain.life()), (DomainId::CONTROL, Life::Alive));
    assert_eq!(domain.pages(hypervisor.frames()), kernel::MINIMUM_FRAMES);
    let report = hypervisor.audit();
    assert_eq!((report.findings, report.tables), (0, 1 + 8 + 64), "{report}");
    assert!(report.entries >= 1024);
}

#[test]
fn a_domain_that_ends_gives_everything_back_scrubbed() {
    let hypervisor = fake::hypervisor(FRAMES);
    let before = hypervisor.frames().free_frames();
    let file = kernel::image(PAGE_SIZE);
    hypervisor.build_domain(&plan(&file, true)).unwrap();
    let guest = hypervisor.build_domain(&plan(&file, false)).unwrap();
    let Next::Run(_) = hypervisor.schedule() else { panic!("nobody can run") };
    let Next::Run(vcpu) = hypervisor.schedule() else { panic!("nobody can run") };
    assert_eq!(vcpu.domain_id(), guest.id());
    hypervisor.kill(vcpu, format_args!("a test"));
    assert!(!hypervisor.background(), "torn down while its root is loaded");
    let _ = hypervisor.schedule();
    hypervisor.switched();
    let mut steps = 0;
    while hypervisor.background() {
        audit_is_clean(hypervisor);
        steps += 1;
    }
    assert!(steps > 4, "tear-down in {steps} steps is not cut in pieces");
    assert_eq!(guest.life(), Life::Vacant);
    assert_eq!(hypervisor.frames().free_frames(), before - kernel::MINIMUM_FRAMES as usize - 1);
}

#[test]
fn a_machine_without_memory_for_a_domain_says_so() {
    let hypervisor = fake::hypervisor(512);
    let file = kernel::image(PAGE_SIZE);
    let error = hypervisor.build_domain(&plan(&file, true)).err();
    assert_eq!(error, Some(BuildError::OutOfMemory { needed: 1024, free: 512 }));
    let small = Plan { pages: 100, ..plan(&file, true) };
    assert_eq!(
        hypervisor.build_domain(&small).err(),
        Some(BuildError::TooSmall { needed: 1024, given: 100 })
    );
    audit_is_clean(hypervisor);
}

#[test]
fn boot_modules_become_domains_and_nonsense_is_named() {
    let hypervisor = fake::hypervisor(FRAMES);
    let file = kernel::image(PAGE_SIZE);
    let module = |content, arguments, kind| Module { content, arguments, kind };
    let modules = [
        module(&file[..], "tour", ModuleKind::Kernel),
        module(b"initrd", "", ModuleKind::Ramdisk),
        module(b"a text file", "domain=text", ModuleKind::Kernel),
        module(&file[..], "domain=guest memory=4M", ModuleKind::Kernel),
        module(&file[..], "no name", ModuleKind::Kernel),
    ];
    hypervisor.start_domains(&BootInformation { command_line: "dom0_mem=4M", modules: &modules }).unwrap();
    assert_eq!(
        hypervisor.domain(DomainId::new(1)).map(|domain| domain.pages(hypervisor.frames())),
        Some(1024)
    );
    assert!(hypervisor.domain(DomainId::new(2)).is_none());
    audit_is_clean(hypervisor);

    let empty = fake::hypervisor(16);
    let nothing = BootInformation { command_line: "", modules: &[] };
    assert_eq!(empty.start_domains(&nothing), Err(BootError::NoKernel));
    let text = [module(b"text", "", ModuleKind::Kernel)];
    let text = BootInformation { command_line: "dom0_mem=lots", modules: &text };
    assert!(matches!(empty.start_domains(&text), Err(BootError::FirstDomain(BuildError::Image(_)))));
}

#[test]
fn a_kernel_is_named_for_what_it_is() {
    use hyp_core::domain::image::{ImageError, KernelImage};
    let file = kernel::image(PAGE_SIZE);
    let judge = |file: &[u8]| KernelImage::parse(file, kernel::ELF_MACHINE).map(|_| ());
    assert_eq!(judge(&file), Ok(()));
    for length in [4, 20, 63, 70, 150, 200, file.len() - 1] {
        assert_eq!(judge(&file[..length]), Err(ImageError::CutShort), "cut to {length} bytes");
    }
    assert_eq!(judge(b""), Err(ImageError::NotElf));
    assert_eq!(judge(b"#!/bin/sh\n"), Err(ImageError::NotElf));
    assert_eq!(KernelImage::parse(&file, kernel::ELF_MACHINE + 1).map(|_| ()), Err(ImageError::OtherMachine));
}
