//! Tests of the search for what transfers have left for destinations that the policy no longer has.

use super::*;
use crate::actions::leftovers::in_words;

/// What is left, one line for each dataset and destination. `holds` adds tags of holds to datasets.
fn found(policy: &Policy, world_text: &str, holds: &[(&str, &str)]) -> Vec<String> {
    let all = leftovers(policy, &PolicyIndex::new(policy), &with_holds(world_text, holds));
    let line = |left: &Leftover| {
        format!("{}:{} {} {}", left.host, left.dataset, left.to, in_words(left.holds, left.bookmarks))
    };
    all.iter().map(line).collect()
}

fn with_holds(world_text: &str, holds: &[(&str, &str)]) -> Inventory {
    let mut inventory = world(world_text);
    for (of, to) in holds {
        let Place { host, dataset } = place(of);
        let known = inventory.hosts.get_mut(&host).unwrap().datasets.get_mut(&dataset).unwrap();
        known.transfer_holds.push(tags::sending(&place(to)));
    }
    inventory
}

const CURSOR: &str = "#zsync:beta:tank:copy:00000000000000aa:00000000000000bb";

#[test]
fn leftovers_are_of_destinations_that_the_policy_no_longer_has() {
    let kept = policy([entry("alpha:tank/foo", &["beta:tank/copy"])]);
    let moved = policy([entry("alpha:tank/foo", &["beta:tank/other"])]);
    let alpha = format!("beta\nalpha:tank/foo B@11-23T09:00! {CURSOR}");
    let hold = [("alpha:tank/foo", "beta:tank/copy")];
    assert!(found(&kept, &alpha, &hold).is_empty());
    assert_eq!(found(&moved, &alpha, &hold), ["alpha:tank/foo beta:tank/copy 1 hold and 1 bookmark"]);
    assert_eq!(found(&moved, &alpha, &[]), ["alpha:tank/foo beta:tank/copy 1 bookmark"]);
    // A hold of somebody else and a bookmark made by hand are none.
    assert!(found(&moved, "beta\nalpha:tank/foo B@11-23T09:00! #mine #zsync:mine", &[]).is_empty());
    // The dataset itself is no longer in the policy.
    let other = policy([entry("alpha:tank/bar", &["beta:tank/bar"])]);
    assert_eq!(found(&other, &alpha, &hold), ["alpha:tank/foo beta:tank/copy 1 hold and 1 bookmark"]);
}

#[test]
fn leftovers_are_not_what_may_still_be_needed() {
    let moved = || entry("alpha:tank/foo", &["beta:tank/other"]);
    let tree = || DatasetPolicy { recursive: true, ..entry("gamma:pool/data", &["beta:tank"]) };
    let alpha = format!("beta\nalpha:tank/foo B@11-23T09:00 {CURSOR}");
    // Another dataset has this destination: it exists, or its host or its pool has not been listed.
    let policy = policy([moved(), tree()]);
    assert!(found(&policy, &format!("{alpha}\ngamma:pool/data\ngamma:pool/data/copy"), &[]).is_empty());
    assert!(found(&policy, &format!("{alpha}\ngamma?"), &[]).is_empty());
    assert!(found(&policy, &format!("{alpha}\ngamma:pool?"), &[]).is_empty());
    assert_eq!(found(&policy, &format!("{alpha}\ngamma:pool/data"), &[]).len(), 1);
    // The hosts and pools of what is left have to be listed themselves.
    assert!(found(&policy, &format!("{}\ngamma:pool/data", alpha.replace("alpha:", "alpha?:")), &[]).is_empty());
    assert!(found(&policy, &format!("{alpha}\nalpha:tank?\ngamma:pool/data"), &[]).is_empty());
}

#[test]
fn leftovers_are_not_those_of_a_renamed_source() {
    let tree = policy([DatasetPolicy { recursive: true, ..entry("alpha:tank", &["beta:tank"]) }]);
    assert!(found(&tree, &format!("beta\nalpha:tank\nalpha:tank/renamed {CURSOR}"), &[]).is_empty());
    let flat = policy([entry("alpha:tank", &["beta:tank"])]);
    assert_eq!(found(&flat, &format!("beta\nalpha:tank\nalpha:tank/child {CURSOR}"), &[]).len(), 1);
}

