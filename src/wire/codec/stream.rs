//! Sends and receives streams in frames.

use std::io;
use std::pin::Pin;
use std::time::Instant;

use futures_lite::future;
use futures_lite::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::model::Counter;
use crate::sys::runtime;
use crate::wire::Alive;
use crate::wire::codec::conn::{ALIVE_EVERY, Conn};
use crate::wire::codec::error::WireError;
use crate::wire::codec::frame::{ALIVE, LARGEST_FRAME, PACKED, StreamEnd};
use crate::wire::codec::line::Received;
use crate::wire::codec::pack::{Packer, Unpacker};

/// The smallest amount to read for a compressed frame, even if the pace asks for less, because less compresses badly.
const LEAST_PACKED: usize = 64 << 10;

/// A delay before more of a stream may be sent.
pub type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Limits how fast a stream is sent.
pub trait Pace: Send + Sync {
    /// The largest number of bytes to send at once; `None` for no limit.
    fn at_once(&self) -> Option<usize>;
    /// Counts bytes that were sent. No more may be sent until the returned delay has ended; `None` for no delay.
    fn went_out(&self, bytes: usize) -> Option<Wait>;
}

/// How to send a stream. The default is without a limit and uncompressed.
#[derive(Clone, Copy, Default)]
pub struct StreamOptions<'a> {
    /// The limit on the speed.
    pub pace: Option<&'a dyn Pace>,
    /// The level at which to compress with zstd. The peer must have declared that it accepts that.
    pub zstd: Option<i32>,
}

/// The result of sending a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The source reached its end.
    All,
    /// The peer refused the rest.
    Refused,
    /// The source provided no data for too long.
    Stalled,
}

/// The next event while a frame is read from the source.
enum SourceEvent {
    /// The source provided this many bytes.
    Read(io::Result<usize>),
    /// The source provides no data at the moment.
    Idle,
    /// The peer sent a line.
    Received(io::Result<Received>),
}

/// The next event while a frame is written to the peer.
enum WriteEvent {
    /// The connection accepted this many bytes.
    Written(io::Result<usize>),
    /// The peer sent a line.
    Received(io::Result<Received>),
    /// The peer neither sent nor accepted anything.
    Silence,
}

