//! The compression of streams to other hosts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::model::HostName;

/// The default level of zstd.
const DEFAULT_LEVEL: i32 = 3;
/// The levels permitted. Higher levels need a large amount of memory on both sides.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// zstd with a level, written `zstd` or `zstd:9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zstd(i32);

/// Why a text is not a compression.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a compression: {reason}; hint: use \"zstd\", or a level from 1 to 19 as in \"zstd:9\"")]
pub struct CompressionError {
    text: String,
    reason: &'static str,
}

impl Zstd {
    /// The level, from 1 (quick) to 19 (small).
    #[must_use]
    pub fn level(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Zstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zstd:{}", self.0)
    }
}

impl FromStr for Zstd {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, CompressionError> {
        let bad = |reason| CompressionError { text: text.to_owned(), reason };
        let level = match text.split_once(':') {
            None if text == "zstd" => return Ok(Self(DEFAULT_LEVEL)),
            Some(("zstd", level)) => level,
            _ => return Err(bad("its method is unknown")),
        };
        let plain = !level.is_empty() && level.bytes().all(|b| b.is_ascii_digit());
        let level = level.parse().ok().filter(|_| plain).ok_or_else(|| bad("its level is not a number"))?;
        if LEVELS.contains(&level) { Ok(Self(level)) } else { Err(bad("its level is out of range")) }
    }
}

/// Which streams a host compresses: none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// No streams.
    #[default]
    Off,
    /// Streams to all hosts.
    All(Zstd),
    /// Streams to these hosts.
    Hosts(BTreeMap<HostName, Zstd>),
}

impl Compression {
    /// How streams to a host are compressed; `None` if they are not.
    #[must_use]
    pub fn to(&self, host: &HostName) -> Option<Zstd> {
        match self {
            Self::Off => None,
            Self::All(zstd) => Some(*zstd),
            Self::Hosts(hosts) => hosts.get(host).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_level_is_optional() {
        for (text, level) in [("zstd", 3), ("zstd:1", 1), ("zstd:19", 19)] {
            assert_eq!(text.parse::<Zstd>().map(Zstd::level), Ok(level), "{text}");
            assert_eq!(text.parse::<Zstd>().unwrap().to_string().parse::<Zstd>().map(Zstd::level), Ok(level));
        }
        for text in ["", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:+3", "zstd:-1", "zstd:fast", "Zstd", "zstd :3"] {
            assert!(text.parse::<Zstd>().is_err(), "{text}");
        }
    }

    #[test]
    fn compression_applies_to_all_or_named_hosts() {
        let (beta, gamma): (HostName, HostName) = ("beta".parse().unwrap(), "gamma".parse().unwrap());
        let nine: Zstd = "zstd:9".parse().unwrap();
        assert_eq!(Compression::default().to(&beta), None);
        assert_eq!(Compression::All(nine).to(&beta), Some(nine));
        let hosts = Compression::Hosts([(beta.clone(), nine)].into());
        assert_eq!((hosts.to(&beta), hosts.to(&gamma)), (Some(nine), None));
    }
}
