//! The destination of a transfer as the names of its holds and cursors show it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::tags::{CURSOR, SENDING, parse_guid, uuid_of};
use crate::model::{NameError, Place, SnapName};

/// A destination as the names of holds and cursors show it: `HOST:pool:dataset`, with `:` for `/`, or a UUID if the
/// names would be too long otherwise.
///
/// The names of datasets may contain `:` as well, so two destinations may have the same value. Where that matters, both
/// count as used as long as one of them is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SentTo(String);

impl SentTo {
    /// A destination, with each of the two values that its names may have.
    #[must_use]
    pub fn both(to: &Place) -> [Self; 2] {
        [Self::from(to), Self(uuid_of(&to.to_string()).to_string())]
    }

    /// The destination of the transfers that made a hold; `None` if the hold is not that of a transfer's source.
    #[must_use]
    pub fn of_hold(tag: &str) -> Option<Self> {
        tag.strip_prefix(SENDING).map(|place| Self(place.replace('/', ":"))).filter(Self::is_possible)
    }

    /// The destination of a cursor; none if the bookmark is not a cursor. If the last component of the destination
    /// looks like a guid, there are two possibilities; the likelier one comes first.
    #[must_use]
    pub fn of_cursor(bookmark: &SnapName) -> Vec<Self> {
        let Some(name) = bookmark.as_str().strip_prefix(CURSOR) else { return Vec::new() };
        let without_guid = |text: &str| {
            let (rest, guid) = text.rsplit_once(':')?;
            parse_guid(guid).map(|_| rest.to_owned())
        };
        let older = without_guid(name);
        let newer = older.as_deref().and_then(without_guid);
        newer.into_iter().chain(older).map(Self).filter(Self::is_possible).collect()
    }

    /// Whether it is a destination as [`FromStr`] accepts it. Anyone can make a hold or a bookmark with another name.
    fn is_possible(&self) -> bool {
        self.to_string().parse::<Self>().is_ok()
    }

    /// Whether it is this destination, or lies below it. Below a destination, those that are named by a UUID are not
    /// found.
    #[must_use]
    pub fn is_within(&self, root: &Self) -> bool {
        let rest = self.0.strip_prefix(&root.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            || self.0 == uuid_of(&root.to_string()).to_string()
    }

    /// Whether it is this destination.
    #[must_use]
    pub fn is(&self, to: &Place) -> bool {
        if self.is_uuid() {
            return self.0 == uuid_of(&to.to_string()).to_string();
        }
        let rest = self.0.strip_prefix(to.host.as_str()).and_then(|rest| rest.strip_prefix(':'));
        let same = |(a, b): (u8, u8)| a == b || (a == b':' && b == b'/');
        rest.is_some_and(|rest| {
            rest.len() == to.dataset.as_str().len() && rest.bytes().zip(to.dataset.as_str().bytes()).all(same)
        })
    }

    /// Whether its place is unknown, because it is named by a UUID.
    #[must_use]
    pub fn is_uuid(&self) -> bool {
        !self.0.contains(':')
    }
}

impl From<&Place> for SentTo {
    fn from(to: &Place) -> Self {
        Self(to.to_string().replace('/', ":"))
    }
}

impl fmt::Display for SentTo {
    /// `HOST:DATASET`, or the UUID.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_once(':') {
            Some((host, dataset)) => write!(f, "{host}:{}", dataset.replace(':', "/")),
            None => f.write_str(&self.0),
        }
    }
}

impl FromStr for SentTo {
    type Err = NameError;

    /// Parses `HOST:DATASET`, or the UUID of a destination with a long name.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if Uuid::parse_str(text).is_ok() {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        // Without ":" the dataset's name is empty, which its parser reports.
        let (host, dataset) = text.split_once(':').unwrap_or((text, ""));
        Ok(Self::from(&Place { host: host.parse()?, dataset: dataset.parse()? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Guid, tags};

    fn place(host: &str, dataset: &str) -> Place {
        Place { host: host.parse().unwrap(), dataset: dataset.parse().unwrap() }
    }

    #[test]
    fn names_of_holds_and_cursors_show_their_destination() {
        let long = format!("usb/{}", "d".repeat(245));
        for to in [place("beta", "usb/home"), place("beta", "usb"), place("b.example", "usb/a:b"), place("beta", &long)]
        {
            let both = SentTo::both(&to);
            let of_hold = SentTo::of_hold(&tags::sending(&to)).unwrap();
            assert!(both.contains(&of_hold) && both.iter().all(|one| one.is(&to)), "{to}");
            assert!(!of_hold.is(&place("beta", "usb/other")) && !of_hold.is(&place("b", to.dataset.as_str())));
            for copy in [None, Some(Guid(7))] {
                let cursor = tags::cursor(&"tank/home".parse().unwrap(), &to, Guid(255), copy).unwrap();
                assert!(SentTo::of_cursor(&cursor).iter().any(|found| both.contains(found)), "{cursor}");
            }
        }
        assert_eq!(SentTo::of_hold("zsync:from:beta"), None);
        assert!(SentTo::of_cursor(&"zsync:by-hand".parse().unwrap()).is_empty());
        assert!(SentTo::of_cursor(&"other:beta:usb:00000000000000ff".parse().unwrap()).is_empty());
        // A dataset whose name looks like a guid.
        let odd = SentTo::of_cursor(&"zsync:beta:usb:00000000000000aa:00000000000000ff".parse().unwrap());
        assert_eq!(odd.iter().map(ToString::to_string).collect::<Vec<_>>(), ["beta:usb", "beta:usb/00000000000000aa"]);
    }

    #[test]
    fn destinations_are_written_as_people_write_them() {
        for text in ["beta:usb/home", "beta:usb", "b30c0441-90bc-51ac-8b96-2b528d364118"] {
            assert_eq!(text.parse::<SentTo>().unwrap().to_string(), text);
        }
        for bad in ["", "beta", "beta:", ":usb", "beta:usb//home", "be ta:usb"] {
            assert!(bad.parse::<SentTo>().is_err(), "{bad}");
        }
    }

    #[test]
    fn is_within_compares_whole_components() {
        let of = |text: &str| text.parse::<SentTo>().unwrap();
        assert!(of("beta:usb/home").is_within(&of("beta:usb")) && of("beta:usb").is_within(&of("beta:usb")));
        assert!(!of("beta:usb2").is_within(&of("beta:usb")) && !of("beta:usb").is_within(&of("beta:usb/home")));
        let [_, uuid] = SentTo::both(&place("beta", "usb/home"));
        assert!(uuid.is_within(&of("beta:usb/home")) && uuid.is_uuid() && !of("beta:usb").is_uuid());
    }
}