impl Conn {
    /// Sends what `source` provides, frame by frame, until its end or until the peer refuses more. The caller then
    /// sends the result with [`Conn::end_stream`].
    ///
    /// A frame is always completed once it has been started, even if the peer refuses it, because whatever follows must
    /// begin where a frame may begin.
    pub async fn send_stream(
        &mut self,
        source: &mut (dyn AsyncRead + Send + Unpin),
        options: StreamOptions<'_>,
        counter: &Counter,
    ) -> Result<Sent, WireError> {
        let mut packer = options.zstd.map(Packer::new).transpose().map_err(|e| self.io(e))?;
        let mut frame = vec![0; 4 + LARGEST_FRAME];
        let mut last_progress = Instant::now();
        let mut delay: Option<Wait> = None;
        loop {
            let least = if packer.is_some() { LEAST_PACKED } else { 1 };
            let most = options.pace.and_then(Pace::at_once).map_or(LARGEST_FRAME, |limit| limit.max(least));
            let room = &mut frame[4..4 + most.min(LARGEST_FRAME)];
            let length = match self.next_source_event(source, room, &mut delay).await {
                SourceEvent::Read(read) => read.map_err(|e| self.io(e))?,
                SourceEvent::Received(received) => {
                    if self.sign_of_life(received, counter)?.refused {
                        return Ok(Sent::Refused);
                    }
                    continue;
                }
                SourceEvent::Idle => {
                    if last_progress.elapsed() >= self.stall {
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
            let bytes = packed.unwrap_or(&frame[..4 + length]);
            let refused = self.write_and_listen(bytes, counter).await?;
            delay = options.pace.and_then(|pace| pace.went_out(bytes.len()));
            counter.add(length as u64);
            last_progress = Instant::now();
            if refused {
                return Ok(Sent::Refused);
            }
        }
    }

    /// Reads from the source after the delay, and listens to the peer meanwhile.
    async fn next_source_event(
        &mut self,
        source: &mut (dyn AsyncRead + Send + Unpin),
        room: &mut [u8],
        delay: &mut Option<Wait>,
    ) -> SourceEvent {
        let receiving = async { SourceEvent::Received(self.input.line().await) };
        let reading = async {
            if let Some(until) = delay {
                until.await;
                *delay = None;
            }
            source.read(room).await
        };
        let reading =
            async { runtime::timeout(ALIVE_EVERY, reading).await.map_or(SourceEvent::Idle, SourceEvent::Read) };
        future::or(receiving, reading).await
    }

    /// Writes a frame, and listens meanwhile, because a peer that accepts nothing may report that it is still working.
    /// Returns whether the peer refuses the rest of the stream.
    async fn write_and_listen(&mut self, bytes: &[u8], counter: &Counter) -> Result<bool, WireError> {
        let mut refused = false;
        let mut rest = bytes;
        let mut last_progress = Instant::now();
        while !rest.is_empty() {
            if last_progress.elapsed() >= self.stall {
                return Err(WireError::Stalled { peer: self.peer.clone(), gives: false, limit: self.stall });
            }
            let (input, writer, patience) = (&mut self.input, &mut self.writer, self.patience);
            let writing = async { WriteEvent::Written(writer.write(rest).await) };
            let receiving = async {
                runtime::timeout(patience, input.line()).await.map_or(WriteEvent::Silence, WriteEvent::Received)
            };
            match future::or(writing, receiving).await {
                WriteEvent::Written(Ok(0)) => return Err(self.closed()),
                WriteEvent::Written(Ok(written)) => {
                    rest = &rest[written..];
                    last_progress = Instant::now();
                }
                WriteEvent::Written(Err(error)) => return Err(self.io(error)),
                WriteEvent::Received(received) => {
                    let Alive { refused: refuses, queued, .. } = self.sign_of_life(received, counter)?;
                    refused |= refuses;
                    // The receiver limits how long the stream waits for a slot.
                    if queued {
                        last_progress = Instant::now();
                    }
                }
                WriteEvent::Silence => return Err(self.silent(patience)),
            }
        }
        Ok(refused)
    }

    /// What the peer reports while it receives.
    fn sign_of_life(&self, received: io::Result<Received>, counter: &Counter) -> Result<Alive, WireError> {
        match received.map_err(|e| self.io(e))? {
            Received::Line(line) => {
                let alive = self.parse::<Alive>(&line).map_err(|error| self.abort_reason(&line, error))?;
                self.note_waiting(&alive, counter);
                Ok(alive)
            }
            Received::End => Err(self.closed()),
            Received::TooLong => Err(self.too_long()),
            Received::TooMuch => Err(self.too_much()),
        }
    }

    /// Records whether the transfer waits for the receiver.
    pub(crate) fn note_waiting(&self, alive: &Alive, counter: &Counter) {
        counter.set_waiting(alive.queued.then(|| format!("a slot (max_receives) of {}", self.peer)));
    }

    /// Ends a stream that was sent, and sends its result.
    pub async fn end_stream(&mut self, end: &StreamEnd) -> Result<(), WireError> {
        self.write_all(&0u32.to_be_bytes()).await?;
        self.send(end).await
    }

    /// Receives the result of the stream, after its last frame.
    pub async fn recv_stream_end(&mut self) -> Result<StreamEnd, WireError> {
        let line = self.recv_line(self.patience).await?.ok_or_else(|| self.closed())?;
        self.parse(&line).map_err(|_| self.damaged("the line after its last frame is invalid"))
    }

    /// Receives the next frame into `buffer`. Returns `false` at the end of the stream. After an error, the buffer
    /// contains the part of the frame that arrived, so that it need not be sent again.
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

    /// Receives `length` bytes into a buffer, or after an error, the part of them that arrived.
    async fn fill(&mut self, buffer: &mut Vec<u8>, length: usize) -> Result<(), WireError> {
        // Not cleared first, because the old bytes are overwritten.
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

    /// Receives a compressed frame of `length` bytes.
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

    /// Receives the length of the next frame with data, and whether it is compressed. The length is 0 at the end of the
    /// stream.
    async fn recv_length(&mut self) -> Result<(usize, bool), WireError> {
        let began = Instant::now();
        loop {
            let mut length = [0; 4];
            let mut filled = 0;
            while filled < length.len() {
                filled += self.read_some(&mut length[filled..]).await?;
            }
            let header = u32::from_be_bytes(length);
            if header == ALIVE {
                // Longer than the peer's own limit, because the peer should notice first, and report the reason.
                if began.elapsed() >= self.stall + self.patience {
                    return Err(WireError::Stalled { peer: self.peer.clone(), gives: true, limit: self.stall });
                }
                continue;
            }
            let (length, packed) = ((header & !PACKED) as usize, header & PACKED != 0);
            if length > LARGEST_FRAME {
                return Err(self.damaged(format!("a frame of {length} bytes, and at most {LARGEST_FRAME} are allowed")));
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
    fn oversized_frame_is_refused_before_it_is_read() {
        let mut conn = receiving(&0x7fff_ffffu32.to_be_bytes());
        let error = runtime::block_on(conn.recv_frame(&mut Vec::new())).unwrap_err();
        assert!(error.to_string().contains("a frame of 2147483647 bytes"), "{error}");
    }

    #[test]
    fn truncated_frame_keeps_what_arrived() {
        let mut bytes = 10u32.to_be_bytes().to_vec();
        bytes.extend(b"abc");
        let mut frame = b"an older one".to_vec();
        let error = runtime::block_on(receiving(&bytes).recv_frame(&mut frame)).unwrap_err();
        assert!(matches!(error, WireError::Closed { .. }), "{error}");
        assert_eq!(frame, b"abc");
        runtime::block_on(receiving(b"xy").recv_frame(&mut frame)).unwrap_err();
        assert!(frame.is_empty());
    }

    /// A compressed frame with its length.
    fn packed(stream: &[u8]) -> Vec<u8> {
        let mut packer = Packer::new(3).unwrap();
        packer.pack(stream);
        packer.packed().unwrap().to_vec()
    }

    /// Pseudo-random bytes, each with a value of this many bits.
    fn noise(length: usize, bits: u32) -> Vec<u8> {
        let mut random = 1u64;
        let next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> (64 - bits)) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    /// Bytes that compress moderately.
    fn text(length: usize) -> Vec<u8> {
        noise(length, 3)
    }

    #[test]
    fn compressed_frames_mix_with_others() {
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
    fn damaged_compressed_frame_is_refused() {
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
            // Half a frame, two frames, a frame with trailing bytes, a skippable frame.
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
    fn decompression_bomb_is_refused() {
        // 64 MiB of zeros in a few bytes, with and without the size in the header.
        let zeros = vec![0; 64 << 20];
        let with_size = zstd::bulk::compress(&zeros, 3).unwrap();
        let without_size = zstd::stream::encode_all(&zeros[..], 3).unwrap();
        for bomb in [with_size, without_size] {
            assert!(bomb.len() < 10_000);
            let bytes = [&(PACKED | bomb.len() as u32).to_be_bytes()[..], &bomb].concat();
            let mut frame = Vec::new();
            let error = runtime::block_on(receiving(&bytes).recv_frame(&mut frame)).unwrap_err();
            assert!(matches!(error, WireError::Damaged { .. }), "{error}");
            assert!(frame.is_empty() && frame.capacity() <= 2 * LARGEST_FRAME, "{}", frame.capacity());
        }
    }

    #[test]
    fn truncated_compressed_frame_keeps_what_arrived() {
        let stream = text(LARGEST_FRAME);
        let bytes = packed(&stream);
        let mut frame = Vec::new();
        let error = runtime::block_on(receiving(&bytes[..bytes.len() / 2]).recv_frame(&mut frame)).unwrap_err();
        assert!(matches!(error, WireError::Closed { .. }), "{error}");
        assert!(frame.len() >= LARGEST_FRAME / 4 && stream.starts_with(&frame), "{}", frame.len());
    }

    #[test]
    fn incompressible_frame_is_sent_uncompressed() {
        let mut packer = Packer::new(3).unwrap();
        packer.pack(&text(1000));
        assert!(packer.packed().is_some());
        packer.pack(&noise(LARGEST_FRAME, 8));
        assert!(packer.packed().is_none());
    }
}
