//! Where things are: the workspace, Cargo's target directory, the artefacts.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result};

/// The workspace's root: the folder above this crate.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        // Cargo says at run time where the crate is, so that a moved folder still works; a bare call of the binary
        // falls back on where it was built.
        let crate_folder =
            env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&crate_folder).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
    });
    &ROOT
}

/// Cargo's target directory: `CARGO_TARGET_DIR` if set, otherwise `target` in the workspace.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// Where the bare-metal builds go: a folder of their own, so that they neither wait for the host's builds nor
/// make Cargo rebuild them.
pub fn bare_target() -> PathBuf {
    target().join("bare")
}

/// The folder of the artefacts, made when missing.
pub fn artefacts() -> Result<PathBuf> {
    folder(target().join("penumbra"))
}

/// The folder of serial logs, made when missing.
pub fn logs() -> Result<PathBuf> {
    folder(target().join("penumbra/logs"))
}

/// Makes a folder, and those above it.
pub fn folder(path: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
    Ok(path)
}

/// A path as a person would write it: relative to the workspace where it is inside.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
