//! Functions on the text of a JSON document: positions, nesting, string literals.

use std::borrow::Cow;

/// The deepest nesting of lists and objects that is accepted. The deepest that any key needs is 6.
pub(super) const MAX_DEPTH: usize = 32;

/// Formats an error of serde_json without the position at its end, because zsync's messages begin with the position.
pub(super) fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(position.as_str()).unwrap_or(&text);
    format!("not valid JSON: {text}")
}

/// Finds the first bracket that opens more than [`MAX_DEPTH`] levels in a valid JSON text.
pub(super) fn too_deep(text: &str) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(offset);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// The byte at which `part`, which borrows from `whole`, begins in it.
pub(super) fn offset_in(whole: &str, part: &str) -> usize {
    part.as_ptr().addr().saturating_sub(whole.as_ptr().addr())
}

/// Decodes a JSON string literal.
pub(super) fn decode(literal: &str) -> Result<Cow<'_, str>, String> {
    match literal.get(1..literal.len().saturating_sub(1)) {
        Some(plain) if !plain.contains('\\') => Ok(Cow::Borrowed(plain)),
        _ => serde_json::from_str(literal).map(Cow::Owned).map_err(|error| without_position(&error)),
    }
}

/// Maps a byte of the decoded text of a JSON string literal to a byte of the literal.
pub(super) fn offset_in_literal(literal: &str, at: usize) -> usize {
    let mut written = 1;
    let mut decoded = 0;
    let body = literal.get(1..).unwrap_or("");
    let mut rest = body;
    while decoded < at {
        let (length, decoded_length) = match rest.as_bytes() {
            [] | [b'"', ..] => break,
            [b'\\', b'u', ..] => {
                // A character above U+FFFF is written as two escapes of six bytes each.
                let escape = rest.get(..6).map(|escape| format!("\"{escape}\""));
                match escape.and_then(|escape| serde_json::from_str::<String>(&escape).ok()) {
                    Some(text) => (6, text.len()),
                    None => (12, 4),
                }
            }
            [b'\\', ..] => (2, 1),
            _ => rest.chars().next().map_or((1, 1), |c| (c.len_utf8(), c.len_utf8())),
        };
        written += length;
        decoded += decoded_length;
        rest = rest.get(length..).unwrap_or("");
    }
    written.min(literal.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_in_literal_counts_escapes() {
        // The text is: a, newline, e acute, a musical symbol of four bytes, x.
        let literal = r#""a\n\u00e9\ud834\udd1ex""#;
        assert_eq!(decode(literal).unwrap(), "a\né\u{1d11e}x");
        let column = |at| offset_in_literal(literal, at);
        assert_eq!([column(0), column(1), column(2), column(4), column(8)], [1, 2, 4, 10, 22]);
        assert_eq!(column(99), literal.len() - 1);
    }

    #[test]
    fn too_deep_ignores_brackets_in_strings() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(too_deep(&deep(MAX_DEPTH)), None);
        assert_eq!(too_deep(&deep(MAX_DEPTH + 1)), Some(MAX_DEPTH));
        assert_eq!(too_deep(&format!("\"\\\"{}\"", "[".repeat(100))), None);
    }
}
