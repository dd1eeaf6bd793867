//! What a boot loader may leave that can't be used: kernels, words, too little memory.

use crate::case::{Board, Case, End, File};

/// Every test of one machine.
pub fn cases(board: Board) -> Vec<Case> {
    [kernels(board), words_and_memory(board)].concat()
}

/// Kernels that are none, or not whole, or not for this machine: that is said in one clear line, and it is the end of that domain alone.
fn kernels(board: Board) -> Vec<Case> {
    let with_kernel = |name, file, line| {
        let case = Case::new(board, name, "then=poweroff");
        Case { modules: vec![(file, "then=poweroff")], end: End::Stopped, ..case }.says(&[line])
    };
    let further = |name, file, line| {
        let mut case = Case::new(board, name, "then=poweroff").says(&[line, "(d0) guest kernel ("]);
        case.modules.push((file, "domain=bad memory=16M"));
        case
    };
    vec![
        with_kernel("bad-input/text-as-kernel", File::Text, "it is no 64-bit ELF file"),
        with_kernel(
            "bad-input/cut-kernel",
            File::CutGuest,
            "the control domain can't start: the kernel can't be used: the file is cut short",
        ),
        with_kernel(
            "bad-input/empty-kernel",
            File::Empty,
            "the control domain can't start: the kernel can't be used: it is no 64-bit ELF file",
        ),
        with_kernel(
            "bad-input/kernel-of-the-other-machine",
            File::OtherMachine,
            "the control domain can't start: the kernel can't be used: it is for another machine",
        ),
        with_kernel("bad-input/kernel-of-a-few-bytes", File::FirstBytesOfGuest, "the file is cut short"),
        further(
            "bad-input/text-as-second-kernel",
            File::Text,
            "domain bad can't start: the kernel can't be used",
        ),
        further(
            "bad-input/cut-second-kernel",
            File::CutGuest,
            "domain bad can't start: the kernel can't be used: the file is cut short",
        ),
        further(
            "bad-input/second-kernel-of-the-other-machine",
            File::OtherMachine,
            "domain bad can't start: the kernel can't be used: it is for another machine",
        ),
    ]
}

/// What is wrong with words and memory is said in one clear line; then comes a sane default or a clean stop, never a fault.
fn words_and_memory(board: Board) -> Vec<Case> {
    let no_kernel = Case::new(board, "bad-input/no-module", "");
    let options = |name, words, line| {
        Case { words, ..Case::new(board, name, "then=poweroff") }.says(&[line, "(d0) guest kernel ("])
    };
    let stops = |name, words, line| {
        Case { words, end: End::Stopped, ..Case::new(board, name, "then=poweroff") }.says(&[line])
    };
    let small = Case::new(board, "bad-input/40-MiB-machine", "then=poweroff");
    vec![
        Case::new(board, "bad-input/second-domain-with-more-than-there-is", "then=poweroff")
            .domain("domain=bad memory=600M")
            .says(&["domain bad can't start: it needs 600 MiB", "(d0) guest kernel ("]),
        Case { modules: Vec::new(), end: End::Stopped, ..no_kernel }.says(&["there is no boot module"]),
        options("bad-input/dom0-mem-lots", "dom0_mem=lots", "dom0_mem=lots: not a size"),
        options("bad-input/unknown-option", "dom0_mem=64M frobnicate=1", "unknown option \"frobnicate"),
        stops("bad-input/dom0-mem-too-large", "dom0_mem=100G", "the control domain can't start"),
        stops(
            "bad-input/dom0-mem-more-than-there-is",
            "dom0_mem=600M",
            "the control domain can't start: it needs 600 MiB",
        ),
        stops("bad-input/dom0-mem-too-small", "dom0_mem=4K", "of memory are needed to start it"),
        Case { memory: 40, end: End::Stopped, ..small }
            .says(&["the control domain can't start: it needs 64 MiB"]),
    ]
}
