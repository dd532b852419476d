//! Reads lines, with limits on the length of each and of all of them.

use std::io;

use futures_lite::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::wire::LONGEST_LINE;

/// The size of the read buffer. Longer frames bypass it.
const READ_BUFFER: usize = 16 * 1024;
/// The largest total size of the lines in one conversation: the listing of about three million snapshots.
pub(super) const MOST_IN_LINES: usize = 1 << 30;

/// Reads lines from a connection. Reading a line can be cancelled at any point and resumed later without losing
/// anything.
pub(super) struct LineReader {
    pub reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    /// The part of the current line that has arrived.
    line: Vec<u8>,
    /// The total size of all lines so far.
    received: usize,
}

/// The result of reading a line.
pub(super) enum Received {
    Line(Vec<u8>),
    /// The end of the connection.
    End,
    /// A line exceeds [`LONGEST_LINE`].
    TooLong,
    /// All lines together exceed [`MOST_IN_LINES`].
    TooMuch,
}

impl LineReader {
    pub fn new(reader: Box<dyn AsyncRead + Send + Unpin>) -> Self {
        Self { reader: BufReader::with_capacity(READ_BUFFER, reader), line: Vec::new(), received: 0 }
    }

    /// Reads the next line. Text without a newline at the end of the connection also counts as a line, because `nc` may
    /// send an order like that.
    pub async fn line(&mut self) -> io::Result<Received> {
        loop {
            let available = self.reader.fill_buf().await?;
            let newline = available.iter().position(|&b| b == b'\n');
            let taken = newline.unwrap_or(available.len());
            if self.line.len() + taken > LONGEST_LINE {
                return Ok(Received::TooLong);
            }
            self.received += taken;
            if self.received > MOST_IN_LINES {
                return Ok(Received::TooMuch);
            }
            self.line.extend_from_slice(&available[..taken]);
            let ended = available.is_empty();
            self.reader.consume(taken + usize::from(newline.is_some()));
            if ended && self.line.is_empty() {
                return Ok(Received::End);
            }
            if ended || newline.is_some() {
                return Ok(Received::Line(std::mem::take(&mut self.line)));
            }
        }
    }
}
