//! The folders of a CA and of hosts, and the files in them.

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::Context;

use crate::sys::files;

/// Makes a folder that only its owner can enter, unless it exists.
pub(super) fn private_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot create the folder {}", folder.display()))
}

/// Writes a new file, or replaces one. Nobody else can read a key at any moment.
pub(super) fn write(file: &Path, text: &str, permissions: u32, replace: bool) -> anyhow::Result<()> {
    let mode = if replace { files::Mode::Replace } else { files::Mode::Create };
    files::write(file, permissions, mode, |new| new.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))
}
