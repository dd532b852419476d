//! Compressed frames: each is a zstd frame (RFC 8878) with a checksum, by itself, so that none needs another one.

use std::io;

use zstd::bulk::Compressor;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::wire::codec::stream::{LARGEST_FRAME, PACKED};

/// Of [`LARGEST_FRAME`]: no frame looks back further, so none takes more memory.
const WINDOW_LOG: u32 = LARGEST_FRAME.ilog2();

/// Compresses frames.
pub(super) struct Packer {
    zstd: Compressor<'static>,
    /// The last frame with its length, as it travels.
    packed: Vec<u8>,
    shrank: bool,
}

impl Packer {
    /// One that compresses at this level.
    pub fn new(level: i32) -> io::Result<Self> {
        let mut zstd = Compressor::new(level)?;
        zstd.include_checksum(true)?;
        Ok(Self { zstd, packed: vec![0; 4 + LARGEST_FRAME], shrank: false })
    }

    /// Compresses a frame; of 1 MiB that takes milliseconds, at high levels half a second.
    pub fn pack(&mut self, stream: &[u8]) {
        let (length, room) = self.packed.split_at_mut(4);
        let room = &mut room[..stream.len().saturating_sub(1).min(LARGEST_FRAME)];
        // With less room than it had before, the only thing that goes wrong is that it does not fit.
        self.shrank = match self.zstd.compress_to_buffer(stream, room).map(u32::try_from) {
            Ok(Ok(shorter)) => {
                length.copy_from_slice(&(PACKED | shorter).to_be_bytes());
                true
            }
            _ => false,
        };
    }

    /// The last frame as it travels; `None` if it is not shorter that way.
    pub fn packed(&self) -> Option<&[u8]> {
        let (length, _) = self.packed.split_first_chunk()?;
        let length = u32::from_be_bytes(*length) & !PACKED;
        self.packed.get(..4 + length as usize).filter(|_| self.shrank)
    }
}

/// Decompresses frames.
pub(super) struct Unpacker {
    zstd: Decoder<'static>,
    /// What arrived.
    pub packed: Vec<u8>,
}

impl Unpacker {
    pub fn new() -> io::Result<Self> {
        let mut zstd = Decoder::new()?;
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Self { zstd, packed: Vec::new() })
    }

    /// Decompresses what arrived; says why not. What came of a frame that was cut is there then.
    pub fn unpack(&mut self, into: &mut Vec<u8>) -> Result<(), String> {
        into.clear();
        // It never grows beyond: what expands further does not end.
        into.reserve_exact(LARGEST_FRAME);
        let (mut input, mut output) = (InBuffer::around(&self.packed), OutBuffer::around(into));
        let ran = self.zstd.run(&mut input, &mut output);
        let (ended, all) = (matches!(ran, Ok(0)), input.pos() == self.packed.len());
        // A frame that was not finished is not gone on with.
        self.zstd.reinit().and(ran).map_err(|error| format!("a compressed frame: {error}"))?;
        match (ended, all) {
            (true, true) if !into.is_empty() && into.len() <= LARGEST_FRAME => Ok(()),
            (false, _) if into.len() >= LARGEST_FRAME => {
                Err(format!("a compressed frame of more than {LARGEST_FRAME} bytes"))
            }
            (false, _) => Err("a compressed frame that does not end".to_owned()),
            (true, _) => Err("a compressed frame of another length than it says".to_owned()),
        }
    }
}
