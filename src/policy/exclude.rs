//! The datasets below an entry's dataset that the entry leaves out.

use glob::{MatchOptions, Pattern};

/// Patterns for names below a dataset: `*` matches within a component, `**` any number of components.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclude(Vec<Pattern>);

const COMPONENTS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

impl Exclude {
    /// Excludes the datasets that match one of the patterns, and all datasets below them.
    #[must_use]
    pub fn new(patterns: Vec<Pattern>) -> Self {
        Self(patterns)
    }

    /// The patterns.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Pattern::as_str)
    }

    /// Whether a name below the dataset (`a/b`) or one of its parents is left out. The dataset itself (an empty name)
    /// is never left out.
    #[must_use]
    pub fn covers(&self, below: &str) -> bool {
        let ends = below.match_indices('/').map(|(at, _)| at).chain([below.len()]);
        let mut paths = ends.map(|end| &below[..end]).filter(|path| !path.is_empty());
        !self.0.is_empty() && paths.any(|path| self.0.iter().any(|pattern| pattern.matches_with(path, COMPONENTS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_excludes_matches_and_all_below() {
        for (pattern, out, stays) in [
            ("tmp", vec!["tmp", "tmp/a", "tmp/a/b"], vec!["", "tmp2", "a/tmp", "tm"]),
            ("*", vec!["a", "a/b"], vec![""]),
            ("*/cache", vec!["a/cache", "b/cache/x"], vec!["cache", "a/b/cache", "a"]),
            ("**/cache", vec!["cache", "a/cache", "a/b/cache/c"], vec!["a", "caches"]),
            ("vm-*", vec!["vm-1", "vm-1/disk"], vec!["vm", "a/vm-1"]),
            ("a/[bc]", vec!["a/b", "a/c/d"], vec!["a", "a/d"]),
        ] {
            let exclude = Exclude::new(vec![Pattern::new(pattern).unwrap()]);
            for name in out {
                assert!(exclude.covers(name), "{pattern} {name}");
            }
            for name in stays {
                assert!(!exclude.covers(name), "{pattern} {name:?}");
            }
        }
        assert!(!Exclude::default().covers("a"));
    }
}
