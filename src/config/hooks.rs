//! The key `hooks` of an entry of `local.json`: commands that run before and after an order.

use crate::config::json::Node;
use crate::config::values::duration;
use crate::policy::hooks::DEFAULT_HOOK_TIMEOUT;
use crate::policy::{Hook, Hooks};

/// The bounds of `timeout`. An order waits for its hooks, and the director waits for the order.
const TIMEOUT_BOUNDS: [&str; 2] = ["1s", "1h"];

/// Reads the object. Invalid values are reported and left out.
pub(super) fn hooks(node: &Node<'_>, slave: bool) -> Hooks {
    let example = "an object, as in { \"before_snapshot\": { \"command\": [\"/usr/local/sbin/freeze\"] } }";
    let Some(mut object) = node.object(example) else { return Hooks::default() };
    let mut read = |key| object.get(key).and_then(|node| hook(&node));
    let (before_snapshot, after_snapshot) = (read("before_snapshot"), read("after_snapshot"));
    let received = object.get("after_receive");
    if let Some(node) = received.as_ref().filter(|_| !slave) {
        node.problem("this dataset does not receive, because \"slave\" is not true; hint: remove \"after_receive\", or set \"slave\": true if other hosts may send to it");
    }
    let after_receive = received.and_then(|node| hook(&node));
    object.finish();
    Hooks { before_snapshot, after_snapshot, after_receive }
}

fn hook(node: &Node<'_>) -> Option<Hook> {
    let mut object = node.object("an object, as in { \"command\": [\"/usr/local/sbin/freeze\"] }")?;
    let command =
        object.require("command", "the program and its arguments, as in [\"/usr/local/sbin/freeze\", \"db\"]");
    let command = command.and_then(|node| command_line(&node));
    let expected = "a duration, as in \"30s\"";
    let timeout =
        object.get("timeout").map_or(Some(DEFAULT_HOOK_TIMEOUT), |node| duration(&node, expected, TIMEOUT_BOUNDS));
    let aborts = object.get("on_failure").map_or(Some(true), |node| {
        let expected = "\"abort\" or \"continue\"";
        match node.text(expected)?.as_ref() {
            "abort" => Some(true),
            "continue" => Some(false),
            _ => {
                node.unexpected(expected);
                None
            }
        }
    });
    object.finish();
    Some(Hook { command: command?, timeout: timeout?, aborts: aborts? })
}

fn command_line(node: &Node<'_>) -> Option<Vec<String>> {
    let items = node.list("a list of strings: the program and its arguments")?;
    let words: Vec<String> =
        items.iter().map(|item| Some(item.text("a string")?.into_owned())).collect::<Option<_>>()?;
    let is_path = words.first().is_some_and(|program| program.starts_with('/'));
    if !is_path || words.iter().any(|word| word.contains('\0')) {
        node.problem(
            "the list must begin with the absolute path of a program, as in [\"/usr/local/sbin/freeze\", \"db\"]",
        );
        return None;
    }
    Some(words)
}
