//! A JSON reader that knows the position of each value, and collects all problems of a file.
//!
//! A [`Document`] is the text of a file, a [`Node`] a value in it, and an [`Object`] a value whose keys are read one by
//! one. serde_json does the parsing. Its `RawValue`s borrow from the text, so the address of a value gives its
//! position. Lists and objects are parsed one level at a time, when they are read.

mod text;

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::config::json::text::{MAX_DEPTH, decode, offset_in, offset_in_literal, too_deep, without_position};
use crate::config::nearest::nearest;
use crate::config::problem::{ConfigError, Problem};

/// The largest accepted file, in bytes. A policy for ten thousand datasets needs a tenth of it.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;
/// How many problems are kept. Further ones are only counted, so that a large invalid file does not use up the memory.
const MAX_KEPT: usize = 1000;
/// How many characters of a value a message shows.
const MAX_SHOWN: usize = 60;

/// The text of one file, and the problems found in it so far.
pub(super) struct Document<'t> {
    file: &'t str,
    text: &'t str,
    line_starts: OnceCell<Vec<usize>>,
    problems: RefCell<Problems>,
}

#[derive(Default)]
struct Problems {
    kept: Vec<Problem>,
    /// The number of problems that are not kept.
    more: usize,
}

impl<'t> Document<'t> {
    /// A document with this text. `file` is its name in messages.
    pub fn new(file: &'t str, text: &'t str) -> Self {
        // Editors on Windows begin a file with a byte order mark, which has no meaning in UTF-8.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { file, text, line_starts: OnceCell::new(), problems: RefCell::default() }
    }

    /// Parses the whole text as one value.
    pub fn root(&self) -> Option<Node<'_>> {
        if self.text.len() > MAX_BYTES {
            self.add(
                0,
                "",
                format!("the file is too large: {} bytes, and at most {MAX_BYTES} are allowed", self.text.len()),
            );
            return None;
        }
        if self.text.trim().is_empty() {
            self.add(0, "", "the file is empty; expected a JSON object { ... }");
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
                    Category::Eof => "not valid JSON: the file ends before every object, list and string is closed".to_owned(),
                    _ if error.to_string().starts_with("control character") => {
                        "not valid JSON: a string must end on the line on which it begins; hint: write a line break in it as \\n"
                            .to_owned()
                    }
                    _ => format!("{}{}", without_position(&error), self.hint_at(offset)),
                };
                self.add(offset, "", message);
                None
            }
        }
    }

    /// Returns the value that was read, or all problems found in the file.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, ConfigError> {
        let problems = self.problems.into_inner();
        match value {
            Some(value) if problems.kept.is_empty() => Ok(value),
            _ if problems.kept.is_empty() => Err(ConfigError::of_file(self.file, "cannot use the file".to_owned())),
            _ => Err(ConfigError::new(problems.kept, problems.more)),
        }
    }

    /// The name of the file in messages.
    pub fn file(&self) -> &str {
        self.file
    }

    /// The line that contains a byte of the text, from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.position(offset).0
    }

    fn add(&self, offset: usize, key: &str, message: impl Into<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.kept.len() < MAX_KEPT {
            let at = Some(self.position(offset));
            problems.kept.push(Problem {
                file: self.file.to_owned(),
                at,
                key: key.to_owned(),
                message: message.into(),
            });
        } else {
            problems.more += 1;
        }
    }

    fn line_starts(&self) -> &[usize] {
        self.line_starts.get_or_init(|| {
            std::iter::once(0).chain(self.text.match_indices('\n').map(|(newline, _)| newline + 1)).collect()
        })
    }

    /// The line and the column of a byte, both from 1, the column in characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let starts = self.line_starts();
        let line = starts.partition_point(|start| *start <= offset).max(1);
        let start = starts.get(line - 1).copied().unwrap_or(0);
        let before = self.text.get(start..offset.min(self.text.len())).unwrap_or("");
        (line, before.chars().count() + 1)
    }

    /// The byte at a line and a column of serde_json, which counts columns in bytes.
    fn offset_of(&self, line: usize, column: usize) -> usize {
        let start = self.line_starts().get(line.saturating_sub(1)).copied().unwrap_or(0);
        let mut offset = (start + column.saturating_sub(1)).min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }

    /// A hint for common mistakes that JSON does not allow.
    fn hint_at(&self, offset: usize) -> &'static str {
        let (before, rest) = self.text.split_at_checked(offset).unwrap_or_default();
        if rest.starts_with(['}', ']']) && before.trim_end().ends_with(',') {
            "; hint: remove the comma before it"
        } else if rest.starts_with(['/', '#']) {
            "; JSON does not allow comments"
        } else if rest.starts_with('\'') {
            "; hint: write strings in double quotes"
        } else {
            ""
        }
    }
}

