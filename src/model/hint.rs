//! Errors with a hint: what went wrong, and what somebody can do about it.
//!
//! On the wire and in JSON, error and hint are separate fields. A text that carries both, such as a line of a log, has
//! "; hint: " between them.

/// What separates an error from its hint in a text.
pub const MARK: &str = "; hint: ";

/// Splits a text into the error and its hint. Further hints, which come from causes, are added to the first.
#[must_use]
pub fn split(text: &str) -> (String, Option<String>) {
    match text.split_once(MARK) {
        None => (text.to_owned(), None),
        Some((error, hint)) => (error.to_owned(), Some(hint.replace(MARK, "; "))),
    }
}

/// A text with the error and its hint, if there is one.
#[must_use]
pub fn join(error: impl std::fmt::Display, hint: Option<&str>) -> String {
    hint.map_or_else(|| error.to_string(), |hint| format!("{error}{MARK}{hint}"))
}

/// A name or a path as one word for a shell, in quotes only where it needs them.
#[must_use]
pub fn word(name: &impl std::fmt::Display) -> String {
    let name = name.to_string();
    // What these mean to a shell depends on where they stand; between other characters `:`, `@` and `=` mean nothing.
    let is_plain = |c: char| c.is_alphanumeric() || "/._-:@=+%,".contains(c);
    if !name.is_empty() && name.chars().all(is_plain) {
        return name;
    }
    format!("'{}'", name.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_read_by_a_shell_as_it_was() {
        assert_eq!(word(&"beta:usb/home@SYNC_2026-11-29_10:00:00"), "beta:usb/home@SYNC_2026-11-29_10:00:00");
        for text in ["", "my docs", "it's", "a;b", "$HOME", "*", "~", "a\nb", "\\", "#x", "ü", "`id`"] {
            #[expect(clippy::disallowed_methods, reason = "the shell itself is asked")]
            let read = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", word(&text))]).output();
            assert_eq!(read.unwrap().stdout, text.as_bytes(), "{}", word(&text));
        }
    }

    #[test]
    fn split_separates_what_join_joined() {
        assert_eq!(split(&join("no space", Some("free some"))), ("no space".to_owned(), Some("free some".to_owned())));
        assert_eq!(split(&join("no space", None)), ("no space".to_owned(), None));
        let nested = join(join("no slot", Some("wait")), Some("raise max_sends"));
        assert_eq!(split(&nested), ("no slot".to_owned(), Some("wait; raise max_sends".to_owned())));
    }
}
