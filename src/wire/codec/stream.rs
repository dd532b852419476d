//! Streams on a connection, in frames.
//!
//! A frame is a length (four bytes, big endian) and that many bytes; with the highest bit set they are compressed. Length
//! 0 ends the stream and is followed by one line, [`StreamEnd`]; length 0xFFFFFFFF says only that the sender is alive.

use std::io;
use std::pin::Pin;
use std::time::Instant;

use futures_lite::future;
use futures_lite::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use serde::{Deserialize, Serialize};

use crate::model::Counter;
use crate::sys::runtime;
use crate::wire::Alive;
use crate::wire::codec::pack::{Packer, Unpacker};
use crate::wire::codec::{ALIVE_EVERY, Conn, Received, WireError};

/// What a frame carries at the most, in bytes: what a widened pipe gives in one read.
pub const LARGEST_FRAME: usize = 1 << 20;
const ALIVE: u32 = u32::MAX;
/// Set in the length of a frame whose bytes are compressed.
pub(super) const PACKED: u32 = 1 << 31;
/// How much of a stream is compressed at once at the least, as far as there is so much: less does not compress well.
const LEAST_PACKED: usize = 64 << 10;

/// How a sender's process ended; the line after the last frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StreamEnd {
    /// Whether the stream is whole.
    pub is_success: bool,
    /// Why not.
    #[serde(default)]
    pub error: String,
}

/// What may be waited for before more goes out.
pub type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How fast a stream may go out.
pub trait Pace: Send + Sync {
    /// How many bytes may go out at once; `None`: as many as there are.
    fn at_once(&self) -> Option<usize>;
    /// Counts bytes that went out. Until what is given ends, no more may; `None`: more may at once.
    fn went_out(&self, bytes: usize) -> Option<Wait>;
}

/// How a stream is sent: as fast as it goes and as it is, unless said otherwise.
#[derive(Clone, Copy, Default)]
pub struct Way<'a> {
    /// How fast.
    pub pace: Option<&'a dyn Pace>,
    /// The level at which zstd compresses it, which the peer must have said that it takes.
    pub zstd: Option<i32>,
}

/// How sending a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The source came to its end.
    All,
    /// The peer does not want the rest.
    Refused,
    /// The source gave nothing for too long.
    Stalled,
}

/// What happens while a stream is sent.
enum Event {
    /// The source gave so much.
    Read(io::Result<usize>),
    /// The source gives nothing for now.
    Idle,
    /// The connection took so much.
    Written(io::Result<usize>),
    /// The peer spoke.
    Received(io::Result<Received>),
    /// The peer neither spoke nor took anything.
    Silence,
}

impl Conn {
    /// Sends what `source` gives, frame by frame, until its end or until the peer does not want more.
    /// The caller then says how it ended with [`Conn::end_stream`].
    ///
    /// A frame that was begun is finished whatever the peer says: what follows must stand where a frame may begin.
    pub async fn send_stream(
        &mut self,
        source: &mut (dyn AsyncRead + Send + Unpin),
        way: Way<'_>,
        counter: &Counter,
    ) -> Result<Sent, WireError> {
        let mut packer = way.zstd.map(Packer::new).transpose().map_err(|e| self.io(e))?;
        let mut frame = vec![0; 4 + LARGEST_FRAME];
        let mut moved = Instant::now();
        let mut wait: Option<Wait> = None;
        loop {
            let input = &mut self.input;
            let receiving = async { Event::Received(input.line().await) };
            let reading = async {
                if let Some(until) = &mut wait {
                    until.await;
                    wait = None;
                }
                let least = if packer.is_some() { LEAST_PACKED } else { 1 };
                let most = way.pace.and_then(Pace::at_once).map_or(LARGEST_FRAME, |some| some.max(least));
                source.read(&mut frame[4..4 + most.min(LARGEST_FRAME)]).await
            };
            let reading = async { runtime::timeout(ALIVE_EVERY, reading).await.map_or(Event::Idle, Event::Read) };
            let length = match future::or(receiving, reading).await {
                Event::Read(read) => read.map_err(|e| self.io(e))?,
                Event::Received(heard) => {
                    if self.is_refusal(heard)? {
                        return Ok(Sent::Refused);
                    }
                    continue;
                }
                Event::Idle | Event::Written(_) | Event::Silence => {
                    if moved.elapsed() >= self.stall {
                        return Ok(Sent::Stalled);
                    }
                    self.write_all(&ALIVE.to_be_bytes()).await?;
                    continue;
                }
            };
            if length == 0 {
                return Ok(Sent::All);
            }
            frame[..4].copy_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
            if let Some(mut packing) = packer.take() {
                (packing, frame) = runtime::blocking(move || {
                    packing.pack(&frame[4..4 + length]);
                    (packing, frame)
                })
                .await;
                packer = Some(packing);
            }
            let packed = packer.as_ref().and_then(|packer| packer.packed());
            let goes_out = packed.unwrap_or(&frame[..4 + length]);
            let refused = self.write_and_listen(goes_out).await?;
            wait = way.pace.and_then(|pace| pace.went_out(goes_out.len()));
            counter.add(length as u64);
            moved = Instant::now();
            if refused {
                return Ok(Sent::Refused);
            }
        }
    }

