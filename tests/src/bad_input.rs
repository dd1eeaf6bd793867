//! What a boot loader may leave that can't be used: kernels, words, too little memory.

use crate::case::{Board, Case, Change, End, File};
use crate::table::NEIGHBOUR;
use crate::verdict;

/// Every test of one machine.
pub fn cases(board: Board) -> Vec<Case> {
    [
        kernels(board),
        changed_kernels(board),
        odd_kernels(board),
        words_and_memory(board),
        forgotten_words(board),
        small_machine(board),
    ]
    .concat()
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
            "the first domain can't start: the kernel can't be used: the file is cut short",
        ),
        with_kernel(
            "bad-input/empty-kernel",
            File::Empty,
            "the first domain can't start: the kernel can't be used: it is no 64-bit ELF file",
        ),
        with_kernel(
            "bad-input/kernel-of-the-other-machine",
            File::OtherMachine,
            "the first domain can't start: the kernel can't be used: it is for another machine",
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

/// Kernels whose file says what can't be.
fn changed_kernels(board: Board) -> Vec<Case> {
    let kinds = [
        ("overlapping-segments", Change::OverlappingSegments, "two of its segments overlap"),
        ("endless-segment", Change::EndlessSegment, "one of its segments has impossible addresses"),
        ("kernel-without-notes", Change::NoNotes, "it has no Xen ELF note XEN_VERSION"),
        ("kernel-with-endless-notes", Change::EndlessNotes, "it has more notes than are read"),
        ("kernel-for-another-abi", Change::OtherAbi, "it is for another ABI than xen-3.0"),
    ];
    let first = |(name, change, line): (&str, _, _)| {
        let case = Case::new(board, &format!("bad-input/{name}"), "then=poweroff");
        let modules = vec![(File::Changed(change), "then=poweroff")];
        Case { modules, end: End::Stopped, ..case }
            .says(&["the first domain can't start: the kernel can't be used: ", line])
    };
    let second = |(name, change, line): (&str, _, _)| {
        let mut case = Case::new(board, &format!("bad-input/second-{name}"), "then=poweroff");
        case.modules.push((File::Changed(change), "domain=bad memory=16M"));
        case.domain("domain=good memory=16M").says(&["domain bad can't start: ", line, "d1: guest, Alive"])
    };
    let [overlapping, .., other_abi] = kinds;
    kinds.into_iter().map(first).chain([second(overlapping), second(other_abi)]).collect()
}

/// Kernels whose notes aren't where they usually are, and which Xen boots all the same.
fn odd_kernels(board: Board) -> Vec<Case> {
    let boots = |name, change| {
        let case = Case::new(board, name, "then=poweroff");
        Case { modules: vec![(File::Changed(change), "then=poweroff")], ..case }
            .says(&["d0: control, Alive", "(d0) guest kernel ("])
    };
    let mut cases = vec![boots("boot/notes-in-a-section", Change::NotesInSection)];
    match board {
        Board::Q35 => cases.push(boots("boot/words-in-place-of-notes", Change::Words)),
        Board::Virt => {
            cases.push(boots("boot/no-page-of-hypercalls", Change::HypercallPage));
            cases.push(p2m_in_the_other_half(board));
        }
    }
    cases
}

/// A domain's first tables have one root, which on aarch64 translates one half of all addresses.
fn p2m_in_the_other_half(board: Board) -> Case {
    let mut case = Case::new(board, "bad-input/p2m-in-the-other-half", "then=poweroff");
    case.modules.push((File::Changed(Change::LowP2m), "domain=bad memory=16M"));
    case.domain("domain=good memory=16M").says(&[
        "domain bad can't start: the addresses it asks for don't fit the address space",
        "d1: guest, Alive",
    ])
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
    let mut ramdisk = Case::new(board, "bad-input/ramdisk-larger-than-the-memory", "then=poweroff")
        .domain("domain=bad memory=8M")
        .says(&["domain bad can't start: ", "KiB of memory are needed to start it", "d1: guest, Alive"]);
    ramdisk.modules.push((File::LargeRamdisk, ""));
    vec![
        ramdisk.domain("domain=good memory=16M"),
        long_arguments(board),
        Case::new(board, "bad-input/second-domain-with-more-than-there-is", "then=poweroff")
            .domain("domain=bad memory=600M")
            .says(&["domain bad can't start: it needs 600 MiB", "(d0) guest kernel ("]),
        Case { modules: Vec::new(), end: End::Stopped, ..no_kernel }.says(&["there is no boot module"]),
        options("bad-input/dom0-mem-lots", "dom0_mem=lots", "dom0_mem=lots: not a size"),
        options("bad-input/unknown-option", "dom0_mem=64M frobnicate=1", "unknown option \"frobnicate"),
        stops("bad-input/dom0-mem-too-large", "dom0_mem=100G", "the first domain can't start"),
        stops(
            "bad-input/dom0-mem-more-than-there-is",
            "dom0_mem=600M",
            "the first domain can't start: it needs 600 MiB",
        ),
        stops("bad-input/dom0-mem-too-small", "dom0_mem=4K", "of memory are needed to start it"),
        Case { memory: 40, end: End::Stopped, ..small }
            .says(&["the first domain can't start: it needs 64 MiB"]),
    ]
}

/// A further kernel without its domain's name isn't taken for the ramdisk of the kernel before it, nor its ramdisk for anybody's; and words at a
/// ramdisk don't go unnoticed.
fn forgotten_words(board: Board) -> Vec<Case> {
    let mut nameless = Case::new(board, "bad-input/kernel-without-a-name", "then=poweroff").says(&[
        "a further module without domain=NAME in its arguments is ignored, and the ramdisk behind it",
        "d1: guest, Alive",
    ]);
    nameless.modules.extend([(File::Guest, "memory=16M"), (File::Ramdisk, "")]);
    let mut wordy = Case::new(board, "bad-input/ramdisk-with-words", "then=poweroff").says(&[
        "the first domain: its ramdisk's words are left out",
        "a further module without domain=NAME in its arguments is ignored",
        "(d0) guest kernel (",
    ]);
    wordy.modules.extend([(File::Ramdisk, "console=hvc0"), (File::Ramdisk, "")]);
    let nameless = nameless.domain("domain=good memory=16M");
    // The other board's boot data say what a module is, and a ramdisk has no words there.
    if board == Board::Q35 { vec![nameless, wordy] } else { vec![nameless] }
}

/// QEMU loads modules into memory that isn't there, and says nothing.
fn small_machine(board: Board) -> Vec<Case> {
    let mut case = Case::new(board, "bad-input/modules-larger-than-the-machine", "then=poweroff");
    case.modules.push((File::LargeRamdisk, ""));
    let case = Case { memory: 12, end: End::Stopped, ..case }.says(&["a module doesn't lie in RAM"]);
    // On the other board a boot loader of its own puts them in place.
    if board == Board::Q35 { vec![case] } else { Vec::new() }
}

/// Bytes of arguments that a kernel is given, as start info has room for them.
const ROOM: usize = 1023;

/// A kernel's arguments that start info has no room for: the first 1023 bytes arrive, and the log says how many don't.
fn long_arguments(board: Board) -> Case {
    let line = |bytes: usize| {
        let filling = "x".repeat(bytes - "then=poweroff ".len() - " the-end".len());
        &*Box::leak(format!("then=poweroff {filling} the-end").into_boxed_str())
    };
    let mut case = Case::new(board, "bad-input/arguments-too-long", line(ROOM + 1))
        .domain(NEIGHBOUR)
        .says(&["the first domain: its kernel's arguments are 1024 bytes long; the last 1 are left out"]);
    case.finding = Some(|text| {
        match verdict::lines_of(text, verdict::CONTROL).any(|line| line.ends_with("xx the-en")) {
            true => Ok(()),
            false => Err("the first domain's words don't end where its room ends".into()),
        }
    });
    case
}
