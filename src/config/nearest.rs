//! Finds the known word that a misspelt word was probably meant to be.

/// Longer words are not compared, because they are not the result of a typing mistake.
const MAX_CHARS: usize = 64;

/// Returns the candidate that differs from `word` only by a typing mistake, if there is one.
pub(super) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .into_iter()
        .filter_map(|candidate| distance(word, candidate).map(|distance| (distance, candidate)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The number of characters to add, remove, replace, or swap with a neighbour. `None` if that is more than one,
/// and more than a third of the longer word.
pub(super) fn distance(word: &str, candidate: &str) -> Option<usize> {
    let (word, candidate) = (normalized(word)?, normalized(candidate)?);
    let lengths = [word.chars().count(), candidate.chars().count()];
    let most = (lengths[0].max(lengths[1]) / 3).max(1);
    if lengths[0].abs_diff(lengths[1]) > most {
        return None;
    }
    Some(strsim::osa_distance(&word, &candidate)).filter(|distance| *distance <= most)
}

/// Removes differences in case and separators, because no two keys differ only by these.
fn normalized(word: &str) -> Option<String> {
    if word.chars().nth(MAX_CHARS).is_some() {
        return None;
    }
    Some(word.chars().map(|c| if matches!(c, '-' | ' ') { '_' } else { c.to_ascii_lowercase() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typing_mistakes_only() {
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
