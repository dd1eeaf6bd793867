//! Kernels that come as bzImages (x86-64): our own, packed in each way that Linux's build knows, whole and damaged.

use crate::case::{Board, Case, Damage, End, File, Packing};

/// All of them.
pub fn cases(board: Board) -> Vec<Case> {
    if board != Board::Q35 {
        return Vec::new();
    }
    [whole(), damaged()].concat()
}

fn case(name: &str, file: File) -> Case {
    let case = Case::new(Board::Q35, name, "then=poweroff");
    Case { modules: vec![(file, "then=poweroff")], ..case }
}

/// A packed kernel is the control domain's like any other, by what is in it; another domain's, too.
fn whole() -> Vec<Case> {
    let kinds = [
        ("packed/xz", Packing::Xz, "a kernel is unpacked (XZ)"),
        ("packed/gzip", Packing::Gzip, "a kernel is unpacked (gzip)"),
        ("packed/zstd", Packing::Zstd, "a kernel is unpacked (zstd)"),
        ("packed/lz4", Packing::Lz4, "a kernel is unpacked (LZ4)"),
    ];
    let first = |(name, packing, line)| {
        let mut case = case(name, File::Packed(packing, Damage::None));
        case.forbidden.push("nothing in that file vouches");
        case.says(&[line, "d0: control, Alive", "(d0) guest kernel ("])
    };
    let mut thrice = case("packed/three-domains-one-kernel", File::Packed(Packing::Xz, Damage::None));
    for words in ["domain=one memory=16M", "domain=two memory=16M"] {
        thrice.modules.push((File::Packed(Packing::Xz, Damage::None), words));
    }
    thrice.finding = Some(unpacked_once);
    let thrice = thrice.says(&["d1: guest, Alive", "d2: guest, Alive", "(d0) guest kernel ("]);
    kinds.into_iter().map(first).chain([thrice]).collect()
}

fn unpacked_once(text: &str) -> Result<(), String> {
    match text.matches("a kernel is unpacked").count() {
        1 => Ok(()),
        count => Err(format!("the same kernel was unpacked {count} times")),
    }
}

/// What is wrong is said in one line; it is the end of that domain alone, and no memory stays behind.
fn damaged() -> Vec<Case> {
    let kinds = [
        ("cut-bzimage", Packing::Xz, Damage::CutShort, "the file is cut short"),
        ("corrupt-xz", Packing::Xz, Damage::Corrupt, "its XZ payload is corrupt"),
        ("corrupt-gzip", Packing::Gzip, Damage::Corrupt, "its gzip payload is"),
        ("corrupt-zstd", Packing::Zstd, Damage::Corrupt, "its zstd payload is"),
        ("corrupt-lz4", Packing::Lz4, Damage::Corrupt, "payload is"),
        ("gzip-of-another-check", Packing::Gzip, Damage::Check, "its gzip payload is corrupt"),
        ("zstd-of-another-check", Packing::Zstd, Damage::Check, "its zstd payload is corrupt"),
        ("bzimage-larger-than-the-memory", Packing::Gzip, Damage::TooLarge, "unpacking it takes 4198399 KiB"),
        (
            "bzimage-of-another-length",
            Packing::Xz,
            Damage::WrongLength,
            "its XZ payload isn't as long as it says",
        ),
        ("bzimage-too-old", Packing::Xz, Damage::TooOld, "it follows boot protocol 2.07"),
        (
            "bzimage-in-no-format",
            Packing::Xz,
            Damage::NoFormat,
            "its payload is in no compression that is known",
        ),
        ("zstd-beyond-its-window", Packing::Zstd, Damage::LongSequence, "its zstd payload is corrupt"),
    ];
    let second = |(name, packing, damage, line): (&str, _, _, _)| {
        let mut case = Case::new(Board::Q35, &format!("bad-input/{name}"), "then=poweroff");
        case.modules.push((File::Packed(packing, damage), "domain=bad memory=16M"));
        case.domain("domain=good memory=16M").says(&[
            "domain bad can't start: the kernel can't be unpacked: ",
            line,
            "d1: guest, Alive",
            "(d0) guest kernel (",
        ])
    };
    // It may be a kernel like those of today, whose file has no check: so it boots.
    let unsure = case("bad-input/lz4-of-another-check", File::Packed(Packing::Lz4, Damage::Check));
    let unsure = unsure.says(&["nothing in that file vouches for what came out", "(d0) guest kernel ("]);
    let first = case("bad-input/corrupt-bzimage-first", File::Packed(Packing::Xz, Damage::Corrupt));
    let first = Case { end: End::Stopped, ..first };
    let line = "the first domain can't start: the kernel can't be unpacked: its XZ payload is corrupt";
    // The decoder takes it, but no kernel comes out.
    let mut literals = Case::new(Board::Q35, "bad-input/zstd-with-long-literals", "then=poweroff");
    literals.modules.push((File::Packed(Packing::Zstd, Damage::LongLiterals), "domain=bad memory=16M"));
    let literals = literals.domain("domain=good memory=16M");
    let literals = literals.says(&["domain bad can't start: the kernel can't be used: ", "d1: guest, Alive"]);
    kinds.into_iter().map(second).chain([first.says(&[line]), unsure, literals]).collect()
}
