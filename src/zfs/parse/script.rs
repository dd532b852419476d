//! Parses the results of the channel programs.

use std::collections::BTreeMap;

use crate::zfs::Fate;
use crate::zfs::parse::lines::ParseError;

/// Parses the result of a script: one word for each of `count` items, or none if the script did nothing.
fn result_words(output: &[u8], count: usize) -> Result<Vec<String>, ParseError> {
    #[derive(serde::Deserialize)]
    struct Output {
        #[serde(rename = "return")]
        words: BTreeMap<String, String>,
    }
    let mut script: Output = serde_json::from_slice(output).map_err(|e| e.to_string())?;
    if script.words.is_empty() {
        return Ok(Vec::new());
    }
    let mut word = |number: usize| script.words.remove(&number.to_string()).ok_or(number);
    (1..=count).map(&mut word).collect::<Result<_, _>>().map_err(|number| format!("it has no result number {number}"))
}

/// Parses the result of `argv::change`: whether each change was made.
pub fn changed(output: &[u8], count: usize) -> Result<Vec<bool>, ParseError> {
    let words = result_words(output, count)?;
    if words.len() != count {
        return Err("it has no results".into());
    }
    Ok(words.iter().map(|word| word == "done").collect())
}

/// Parses the result of `argv::destroy_by_guid`. It is empty if one of the guards is missing.
pub fn fates(output: &[u8], count: usize) -> Result<Vec<Fate>, ParseError> {
    let words = result_words(output, count)?;
    if words.is_empty() {
        return Ok(vec![Fate::Spared; count]);
    }
    let fate = |word: String| {
        Ok(match word.as_str() {
            "destroyed" => Fate::Destroyed,
            "gone" => Fate::Gone,
            "another" => Fate::Another,
            "held" => Fate::Held,
            "cloned" => Fate::Cloned,
            "busy" => Fate::Busy,
            "doomed" => Fate::Spared,
            other => match other.strip_prefix("failed ") {
                Some(number) => Fate::Failed(error_words(number)),
                None => return Err(format!("unknown result {other:?}")),
            },
        })
    };
    words.into_iter().map(fate).collect()
}

/// The words of the system for an error number.
fn error_words(number: &str) -> String {
    let Ok(errno) = number.parse() else { return format!("error {number}") };
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    text.split_once(" (os error").map_or(text.as_str(), |(words, _)| words).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_returns_one_fate_per_snapshot() {
        let output =
            br#"{"return":{"1":"destroyed","2":"held","3":"another","4":"gone","5":"failed 28","6":"doomed","7":"busy"}}"#;
        let expected = [
            Fate::Destroyed,
            Fate::Held,
            Fate::Another,
            Fate::Gone,
            Fate::Failed("No space left on device".to_owned()),
            Fate::Spared,
            Fate::Busy,
        ];
        assert_eq!(fates(output, 7).unwrap(), expected);
        assert_eq!(fates(br#"{"return":{}}"#, 2).unwrap(), [Fate::Spared, Fate::Spared]);
        assert!(fates(output, 8).unwrap_err().contains("no result number 8"));
    }
}
