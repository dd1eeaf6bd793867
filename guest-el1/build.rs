//! Passes the linker script, but only where the kernel itself is built: on the host this is an empty program.

fn main() {
    println!("cargo:rerun-if-changed=guest-el1.ld");
    let bare_metal = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    if let (true, Ok(folder)) = (bare_metal, std::env::var("CARGO_MANIFEST_DIR")) {
        println!("cargo:rustc-link-arg-bins=-T{folder}/guest-el1.ld");
        println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
    }
}