/// A value, with its position in the text and its path.
#[derive(Clone)]
pub(super) struct Node<'d> {
    document: &'d Document<'d>,
    raw: &'d str,
    path: String,
}

impl<'d> Node<'d> {
    /// The document that contains the value.
    pub fn document(&self) -> &'d Document<'d> {
        self.document
    }

    /// The path of the value, as in `datasets[0].backup`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The JSON text of the value.
    pub fn raw(&self) -> &'d str {
        self.raw
    }

    /// The byte at which the value begins.
    pub fn offset(&self) -> usize {
        offset_in(self.document.text, self.raw)
    }

    /// The line on which the value begins, from 1.
    pub fn line(&self) -> usize {
        self.document.line(self.offset())
    }

    /// Reports a problem with the value.
    pub fn problem(&self, message: impl Into<String>) {
        self.document.add(self.offset(), &self.path, message);
    }

    /// Reports a problem with a part of a string, at a byte of the decoded text.
    pub fn problem_in_text(&self, at: usize, message: impl Into<String>) {
        self.document.add(self.offset() + offset_in_literal(self.raw, at), &self.path, message);
    }

    /// Reports that the value is not the `expected` one.
    pub fn unexpected(&self, expected: &str) {
        self.problem(format!("expected {expected}, found {}", self.description()));
    }

    /// Whether the value is a string.
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

    /// The kind of the value, and the value itself if it is short.
    fn description(&self) -> String {
        let kind = match self.raw.as_bytes().first() {
            Some(b'"') => "the string ",
            Some(b'[') => return "a list".to_owned(),
            Some(b'{') => return "an object".to_owned(),
            Some(b'n') => return "null (to use the default, remove the key)".to_owned(),
            Some(b't' | b'f') => "",
            _ => "the number ",
        };
        format!("{kind}{}", self.raw_shortened())
    }

    /// The beginning of the value's JSON text, for messages.
    pub fn raw_shortened(&self) -> String {
        let shown: String = self.raw.chars().take(MAX_SHOWN).collect();
        let more = if shown.len() < self.raw.len() { "…" } else { "" };
        format!("{shown}{more}")
    }

    /// Reads a string. `expected` describes it in the message about a value of another type.
    pub fn text(&self, expected: &str) -> Option<Cow<'d, str>> {
        if !self.is_text() {
            self.unexpected(expected);
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

    /// Reads a string and parses it as a `T`, whose own error says what is expected.
    pub fn parse<T: FromStr<Err: fmt::Display>>(&self, expected: &str) -> Option<T> {
        match self.text(expected)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(error.to_string());
                None
            }
        }
    }

    /// Reads `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        match self.raw {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.unexpected("true or false, without quotes");
                None
            }
        }
    }

    /// Reads the values of a list. `expected` describes the list.
    pub fn list(&self, expected: &str) -> Option<Vec<Node<'d>>> {
        if !self.is_list() {
            self.unexpected(expected);
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

    /// Reads an object. `expected` describes it. A duplicate key is reported.
    pub fn object(&self, expected: &str) -> Option<Object<'d>> {
        if !self.is_object() {
            self.unexpected(expected);
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
                self.document.add(
                    offset,
                    &path,
                    format!("duplicate key: it is on line {line} already; hint: remove one of them"),
                );
                continue;
            }
            kept.push(Member { name, offset, node: Node { document: self.document, raw: value.get(), path } });
        }
        Some(Object { node: self.clone(), members: kept, allowed: Vec::new(), taken: Vec::new() })
    }
}

