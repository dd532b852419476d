//! A reader of JSON that knows where each value stands and collects every problem of a file.
//!
//! serde_json does the parsing: its `RawValue`s borrow from the text, so the address of a value is its
//! position. Objects and lists are opened one level at a time, as far as somebody asks for them.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::config::nearest::nearest;
use crate::config::problem::{ConfigError, Problem};

/// The largest file that is read, in bytes. A fleet of ten thousand datasets needs a tenth of it.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;
/// The deepest nesting of lists and objects; the deepest that means anything is 6.
const MAX_DEPTH: usize = 32;
/// How many problems are kept; what is beyond is counted, so that a large wrong file costs no memory.
const MAX_KEPT: usize = 1000;
/// How much of a found value a message shows, in characters.
const MAX_SHOWN: usize = 60;

/// The text of one file with the problems found in it so far.
pub(super) struct Document<'t> {
    file: &'t str,
    text: &'t str,
    line_starts: OnceCell<Vec<usize>>,
    found: RefCell<Found>,
}

#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
    beyond: usize,
}

impl<'t> Document<'t> {
    /// A text and the name of its file in messages.
    pub fn new(file: &'t str, text: &'t str) -> Self {
        // Editors on Windows put a byte order mark first; it means nothing in UTF-8.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { file, text, line_starts: OnceCell::new(), found: RefCell::default() }
    }

    /// The whole text as a value, unless it is not JSON.
    pub fn root(&self) -> Option<Node<'_>> {
        if self.text.len() > MAX_BYTES {
            self.add(0, "", format!("the file has {} bytes; at most {MAX_BYTES} are allowed", self.text.len()));
            return None;
        }
        if self.text.trim().is_empty() {
            self.add(0, "", "the file is empty; a JSON object { ... } is expected");
            return None;
        }
        match serde_json::from_str::<&RawValue>(self.text) {
            Ok(raw) => {
                if let Some(offset) = too_deep(self.text) {
                    self.add(offset, "", format!("lists and objects are nested deeper than {MAX_DEPTH} levels"));
                    return None;
                }
                Some(Node { document: self, raw: raw.get(), path: String::new() })
            }
            Err(error) => {
                let offset = self.offset_of(error.line(), error.column());
                let message = match error.classify() {
                    Category::Eof => "not valid JSON: the file ends too early; something is not closed".to_owned(),
                    _ if error.to_string().starts_with("control character") => {
                        "not valid JSON: a text ends on the line on which it begins; a line break in it is written \\n"
                            .to_owned()
                    }
                    _ => format!("{}{}", without_position(&error), self.hint_at(offset)),
                };
                self.add(offset, "", message);
                None
            }
        }
    }

    /// The value that was read, unless anything was wrong with the file.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, ConfigError> {
        let found = self.found.into_inner();
        match value {
            Some(value) if found.problems.is_empty() => Ok(value),
            _ if found.problems.is_empty() => {
                Err(ConfigError::of_file(self.file, "it cannot be understood".to_owned()))
            }
            _ => Err(ConfigError::new(found.problems, found.beyond)),
        }
    }

    /// The name of the file in messages.
    pub fn file(&self) -> &str {
        self.file
    }

    /// The line on which a byte of the text stands.
    pub fn line(&self, offset: usize) -> usize {
        self.position(offset).0
    }

    fn add(&self, offset: usize, key: &str, message: impl Into<String>) {
        let mut found = self.found.borrow_mut();
        if found.problems.len() < MAX_KEPT {
            let at = Some(self.position(offset));
            found.problems.push(Problem {
                file: self.file.to_owned(),
                at,
                key: key.to_owned(),
                message: message.into(),
            });
        } else {
            found.beyond += 1;
        }
    }

    fn line_starts(&self) -> &[usize] {
        self.line_starts.get_or_init(|| {
            std::iter::once(0).chain(self.text.match_indices('\n').map(|(newline, _)| newline + 1)).collect()
        })
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let starts = self.line_starts();
        let line = starts.partition_point(|start| *start <= offset).max(1);
        let start = starts.get(line - 1).copied().unwrap_or(0);
        let before = self.text.get(start..offset.min(self.text.len())).unwrap_or("");
        (line, before.chars().count() + 1)
    }

    /// The byte that serde_json means by a line and a column: it counts bytes, and 0 at a line's start.
    fn offset_of(&self, line: usize, column: usize) -> usize {
        let start = self.line_starts().get(line.saturating_sub(1)).copied().unwrap_or(0);
        let mut offset = (start + column.saturating_sub(1)).min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }

    /// What people put into JSON that does not belong there.
    fn hint_at(&self, offset: usize) -> &'static str {
        let (before, rest) = self.text.split_at_checked(offset).unwrap_or_default();
        if rest.starts_with(['}', ']']) && before.trim_end().ends_with(',') {
            "; the comma before it is one too many"
        } else if rest.starts_with(['/', '#']) {
            "; JSON has no comments"
        } else if rest.starts_with('\'') {
            "; texts stand between double quotes"
        } else {
            ""
        }
    }
}

