//! Writes a stream of files.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;

use crate::sys::tree::{Attributes, Item, Kind, Sink};
use crate::wire::files::record::{Bytes, Record};

/// Writes files as a stream. Of the folders, only those are written that are wanted, or that contain something wanted.
pub struct Packer<W> {
    output: W,
    /// The folders that were entered, but not written yet.
    pending: Vec<OsString>,
    /// How many entered folders were written.
    written: usize,
}

impl<W: Write> Packer<W> {
    /// Writes to `output`.
    pub fn new(output: W) -> Self {
        Self { output, pending: Vec::new(), written: 0 }
    }

    /// Ends the stream.
    pub fn finish(mut self) -> io::Result<W> {
        self.record(&Record::All)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn record(&mut self, record: &Record) -> io::Result<()> {
        let bytes = serde_json::to_vec(record)?;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.output.write_all(&length.to_be_bytes())?;
        self.output.write_all(&bytes)
    }

    fn with_bytes(&mut self, record: &Record, bytes: &[u8]) -> io::Result<()> {
        self.record(record)?;
        self.output.write_all(bytes)
    }
}

impl<W: Write> Sink for Packer<W> {
    fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        self.pending.push(name.to_owned());
        Ok(())
    }

    fn need_folder(&mut self) -> io::Result<bool> {
        for name in std::mem::take(&mut self.pending) {
            self.record(&Record::Enter { name: Bytes::of(&name) })?;
            self.written += 1;
        }
        self.record(&Record::Folder).map(|()| true)
    }

    fn wants_attributes(&self) -> bool {
        self.pending.is_empty()
    }

    fn folder_attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.with_bytes(&Record::FolderAttribute { name: Bytes(name.to_vec()), length: value.len() }, value)
    }

    fn leave(&mut self, attributes: Option<&Attributes>) -> io::Result<()> {
        if self.pending.pop().is_some() {
            return Ok(());
        }
        self.written = self.written.saturating_sub(1);
        self.record(&Record::Leave { attributes: attributes.copied() })
    }

    fn begin(&mut self, name: &OsStr, item: &Item) -> io::Result<bool> {
        for name in std::mem::take(&mut self.pending) {
            self.record(&Record::Enter { name: Bytes::of(&name) })?;
            self.written += 1;
        }
        self.record(&Record::item(name, item))?;
        Ok(item.kind == Kind::File)
    }

    fn data(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.with_bytes(&Record::Data { at, length: bytes.len() }, bytes)
    }

    fn attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.with_bytes(&Record::Attribute { name: Bytes(name.to_vec()), length: value.len() }, value)
    }

    fn end(&mut self) -> io::Result<()> {
        self.record(&Record::End)
    }

    fn fail(&mut self, why: &str) -> io::Result<()> {
        self.record(&Record::Failed { why: why.to_owned() })
    }

    fn problem(&mut self, path: &Path, why: &str) -> io::Result<()> {
        self.record(&Record::Problem { path: Bytes::of(path.as_os_str()), why: why.to_owned() })
    }
}
