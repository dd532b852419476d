//! Patterns of the paths of files below a dataset.

use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;

use glob::Pattern;
use thiserror::Error;

/// A pattern of paths, such as `docs/**/plan.odt`: `*`, `?` and `[...]` match within the name of a file or folder, and
/// `**` any number of folders. It is matched name by name, so that only the folders that may contain matches are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// `**`.
    Folders,
    Name(Pattern),
}

/// How much of a pattern the path of a folder or file has matched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// The indices of the parts that the next name may match. The number of parts: the path itself matches.
    next: Vec<usize>,
    /// How many parts there are.
    whole: usize,
}

/// Why a text is not a pattern of paths.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a pattern of paths below the dataset: {reason}")]
pub struct PathPatternError {
    text: String,
    reason: String,
}

impl FromStr for PathPattern {
    type Err = PathPatternError;

    fn from_str(text: &str) -> Result<Self, PathPatternError> {
        let wrong = |reason: &str| PathPatternError { text: text.to_owned(), reason: reason.to_owned() };
        let part = |part: &str| match part {
            "" => Err(wrong("a name in it is empty; write it like docs/*.odt, without \"/\" at its beginning or end")),
            "." | ".." => Err(wrong("\".\" and \"..\" are no names")),
            "**" => Ok(Part::Folders),
            part => Pattern::new(part).map(Part::Name).map_err(|error| wrong(error.msg)),
        };
        let parts = text.split('/').map(part).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), parts })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PathPattern {
    /// What the dataset's own folder has matched.
    #[must_use]
    pub fn start(&self) -> Matched {
        self.matched(vec![0])
    }

    /// What a file or folder of this name has matched, in a folder that has matched `of`. A name that is not UTF-8 is
    /// matched by `*` and `?`.
    #[must_use]
    pub fn step(&self, of: &Matched, name: &OsStr) -> Matched {
        let text = name.to_string_lossy();
        let mut next = Vec::new();
        for &at in &of.next {
            match self.parts.get(at) {
                Some(Part::Folders) => next.push(at),
                Some(Part::Name(pattern)) if pattern.matches(&text) => next.push(at + 1),
                // Everything in a folder that matches, matches.
                None => next.push(at),
                Some(Part::Name(_)) => {}
            }
        }
        self.matched(next)
    }

    fn matched(&self, mut next: Vec<usize>) -> Matched {
        let mut at = 0;
        while let Some(&part) = next.get(at) {
            if self.parts.get(part) == Some(&Part::Folders) {
                next.push(part + 1);
            }
            at += 1;
        }
        next.sort_unstable();
        next.dedup();
        Matched { next, whole: self.parts.len() }
    }

    /// The names that may match in a folder, if the pattern names each of them.
    #[must_use]
    pub fn names(&self, of: &Matched) -> Option<Vec<&str>> {
        let name = |at: &usize| match self.parts.get(*at) {
            Some(Part::Name(pattern)) if Pattern::escape(pattern.as_str()) == pattern.as_str() => {
                Some(pattern.as_str())
            }
            _ => None,
        };
        of.next.iter().map(name).collect()
    }
}

impl Matched {
    /// Whether the path itself matches, and everything below it.
    #[must_use]
    pub fn is_match(&self) -> bool {
        self.next.last() == Some(&self.whole)
    }

    /// Whether nothing with this path or below it can match.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.next.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn pattern(text: &str) -> PathPattern {
        text.parse().unwrap()
    }

    fn of(pattern: &PathPattern, path: &str) -> Matched {
        path.split('/').fold(pattern.start(), |matched, name| pattern.step(&matched, OsStr::new(name)))
    }

    #[test]
    fn patterns_match_paths_and_all_below_them() {
        for (text, matching, others) in [
            ("plan", vec!["plan", "plan/a/b"], vec!["plans", "a/plan"]),
            (
                "docs/**/plan.odt",
                vec!["docs/plan.odt", "docs/a/plan.odt", "docs/a/b/plan.odt"],
                vec!["docs", "docs/a", "plan.odt"],
            ),
            ("docs/**", vec!["docs", "docs/a", "docs/a/b"], vec!["a"]),
            ("**", vec!["a", "a/b"], vec![]),
            ("*/[ab]?", vec!["x/a1", ".x/b2/c"], vec!["x", "a1", "x/c1"]),
            ("**/a/**/b", vec!["a/b", "x/a/y/z/b", "a/a/b/c"], vec!["a", "b/a"]),
        ] {
            let pattern = pattern(text);
            assert!(matching.iter().all(|path| of(&pattern, path).is_match()), "{text}");
            assert!(!others.iter().any(|path| of(&pattern, path).is_match()), "{text}");
        }
        let odd = OsStr::from_bytes(b"a\xffb");
        assert!(pattern("a*b").step(&pattern("a*b").start(), odd).is_match());
    }

    #[test]
    fn folders_that_cannot_contain_matches_are_not_read() {
        let docs = pattern("docs/*/plan");
        assert!(of(&docs, "other").is_over() && !of(&docs, "docs").is_over() && of(&docs, "docs/a/other").is_over());
        assert_eq!(docs.names(&docs.start()), Some(vec!["docs"]));
        assert_eq!(docs.names(&of(&docs, "docs")), None);
        assert_eq!(docs.names(&of(&docs, "docs/a")), Some(vec!["plan"]));
        assert_eq!(pattern("**/a").names(&pattern("**/a").start()), None);
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for text in ["", "/etc", "a//b", "a/", "..", "a/../b", "a/[b", "a**"] {
            assert!(text.parse::<PathPattern>().is_err(), "{text}");
        }
    }
}