/// serde_json ends its messages with a position, which stands in front of ours.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(position.as_str()).unwrap_or(&text);
    format!("not valid JSON: {text}")
}

/// The first bracket that opens more than [`MAX_DEPTH`] levels, in a text that is JSON.
fn too_deep(text: &str) -> Option<usize> {
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

/// One value with its place in the text and the way to it.
#[derive(Clone)]
pub(super) struct Node<'d> {
    document: &'d Document<'d>,
    raw: &'d str,
    path: String,
}

impl<'d> Node<'d> {
    /// The document that the value stands in.
    pub fn document(&self) -> &'d Document<'d> {
        self.document
    }

    /// The way to the value, as in `datasets[0].backup`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The value as it is written.
    pub fn raw(&self) -> &'d str {
        self.raw
    }

    /// Where the value begins, in bytes.
    pub fn offset(&self) -> usize {
        offset_in(self.document.text, self.raw)
    }

    /// The line on which the value begins.
    pub fn line(&self) -> usize {
        self.document.line(self.offset())
    }

    /// Reports a problem with the value.
    pub fn problem(&self, message: impl Into<String>) {
        self.document.add(self.offset(), &self.path, message);
    }

    /// Reports a problem with a part of the text that this value stands for, by its byte in that text.
    pub fn problem_in_text(&self, at: usize, message: impl Into<String>) {
        self.document.add(self.offset() + offset_in_literal(self.raw, at), &self.path, message);
    }

    /// Reports that the value is of the wrong kind.
    pub fn wrong(&self, allowed: &str) {
        self.problem(format!("found {}; allowed is {allowed}", self.found()));
    }

    /// Whether the value is a text.
    pub fn is_text(&self) -> bool {
        self.raw.starts_with('"')
    }

    /// Whether the value is a list.
    pub fn is_list(&self) -> bool {
        self.raw.starts_with('[')
    }

    /// Whether the value is an object.
    pub fn is_object(&self) -> bool {
        self.raw.starts_with('{')
    }

    /// What the value is, for people.
    pub fn found(&self) -> String {
        let kind = match self.raw.as_bytes().first() {
            Some(b'"') => "the text ",
            Some(b'[') => return "a list".to_owned(),
            Some(b'{') => return "an object".to_owned(),
            Some(b'n') => return "null (to leave a value open, leave its key out)".to_owned(),
            Some(b't' | b'f') => "",
            _ => "the number ",
        };
        let shown: String = self.raw.chars().take(MAX_SHOWN).collect();
        let more = if shown.len() < self.raw.len() { "…" } else { "" };
        format!("{kind}{shown}{more}")
    }

    /// A text; `allowed` says which.
    pub fn text(&self, allowed: &str) -> Option<Cow<'d, str>> {
        if !self.is_text() {
            self.wrong(allowed);
            return None;
        }
        match decode(self.raw) {
            Ok(text) => Some(text),
            Err(reason) => {
                self.problem(reason);
                None
            }
        }
    }

    /// A text that is a `T`, whose own error says what is allowed.
    pub fn parse<T: FromStr<Err: fmt::Display>>(&self, allowed: &str) -> Option<T> {
        match self.text(allowed)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(error.to_string());
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        match self.raw {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.wrong("true or false, without quotes");
                None
            }
        }
    }

    /// The values of a list; `allowed` says of what.
    pub fn list(&self, allowed: &str) -> Option<Vec<Node<'d>>> {
        if !self.is_list() {
            self.wrong(allowed);
            return None;
        }
        match serde_json::from_str::<Vec<&RawValue>>(self.raw) {
            Ok(items) => Some(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| Node {
                        document: self.document,
                        raw: item.get(),
                        path: format!("{}[{index}]", self.path),
                    })
                    .collect(),
            ),
            Err(error) => {
                self.problem(without_position(&error));
                None
            }
        }
    }

    /// An object; `allowed` says of what. A key that stands there twice is a problem.
    pub fn object(&self, allowed: &str) -> Option<Object<'d>> {
        if !self.is_object() {
            self.wrong(allowed);
            return None;
        }
        let members = match serde_json::Deserializer::from_str(self.raw).deserialize_map(Members) {
            Ok(members) => members,
            Err(error) => {
                self.problem(without_position(&error));
                return None;
            }
        };
        let mut seen: HashMap<Cow<'d, str>, usize> = HashMap::with_capacity(members.len());
        let mut kept = Vec::with_capacity(members.len());
        for (key, value) in members {
            let offset = offset_in(self.document.text, key.get());
            let name = match decode(key.get()) {
                Ok(name) => name,
                Err(reason) => {
                    self.document.add(offset, &self.path, reason);
                    continue;
                }
            };
            let path = child_path(&self.path, &name);
            if let Some(first) = seen.insert(name.clone(), offset) {
                let line = self.document.line(first);
                self.document.add(offset, &path, format!("the key stands here twice, first on line {line}"));
                continue;
            }
            kept.push(Member { name, offset, node: Node { document: self.document, raw: value.get(), path } });
        }
        Some(Object { node: self.clone(), members: kept, allowed: Vec::new(), taken: Vec::new() })
    }
}

