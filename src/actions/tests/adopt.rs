//! Tests of the policy that is inferred from what hosts have.

use super::*;
use crate::actions::{self, MARGIN};
use crate::config::{draft, parse_policy};

const NOW: &str = "11-23T12:30";

/// An inventory in which these places were received.
fn received(text: &str, copies: &[&str]) -> Inventory {
    let mut inventory = world(text);
    for copy in copies {
        let Place { host, dataset } = place(copy);
        let known = inventory.hosts.get_mut(&host).unwrap();
        known.datasets.get_mut(&dataset).unwrap().flags = Some(SendFlags::PLAIN);
    }
    inventory
}

/// Lets a source have a cursor for a destination, at a snapshot that the destination has.
fn cursor(inventory: &mut Inventory, from: &str, to: &str) {
    let (from, to) = (place(from), place(to));
    let copy = inventory.dataset(&to.host, &to.dataset).cloned().unwrap_or_default();
    let guid = copy.newest().map_or(Guid(7), |newest| newest.guid);
    let source = inventory.hosts.get_mut(&from.host).unwrap().datasets.get_mut(&from.dataset).unwrap();
    let name = tags::cursor(&from.dataset, &to, guid, None).unwrap();
    source.bookmarks.push(Bookmark { name, guid, createtxg: 1, creation: utc("11-22T00:00") });
}

