//! Defines the frames in which a stream is sent.
//!
//! A frame is a length (four bytes, big endian), and as many bytes of the stream. If the highest bit of the length is
//! set, the bytes are compressed. Length 0 ends the stream, and is followed by a line, [`StreamEnd`]. Length 0xFFFFFFFF
//! has no bytes, and only reports that the sender is alive.

use serde::{Deserialize, Serialize};

use crate::wire::text;

/// The largest frame, in bytes: what an enlarged pipe returns in one read.
pub const LARGEST_FRAME: usize = 1 << 20;
/// The length that reports that the sender is alive.
pub(super) const ALIVE: u32 = u32::MAX;
/// The bit that is set in the length of a compressed frame.
pub(super) const PACKED: u32 = 1 << 31;

/// The line after the last frame, which says whether the sender's process succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct StreamEnd {
    /// Whether the stream is complete.
    pub is_success: bool,
    /// Why the stream is not complete.
    #[serde(default, deserialize_with = "text::text")]
    pub error: String,
}