#[test]
fn leftovers_of_long_names_are_found_by_their_uuid() {
    let long = format!("beta:tank/{}", "d".repeat(245));
    let kept = policy([entry("alpha:tank/foo", &[&long])]);
    let moved = policy([entry("alpha:tank/foo", &["beta:tank/other"])]);
    let hold = [("alpha:tank/foo", long.as_str())];
    let alpha = "beta\nalpha:tank/foo B@11-23T09:00!";
    assert!(found(&kept, alpha, &hold).is_empty());
    let [line] = found(&moved, alpha, &hold).try_into().unwrap();
    let uuid = line.split(' ').nth(1).unwrap().parse::<SentTo>().unwrap();
    assert!(uuid.is_uuid() && uuid.is_within(&long.parse().unwrap()), "{line}");
}

#[test]
fn leftovers_are_one_notice_and_one_finding_for_each_host() {
    let policy = policy([entry("alpha:tank/foo", &["beta:tank/other"])]);
    let inventory = with_holds(
        "beta\nalpha:tank/foo B@11-23T12:00",
        &[("alpha:tank/foo", "beta:tank/copy"), ("alpha:tank/foo", "beta:tank/copy/below")],
    );
    let now = utc("11-23T12:00");
    let notices: Vec<String> = decide(&policy, &inventory, now).notices.iter().map(ToString::to_string).collect();
    let text = "alpha has 2 holds of transfers to beta:tank/copy, where the policy no longer sends anything";
    assert_eq!(notices, [text]);
    let health = health(&policy, &inventory, &Default::default(), now);
    let findings: Vec<String> = health.findings().into_iter().map(|(_, text)| text).collect();
    assert_eq!(findings, [format!("alpha: {}; see zsync forget beta:tank/copy", &text[6..])]);
}

#[test]
fn copies_are_given_up_only_where_nobody_sends() {
    let policy = policy([entry("alpha:tank/foo", &["beta:tank/copy/used"])]);
    let mut inventory = world(
        "alpha:tank/foo B@11-23T09:00!\nalpha:tank/mine B@11-23T09:00!\nbeta:tank/copy B@11-23T09:00!\n\
         beta:tank/copy/used B@11-23T09:00!\nbeta:tank/copy/free\n\
         beta:tank/copy-2 B@11-23T09:00!",
    );
    for copy in ["alpha:tank/foo", "beta:tank/copy", "beta:tank/copy/used", "beta:tank/copy-2"] {
        let Place { host, dataset } = place(copy);
        let known = inventory.hosts.get_mut(&host).unwrap().datasets.get_mut(&dataset).unwrap();
        known.transfer_holds.push(tags::received(&"gamma".parse().unwrap()));
    }
    let (index, to) = (PolicyIndex::new(&policy), "beta:tank/copy".parse().unwrap());
    assert_eq!(copies_given_up(&policy, &index, &inventory, Some(&to)), [place("beta:tank/copy")]);
    // A source that was a copy before it was restored.
    let restored = "alpha:tank/foo".parse().unwrap();
    assert_eq!(copies_given_up(&policy, &index, &inventory, Some(&restored)), [place("alpha:tank/foo")]);
    // A hold of somebody else does not make a copy.
    let mine = "alpha:tank/mine".parse().unwrap();
    assert!(copies_given_up(&policy, &index, &inventory, Some(&mine)).is_empty());
    // Without a destination, what lies below a target of the policy may be a copy whose source is away.
    let all = ["alpha:tank/foo", "beta:tank/copy", "beta:tank/copy-2"].map(place);
    assert_eq!(copies_given_up(&policy, &index, &inventory, None), all);
    assert_eq!(senders_to(&policy, &index, &inventory, &to), [place("alpha:tank/foo")]);
    assert!(senders_to(&policy, &index, &inventory, &"beta:tank/copy/free".parse().unwrap()).is_empty());
}
