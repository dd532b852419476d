//! What somebody may have meant by a word that is not known.

/// Words longer than this are not compared: they are not slips of the keyboard.
const MAX_CHARS: usize = 64;

/// The candidate that is a slip of the keyboard away from `word`, if there is one.
pub(super) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .into_iter()
        .filter_map(|candidate| slips(word, candidate).map(|distance| (distance, candidate)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many slips lie between two words, unless they are too many: a third of the longer word, at least one.
pub(super) fn slips(word: &str, candidate: &str) -> Option<usize> {
    let (a, b) = (folded(word)?, folded(candidate)?);
    let allowed = (a.len().max(b.len()) / 3).max(1);
    if a.len().abs_diff(b.len()) > allowed {
        return None;
    }
    let distance = distance(&a, &b);
    (distance <= allowed).then_some(distance)
}

/// Case and the kind of separator are not told apart: they are never the difference between two keys.
fn folded(word: &str) -> Option<Vec<char>> {
    let word: Vec<char> = word.chars().take(MAX_CHARS + 1).collect();
    let fold = |c: char| if matches!(c, '-' | ' ') { '_' } else { c.to_ascii_lowercase() };
    (word.len() <= MAX_CHARS).then(|| word.into_iter().map(fold).collect())
}

/// The number of characters added, left out, replaced or swapped with a neighbour (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_keyboard_are_recognised_and_other_words_are_not() {
        let keys = ["hostname", "dataset", "datasets", "recursive", "sync_on", "sync_dataset"];
        for (typed, meant) in [
            ("hostnmae", Some("hostname")),
            ("host", None),
            ("Recursive", Some("recursive")),
            ("recursiv", Some("recursive")),
            ("sync-on", Some("sync_on")),
            ("datasset", Some("dataset")),
            ("compression", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, keys), meant, "{typed}");
        }
    }
}
