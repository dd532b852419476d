//! Limits the texts of peers: errors, remarks, hints and reasons. They are logged, printed on terminals and stored in
//! the catalog, so each is made safe for that where it is received.

use serde::{Deserialize, Deserializer};

use crate::model::{KeyJoin, UnlistedPools};

/// The longest text that is accepted of a peer, in bytes. The rest is cut off.
pub const LONGEST_TEXT: usize = 4096;

/// What stands for the part that was cut off.
const CUT: &str = "…";

/// Whether a terminal or a log could take a character for more than text: control characters, line breaks, and those
/// that change the direction of the text around them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The text of a peer, cut to [`LONGEST_TEXT`], with unsafe characters escaped.
#[must_use]
pub fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(LONGEST_TEXT));
    let mut rest = text.chars();
    for c in rest.by_ref() {
        let before = safe.len();
        if is_unsafe(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
        if safe.len() > LONGEST_TEXT {
            safe.truncate(before);
            while safe.len() + CUT.len() > LONGEST_TEXT {
                safe.pop();
            }
            safe.push_str(CUT);
            break;
        }
    }
    safe
}

/// Deserializes what a peer says about keys.
pub(super) fn joins<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<KeyJoin>, D::Error> {
    let safe = |join: KeyJoin| KeyJoin { problem: join.problem.as_deref().map(safe), ..join };
    Ok(Vec::<KeyJoin>::deserialize(from)?.into_iter().map(safe).collect())
}

/// Deserializes the text of a peer.
pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|text| safe(&text))
}

/// Deserializes the text of a peer that may be missing.
pub(super) fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(|text| safe(&text)))
}

/// Deserializes the reasons of a peer, by pool.
pub(super) fn by_pool<'de, D: Deserializer<'de>>(from: D) -> Result<UnlistedPools, D::Error> {
    let pools = UnlistedPools::deserialize(from)?;
    Ok(pools.into_iter().map(|(pool, reason)| (safe(&pool), safe(&reason))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_escapes_what_is_not_text() {
        assert_eq!(safe("tank/a: größer, 日本"), "tank/a: größer, 日本");
        assert_eq!(safe("\x1b[2Jgone\r\nzsync: all is well"), "\\u{1b}[2Jgone\\r\\nzsync: all is well");
        assert_eq!(safe("\u{202e}txt\u{2028}\u{85}"), "\\u{202e}txt\\u{2028}\\u{85}");
    }

    #[test]
    fn safe_cuts_long_text_and_keeps_the_result_as_it_is() {
        for text in ["x".repeat(1 << 20), "ü".repeat(4000), "\0".repeat(4000), format!("{}\x1b", "x".repeat(4095))] {
            let once = safe(&text);
            assert!(once.len() <= LONGEST_TEXT && once.len() > LONGEST_TEXT - 20 && once.ends_with(CUT), "{once}");
            assert_eq!(safe(&once), once);
        }
        let full = "x".repeat(LONGEST_TEXT);
        assert_eq!(safe(&full), full);
    }
}