    /// Writes a frame while hearing what the peer says, which may be that it works although it takes nothing.
    async fn write_and_listen(&mut self, bytes: &[u8]) -> Result<bool, WireError> {
        let mut refused = false;
        let mut rest = bytes;
        let mut moved = Instant::now();
        while !rest.is_empty() {
            if moved.elapsed() >= self.stall {
                return Err(WireError::Stalled { peer: self.peer.clone(), gives: false, limit: self.stall });
            }
            let (input, writer, patience) = (&mut self.input, &mut self.writer, self.patience);
            let writing = async { Event::Written(writer.write(rest).await) };
            let receiving =
                async { runtime::timeout(patience, input.line()).await.map_or(Event::Silence, Event::Received) };
            match future::or(writing, receiving).await {
                Event::Written(Ok(0)) => return Err(self.closed()),
                Event::Written(Ok(taken)) => {
                    rest = &rest[taken..];
                    moved = Instant::now();
                }
                Event::Written(Err(error)) => return Err(self.io(error)),
                Event::Received(heard) => refused |= self.is_refusal(heard)?,
                Event::Silence | Event::Idle | Event::Read(_) => return Err(self.silent(patience)),
            }
        }
        Ok(refused)
    }

    /// Whether the peer wants no more of the stream: it may also only have said that it is alive.
    fn is_refusal(&self, heard: io::Result<Received>) -> Result<bool, WireError> {
        match heard.map_err(|e| self.io(e))? {
            Received::Line(line) => match self.parse::<Alive>(&line) {
                Ok(alive) => Ok(alive.refused),
                Err(error) => Err(self.last_words(&line, error)),
            },
            Received::End => Err(self.closed()),
            Received::TooLong => Err(self.too_long()),
            Received::TooMuch => Err(self.too_much()),
        }
    }

    /// Ends a stream.
    pub async fn end_stream(&mut self, end: &StreamEnd) -> Result<(), WireError> {
        self.write_all(&0u32.to_be_bytes()).await?;
        self.send(end).await
    }

    /// Hears how the stream ended, after its last frame.
    pub async fn recv_stream_end(&mut self) -> Result<StreamEnd, WireError> {
        let line = self.recv_line(self.patience).await?.ok_or_else(|| self.closed())?;
        self.parse(&line).map_err(|_| self.damaged("the line at its end is none"))
    }

    fn damaged(&self, reason: impl Into<String>) -> WireError {
        WireError::Damaged { peer: self.peer.clone(), reason: reason.into() }
    }

    /// Hears the next frame into `buffer`: `false` at the end of the stream. After an error the buffer has what arrived
    /// of the frame: data that need not travel again.
    pub async fn recv_frame(&mut self, buffer: &mut Vec<u8>) -> Result<bool, WireError> {
        let (length, packed) = match self.recv_length().await {
            Ok(length) => length,
            Err(error) => {
                buffer.clear();
                return Err(error);
            }
        };
        if packed {
            return self.recv_packed(length, buffer).await.map(|()| true);
        }
        self.fill(buffer, length).await.map(|()| length > 0)
    }