/// One key of an object with its value.
pub(super) struct Member<'d> {
    /// The key.
    pub name: Cow<'d, str>,
    /// The value.
    pub node: Node<'d>,
    offset: usize,
}

impl Member<'_> {
    /// Reports a problem with the key itself.
    pub fn problem_with_key(&self, message: impl Into<String>) {
        self.node.document.add(self.offset, &self.node.path, message);
    }
}

/// An object whose keys are asked for by name; those that nobody asked for are problems.
pub(super) struct Object<'d> {
    node: Node<'d>,
    members: Vec<Member<'d>>,
    allowed: Vec<&'static str>,
    taken: Vec<Cow<'d, str>>,
}

impl<'d> Object<'d> {
    /// The object as a value.
    pub fn node(&self) -> &Node<'d> {
        &self.node
    }

    /// The value of a key, if it is there.
    pub fn get(&mut self, key: &'static str) -> Option<Node<'d>> {
        self.allowed.push(key);
        self.get_unlisted(key)
    }

    /// The value of a key that the list of allowed keys keeps quiet about: an older spelling.
    pub fn get_unlisted(&mut self, key: &str) -> Option<Node<'d>> {
        let index = self.members.iter().position(|member| member.name == key)?;
        let member = self.members.swap_remove(index);
        self.taken.push(member.name);
        Some(member.node)
    }

    /// The value of a key that must be there; `what` says what it is.
    pub fn require(&mut self, key: &'static str, what: &str) -> Option<Node<'d>> {
        let value = self.get(key);
        if value.is_none() {
            self.missing(key, what);
        }
        value
    }

    /// Reports that a key is not there.
    pub fn missing(&self, key: &str, what: &str) {
        let path = child_path(&self.node.path, key);
        self.node.document.add(self.node.offset(), &path, format!("missing; it is {what}"));
    }

    /// Whether a key is or was there, right or wrong.
    pub fn has(&self, key: &str) -> bool {
        self.taken.iter().any(|taken| taken == key) || self.members.iter().any(|member| member.name == key)
    }

    /// `true`, `false` or, when the key is not there, the default.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        self.get(key).and_then(|value| value.boolean()).unwrap_or(default)
    }

    /// All keys with their values: an object whose keys are the administrator's.
    pub fn into_members(self) -> Vec<Member<'d>> {
        self.members
    }

    /// Reports every key that nobody asked for, and what was asked for instead.
    pub fn finish(self) {
        for member in &self.members {
            let suggestion = nearest(&member.name, self.allowed.iter().copied())
                .map_or_else(|| ";".to_owned(), |near| format!(", did you mean {near:?}?"));
            member.problem_with_key(format!("unknown key{suggestion} allowed here: {}", self.allowed.join(", ")));
        }
    }
}

