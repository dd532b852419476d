//! One line of a catalog file: the keys that it may have, and the forms of their values.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use crate::model::{DatasetKind, SendFlags, Trashed};

/// Every key that a record of any kind may have.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    pub host: Text<'a>,
    #[serde(borrow, default)]
    pub dataset: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub name: Option<Text<'a>>,
    #[serde(default)]
    pub guid: Option<Number>,
    #[serde(default)]
    pub createtxg: Option<Number>,
    #[serde(default)]
    pub creation: Option<Timestamp>,
    #[serde(default)]
    pub flags: Flags,
    #[serde(default)]
    pub userrefs: Option<Number>,
    #[serde(default)]
    pub clones: Option<Clones>,
    #[serde(default)]
    pub used: Option<Number>,
    #[serde(default)]
    pub kind: Option<DatasetKind>,
    #[serde(default)]
    pub written: Option<Number>,
    #[serde(default)]
    pub encrypted: Option<bool>,
    #[serde(default)]
    pub resume_token: Option<String>,
    #[serde(default)]
    pub origin: Option<String>,
    #[serde(default)]
    pub excluded: Option<bool>,
    #[serde(default)]
    pub append_only: Option<bool>,
    #[serde(default)]
    pub send_flags: Option<SendFlags>,
    #[serde(default)]
    pub transfer_holds: Option<Vec<String>>,
    #[serde(default)]
    pub destroy_after: Option<Number>,
    #[serde(default)]
    pub trashed: Option<Vec<Trashed>>,
    /// `Some(None)` if the value is `null`, `None` if the key is missing.
    #[serde(default, deserialize_with = "null_or_value")]
    pub observed: Option<Option<Timestamp>>,
}

fn null_or_value<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Option<Timestamp>>, D::Error> {
    Option::deserialize(d).map(Some)
}

/// A string, borrowed from the line unless it contains escapes.
pub(super) struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        d.deserialize_str(Reader)
    }
}

/// A whole number, or a string with its decimal digits, because not every program preserves numbers above 2^53.
#[derive(Clone, Copy)]
pub(super) struct Number(pub u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from 0 to {}, or a string with its digits", u64::MAX)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                let digits = text.bytes().all(|b| b.is_ascii_digit());
                let number = if digits { text.parse().ok() } else { None };
                number.map(Number).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        d.deserialize_any(Reader)
    }
}

/// A time in RFC 3339 or in Unix seconds. Fractions of a second are dropped, because ZFS stores none.
#[derive(Clone, Copy)]
pub(super) struct Timestamp(pub DateTime<Utc>);

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time like \"2026-11-23T10:30:00Z\", or Unix seconds")
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Timestamp, E> {
                let time = DateTime::from_timestamp(seconds, 0);
                time.map(Timestamp).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(seconds), &self))
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Timestamp, E> {
                let signed = i64::try_from(seconds);
                signed
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(seconds), &self))
                    .and_then(|s| self.visit_i64(s))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                if let Ok(seconds) = text.parse() {
                    return self.visit_i64(seconds);
                }
                let time = DateTime::parse_from_rfc3339(text).ok();
                let whole = time.and_then(|m| DateTime::from_timestamp(m.timestamp(), 0));
                whole.map(Timestamp).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        d.deserialize_any(Reader)
    }
}

/// Flags as a list (`["#sent"]`, the `#` is optional) or in one string (`"#sent#sync"`).
#[derive(Clone, Copy, Default)]
pub(super) struct Flags {
    pub sent: bool,
    pub sync: bool,
    pub deleted: bool,
    pub not_written: bool,
}

impl Flags {
    pub fn is_empty(self) -> bool {
        !(self.sent || self.sync || self.deleted || self.not_written)
    }

    fn set<E: de::Error>(&mut self, flag: &str) -> Result<(), E> {
        match flag {
            "sent" => self.sent = true,
            "sync" => self.sync = true,
            "deleted" => self.deleted = true,
            "NotWritten" => self.not_written = true,
            other => {
                return Err(E::custom(format_args!(
                    "{other:?} is not a flag; expected #sent, #sync, #deleted or #NotWritten"
                )));
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Flags {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Flags;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of flags, or a string like \"#sent#sync\"")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Flags, E> {
                Ok(Flags::default())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Flags, E> {
                let mut flags = Flags::default();
                text.split('#').filter(|flag| !flag.is_empty()).try_for_each(|flag| flags.set(flag))?;
                Ok(flags)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Flags, A::Error> {
                let mut flags = Flags::default();
                while let Some(Text(flag)) = list.next_element()? {
                    flags.set(flag.strip_prefix('#').unwrap_or(&flag))?;
                }
                Ok(flags)
            }
        }
        d.deserialize_any(Reader)
    }
}

/// Whether a snapshot has clones, given as their names, their number, or a boolean.
#[derive(Clone, Copy)]
pub(super) struct Clones(pub bool);

impl<'de> Deserialize<'de> for Clones {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Clones;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the clones: a list of names, their number, or true or false")
            }
            fn visit_bool<E: de::Error>(self, any: bool) -> Result<Clones, E> {
                Ok(Clones(any))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Clones, E> {
                Ok(Clones(number > 0))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Clones, A::Error> {
                let mut any = false;
                while let Some(Text(_)) = list.next_element()? {
                    any = true;
                }
                Ok(Clones(any))
            }
        }
        d.deserialize_any(Reader)
    }
}
