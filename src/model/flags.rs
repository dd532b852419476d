//! The flags of `zfs send`, which must stay the same for all increments of one copy.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::name::NameError;

/// The flags of `zfs send` that decide what a stream's blocks look like (zfs-send(8)). All increments of a copy need
/// the flags of its first stream: ZFS refuses to mix raw and other streams in one history, and refuses a stream without
/// `-L` if the copy has large blocks.
///
/// zsync never sends with `-e`. OpenZFS 2.3 also embeds spill blocks then, which have the extended attributes of a file:
/// the attributes do not arrive, and the received file has a block that does not belong to it
/// (<https://github.com/openzfs/zfs/pull/19091>). Raw streams of encrypted datasets have no embedded blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendFlags {
    /// `-w`: encrypted blocks as they are on disk, which implies all other flags.
    Raw,
    /// Unencrypted blocks.
    Plain {
        /// `-L`: blocks above 128 KiB.
        large: bool,
        /// `-c`: compressed blocks.
        compressed: bool,
    },
}

impl SendFlags {
    /// The flags for an unencrypted dataset.
    pub const PLAIN: Self = Self::Plain { large: true, compressed: true };

    /// The flags for the first copy of a dataset.
    #[must_use]
    pub fn for_encrypted(encrypted: bool) -> Self {
        if encrypted { Self::Raw } else { Self::PLAIN }
    }

    /// The flags to try next if the pool of the destination lacks a feature that the stream needs. A copy that has
    /// large blocks (`-L`) needs them in each increment: ZFS refuses the stream without, and [`Self::with_large_blocks`]
    /// follows. A copy whose pool cannot have them can do without, even if its first stream was sent with `-L`.
    #[must_use]
    pub fn with_fewer_features(self) -> Option<Self> {
        match self {
            Self::Plain { compressed: true, large } => Some(Self::Plain { compressed: false, large }),
            Self::Plain { large: true, .. } => Some(Self::Plain { large: false, compressed: false }),
            Self::Plain { .. } | Self::Raw => None,
        }
    }

    /// The same flags with `-L`, unless they have it.
    #[must_use]
    pub fn with_large_blocks(self) -> Option<Self> {
        match self {
            Self::Plain { large: false, compressed } => Some(Self::Plain { large: true, compressed }),
            Self::Plain { .. } | Self::Raw => None,
        }
    }
}

impl fmt::Display for SendFlags {
    /// The letters, as in `Lc`; `-` for no flag.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Raw => f.write_str("w"),
            Self::Plain { large: false, compressed: false } => f.write_str("-"),
            Self::Plain { large, compressed } => {
                let set = [(large, 'L'), (compressed, 'c')];
                set.iter().filter(|(set, _)| *set).try_for_each(|(_, letter)| write!(f, "{letter}"))
            }
        }
    }
}

impl FromStr for SendFlags {
    type Err = NameError;

    /// The letter `e`, which earlier versions recorded, is ignored.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = || NameError {
            kind: "set of send flags",
            text: text.chars().take(80).collect(),
            reason: "it is neither \"w\", \"-\", nor made of the letters L, e and c".to_owned(),
        };
        match text {
            "w" => return Ok(Self::Raw),
            "-" => return Ok(Self::Plain { large: false, compressed: false }),
            "" => return Err(bad()),
            _ => {}
        }
        let (mut large, mut embedded, mut compressed) = (false, false, false);
        for letter in text.chars() {
            let flag = match letter {
                'L' => &mut large,
                'e' => &mut embedded,
                'c' => &mut compressed,
                _ => return Err(bad()),
            };
            if std::mem::replace(flag, true) {
                return Err(bad());
            }
        }
        Ok(Self::Plain { large, compressed })
    }
}

impl TryFrom<&str> for SendFlags {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, NameError> {
        text.parse()
    }
}

impl Serialize for SendFlags {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SendFlags {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_dropped_one_by_one() {
        let all = std::iter::successors(Some(SendFlags::PLAIN), |flags| flags.with_fewer_features());
        assert_eq!(all.map(|flags| flags.to_string()).collect::<Vec<_>>().join(" "), "Lc L -");
        assert_eq!(SendFlags::Raw.with_fewer_features(), None);
        assert_eq!("ec".parse::<SendFlags>().unwrap().with_large_blocks(), Some(SendFlags::PLAIN));
        assert_eq!(SendFlags::PLAIN.with_large_blocks(), None);
    }

    #[test]
    fn send_flags_round_trip_through_text() {
        let mut all = vec![SendFlags::Raw];
        for bits in 0..4 {
            all.push(SendFlags::Plain { large: bits & 1 != 0, compressed: bits & 2 != 0 });
        }
        for flags in all {
            assert_eq!(flags.to_string().parse::<SendFlags>().unwrap(), flags);
        }
        for bad in ["", "wL", "LL", "x", "Lec ", "LEC"] {
            assert!(bad.parse::<SendFlags>().is_err(), "{bad:?}");
        }
        assert_eq!(SendFlags::PLAIN.to_string(), "Lc");
        assert_eq!("Lec".parse(), Ok(SendFlags::PLAIN));
        assert_eq!("e".parse(), "-".parse::<SendFlags>());
    }
}