/// Reads an object as it is written, with every key, also one that stands there twice.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(&'de RawValue, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(members)
    }
}

/// Where `part`, which borrows from `whole`, begins in it.
fn offset_in(whole: &str, part: &str) -> usize {
    part.as_ptr().addr().saturating_sub(whole.as_ptr().addr())
}

/// The text that a JSON string literal stands for.
fn decode(literal: &str) -> Result<Cow<'_, str>, String> {
    match literal.get(1..literal.len().saturating_sub(1)) {
        Some(plain) if !plain.contains('\\') => Ok(Cow::Borrowed(plain)),
        _ => serde_json::from_str(literal).map(Cow::Owned).map_err(|error| without_position(&error)),
    }
}

/// Where in a JSON string literal the byte `at` of its text stands, in bytes.
fn offset_in_literal(literal: &str, at: usize) -> usize {
    let mut written = 1;
    let mut decoded = 0;
    let body = literal.get(1..).unwrap_or("");
    let mut rest = body;
    while decoded < at {
        let (here, stands_for) = match rest.as_bytes() {
            [] | [b'"', ..] => break,
            [b'\\', b'u', ..] => {
                // A character beyond U+FFFF is written as two escapes of six bytes.
                let one = rest.get(..6).map(|one| format!("\"{one}\""));
                match one.and_then(|one| serde_json::from_str::<String>(&one).ok()) {
                    Some(text) => (6, text.len()),
                    None => (12, 4),
                }
            }
            [b'\\', ..] => (2, 1),
            _ => rest.chars().next().map_or((1, 1), |c| (c.len_utf8(), c.len_utf8())),
        };
        written += here;
        decoded += stands_for;
        rest = rest.get(here..).unwrap_or("");
    }
    written.min(literal.len().saturating_sub(1))
}

/// The way to a key of the object at `path`.
fn child_path(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$'));
    let shown: String = key.chars().take(MAX_SHOWN).collect();
    match (plain, path.is_empty()) {
        (true, true) => shown,
        (true, false) => format!("{path}.{shown}"),
        (false, _) => format!("{path}[{shown:?}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = "{\n  \"ä\": \"ü\", \"b\": [1,\n 2]\n}";
        let document = Document::new("f", text);
        let object = document.root().unwrap().object("").unwrap();
        for member in object.into_members() {
            match &*member.name {
                "ä" => member.node.problem("here"),
                _ => {
                    member.problem_with_key("key");
                    member.node.list("").unwrap().iter().for_each(|item| item.problem("item"));
                }
            }
        }
        let error = document.finish(Some(())).unwrap_err();
        let expected = "f:2:8: [\"ä\"]: here\nf:2:13: b: key\nf:2:19: b[0]: item\nf:3:2: b[1]: item";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_place_in_a_text_is_found_behind_escapes() {
        // The text is: a, newline, e acute, a musical symbol of four bytes, x.
        let literal = r#""a\n\u00e9\ud834\udd1ex""#;
        assert_eq!(decode(literal).unwrap(), "a\né\u{1d11e}x");
        let column = |at| offset_in_literal(literal, at);
        assert_eq!([column(0), column(1), column(2), column(4), column(8)], [1, 2, 4, 10, 22]);
        assert_eq!(column(99), literal.len() - 1);
    }

    #[test]
    fn nesting_is_counted_outside_of_strings_only() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(too_deep(&deep(MAX_DEPTH)), None);
        assert_eq!(too_deep(&deep(MAX_DEPTH + 1)), Some(MAX_DEPTH));
        assert_eq!(too_deep(&format!("\"\\\"{}\"", "[".repeat(100))), None);
    }

    #[test]
    fn more_problems_than_anybody_reads_are_counted() {
        let text = format!("[{}1]", "1,".repeat(2000));
        let document = Document::new("f", &text);
        document.root().unwrap().list("").unwrap().iter().for_each(|item| item.problem("no"));
        let error = document.finish(Some(())).unwrap_err();
        assert_eq!(error.problems().len(), MAX_KEPT);
        assert!(error.to_string().ends_with("f:1:40: [19]: no\nand 1981 more problems"), "{error}");
    }
}