    /// Fills a buffer with so many bytes, or with what arrives of them.
    async fn fill(&mut self, buffer: &mut Vec<u8>, length: usize) -> Result<(), WireError> {
        // Not cleared: old bytes are overwritten.
        buffer.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            match self.read_some(&mut buffer[filled..]).await {
                Ok(read) => filled += read,
                Err(error) => {
                    buffer.truncate(filled);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Hears a frame that is compressed in so many bytes.
    async fn recv_packed(&mut self, length: usize, buffer: &mut Vec<u8>) -> Result<(), WireError> {
        let mut unpacker = match self.unpacker.take() {
            Some(unpacker) => unpacker,
            None => Box::new(Unpacker::new().map_err(|e| self.io(e))?),
        };
        let arrived = self.fill(&mut unpacker.packed, length).await;
        let mut unpacked = std::mem::take(buffer);
        let whole;
        (whole, *buffer, unpacker) = runtime::blocking(move || {
            let whole = unpacker.unpack(&mut unpacked);
            (whole, unpacked, unpacker)
        })
        .await;
        self.unpacker = Some(unpacker);
        arrived?;
        whole.map_err(|reason| {
            buffer.clear();
            self.damaged(reason)
        })
    }

    /// Hears how long the next frame is that is more than a sign of life, and whether it is compressed; 0 at the end of
    /// the stream.
    async fn recv_length(&mut self) -> Result<(usize, bool), WireError> {
        let began = Instant::now();
        loop {
            let mut length = [0; 4];
            let mut filled = 0;
            while filled < length.len() {
                filled += self.read_some(&mut length[filled..]).await?;
            }
            let said = u32::from_be_bytes(length);
            if said == ALIVE {
                // The peer notices first that its source gives nothing, and says so.
                if began.elapsed() >= self.stall + self.patience {
                    return Err(WireError::Stalled { peer: self.peer.clone(), gives: true, limit: self.stall });
                }
                continue;
            }
            let (length, packed) = ((said & !PACKED) as usize, said & PACKED != 0);
            if length > LARGEST_FRAME {
                return Err(self.damaged(format!("a frame of {length} bytes; {LARGEST_FRAME} are allowed")));
            }
            return Ok((length, packed));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::io::Cursor;

    use super::*;

    fn receiving(bytes: &[u8]) -> Conn {
        let reader = Box::new(Cursor::new(bytes.to_vec()));
        Conn::new(reader, Box::new(Cursor::new(Vec::new())), "test".into())
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let mut conn = receiving(&0x7fff_ffffu32.to_be_bytes());
        let error = runtime::block_on(conn.recv_frame(&mut Vec::new())).unwrap_err();
        assert!(error.to_string().contains("a frame of 2147483647 bytes"), "{error}");
    }

    #[test]
    fn of_a_truncated_frame_what_arrived_is_kept() {
        let mut bytes = 10u32.to_be_bytes().to_vec();
        bytes.extend(b"abc");
        let mut frame = b"an older one".to_vec();
        let error = runtime::block_on(receiving(&bytes).recv_frame(&mut frame)).unwrap_err();
        assert!(matches!(error, WireError::Closed { .. }), "{error}");
        assert_eq!(frame, b"abc");
        runtime::block_on(receiving(b"xy").recv_frame(&mut frame)).unwrap_err();
        assert!(frame.is_empty());
    }

    /// A frame as it travels compressed.
    fn packed(stream: &[u8]) -> Vec<u8> {
        let mut packer = Packer::new(3).unwrap();
        packer.pack(stream);
        packer.packed().unwrap().to_vec()
    }

    /// So many bytes of so many bits each, that do not repeat.
    fn noise(length: usize, bits: u32) -> Vec<u8> {
        let mut random = 1u64;
        let next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> (64 - bits)) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    /// What compresses, and not to nothing.
    fn text(length: usize) -> Vec<u8> {
        noise(length, 3)
    }

    #[test]
    fn compressed_frames_are_heard_among_others() {
        let (first, last) = (text(LARGEST_FRAME), text(80));
        let mut bytes = packed(&first);
        assert!(bytes.len() < first.len() / 2, "{}", bytes.len());
        bytes.extend(ALIVE.to_be_bytes());
        bytes.extend([0, 0, 0, 3, 1, 2, 3]);
        bytes.extend(packed(&last));
        bytes.extend([0; 4]);
        runtime::block_on(async {
            let (mut conn, mut frame) = (receiving(&bytes), Vec::new());
            for wanted in [&first[..], &[1, 2, 3], &last] {
                assert!(conn.recv_frame(&mut frame).await.unwrap());
                assert!(frame == wanted, "{} bytes", frame.len());
            }
            assert!(!conn.recv_frame(&mut frame).await.unwrap());
        });
    }

    #[test]
    fn a_compressed_frame_that_is_damaged_is_never_taken_for_good() {
        let good = packed(&text(50_000));
        let framed = |bytes: &[u8]| [&(PACKED | bytes.len() as u32).to_be_bytes()[..], bytes].concat();
        let mut cases: Vec<Vec<u8>> = (4..good.len())
            .step_by(97)
            .map(|at| {
                let mut bytes = good.clone();
                bytes[at] ^= 4;
                bytes
            })
            .collect();
        cases.extend([
            framed(b""),
            framed(b"what is this"),
            // Half a frame, two frames, one and a bit, a skippable one.
            framed(&good[4..good.len() / 2]),
            framed(&[&good[4..], &good[4..]].concat()),
            framed(&[&good[4..], b"more"].concat()),
            framed(b"\x50\x2a\x4d\x18\x04\0\0\0more"),
        ]);
        for bytes in cases {
            let mut frame = Vec::new();
            let error = runtime::block_on(receiving(&bytes).recv_frame(&mut frame)).unwrap_err();
            assert!(matches!(error, WireError::Damaged { .. }) && error.is_temporary(), "{error}");
            assert!(frame.is_empty());
        }
    }

    #[test]
    fn a_frame_that_expands_without_end_is_refused() {
        // Sixty-four megabytes of nothing in a few bytes: with its size said in advance, and without.
        let zeros = vec![0; 64 << 20];
        let told = zstd::bulk::compress(&zeros, 3).unwrap();
        let untold = zstd::stream::encode_all(&zeros[..], 3).unwrap();
        for bomb in [told, untold] {
            assert!(bomb.len() < 10_000);
            let bytes = [&(PACKED | bomb.len() as u32).to_be_bytes()[..], &bomb].concat();
            let mut frame = Vec::new();
            let error = runtime::block_on(receiving(&bytes).recv_frame(&mut frame)).unwrap_err();
            assert!(matches!(error, WireError::Damaged { .. }), "{error}");
            assert!(frame.is_empty() && frame.capacity() <= 2 * LARGEST_FRAME, "{}", frame.capacity());
        }
    }

    #[test]
    fn of_a_compressed_frame_that_is_cut_what_arrived_is_kept() {
        let stream = text(LARGEST_FRAME);
        let bytes = packed(&stream);
        let mut frame = Vec::new();
        let error = runtime::block_on(receiving(&bytes[..bytes.len() / 2]).recv_frame(&mut frame)).unwrap_err();
        assert!(matches!(error, WireError::Closed { .. }), "{error}");
        assert!(frame.len() >= LARGEST_FRAME / 4 && stream.starts_with(&frame), "{}", frame.len());
    }

    #[test]
    fn what_does_not_shrink_goes_as_it_is() {
        let mut packer = Packer::new(3).unwrap();
        packer.pack(&text(1000));
        assert!(packer.packed().is_some());
        packer.pack(&noise(LARGEST_FRAME, 8));
        assert!(packer.packed().is_none());
    }
}
