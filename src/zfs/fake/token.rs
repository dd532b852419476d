//! Encodes and decodes resume tokens, the values of `receive_resume_token` (zfsprops(7)), in the form
//! `1-CHECKSUM-LENGTH-HEX`.
//!
//! ZFS packs and compresses a list of names and values. Here the list is JSON with the same contents.

use serde::{Deserialize, Serialize};

use crate::model::{Guid, SendFlags};

/// What an interrupted receive still needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token {
    /// The snapshot that was being received, by its full name on the sender.
    pub toname: String,
    /// The guid of that snapshot.
    pub toguid: Guid,
    /// The guid of the snapshot that the stream starts from; `None` for a full stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fromguid: Option<Guid>,
    /// The object that was written last.
    pub object: u64,
    /// The position in that object.
    pub offset: u64,
    /// How many bytes of data have arrived.
    pub bytes: u64,
    /// Whether the stream may have blocks above 128 KiB (`-L`).
    pub largeblockok: bool,
    /// Whether the stream may have embedded blocks (`-e`).
    pub embedok: bool,
    /// Whether the stream may have compressed blocks (`-c`).
    pub compressok: bool,
    /// Whether the stream is raw (`-w` of an encrypted dataset).
    pub rawok: bool,
}

impl Token {
    /// Sets the flags of a stream.
    pub(super) fn with_flags(self, flags: SendFlags, rawok: bool) -> Self {
        let (largeblockok, embedok, compressok) = match flags {
            SendFlags::Raw => (true, true, true),
            SendFlags::Plain { large, compressed } => (large, false, compressed),
        };
        Self { largeblockok, embedok, compressok, rawok, ..self }
    }

    /// The flags to continue the stream with.
    pub(super) fn flags(&self) -> SendFlags {
        if self.rawok {
            return SendFlags::Raw;
        }
        SendFlags::Plain { large: self.largeblockok, compressed: self.compressok }
    }

    /// The token as text.
    pub(super) fn encode(&self) -> String {
        let packed = serde_json::to_vec(self).unwrap_or_default();
        let hex: String = packed.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("1-{:x}-{:x}-{hex}", checksum(&packed), packed.len())
    }

    /// Reads a token, or returns what is wrong with it in the words of libzfs.
    pub(super) fn decode(text: &str) -> Result<Self, String> {
        let corrupt = |why: &str| format!("resume token is corrupt ({why})");
        let parts: Vec<&str> = text.splitn(4, '-').collect();
        let [version, sum, length, hex] = parts.as_slice() else { return Err(corrupt("invalid format")) };
        let number = |digits: &str| u64::from_str_radix(digits, 16).map_err(|_| corrupt("invalid format"));
        let (sum, length) = (number(sum)?, number(length)?);
        if *version != "1" {
            return Err(corrupt(&format!("invalid version {version}")));
        }
        let digit = |at: usize| hex.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let packed: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(digit).collect();
        let packed = packed.ok_or_else(|| corrupt("payload is not hex-encoded"))?;
        if checksum(&packed) != sum {
            return Err(corrupt("incorrect checksum"));
        }
        if packed.len() as u64 != length {
            return Err(corrupt("decompression failed"));
        }
        serde_json::from_slice(&packed).map_err(|_| corrupt("nvlist_unpack failed"))
    }
}

/// A checksum (FNV-1a) of what must arrive undamaged.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zfs::parse;

    fn token() -> Token {
        let token = Token {
            toname: "tank/data@S_2".into(),
            toguid: Guid(2),
            fromguid: Some(Guid(1)),
            object: 2,
            offset: 256,
            bytes: 256,
            largeblockok: false,
            embedok: false,
            compressok: false,
            rawok: false,
        };
        token.with_flags(SendFlags::PLAIN, false)
    }

    #[test]
    fn token_survives_text_form() {
        let text = token().encode();
        assert!(parse::is_token(&text), "{text}");
        assert_eq!(Token::decode(&text).unwrap(), token());
        assert_eq!(token().flags(), SendFlags::PLAIN);
        assert_eq!(token().with_flags(SendFlags::Raw, true).flags(), SendFlags::Raw);
    }

    #[test]
    fn damaged_token_is_refused_in_the_words_of_zfs() {
        let text = token().encode();
        for (damaged, words) in [
            ("tank".to_owned(), "invalid format"),
            (text.replacen("1-", "2-", 1), "invalid version 2"),
            (format!("{}zz", &text[..text.len() - 2]), "payload is not hex-encoded"),
            (text[..text.len() - 2].to_owned(), "incorrect checksum"),
            (format!("{}00", &text[..text.len() - 2]), "incorrect checksum"),
        ] {
            let error = Token::decode(&damaged).unwrap_err();
            assert_eq!(error, format!("resume token is corrupt ({words})"), "{damaged}");
        }
    }
}
