//! Checks that the documentation agrees with the code: manual pages, README, generated tables, examples, `make
//! install`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory, Parser};
use serde::de::DeserializeOwned;
use serde_json::Value;
use zsync::cli::exit::Exit;
use zsync::commands::Cli;
use zsync::config::{ConfigError, LOCAL_SCHEMA, SERVER_SCHEMA, parse_local, parse_policy};
use zsync::model::{Action, DatasetStatus, Guid, ResponseStatus};
use zsync::wire::codec::StreamEnd;
use zsync::wire::{AgentLine, Alive, DirectorsOrder, ListUuids, OrderToSlave, PROTOCOL, Response, Step};

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(project(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn names_in(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(project(folder)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Every file below a folder.
fn files_below(folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    for name in names_in(folder) {
        let path = format!("{folder}/{name}");
        if project(&path).is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

// --- Manual pages: the part of roff that they use, as text.

/// A text with roff's escapes replaced by the characters that are printed.
fn unescaped(line: &str) -> String {
    let mut text = line.to_owned();
    for (escape, printed) in [
        ("\\&", ""),
        ("\\e", "\\"),
        ("\\-", "-"),
        ("\\(dq", "\""),
        ("\\(en", "-"),
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
    ] {
        text = text.replace(escape, printed);
    }
    text
}

/// A line as it is printed, with the dashes of its options.
fn printed(line: &str) -> String {
    let line = unescaped(line);
    let Some(request) = line.strip_prefix('.') else { return line };
    let mut option = false;
    let words = request.split_whitespace().map(|word| {
        let is_macro = word.len() == 2 && word.starts_with(|c: char| c.is_ascii_uppercase());
        if is_macro {
            option = word == "Fl";
            String::new()
        } else if option && word.starts_with(|c: char| c == '-' || c.is_ascii_alphanumeric()) {
            format!("-{word}")
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

struct Page {
    name: String,
    source: String,
    text: String,
}

fn page(name: &str) -> Page {
    let source = read(&format!("man/{name}"));
    let lines = source.lines().filter(|line| !line.starts_with(".\\\""));
    let text = lines.map(|line| printed(line) + "\n").collect();
    Page { name: name.to_owned(), source, text }
}

fn pages() -> Vec<Page> {
    names_in("man").iter().map(|name| page(name)).collect()
}

impl Page {
    fn words(&self) -> BTreeSet<&str> {
        self.text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_$@".contains(c))).collect()
    }

    fn options(&self) -> BTreeSet<&str> {
        let option = |word: &&str| word.strip_prefix("--").is_some_and(|rest| rest.starts_with(char::is_alphabetic));
        self.words().into_iter().filter(option).collect()
    }

    /// The lines of a section.
    fn section(&self, title: &str) -> String {
        let after = self.source.split(&format!(".Sh {title}\n")).nth(1);
        let after = after.unwrap_or_else(|| panic!("{} has no section {title}", self.name));
        after.split("\n.Sh ").next().unwrap().to_owned()
    }

    /// What readers are meant to type: the displays and the literal lines of a page.
    fn literals(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut inside: Option<String> = None;
        for line in self.source.lines() {
            if line.starts_with(".Bd -literal") || line == ".nf" || line == ".EX" {
                inside = Some(String::new());
            } else if line == ".Ed" || line == ".fi" || line == ".EE" {
                all.extend(inside.take());
            } else if let Some(block) = &mut inside {
                block.push_str(&unescaped(line));
                block.push('\n');
            } else if let Some(line) = line.strip_prefix(".Dl ") {
                all.push(unescaped(line));
            }
        }
        all
    }
}

#[test]
fn manual_pages_have_the_usual_sections() {
    for page in pages() {
        for section in ["NAME", "DESCRIPTION", "EXAMPLES", "SEE ALSO"] {
            let there = page.source.lines().any(|line| {
                line.strip_prefix(".Sh ")
                    .or_else(|| line.strip_prefix(".SH "))
                    .is_some_and(|s| s.trim_matches('"') == section)
            });
            assert!(there, "{} has no section {section}", page.name);
        }
        assert!(page.source.is_ascii(), "{} is not plain ASCII", page.name);
    }
}

#[test]
fn referenced_manual_pages_exist() {
    let there = names_in("man");
    for page in pages() {
        for reference in page.source.lines().filter_map(|line| line.strip_prefix(".Xr zsync")) {
            let reference = format!("zsync{reference}");
            let [name, section, ..] = reference.split_whitespace().collect::<Vec<_>>()[..] else {
                panic!("{}: {reference}", page.name)
            };
            let file = format!("{name}.{section}");
            assert!(there.contains(&file), "{} refers to {file}", page.name);
        }
    }
    let readme = read("README.md");
    for name in there {
        let (page, section) = name.rsplit_once('.').unwrap();
        assert!(readme.contains(&format!("{page}({section})")), "README.md does not name {page}({section})");
    }
}

#[test]
fn manual_pages_are_well_formed() {
    for name in names_in("man") {
        let output = Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(project("man").join(&name)).output();
        let output = output.expect("mandoc checks the manual pages: tests/setup installs it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn manual_pages_have_exactly_the_options_of_the_program() {
    let mut cli = Cli::command();
    cli.build();
    let overview = page("zsync.8");
    let mut all: BTreeSet<String> = BTreeSet::new();
    for command in cli.get_subcommands() {
        let name = command.get_name();
        assert!(overview.words().contains(name), "zsync.8 lacks the command {name}");
        let mut known = BTreeSet::new();
        let page = (name != "help").then(|| page(&format!("zsync-{name}.8")));
        // The page describes nested commands as well.
        let nested = command.get_subcommands().filter(|nested| nested.get_name() != "help");
        let arguments = nested.flat_map(clap::Command::get_arguments).chain(command.get_arguments());
        for arg in arguments {
            let long = arg.get_long().map(|long| format!("--{long}"));
            let short = arg.get_short().map(|short| format!("-{short}"));
            for option in long.iter().chain(&short) {
                if let Some(page) = &page {
                    assert!(page.words().contains(option.as_str()), "{} lacks {option}", page.name);
                }
            }
            known.extend(long);
        }
        for option in page.iter().flat_map(Page::options) {
            assert!(known.contains(option), "zsync {name} has no option {option}");
        }
        all.extend(known);
    }
    let missing: Vec<&str> = overview.options().into_iter().filter(|option| !all.contains(*option)).collect();
    assert!(missing.is_empty(), "zsync.8 names {missing:?}");
    for option in ["--hostname", "--local", "--zfs", "--log", "--help", "--version"] {
        assert!(overview.options().contains(option), "zsync.8 lacks {option}");
    }
}

/// The string literals of a Rust file, without its tests.
fn literals_of(path: &str) -> Vec<String> {
    let source = read(path);
    let lines = source.split("#[cfg(test)]").next().unwrap().lines().filter(|line| !line.trim().starts_with("//"));
    lines.flat_map(|line| line.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn page_of_openzfs_has_everything_that_is_used_of_zfs() {
    let page = page("zsync-openzfs.7");
    let mut used = BTreeSet::new();
    for file in names_in("src/zfs/argv") {
        let path = format!("src/zfs/argv/{file}");
        if file.ends_with(".lua") {
            let source = read(&path);
            let called = source.split("zfs.").skip(1).map(|rest| rest.split('(').next().unwrap().to_owned());
            used.extend(called.flat_map(|name| name.split('.').map(str::to_owned).collect::<Vec<_>>()));
        } else {
            // Subcommands, options, and lists of columns or types.
            let part = |literal: &String| {
                let kept = literal.starts_with('-') || literal.starts_with(|c: char| c.is_ascii_lowercase());
                kept && literal.len() > 1 && !literal.contains(['{', '}', '.'])
            };
            let all = literals_of(&path).into_iter().filter(part);
            used.extend(all.flat_map(|literal| literal.split([',', '=']).map(str::to_owned).collect::<Vec<_>>()));
        }
    }
    assert!(used.len() > 60, "{used:?}");
    let option = |word: &str| word.strip_prefix('-').is_some_and(|l| page.source.contains(&format!("Fl {l}")));
    let shown = |word: &str| page.text.contains(word) || option(word);
    let values = ["off", "none", "all", "each", "local", "received", "value", "property", "script"];
    let missing: Vec<&String> = used.iter().filter(|w| !values.contains(&w.as_str()) && !shown(w)).collect();
    assert!(missing.is_empty(), "zsync-openzfs.7 lacks {missing:?}");
}

// --- Keys of the configuration files.

/// Every key that the parser knows, from its error for an unknown key.
fn known_keys(example: &str, errors: impl Fn(&str) -> Option<ConfigError>) -> BTreeSet<String> {
    let text = read(example).replace('{', "{ \"zz\": 0,");
    let error = errors(&text).expect("zz is not a key");
    let lists = error.problems().iter().filter_map(|p| p.message.split("allowed here: ").nth(1).map(str::to_owned));
    lists.flat_map(|list| list.split(", ").map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn manual_pages_have_every_configuration_key() {
    let server = known_keys("examples/full/server.json", |text| parse_policy("f", text).err());
    let local = known_keys("examples/full/local.json", |text| parse_local("f", text).err());
    assert!(server.len() >= 28 && local.len() >= 9, "{server:?} {local:?}");
    let unlisted = |keys: &str| keys.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let spellings = unlisted("$schema rollback_needed skip_renamed skip_not_written skip_cloned consul");
    let refused = unlisted("$schema snap_prefix snap_retention backup");
    for (name, keys) in [
        ("zsync-server.json.5", server.into_iter().chain(spellings).collect::<Vec<_>>()),
        ("zsync-local.json.5", local.into_iter().chain(refused).collect()),
    ] {
        let page = page(name);
        // It must occur as a key, not as a word of a sentence.
        let marked: String = page.source.lines().filter(|line| line.contains("Cm ")).collect::<Vec<_>>().join(" ");
        let marked: BTreeSet<&str> = marked.split_whitespace().collect();
        for key in keys {
            assert!(marked.contains(key.as_str()), "{name} lacks {key}");
        }
    }
}

/// The part of a schema for a place such as `datasets[0].backup`.
fn schema_at<'s>(schema: &'s Value, place: &str) -> &'s Value {
    let resolve = |mut part: &'s Value| {
        while let Some(name) = part.get("$ref").and_then(Value::as_str) {
            part = schema.pointer(name.trim_start_matches('#')).unwrap();
        }
        part
    };
    let mut part = schema;
    for step in place.split(['.', '[']).filter(|step| !step.is_empty()) {
        let next = match step.strip_suffix(']') {
            Some(_) => part.get("items"),
            None => part.pointer(&format!("/properties/{step}")).or_else(|| part.get("additionalProperties")),
        };
        part = resolve(next.unwrap_or_else(|| panic!("the schema has no {place}")));
    }
    part
}

/// Checks, with a file that has every object, that the schema has exactly the keys of the parser in each object.
fn schema_is_of_parser(schema: &str, example: &str, errors: impl Fn(&str) -> Option<ConfigError>) {
    let schema: Value = serde_json::from_str(schema).unwrap();
    let error = errors(&read(example).replace('{', "{ \"zz\": 0,")).expect("zz is not a key");
    let mut objects = 0;
    for problem in error.problems() {
        let Some((_, allowed)) = problem.message.split_once("allowed here: ") else { continue };
        let place = problem.key.strip_suffix("zz").unwrap().trim_end_matches('.');
        let part = schema_at(&schema, place);
        assert_eq!(part["additionalProperties"], Value::Bool(false), "{example}: {place}");
        let keys = part["properties"].as_object().unwrap().iter();
        // Older spellings are accepted, but not documented.
        let keys = keys.filter(|(key, of)| *key != "$schema" && of.get("deprecated").is_none());
        let keys: BTreeSet<&str> = keys.map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, allowed.split(", ").collect(), "{example}: {place}");
        objects += 1;
    }
    assert!(objects >= 5, "only {objects} objects in {example}");
}

#[test]
fn schemas_have_the_keys_of_the_parser() {
    schema_is_of_parser(SERVER_SCHEMA, "examples/full/server.json", |text| parse_policy("f", text).err());
    schema_is_of_parser(LOCAL_SCHEMA, "examples/full/local.json", |text| parse_local("f", text).err());
}

#[test]
fn examples_are_valid_by_their_schemas() {
    let build = |text: &str| jsonschema::validator_for(&serde_json::from_str(text).unwrap()).unwrap();
    let (server, local) = (build(SERVER_SCHEMA), build(LOCAL_SCHEMA));
    let try_text = |place: &str, text: &str| {
        let Ok(value) = serde_json::from_str::<Value>(text) else { return false };
        let validator = match (value.get("datasets"), value.get("local_datasets")) {
            (Some(_), _) => &server,
            (_, Some(_)) => &local,
            _ => return false,
        };
        let errors: Vec<String> =
            validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{place}: {}", errors.join("; "));
        true
    };
    let files = files_below("examples").into_iter().filter(|file| file.ends_with(".json"));
    let mut found = files.filter(|file| try_text(file, &read(file))).count();
    for page in pages() {
        found += page.literals().iter().filter(|block| try_text(&page.name, block)).count();
    }
    assert!(found >= 12, "only {found}");
    for wrong in [
        r#"{ "datasets": [ { "hostname": "a", "dataset": "tank", "backup": { "prefix": "B" } } ] }"#,
        r#"{ "datasets": [ { "hostname": "a", "dataset": "tank", "backup": { "prefix": "B", "retention": ["2 per day"] } } ] }"#,
        r#"{ "datasets": [], "timezon": "UTC" }"#,
    ] {
        assert!(!server.is_valid(&serde_json::from_str(wrong).unwrap()), "{wrong}");
        assert!(parse_policy("f", wrong).is_err(), "{wrong}");
    }
    for wrong in [r#"{ "local_datasets": [ {} ] }"#, r#"{ "local_datasets": [], "max_sends": 0 }"#] {
        assert!(!local.is_valid(&serde_json::from_str(wrong).unwrap()), "{wrong}");
        assert!(parse_local("f", wrong).is_err(), "{wrong}");
    }
}

// --- Statuses and fields.

fn exit_status(exit: Exit) -> u8 {
    // The compiler demands that a new status is added here.
    match exit {
        Exit::Success => 0,
        Exit::Failed => 1,
        Exit::Unable => 2,
        Exit::Orders => 3,
    }
}

#[test]
fn main_page_has_every_exit_status() {
    let page = page("zsync.8");
    let section = page.section("EXIT STATUS");
    for exit in [Exit::Success, Exit::Failed, Exit::Unable, Exit::Orders] {
        assert_eq!(exit as u8, exit_status(exit));
        assert!(section.contains(&format!(".It {}\n", exit as u8)), "zsync.8 lacks the exit status {}", exit as u8);
    }
    assert_eq!(section.matches(".It ").count(), 4);
    let section = page.section("STATUSES");
    let responses = ResponseStatus::ALL.iter().map(|s| format!(".It {} {s:?}\n", s.number()));
    let datasets = DatasetStatus::ALL.iter().map(|s| format!(".It {} {s:?}\n", s.number()));
    for item in responses.chain(datasets) {
        assert!(section.contains(&item), "zsync.8 lacks {item}");
    }
}

#[test]
fn main_page_has_every_action_and_field_of_an_order() {
    let page = page("zsync.8");
    let orders = page.section("ORDERS");
    for action in [
        Action::TakeSnapshot,
        Action::SendSnapshot,
        Action::DestroySnapshot,
        Action::KvResync,
        Action::EstimateSend,
        Action::EstimateDestroy,
        Action::ForgetDestination,
        Action::UndeleteSnapshot,
        Action::RestoreDataset,
        Action::JoinKeys,
    ] {
        assert!(orders.contains(&format!(".Ss {action}\n")), "zsync.8 lacks {action}");
    }
    let source = read("src/wire/director.rs");
    let after = source.split("pub struct DirectorsOrder {").nth(1).unwrap();
    let protocol = self::page("zsync-protocol.7");
    let mut fields = 0;
    let mut renamed = None;
    for line in after.split("\n}").next().unwrap().lines().map(str::trim) {
        if let Some(rest) = line.split("rename = \"").nth(1) {
            renamed = rest.split('"').next();
        } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(':')) {
            let parts = field.split('_').map(|part| part[..1].to_uppercase() + &part[1..]);
            let name = renamed.take().map_or_else(|| parts.collect(), str::to_owned);
            let documented = page.words().contains(name.as_str()) || protocol.words().contains(name.as_str());
            assert!(documented, "neither zsync.8 nor zsync-protocol.7 has the field {name}");
            fields += 1;
        }
    }
    assert!(fields >= 12, "only {fields} fields were found");
}

// --- Commands.

/// The commands of a line of shell, as words. It knows only the syntax that the documentation uses.
fn shell(text: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut quote = None;
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        match (c, quote) {
            ('\\', None) => {
                if letters.next_if_eq(&'\n').is_none() {
                    word.get_or_insert_default().extend(letters.next());
                }
            }
            (c, Some(q)) if c == q => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => while letters.next_if(|c| *c != '\n').is_some() {},
            (c, None) if c.is_whitespace() || ";|&".contains(c) => {
                words.extend(word.take());
                if !matches!(c, ' ' | '\t') {
                    commands.push(std::mem::take(&mut words));
                }
            }
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    commands.push(words);
    commands
}

/// Parses the zsync commands in a text as zsync does; returns their number.
fn try_commands(place: &str, text: &str) -> usize {
    let mut found = 0;
    for words in shell(text) {
        // In a crontab, the time and the user precede the command.
        let at = words.iter().position(|word| word == "zsync" || word.ends_with("/bin/zsync"));
        let Some(at) = at.filter(|at| *at == 0 || *at == 6 || words[*at].starts_with("ExecStart=")) else { continue };
        let until_file = words[at..].iter().take_while(|word| !word.starts_with('>'));
        let mut command: Vec<String> = until_file.cloned().collect();
        for word in command.iter_mut().filter(|word| word.starts_with("$(date ")) {
            *word = "2026-11-23T10:30:00Z".to_owned();
        }
        if let Err(error) = Cli::try_parse_from(&command) {
            panic!("{place}: {}: {error}", command.join(" "));
        }
        found += 1;
    }
    found
}

/// The fenced blocks of a Markdown file, each with its language.
fn fenced(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut inside: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut inside) {
            (Some(_), Some(_)) => blocks.extend(inside.take()),
            (Some(mark), None) => inside = Some((mark.to_owned(), String::new())),
            (None, Some((_, block))) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(inside.is_none(), "a block is not closed");
    blocks
}

#[test]
fn documented_commands_are_valid() {
    let in_file = |file: &str| {
        let blocks = fenced(&read(file)).into_iter().filter(|(mark, _)| mark.starts_with("sh"));
        blocks.map(|(_, block)| try_commands(file, &block)).sum::<usize>()
    };
    let in_readme = in_file("README.md");
    assert!(in_readme >= 7, "only {in_readme} commands in README.md");
    for &file in MARKDOWN {
        in_file(file);
    }
    let mut in_pages = 0;
    for page in pages() {
        in_pages += page.literals().iter().map(|block| try_commands(&page.name, block)).sum::<usize>();
    }
    assert!(in_pages >= 10, "only {in_pages} commands in the pages");
    for file in files_below("examples/systemd").into_iter().chain(files_below("examples/cron")) {
        let found = try_commands(&file, &read(&file));
        let starts = ![".timer", ".socket", ".conf"].iter().any(|end| file.ends_with(end));
        assert!(found >= usize::from(starts), "{file} has no command of zsync");
    }
}

#[test]
fn completions_are_valid_bash() {
    let zsync = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_zsync")).args(arguments).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let script = zsync(&["completions", "bash"])
        + "COMP_WORDS=(zsync pl) COMP_CWORD=1\n_zsync zsync pl zsync\necho \"${COMPREPLY[@]}\"\n";
    let completed = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&completed.stdout), "plan\n", "{}", String::from_utf8_lossy(&completed.stderr));
    assert!(zsync(&["completions", "zsh"]).starts_with("#compdef zsync\n"));
    assert!(zsync(&["completions", "fish"]).contains("complete -c zsync "));
    assert_eq!(zsync(&["schema", "server"]), SERVER_SCHEMA);
    assert_eq!(zsync(&["schema", "local"]), LOCAL_SCHEMA);
}

#[test]
fn systemd_units_name_existing_pages_and_units() {
    for file in files_below("examples/systemd") {
        let text = read(&file);
        for word in text.split_whitespace().filter_map(|word| word.split("man:").nth(1)) {
            let path = format!("man/{}", word.trim_end_matches(')').replace('(', "."));
            assert!(project(&path).exists(), "{file} names {path}");
        }
        if let Some(unit) = file.strip_suffix(".timer").or_else(|| file.strip_suffix(".socket")) {
            assert!(project(&format!("{unit}.service")).exists(), "{file} starts nothing");
        }
    }
}

#[test]
fn init_scripts_are_valid_shell_and_start_zsync() {
    for file in files_below("examples/openrc").into_iter().chain(files_below("examples/freebsd")) {
        let checked = Command::new("sh").arg("-n").arg(project(&file)).output().unwrap();
        assert!(checked.status.success(), "{file}: {}", String::from_utf8_lossy(&checked.stderr));
        let text = read(&file);
        let subcommand = file.rsplit(['-', '_']).next().unwrap();
        let starts = [format!("command_args=\"{subcommand} "), format!("/usr/local/bin/zsync {subcommand} ")];
        assert!(starts.iter().any(|start| text.contains(start)), "{file} does not start zsync {subcommand}");
        assert!(Cli::try_parse_from(["zsync", subcommand]).is_ok(), "{file}");
        assert!(project(&format!("man/zsync-{subcommand}.8")).exists(), "{file}");
    }
}

// --- JSON.

fn try_json(place: &str, block: &str) -> bool {
    let block = block.trim();
    let whole =
        if block.starts_with("\"hosts\"") { format!("{{ {block}, \"datasets\": [] }}") } else { block.to_owned() };
    if !whole.starts_with('{') {
        return false;
    }
    let error = if whole.contains("\"local_datasets\"") {
        parse_local(place, &whole).err()
    } else {
        parse_policy(place, &whole).err()
    };
    assert!(error.is_none(), "{}", error.unwrap());
    true
}

#[test]
fn documented_configurations_are_valid() {
    for (mark, block) in fenced(&read("README.md")) {
        assert!(!mark.starts_with("json") || try_json("README.md", &block));
        // The quick start copies the example, so the README has to show the same.
        if mark == "json one-host" {
            let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(parsed(&block), parsed(&read("examples/one-host/server.json")), "README.md: {mark}");
        }
    }
    let mut found = 0;
    for page in pages() {
        found += page.literals().iter().filter(|block| try_json(&page.name, block)).count();
    }
    assert!(found >= 5, "only {found} in the pages");
}

/// Parses a message as this type, and checks that nothing in it is lost.
fn is<T: DeserializeOwned + serde::Serialize>(message: &Value) -> bool {
    let Ok(read) = serde_json::from_value::<T>(message.clone()) else { return false };
    let again = serde_json::to_value(read).unwrap();
    message.as_object().unwrap().iter().all(|(key, value)| again.get(key) == Some(value))
}

#[test]
fn documented_messages_are_parsed_without_loss() {
    let page = page("zsync-protocol.7");
    let mut counts = (0, 0, 0);
    for block in page.literals().iter().filter(|block| block.contains("> {")) {
        let with_slave = block.contains("slave> ");
        for part in
            block.split("\n").collect::<Vec<_>>().join(" ").split("director> ").flat_map(|part| part.split("> "))
        {
            let Some(start) = part.find('{') else { continue };
            let message = serde_json::Deserializer::from_str(&part[start..]).into_iter::<Value>().next().unwrap();
            let message = message.unwrap_or_else(|error| panic!("{error} in {part}"));
            // The sender is at the end of the part before, but the type is clear from the message itself.
            let understood = if with_slave {
                counts.0 += 1;
                is::<OrderToSlave>(&message)
                    || is::<ListUuids>(&message)
                    || is::<Step>(&message)
                    || is::<StreamEnd>(&message)
                    || is::<Alive>(&message)
                    || is::<Response>(&message)
            } else {
                counts.1 += 1;
                is::<DirectorsOrder>(&message) || is::<AgentLine>(&message)
            };
            assert!(understood, "{message}");
        }
        counts.2 += 1;
    }
    assert!(counts.0 >= 8 && counts.1 >= 3 && counts.2 == 2, "{counts:?}");
    assert!(page.text.contains(&Guid(4711).uuid().to_string()));
    assert!(page.section("VERSIONS").contains(&format!(".It {PROTOCOL}\n")));
    for block in page.literals().iter().filter(|block| block.starts_with("printf")) {
        let words = shell(block).remove(0);
        let text = words[1..].concat().replace("%s", "9b2c1c4e-1111-4222-8333-0123456789ab");
        let text = text.split_inclusive('}').next().unwrap().trim_start_matches(|c| c != '{');
        let order: DirectorsOrder = serde_json::from_str(text).unwrap();
        assert_eq!(order.protocol, PROTOCOL);
    }
}

// --- README and the other Markdown files.

/// Every Markdown file whose links and commands are checked.
const MARKDOWN: &[&str] = &[
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benches/README.md",
    "examples/moving/README.md",
    "tests/lab/README.md",
    "tests/lab/SURVIVED.md",
];

/// The table of survived failures, made from the lines `survived WHAT OUTCOME` of the scenarios. `tests/lab.rs` checks
/// that each scenario shows all its cases whenever it runs.
fn survived() -> String {
    let mut table = String::from("| what happens | outcome | shown by |\n|---|---|---|\n");
    for scenario in names_in("tests/lab/scenarios") {
        let text = read(&format!("tests/lab/scenarios/{scenario}"));
        for case in text.lines().filter_map(|line| line.trim_start().strip_prefix("survived ")) {
            let words = shell(case).concat();
            let [what, outcome] = words.as_slice() else { panic!("{scenario}: survived {case}") };
            table.push_str(&format!("| {what} | {outcome} | `{scenario}` |\n"));
        }
    }
    table
}

/// Checks that `file` contains `wanted` between the two marks of `name`. With `ZSYNC_BLESS` set, writes it there.
fn shows(file: &str, name: &str, made_from: &str, wanted: &str) {
    let (begin, end) =
        (format!("<!-- {name}: made from {made_from} by make tables -->\n"), format!("<!-- end of {name} -->"));
    let text = read(file);
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{file} has no beginning of {name}"));
    let (shown, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{file} has no end of {name}"));
    if shown != wanted && std::env::var_os("ZSYNC_BLESS").is_some() {
        return fs::write(project(file), format!("{before}{begin}{wanted}{end}{after}")).unwrap();
    }
    assert_eq!(shown, wanted, "the table in {file} is not up to date: make tables");
}

#[test]
fn table_of_survived_failures_matches_the_scenarios() {
    shows("tests/lab/SURVIVED.md", "survived", "tests/lab/scenarios", &survived());
}

/// Without a measurement, the table is empty.
#[test]
fn table_of_speed_matches_the_last_measurement() {
    let measured = fs::read_to_string(project("benches/results/lab.md")).unwrap_or_default();
    shows("benches/README.md", "speed", "benches/results/lab.md", &measured);
}

/// The letters and digits of a text, so that the same words match with any punctuation and markup.
fn letters(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// Each cell of the README's table of hosts that are taken over names the scenarios that show it, and zsync(8) says the
/// same.
#[test]
fn cells_of_the_table_of_taken_over_hosts_name_scenarios() {
    let section = page("zsync.8").section("SECURITY");
    let manual = letters(&section.lines().map(printed).collect::<Vec<_>>().join(" "));
    let (readme, scenarios) = (read("README.md"), names_in("tests/lab/scenarios"));
    let table = readme.split("\n## If a host is taken over\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 3, "{rows:?}");
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [party, most, never] = cells[..] else { panic!("{row}") };
        for cell in [most, never] {
            let (_, last) = cell.rsplit_once("(`").unwrap_or_else(|| panic!("no scenario shows: {cell}"));
            assert!(last.ends_with("`)"), "no scenario shows the end of: {cell}");
            let lists = cell.split("(`").skip(1).map(|rest| rest.split_once("`)").unwrap().0);
            for name in lists.flat_map(|list| list.split("`, `")) {
                assert!(scenarios.contains(name), "there is no scenario {name}: {cell}");
            }
            assert!(manual.contains(&letters(cell)), "zsync.8 does not say: {cell}");
        }
        assert!(section.contains(&format!(".It {party}\n")), "zsync.8 lacks {party}");
    }
}

#[test]
fn map_of_src_is_complete() {
    let readme = read("README.md");
    let map = readme.split("## What is in src/").nth(1).unwrap().split("\n## ").next().unwrap();
    let named: BTreeSet<String> = map
        .lines()
        .filter_map(|line| line.strip_prefix("| `src/"))
        .map(|rest| rest.split('`').next().unwrap().trim_end_matches('/').to_owned())
        .collect();
    assert_eq!(named, names_in("src"));
}

#[test]
fn links_have_targets() {
    for &file in MARKDOWN {
        let text = read(file);
        let folder = Path::new(file).parent().unwrap();
        let slug = |line: &str| {
            let kept =
                line.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -".contains(*c)).collect::<String>();
            kept.trim().replace(' ', "-")
        };
        let headings: BTreeSet<String> = text.lines().filter(|line| line.starts_with('#')).map(slug).collect();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            match link.strip_prefix('#') {
                Some(anchor) => assert!(headings.contains(anchor), "{file}: {link}"),
                None if link.contains("://") => {}
                None => assert!(project("").join(folder).join(link).exists(), "{file}: {link}"),
            }
        }
    }
}

#[test]
fn documented_make_targets_exist() {
    let makefile = read("Makefile");
    // The changelog may name former targets.
    for &file in MARKDOWN.iter().filter(|file| **file != "CHANGELOG.md") {
        let text = read(file);
        for target in text.split("`make ").skip(1).map(|rest| rest.split(['`', ' ']).next().unwrap()) {
            assert!(makefile.contains(&format!("\n{target}:")), "{file}: make {target}");
        }
    }
}

// --- make install.

#[test]
fn make_installs_and_uninstalls_everything() {
    let folder = tempfile::tempdir().unwrap();
    let make = |target: &str| {
        let output = Command::new("make")
            .current_dir(project(""))
            .args([target, "CARGO=true", "PREFIX=/usr", concat!("BINARY=", env!("CARGO_BIN_EXE_zsync"))])
            .arg(format!("DESTDIR={}", folder.path().display()))
            .output()
            .expect("make is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    make("install");
    let root = folder.path().join("usr");
    assert!(root.join("bin/zsync").exists());
    for name in names_in("man") {
        let section = name.rsplit('.').next().unwrap();
        assert!(root.join(format!("share/man/man{section}/{name}")).exists(), "{name}");
    }
    for (shell, file) in [
        ("bash", "bash-completion/completions/zsync"),
        ("zsh", "zsh/site-functions/_zsync"),
        ("fish", "fish/vendor_completions.d/zsync.fish"),
    ] {
        let text = fs::read_to_string(root.join("share").join(file)).unwrap();
        for word in ["director", "completions", "schema"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
    for file in files_below("examples").into_iter().chain(["README.md".into(), "CHANGELOG.md".into()]) {
        assert!(root.join("share/doc/zsync").join(&file).exists(), "{file}");
    }
    make("uninstall");
    let left = Command::new("find").arg(&root).args(["-type", "f"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

/// A number that the documentation states: the file that defines it, the text that precedes the value there, and for
/// each page a phrase in which `{}` stands for the number, in the unit that the phrase names.
type Number = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const NUMBERS: &[Number] = &[
    (
        "policy/address.rs",
        "const AGENT_PORT: u16 = ",
        &[
            ("man/zsync-agent.8", "listens on port {} and carries out orders"),
            ("man/zsync-protocol.7", "to an agent, on port {}, for each order"),
            ("README.md", "orders, port {} "),
        ],
    ),
    (
        "policy/address.rs",
        "const SLAVE_PORT: u16 = ",
        &[
            ("man/zsync-slave.8", "listens on port {}."),
            ("man/zsync-protocol.7", "to a slave, on port {}, for each dataset"),
            ("README.md", "zfs send, port {}"),
        ],
    ),
    (
        "server/limiter.rs",
        "WAITING: Limits = Limits { per_peer: ",
        &[
            ("man/zsync-agent.8", "At most {} connections per address"),
            ("man/zsync-protocol.7", "It {} and 256 Connections to an agent or a slave on which"),
        ],
    ),
    (
        "server/limiter.rs",
        "WAITING: Limits = Limits { per_peer: 64, total: ",
        &[("man/zsync-agent.8", "connections per address, and {} in all")],
    ),
    (
        "server/limiter.rs",
        "TALKING: Limits = Limits { per_peer: ",
        &[
            ("man/zsync-agent.8", "At most {} orders per address"),
            ("man/zsync-protocol.7", "It {} and 512 Conversations of an agent"),
        ],
    ),
    (
        "server/limiter.rs",
        "TALKING: Limits = Limits { per_peer: 256, total: ",
        &[("man/zsync-agent.8", "orders per address, and {} in all")],
    ),
    (
        "agent/transfer/mod.rs",
        "const LONG_STREAM: Duration = Duration::from_secs(",
        &[
            ("man/zsync.8", "set once the transfer has taken {} seconds"),
            ("man/zsync-status.8", "when a transfer has run for {} seconds"),
        ],
    ),
    (
        "agent/transfer/mod.rs",
        "const MAX_STREAMS: usize = ",
        &[("man/zsync-protocol.7", "It {} Streams for one order")],
    ),
    ("agent/journal.rs", "const MAX_ANSWERS: u32 = ", &[("man/zsync-agent.8", "for a week, at most {} of them")]),
    (
        "server/acceptor.rs",
        "const FIRST_LINE_TIMEOUT: Duration = Duration::from_secs(",
        &[("man/zsync-agent.8", "then {} seconds to send its order")],
    ),
    (
        "server/acceptor.rs",
        "pub const ABORT_TIMEOUT: Duration = Duration::from_secs(",
        &[
            ("man/zsync-agent.8", "waits for this at most {} seconds"),
            ("man/zsync-slave.8", "waits for this at most {} seconds"),
            ("man/zsync-director.8", "waits for this at most {} seconds"),
        ],
    ),
    (
        "wire/codec/conn.rs",
        "const ALIVE_EVERY: Duration = Duration::from_secs(",
        &[("man/zsync-protocol.7", "reports every {} seconds that it is alive")],
    ),
    (
        "wire/codec/conn.rs",
        "const SILENCE: Duration = Duration::from_secs(",
        &[("man/zsync-protocol.7", "It {} seconds Silence")],
    ),
    (
        "wire/mod.rs",
        "pub const PER_LINE: usize = ",
        &[("man/zsync-protocol.7", "It {} Snapshots, bookmarks or datasets")],
    ),
    (
        "catalog/mod.rs",
        "const FORGET_AFTER: TimeDelta = TimeDelta::days(",
        &[("man/zsync-clean.8", "The default is {} days")],
    ),
    (
        "director/saved.rs",
        "const VALID_FOR: TimeDelta = TimeDelta::hours(",
        &[
            ("man/zsync-director.8", "if it is older than {} hours"),
            ("man/zsync-plan.8", "within {} hours"),
            ("man/zsync-plan-json.5", "may be carried out for {} hours"),
        ],
    ),
    (
        "policy/mod.rs",
        "DEFAULT_RETRY_FOR: Duration = Duration::from_secs(",
        &[("man/zsync-server.json.5", "retry_for Pq string, default Li \"{}s\"")],
    ),
    (
        "commands/status/unsent.rs",
        "const ESTIMATED_WITHIN: Duration = Duration::from_secs(",
        &[("man/zsync-status.8", "either may take {} seconds")],
    ),
];

/// Numbers that pages write as words.
fn spelled(number: u64) -> Option<&'static str> {
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        .get(number as usize)
        .copied()
}

fn number_after(file: &str, before: &str) -> u64 {
    let source = read(&format!("src/{file}"));
    let (_, rest) = source.split_once(before).unwrap_or_else(|| panic!("src/{file} has no {before:?}"));
    let digits: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '_').filter(|c| *c != '_').collect();
    digits.parse().unwrap_or_else(|error| panic!("src/{file}, {before:?}: {error}"))
}

/// A page's text in one line, without the macros at the beginnings of lines.
fn running_text(page: &str) -> String {
    let lines = read(page);
    let words: Vec<&str> = lines.lines().flat_map(str::split_whitespace).collect();
    words.join(" ").replace("\\(dq", "\"").replace(" .", " ").replace("\\(en", "-")
}

#[test]
fn numbers_in_pages_are_those_of_the_constants() {
    for (file, before, pages) in NUMBERS {
        let number = number_after(file, before);
        for (page, phrase) in *pages {
            let text = running_text(page);
            let forms = [Some(number.to_string()), spelled(number).map(str::to_owned)];
            let found = forms.into_iter().flatten().any(|form| text.contains(&phrase.replace("{}", &form)));
            assert!(
                found,
                "{page} does not say {:?}, which is in src/{file}",
                phrase.replace("{}", &number.to_string())
            );
        }
    }
}

#[test]
fn takeover_takes_as_long_as_the_pages_say() {
    let ttl = number_after("director/leader.rs", "const TTL: Duration = Duration::from_secs(");
    let delay = number_after("director/leader.rs", "const LOCK_DELAY: Duration = Duration::from_secs(");
    // Consul may wait up to twice the TTL before it ends a session.
    let phrase = format!("{} to {} seconds", ttl + delay, 2 * ttl + delay);
    for page in ["man/zsync-director.8", "README.md"] {
        assert!(running_text(page).contains(&phrase), "{page} does not say {phrase:?}");
    }
}
