//! Numbers of things in messages.

/// A number with its noun: `1 snapshot`, `2 snapshots`.
#[must_use]
pub fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Names, at most this many of them: `a, b and 3 more`.
#[must_use]
pub fn some_of(names: &[&str], most: usize) -> String {
    let first = names.iter().take(most).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_counts_what_it_leaves_out() {
        let shown = [0, 2, 3, 5].map(|count| some_of(&["a", "b", "c", "d", "e"][..count], 3));
        assert_eq!(shown, ["", "a, b", "a, b, c", "a, b, c and 2 more"]);
    }
}
