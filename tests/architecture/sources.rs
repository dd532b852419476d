//! Reads `src/` as a graph: which file uses which.
//!
//! This is no Rust parser. It strips comments, strings and tests, then follows `use` trees, re-exports and paths that
//! begin with `crate`, `super`, `self` or a child module. That is enough for how this crate is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module's path within the crate, as in `["agent", "transfer", "peer"]`.
pub type ModulePath = Vec<String>;

/// A file of `src/`, but not of tests.
pub struct Source {
    /// The module that the file holds.
    pub module: ModulePath,
    /// The path below `src/`.
    pub file: PathBuf,
    /// The text before the tests, with comments and strings.
    pub text: String,
    /// The text before the tests, without comments and strings.
    pub code: String,
}

/// The files of `src/` and what each of them uses.
pub struct Graph {
    /// The files, by module.
    pub sources: BTreeMap<ModulePath, Source>,
    /// For each module the modules that it uses.
    pub uses: BTreeMap<ModulePath, BTreeSet<ModulePath>>,
}

fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn module_of(file: &Path) -> ModulePath {
    let mut module: ModulePath =
        file.with_extension("").components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// The code without comments and without the contents of strings.
fn stripped(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text.chars().peekable();
    let mut previous = ' ';
    while let Some(c) = rest.next() {
        match c {
            '/' if rest.peek() == Some(&'/') => {
                rest.by_ref().find(|c| *c == '\n');
                code.push('\n');
            }
            '"' => {
                code.push_str("\"\"");
                // A raw string has no escapes. In this crate, only raw strings with hashes around them contain quotes.
                let raw = previous == 'r' || previous == '#';
                while let Some(c) = rest.next() {
                    if c == '\\' && !raw {
                        rest.next();
                    } else if c == '"' && (previous != '#' || rest.peek() == Some(&'#')) {
                        break;
                    }
                }
            }
            '\'' => {
                code.push(c);
                // A character, unless it is a lifetime.
                let mut ahead = rest.clone();
                let (first, second) = (ahead.next(), ahead.next());
                if first == Some('\\') || second == Some('\'') {
                    if first == Some('\\') {
                        rest.next();
                        rest.next();
                    }
                    rest.by_ref().find(|c| *c == '\'');
                }
            }
            _ => code.push(c),
        }
        previous = c;
    }
    code
}

/// The paths of a `use` tree: `a::{b, c::{self, D}}` is `a::b`, `a::c` and `a::c::D`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree).trim();
        return vec![path.trim_end_matches("::self").to_owned()];
    };
    let (before, inside) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut depth, mut items) = (0, vec![String::new()]);
    for c in inside.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(String::new());
                continue;
            }
            _ => {}
        }
        items.last_mut().unwrap().push(c);
    }
    let items = items.into_iter().filter(|item| !item.trim().is_empty());
    items.flat_map(|item| expand(&format!("{before}{}", item.trim()))).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths `a::b::c` in code.
fn paths(code: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut from = 0;
    while let Some(found) = code[from..].find("::") {
        let at = from + found;
        let start = code[..at].rfind(|c: char| !is_word(c)).map_or(0, |before| before + 1);
        let mut end = at;
        while code[end..].starts_with("::") {
            let word = code[end + 2..].find(|c: char| !is_word(c)).map_or(code.len(), |length| end + 2 + length);
            if word == end + 2 {
                break;
            }
            end = word;
        }
        all.push(code[start..end].to_owned());
        from = end.max(at + 2);
    }
    all
}

impl Graph {
    /// Reads `src/`.
    pub fn read() -> Self {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        walk(&src, &mut files);
        let mut sources = BTreeMap::new();
        for path in files {
            let file = path.strip_prefix(&src).unwrap().to_owned();
            let module = module_of(&file);
            if module.iter().any(|part| part == "tests") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            let code = stripped(&text);
            sources.insert(module.clone(), Source { module, file, text, code });
        }
        let mut graph = Self { sources, uses: BTreeMap::new() };
        let (mut used, mut exports) = (BTreeMap::new(), BTreeMap::new());
        for source in graph.sources.values() {
            used.insert(source.module.clone(), graph.named_by(source, &mut exports));
        }
        for (module, paths) in used {
            let uses = paths.into_iter().filter_map(|path| graph.file_of(path, &exports));
            let uses = uses.filter(|used| *used != module && !matches!(used.as_slice(), [only] if only == "lib"));
            graph.uses.insert(module.clone(), uses.collect());
        }
        graph
    }

