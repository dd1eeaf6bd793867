//! Where things are: the workspace, Cargo's target directory, the artefacts.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};

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

/// Holds others off, in this process and in others, until the file is dropped. Before it waits for somebody, it calls `say`.
pub fn lock(path: &Path, say: impl FnOnce()) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        say();
    }
    // Once more does no harm to whoever has it.
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Holds others off for as long as the file lives, unless somebody else does.
pub fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Writes under another name first: somebody may be reading the file, or interrupt us. What is there already stays as it is.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Others may be writing the same.
    let partial = path.with_file_name(format!("{name}.{}.partial", std::process::id()));
    fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot name {}", path.display()))
}

/// An error that a person understands unless there is a file.
pub fn is_file(path: &Path) -> Result<()> {
    ensure!(!path.is_dir(), "{} is a folder, not a file", path.display());
    ensure!(path.is_file(), "there is no file {}", path.display());
    Ok(())
}

/// A path as a person would write it: relative to the workspace where it is inside.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::mpsc;
    use std::thread;

    /// An empty folder for a test.
    pub fn scratch(name: &str) -> PathBuf {
        let path = target().join("penumbra/scratch").join(name);
        let _ = std::fs::remove_dir_all(&path);
        folder(path).unwrap()
    }

    #[test]
    fn whoever_reads_a_file_that_is_replaced_reads_the_whole_old_one() {
        let folder = scratch("replace");
        let path = folder.join("image-4.17");
        replace(&path, b"old").unwrap();
        let mut reader = File::open(&path).unwrap();
        replace(&path, b"content").unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!((read.as_str(), fs::read(&path).unwrap().as_slice()), ("old", &b"content"[..]));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn whoever_waits_for_somebody_says_so() {
        let path = scratch("lock").join("lock");
        let first = lock(&path, || panic!("there is nobody to wait for")).unwrap();
        let (says, said) = mpsc::channel();
        thread::scope(|scope| {
            let second = scope.spawn(|| lock(&path, move || says.send(()).unwrap()).unwrap());
            said.recv().unwrap();
            drop(first);
            second.join().unwrap();
        });
    }
}
