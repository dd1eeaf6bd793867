//! Links the hypervisor's image at its fixed address with the layout of `layout.ld`.
//!
//! The target's default code is position independent, which is what reaches addresses outside the top 2 GiB; the image
//! itself doesn't move, so the linker resolves every absolute address (`--no-pie`) and no relocation is left.

fn main() {
    println!("cargo:rerun-if-changed=layout.ld");
    println!("cargo:rerun-if-changed=src/boot.s");
    println!("cargo:rerun-if-changed=src/entry.s");
    let bare_metal = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    let Ok(folder) = std::env::var("CARGO_MANIFEST_DIR") else { return };
    if bare_metal {
        for argument in ["--no-pie", "-zmax-page-size=4096", "--build-id=none", "--orphan-handling=error"] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
        println!("cargo:rustc-link-arg-bins=-T{folder}/layout.ld");
    }
}