/// A key of an object, with its value.
pub(super) struct Member<'d> {
    /// The key.
    pub name: Cow<'d, str>,
    /// The value.
    pub node: Node<'d>,
    offset: usize,
}

impl Member<'_> {
    /// Reports a problem with the key, not with its value.
    pub fn problem_with_key(&self, message: impl Into<String>) {
        self.node.document.add(self.offset, &self.node.path, message);
    }
}

/// An object whose keys are read by name. Keys that were not read are reported by [`Object::finish`].
pub(super) struct Object<'d> {
    node: Node<'d>,
    members: Vec<Member<'d>>,
    /// The keys that were read, whether the object has them or not.
    allowed: Vec<&'static str>,
    /// The keys that were read and found.
    taken: Vec<Cow<'d, str>>,
}

impl<'d> Object<'d> {
    /// The value that the object was read from.
    pub fn node(&self) -> &Node<'d> {
        &self.node
    }

    /// Takes the value of a key, if the object has it.
    pub fn get(&mut self, key: &'static str) -> Option<Node<'d>> {
        self.allowed.push(key);
        self.get_unlisted(key)
    }

    /// Takes the value of a key that messages do not list as allowed, such as an older spelling.
    pub fn get_unlisted(&mut self, key: &str) -> Option<Node<'d>> {
        let index = self.members.iter().position(|member| member.name == key)?;
        let member = self.members.swap_remove(index);
        self.taken.push(member.name);
        Some(member.node)
    }

    /// Takes the value of a required key. `expected` describes it in the message about a missing key.
    pub fn require(&mut self, key: &'static str, expected: &str) -> Option<Node<'d>> {
        let value = self.get(key);
        if value.is_none() {
            self.missing(key, expected);
        }
        value
    }

    /// Reports that a key is missing.
    pub fn missing(&self, key: &str, expected: &str) {
        let path = child_path(&self.node.path, key);
        self.node.document.add(self.node.offset(), &path, format!("missing key; expected {expected}"));
    }

    /// Whether the object has a key, read or not, valid or not.
    pub fn has(&self, key: &str) -> bool {
        self.taken.iter().any(|taken| taken == key) || self.members.iter().any(|member| member.name == key)
    }

    /// Takes a boolean, or the default if the object does not have the key.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        self.get(key).and_then(|value| value.boolean()).unwrap_or(default)
    }

    /// Takes all keys with their values, for an object whose keys are names that the administrator chose.
    pub fn into_members(self) -> Vec<Member<'d>> {
        self.members
    }

    /// Reports every key that was not read as unknown.
    pub fn finish(self) {
        for member in &self.members {
            let suggestion = nearest(&member.name, self.allowed.iter().copied())
                .map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"));
            member.problem_with_key(format!("unknown key{suggestion}; allowed here: {}", self.allowed.join(", ")));
        }
    }
}

/// Parses an object into a list of its keys and values, in order and including duplicate keys.
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

/// The path of a key of the object at `path`.
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
    fn positions_count_lines_and_characters_from_1() {
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
    fn problems_beyond_the_limit_are_counted() {
        let text = format!("[{}1]", "1,".repeat(2000));
        let document = Document::new("f", &text);
        document.root().unwrap().list("").unwrap().iter().for_each(|item| item.problem("no"));
        let error = document.finish(Some(())).unwrap_err();
        assert_eq!(error.problems().len(), MAX_KEPT);
        assert!(error.to_string().ends_with("f:1:40: [19]: no\nand 1981 more problems"), "{error}");
    }
}
