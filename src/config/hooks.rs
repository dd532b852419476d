//! Reads `hooks` of an entry of `local.json`.

use crate::config::json::Node;
use crate::config::quantity::duration;
use crate::policy::hooks::DEFAULT_HOOK_TIMEOUT;
use crate::policy::{Hook, Hooks};

/// An order, and whoever waits for it, waits for its hooks.
const TIMEOUT_BOUNDS: [&str; 2] = ["1s", "1h"];

/// Reads the object; what is wrong is reported.
pub(super) fn hooks(node: &Node<'_>, slave: bool) -> Hooks {
    let example = "an object, as in { \"before_snapshot\": { \"command\": [\"/usr/local/sbin/freeze\"] } }";
    let Some(mut object) = node.object(example) else { return Hooks::default() };
    let mut read = |key| object.get(key).and_then(|node| hook(&node));
    let (before_snapshot, after_snapshot) = (read("before_snapshot"), read("after_snapshot"));
    let received = object.get("after_receive");
    if let Some(node) = received.as_ref().filter(|_| !slave) {
        node.problem("only a receiving dataset receives; set \"slave\": true, or leave \"after_receive\" out");
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
    let allowed = "a duration as in \"30s\"";
    let timeout =
        object.get("timeout").map_or(Some(DEFAULT_HOOK_TIMEOUT), |node| duration(&node, allowed, TIMEOUT_BOUNDS));
    let aborts = object.get("on_failure").map_or(Some(true), |node| {
        let allowed = "\"abort\" or \"continue\"";
        match node.text(allowed)?.as_ref() {
            "abort" => Some(true),
            "continue" => Some(false),
            _ => {
                node.wrong(allowed);
                None
            }
        }
    });
    object.finish();
    Some(Hook { command: command?, timeout: timeout?, aborts: aborts? })
}

fn command_line(node: &Node<'_>) -> Option<Vec<String>> {
    let items = node.list("a list of texts: the program and its arguments")?;
    let words: Vec<String> = items.iter().map(|item| Some(item.text("a text")?.into_owned())).collect::<Option<_>>()?;
    let is_path = words.first().is_some_and(|program| program.starts_with('/'));
    if !is_path || words.iter().any(|word| word.contains('\0')) {
        node.problem("it begins with the path of a program, from the root, as in [\"/usr/local/sbin/freeze\", \"db\"]");
        return None;
    }
    Some(words)
}
