//! Unpacks a kernel: `cargo run --release -p unpack --example unpack -- vmlinuz vmlinux`.

use std::process::ExitCode;

use unpack::Packed;

fn main() -> ExitCode {
    let mut names = std::env::args().skip(1);
    let (Some(from), to) = (names.next(), names.next()) else {
        eprintln!("unpack FILE [OUT]");
        return ExitCode::FAILURE;
    };
    match unpack(&from, to.as_deref()) {
        Ok(line) => println!("{line}"),
        Err(line) => {
            eprintln!("{from}: {line}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn unpack(from: &str, to: Option<&str>) -> Result<String, String> {
    let file = std::fs::read(from).map_err(|error| error.to_string())?;
    let packed =
        Packed::find(&file).map_err(|error| error.to_string())?.packed().ok_or("it is no packed kernel")?;
    let mut out = vec![0; packed.length()];
    packed.unpack(&mut out).map_err(|error| error.to_string())?;
    if let Some(to) = to {
        std::fs::write(to, &out).map_err(|error| error.to_string())?;
    }
    let vouched =
        if packed.is_vouched_for() { "" } else { ", for whose content nothing in the file vouches" };
    let (format, heap) = (packed.format(), packed.heap());
    Ok(format!("{format}: {} bytes, with {heap} bytes of heap at most{vouched}", out.len()))
}
