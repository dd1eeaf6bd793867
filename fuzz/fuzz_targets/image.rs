//! A kernel as a boot loader leaves it: an ELF file with notes. Every piece of one that is let through lies within it.
#![no_main]

use hyp_core::domain::image::KernelImage;
use libfuzzer_sys::fuzz_target;

/// The numbers of the two architectures in ELF files.
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;

fuzz_target!(|file: &[u8]| {
    for machine in [EM_X86_64, EM_AARCH64] {
        let Ok(image) = KernelImage::parse(file, machine) else { continue };
        for segment in image.segments() {
            let end = segment.start.checked_add(segment.content.len() as u64);
            assert!(end.is_some_and(|end| end <= image.end), "a piece beyond the kernel's own end");
        }
    }
});
