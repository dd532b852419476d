//! The kind of program that has the embedded catalog open for writing. Its lock file records this kind.

/// The kind of program that has a catalog open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A director that runs pass after pass.
    Director,
    /// A program that runs one pass, or one command, and ends.
    Pass,
}

impl Holder {
    /// The word for this holder in the lock file.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Director => "director",
            Self::Pass => "pass",
        }
    }

    /// Parses the word of a lock file.
    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::Director, Self::Pass].into_iter().find(|holder| holder.word() == word)
    }
}
