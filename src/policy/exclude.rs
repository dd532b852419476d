//! What below an entry's dataset the entry does not mean.

use glob::{MatchOptions, Pattern};

/// Patterns of names below a dataset: `*` within a component, `**` over any number of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclude(Vec<Pattern>);

const COMPONENTS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

impl Exclude {
    /// From patterns.
    #[must_use]
    pub fn new(patterns: Vec<Pattern>) -> Self {
        Self(patterns)
    }

    /// Whether a name below the dataset (`a/b`), or one that it lies below, is left out. The dataset itself (an empty
    /// name) never is.
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
    fn a_pattern_leaves_out_what_it_names_with_all_below() {
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
