//! Compresses and decompresses frames. Each compressed frame is one zstd frame (RFC 8878) with a checksum, and does not
//! depend on other frames.

use std::io;

use zstd::bulk::Compressor;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::wire::codec::frame::{LARGEST_FRAME, PACKED};

/// The window of [`LARGEST_FRAME`]. No frame refers back further, so decompressing one needs no more memory.
const WINDOW_LOG: u32 = LARGEST_FRAME.ilog2();

/// Compresses frames.
pub(super) struct Packer {
    zstd: Compressor<'static>,
    /// The last frame with its length, ready to be sent.
    packed: Vec<u8>,
    /// Whether compression made the last frame smaller.
    smaller: bool,
}

impl Packer {
    /// Creates a compressor of this level.
    pub fn new(level: i32) -> io::Result<Self> {
        let mut zstd = Compressor::new(level)?;
        zstd.include_checksum(true)?;
        Ok(Self { zstd, packed: vec![0; 4 + LARGEST_FRAME], smaller: false })
    }

    /// Compresses a frame. For 1 MiB, this takes milliseconds, and at high levels half a second.
    pub fn pack(&mut self, stream: &[u8]) {
        let (length, room) = self.packed.split_at_mut(4);
        let room = &mut room[..stream.len().saturating_sub(1).min(LARGEST_FRAME)];
        // The room is smaller than the input, so the only possible error is that the compressed frame does not fit.
        self.smaller = match self.zstd.compress_to_buffer(stream, room).map(u32::try_from) {
            Ok(Ok(shorter)) => {
                length.copy_from_slice(&(PACKED | shorter).to_be_bytes());
                true
            }
            _ => false,
        };
    }

    /// The last frame with its length, or `None` if compression does not make it smaller.
    pub fn packed(&self) -> Option<&[u8]> {
        let (length, _) = self.packed.split_first_chunk()?;
        let length = u32::from_be_bytes(*length) & !PACKED;
        self.packed.get(..4 + length as usize).filter(|_| self.smaller)
    }
}

/// Decompresses frames.
pub(super) struct Unpacker {
    zstd: Decoder<'static>,
    /// The compressed bytes that arrived.
    pub packed: Vec<u8>,
}

impl Unpacker {
    pub fn new() -> io::Result<Self> {
        let mut zstd = Decoder::new()?;
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Self { zstd, packed: Vec::new() })
    }

    /// Decompresses the bytes that arrived. After an error, `into` contains what could be decompressed of a truncated
    /// frame.
    pub fn unpack(&mut self, into: &mut Vec<u8>) -> Result<(), String> {
        into.clear();
        // The buffer does not grow, so a frame that expands further counts as one without an end.
        into.reserve_exact(LARGEST_FRAME);
        let (mut input, mut output) = (InBuffer::around(&self.packed), OutBuffer::around(into));
        let ran = self.zstd.run(&mut input, &mut output);
        let (ended, all) = (matches!(ran, Ok(0)), input.pos() == self.packed.len());
        // The next frame does not continue an incomplete one.
        self.zstd.reinit().and(ran).map_err(|error| format!("invalid compressed frame: {error}"))?;
        match (ended, all) {
            (true, true) if !into.is_empty() && into.len() <= LARGEST_FRAME => Ok(()),
            (false, _) if into.len() >= LARGEST_FRAME => {
                Err(format!("a compressed frame of more than {LARGEST_FRAME} bytes"))
            }
            (false, _) => Err("a compressed frame that does not end".to_owned()),
            (true, _) => Err("a compressed frame whose length is wrong".to_owned()),
        }
    }
}
