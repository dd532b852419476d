//! Reads `properties` of a receiving entry of `local.json`.

use std::collections::BTreeMap;

use glob::Pattern;

use crate::config::json::{Node, Object};
use crate::config::nearest::nearest;
use crate::model::tags::OURS;
use crate::policy::Properties;
use crate::policy::properties::{IN_THE_STREAM, SETTABLE, is_known};

/// Reads the object.
pub(super) fn properties(node: &Node<'_>, slave: bool) -> Option<Properties> {
    let example = "an object, as in { \"include\": [\"compression\"], \"override\": { \"atime\": \"off\" } }";
    let mut object: Object<'_> = node.object(example)?;
    if !slave {
        node.problem("only a receiving dataset has properties set; set \"slave\": true, or leave \"properties\" out");
    }
    let include = object.get("include").map_or_else(Vec::new, |node| patterns(&node, true));
    let exclude = object.get("exclude").map_or_else(Vec::new, |node| patterns(&node, false));
    let overrides = object.get("override").map_or_else(BTreeMap::new, |node| overrides(&node));
    if !object.has("include") && object.has("exclude") {
        node.problem("\"exclude\" means nothing without \"include\": nothing of the source's properties travels unless asked for");
    }
    object.finish();
    Some(Properties::new(include, exclude, overrides))
}

/// Names or patterns of properties.
fn patterns(node: &Node<'_>, asks: bool) -> Vec<Pattern> {
    let items = node.list("a list of property names, as in [\"compression\", \"com.example:*\"]").unwrap_or_default();
    let read = |item: &Node<'_>| {
        let text = item.text("the name of a property, or a pattern with *")?;
        if !text.contains(['*', '?', '[']) && (asks || !is_known(&text)) {
            name(item, &text)?;
        }
        Pattern::new(&text).map_err(|error| item.problem(format!("{text:?} is not a pattern: {error}"))).ok()
    };
    items.iter().filter_map(read).collect()
}

fn overrides(node: &Node<'_>) -> BTreeMap<String, String> {
    let example = "an object with the value of each property, as in { \"compression\": \"zstd\", \"atime\": \"off\" }";
    let Some(object) = node.object(example) else { return BTreeMap::new() };
    let mut all = BTreeMap::new();
    for member in object.into_members() {
        let value = member.node.text("the property's value as a text, as zfs set takes it");
        if name(&member.node, &member.name).is_none() {
            continue;
        }
        if let Some(value) = value {
            all.insert(member.name.into_owned(), value.into_owned());
        }
    }
    all
}

/// Checks that a property can be set on what is received; reports why not.
fn name(node: &Node<'_>, name: &str) -> Option<()> {
    let problem = if name.starts_with(OURS) {
        format!("{name:?} is zsync's own, and is not set from outside")
    } else if IN_THE_STREAM.contains(&name) {
        format!("{name:?} is decided by the stream, and cannot be set on what is received")
    } else if is_known(name) {
        return Some(());
    } else {
        let suggestion = nearest(name, SETTABLE.iter().copied()).map(|near| format!("; did you mean {near:?}?"));
        format!("{name:?} is not a property that can be set{}", suggestion.unwrap_or_default())
    };
    node.problem(problem);
    None
}