fn base() -> Policy {
    parse_policy("(empty)", r#"{ "datasets": [] }"#).unwrap()
}

/// A line for each policy that was inferred, and the notes. Asserts that the policy is valid, and that a pass with it
/// destroys nothing.
fn inferred(inventory: &Inventory) -> (Vec<String>, Vec<String>) {
    let adopted = actions::adopt(base(), inventory, utc(NOW));
    let text = draft(&adopted.policy).unwrap();
    let policy = parse_policy("server.json", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    for at in [utc(NOW), utc(NOW) + MARGIN] {
        let plan = decide(&policy, inventory, at);
        assert!(plan.prunes.iter().all(|verdict| verdict.destroy.is_empty()), "{at} {text} {plan:?}");
    }
    let mut lines = Vec::new();
    for entry in &policy.datasets {
        let below = if entry.recursive { "/**" } else { "" };
        let out: String = entry.exclude.patterns().map(|name| format!(" -{name}")).collect();
        for of in &entry.policies {
            let to: String = of.sync_on.iter().map(|to| format!(" > {to}")).collect();
            let schedule = of.creation.as_ref().map_or_else(|| "never".to_owned(), ToString::to_string);
            lines.push(format!("{}:{}{below}{out} {} [{schedule}]{to}", entry.hostname, entry.dataset, of.prefix));
        }
    }
    (lines, adopted.notes)
}

#[test]
fn adopt_finds_copies_of_a_tree_and_datasets_of_one_host() {
    let three = "B@11-23T09:00 B@11-23T10:00 B@11-23T11:00";
    let docs = "B@11-23T09:00=2 B@11-23T10:00=2 B@11-23T11:00=2";
    let mut inventory = received(
        &format!(
            "alpha:tank/home {three}\nalpha:tank/home/docs {docs}\nalpha:tank/home/tmp\nalpha:tank/vm W@11-15T00:00 W@11-22T00:00
             alpha:tank/own by-hand\nbeta:pool/copy {three}\nbeta:pool/copy/docs {docs}"
        ),
        &["beta:pool/copy", "beta:pool/copy/docs"],
    );
    cursor(&mut inventory, "alpha:tank/home", "beta:pool/copy");
    cursor(&mut inventory, "alpha:tank/home/docs", "beta:pool/copy/docs");
    let (lines, notes) = inferred(&inventory);
    assert_eq!(lines, ["alpha:tank/home/** -tmp B [0 * * * *] > beta:pool/copy", "alpha:tank/vm W [0 0 * * 0]"]);
    assert_eq!(notes, Vec::<String>::new());
    // After the source was restored, it has no cursors: shared snapshots show the same.
    for found in inventory.hosts.values_mut().flat_map(|known| known.datasets.values_mut()) {
        found.bookmarks.clear();
    }
    assert_eq!(inferred(&inventory).0, lines);
}

#[test]
fn adopt_finds_chains_and_several_prefixes() {
    let (old, new) = ("B@11-23T09:00 S@11-23T09:05", "B@11-23T10:00 S@11-23T10:00 S@11-23T10:05 S@11-23T10:10");
    let mut inventory = received(
        &format!("alpha:tank/a {old} {new}\nbeta:pool/a {old} {new}\ngamma:usb/a {old}"),
        &["beta:pool/a", "gamma:usb/a"],
    );
    cursor(&mut inventory, "alpha:tank/a", "beta:pool/a");
    cursor(&mut inventory, "beta:pool/a", "gamma:usb/a");
    assert_eq!(
        inferred(&inventory).0,
        [
            "alpha:tank/a B [0 * * * *]",
            "alpha:tank/a S [*/5 * * * *] > beta:pool/a",
            "beta:pool/a S [never] > gamma:usb/a"
        ]
    );
    // A loop: what the source was restored from is no destination of its own copy.
    cursor(&mut inventory, "beta:pool/a", "alpha:tank/a");
    let (lines, notes) = inferred(&inventory);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(notes, ["beta:pool/a was also sent to alpha:tank/a, from which it comes itself"]);
}

#[test]
fn adopt_says_what_it_leaves_out() {
    let two = "B@11-23T09:00 B@11-23T10:00";
    let mut inventory = received(
        &format!(
            "alpha:tank/a {two}\nalpha:tank/b B@11-23T10:00=2\nalpha:tank/c autosnap_1\nbeta:pool/b B@11-01T00:00=3
             beta:pool/c autosnap_1\nbeta:pool/lost X@11-23T09:00\nalpha:tank/once O@11-23T09:00"
        ),
        &["beta:pool/b", "beta:pool/c", "beta:pool/lost"],
    );
    for (from, to) in [
        ("alpha:tank/a", "gamma:usb/a"),
        ("alpha:tank/a", "beta:pool/gone"),
        ("alpha:tank/b", "beta:pool/b"),
        ("alpha:tank/c", "beta:pool/c"),
    ] {
        cursor(&mut inventory, from, to);
    }
    // The cursor is older than all that the copy still has.
    let (lines, notes) = inferred(&inventory);
    assert_eq!(lines[0], "alpha:tank/a B [0 * * * *]");
    let notes = notes.join("\n");
    for part in [
        "(alpha:tank/a to gamma:usb/a): gamma was not asked; hint: name it as well",
        "(alpha:tank/a to beta:pool/gone): beta has no such dataset any more",
        "the transfer of alpha:tank/c to beta:pool/c: the name of the last snapshot that was sent, autosnap_1, has no",
        "whose source is on none of the hosts that were listed, or was destroyed (beta:pool/lost)",
        "alpha:tank/once: the snapshots O_... show no schedule",
    ] {
        assert!(notes.contains(part), "{part}\n{notes}");
    }
}

#[test]
fn adopt_leaves_out_what_is_set_aside() {
    let two = "B@11-23T09:00 B@11-23T10:00";
    let mut inventory =
        received(&format!("alpha:tank/a {two}\nalpha:tank/a_set_aside {two}\nbeta:pool/a {two}"), &["beta:pool/a"]);
    cursor(&mut inventory, "alpha:tank/a_set_aside", "beta:pool/a");
    let known = inventory.hosts.get_mut(&place("alpha:tank").host).unwrap();
    known.datasets.get_mut(&place("alpha:tank/a_set_aside").dataset).unwrap().excluded = true;
    assert_eq!(inferred(&inventory), (vec!["alpha:tank/a B [0 * * * *] > beta:pool/a".to_owned()], Vec::new()));
}

#[test]
fn adopt_drops_rules_that_would_destroy_something() {
    // Dated in the future, as after a wrong clock, in between, and long ago.
    let odd = "B@01-01T00:00 B@11-30T09:00 B@11-23T10:00 B@03-01T00:00+9000h B@11-23T11:00";
    for text in [format!("alpha:tank/a {odd}"), format!("alpha:tank/a {odd}\nbeta:pool/a {odd}")] {
        let copies: &[&str] = if text.contains("beta") { &["beta:pool/a"] } else { &[] };
        let (lines, _) = inferred(&received(&text, copies));
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
}