    /// A path as it is written in a module, from the crate's root; `None` if it does not lead into this crate.
    fn absolute(&self, module: &[String], path: &str) -> Option<Vec<String>> {
        let mut parts: Vec<String> = path.split("::").map(|part| part.trim().to_owned()).collect();
        let mut base = module.to_vec();
        match parts[0].as_str() {
            "crate" => return Some(parts.split_off(1)),
            "self" => drop(parts.remove(0)),
            "super" => {
                while parts.first().is_some_and(|first| first == "super") {
                    base.pop();
                    parts.remove(0);
                }
            }
            child => {
                base.push(child.to_owned());
                let is_child = self.sources.contains_key(&base);
                base.pop();
                if !is_child {
                    return None;
                }
            }
        }
        base.extend(parts);
        Some(base)
    }

    /// The paths in this crate that a file uses. Paths that it only re-exports (`pub use`) are recorded in `exports`
    /// instead.
    fn named_by(&self, source: &Source, exports: &mut BTreeMap<Vec<String>, Vec<String>>) -> Vec<Vec<String>> {
        let mut named = Vec::new();
        let mut rest = String::new();
        for statement in source.code.split_inclusive(';') {
            let start = statement.rfind("use ").filter(|at| {
                let before = statement[..*at].trim_end();
                before.is_empty() || before.ends_with(['}', '{', ']', ';', ')']) || before.ends_with("pub")
            });
            let Some(at) = start.filter(|_| statement.ends_with(';')) else {
                rest.push_str(statement);
                continue;
            };
            rest.push_str(&statement[..at]);
            let before = statement[..at].trim_end();
            let exported = before.ends_with("pub") || before.ends_with("pub(crate)") || before.ends_with("pub(super)");
            for path in expand(statement[at + 4..].trim_end_matches(';')) {
                let Some(target) = self.absolute(&source.module, &path) else { continue };
                if exported {
                    let mut name = source.module.clone();
                    name.extend(target.last().cloned());
                    exports.insert(name, target);
                } else {
                    named.push(target);
                }
            }
        }
        named.extend(paths(&rest).iter().filter_map(|path| self.absolute(&source.module, path)));
        named
    }

    /// The file in which something is defined, found by following re-exports.
    fn file_of(&self, mut path: Vec<String>, exports: &BTreeMap<Vec<String>, Vec<String>>) -> Option<ModulePath> {
        for _ in 0..8 {
            let file = (1..=path.len()).rev().find(|length| self.sources.contains_key(&path[..*length]));
            let export = (1..=path.len()).rev().find(|length| exports.contains_key(&path[..*length]));
            match export.filter(|export| file.is_none_or(|file| *export > file)) {
                Some(length) => {
                    let mut next = exports[&path[..length]].clone();
                    next.extend(path.split_off(length));
                    path = next;
                }
                None => return file.map(|length| path[..length].to_vec()),
            }
        }
        None
    }

    /// The children of a folder: for each, which of its siblings its files use. `[]` is `src/` itself.
    pub fn siblings(&self, folder: &[String]) -> BTreeMap<String, BTreeSet<String>> {
        let child = |module: &ModulePath| module.strip_prefix(folder).and_then(|rest| rest.first().cloned());
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, uses) in &self.uses {
            let Some(from) = child(module) else { continue };
            let to = uses.iter().filter_map(child).filter(|to| *to != from);
            graph.entry(from.clone()).or_default().extend(to);
        }
        graph
    }

    /// The folders of `src/`, `[]` among them.
    pub fn folders(&self) -> BTreeSet<ModulePath> {
        self.sources.keys().flat_map(|module| (0..module.len()).map(|length| module[..length].to_vec())).collect()
    }
}

/// The nodes of a graph that are in a cycle, or lie between cycles.
pub fn circle<N: Ord + Clone>(graph: &BTreeMap<N, BTreeSet<N>>) -> BTreeSet<N> {
    let mut left = graph.clone();
    loop {
        let nodes: BTreeSet<N> = left.keys().cloned().collect();
        let used: BTreeSet<N> = left.values().flatten().cloned().collect();
        let outside = |(node, uses): &(&N, &BTreeSet<N>)| uses.is_disjoint(&nodes) || !used.contains(*node);
        let outside: Vec<N> = left.iter().filter(outside).map(|(node, _)| node.clone()).collect();
        if outside.is_empty() {
            return nodes;
        }
        for node in outside {
            left.remove(&node);
            left.values_mut().for_each(|uses| {
                uses.remove(&node);
            });
        }
    }
}
