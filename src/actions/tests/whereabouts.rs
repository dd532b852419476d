//! Tests of what `zsync snapshots` shows.

use std::collections::BTreeMap;

use super::*;

/// A policy that sends through two hosts. The listings of [`world`] are from `11-23T00:00`.
fn chain() -> Policy {
    let onward = entry("beta:tank/copy", &["gamma:usb/home"]);
    policy([recursive(entry("alpha:tank/home", &["beta:tank/copy"])), recursive(onward)])
}

/// A line for each place, for each snapshot with a letter for each place, and for what was not listed.
fn lines(policy: &Policy, text: &str, wanted: &str, selection: &Selection) -> Vec<String> {
    let unseen: BTreeMap<HostName, String> =
        text.lines().filter_map(|l| Some((l.strip_suffix(" unseen")?.parse().ok()?, "no answer".to_owned()))).collect();
    let inventory = world(&text.lines().filter(|l| !l.ends_with(" unseen")).collect::<Vec<_>>().join("\n"));
    let mut found = whereabouts(policy, &inventory, &unseen, &place(wanted));
    found.select(selection);
    let exists = |exists: Option<bool>| exists.map_or("unknown", |exists| if exists { "exists" } else { "gone" });
    let role = |role| format!("{role:?}").to_lowercase();
    let places = found.places.iter().map(|p| {
        let listed = if p.listed.is_some() { "" } else { ", never listed" };
        format!("{} {}:{} {}{listed}", role(p.role), p.host, p.dataset, exists(p.exists))
    });
    let letter = |at: &AtPlace| match &at.presence {
        Presence::Present(found) if found.trashed_since.is_some() => 't',
        Presence::Present(found) if found.holds > 0 => 'h',
        Presence::Present(_) => 'x',
        Presence::Absent => '.',
        Presence::Unknown => '?',
    };
    let snapshots = found
        .snapshots
        .iter()
        .map(|s| format!("{} {}", short(&s.name), s.places.iter().map(letter).collect::<String>()));
    let unlisted = found.unlisted.iter().map(|u| {
        let pool = u.pool.as_ref().map(|pool| format!(":{pool}")).unwrap_or_default();
        format!("{}{pool}: {}", u.host, u.reason.as_deref().unwrap_or("never listed"))
    });
    places.chain(snapshots).chain(unlisted).collect()
}

#[test]
fn snapshots_are_found_at_every_place_and_unknown_is_never_absent() {
    let all = "alpha:tank/home B@11-22T01:00\nbeta:tank/copy B@11-22T01:00\ngamma:usb/home B@11-22T01:00";
    let cases: &[(&str, &str, &str, &[&str])] = &[
        (
            "newest first, through a chain of hosts, held and in the trash",
            "alpha:tank/home trash=7days B@11-22T01:00* B@11-22T02:00! B@11-22T03:00
             beta:tank/copy B@11-22T01:00 B@11-22T02:00!
             gamma:usb/home B@11-21T01:00 B@11-22T01:00!",
            "alpha:tank/home",
            &[
                "source alpha:tank/home exists",
                "copy beta:tank/copy exists",
                "copy gamma:usb/home exists",
                "B@11-22T03:00 x..",
                "B@11-22T02:00 hh.",
                "B@11-22T01:00 txh",
                "B@11-21T01:00 ..x",
            ],
        ),
        (
            "asked for the last copy",
            all,
            "gamma:usb/home",
            &[
                "source alpha:tank/home exists",
                "copy beta:tank/copy exists",
                "copy gamma:usb/home exists",
                "B@11-22T01:00 xxx",
            ],
        ),
        (
            "the source is gone, one host was never listed",
            "alpha\nbeta:tank/copy/docs B@11-22T01:00\ngamma?",
            "alpha:tank/home/docs",
            &[
                "source alpha:tank/home/docs gone",
                "copy beta:tank/copy/docs exists",
                "copy gamma:usb/home/docs unknown, never listed",
                "B@11-22T01:00 .x?",
                "gamma: never listed",
            ],
        ),
        (
            "the pool of a copy is not imported: what it had is known, what it lacked is not",
            "alpha:tank/home B@11-22T01:00 B@11-22T02:00\nbeta:tank/copy\ngamma:usb/home B@11-22T01:00\ngamma:usb?",
            "alpha:tank/home",
            &[
                "source alpha:tank/home exists",
                "copy beta:tank/copy exists",
                "copy gamma:usb/home unknown",
                "B@11-22T02:00 x.?",
                "B@11-22T01:00 x.x",
                "gamma:usb: it is not imported",
            ],
        ),
        (
            "a snapshot was taken after the listing of the copies, or in its last second",
            "alpha:tank/home B@11-22T23:59 B@11-23T00:00 B@11-23T00:10\nbeta:tank/copy B@11-23T00:10\ngamma\ngamma unseen",
            "alpha:tank/home",
            &[
                "source alpha:tank/home exists",
                "copy beta:tank/copy exists",
                "copy gamma:usb/home gone",
                "B@11-23T00:10 xx?",
                "B@11-23T00:00 x??",
                "B@11-22T23:59 x..",
                "gamma: no answer",
            ],
        ),
        (
            "a restored dataset, and one that the catalog alone still has",
            "alpha:tank/home B@11-22T01:00~ B@11-22T02:00\nbeta\ngamma\nalpha:tank/friday B@11-22T02:00>mine",
            "alpha:tank/home",
            &[
                "source alpha:tank/home exists",
                "copy beta:tank/copy gone",
                "copy gamma:usb/home gone",
                "other alpha:tank/friday exists",
                "B@11-22T02:00 x..x",
            ],
        ),
        (
            "a dataset without a policy",
            "alpha:tank/own B@11-22T01:00\nbeta\ngamma\ndelta:tank/own B@11-22T01:00",
            "alpha:tank/own",
            &["other alpha:tank/own exists", "other delta:tank/own exists", "B@11-22T01:00 xx"],
        ),
        ("nobody knows the dataset", "alpha\nbeta\ngamma", "alpha:tank/hom", &["other alpha:tank/hom gone"]),
    ];
    for (what, world, wanted, expected) in cases {
        assert_eq!(lines(&chain(), world, wanted, &Selection::default()), *expected, "{what}");
    }
}

#[test]
fn selection_leaves_the_wanted_snapshots_and_places() {
    let world = "alpha:tank/home B@11-22T01:00 B@11-22T02:00 B@11-22T03:00 B@11-23T01:00
                 beta:tank/copy B@11-22T01:00 B@11-22T03:00";
    let at = |text: &str| Some(utc(text));
    let host = |name: &str| Some(name.parse().unwrap());
    let cases: &[(Selection, &[&str])] = &[
        (
            Selection { since: at("11-22T02:00"), until: at("11-22T03:00"), host: None },
            &[
                "source alpha:tank/home exists",
                "copy beta:tank/copy exists",
                "copy gamma:usb/home unknown, never listed",
                "B@11-22T03:00 xx?",
                "B@11-22T02:00 x.?",
                "gamma: never listed",
            ],
        ),
        (
            Selection { host: host("beta"), ..Selection::default() },
            // The first one may have arrived since.
            &["copy beta:tank/copy exists", "B@11-23T01:00 ?", "B@11-22T03:00 x", "B@11-22T01:00 x"],
        ),
        (
            Selection { host: host("gamma"), until: at("11-22T01:00"), since: None },
            &["copy gamma:usb/home unknown, never listed", "B@11-22T01:00 ?", "gamma: never listed"],
        ),
        (Selection { host: host("delta"), ..Selection::default() }, &[]),
    ];
    for (selection, expected) in cases {
        assert_eq!(lines(&chain(), world, "alpha:tank/home", selection), *expected, "{selection:?}");
    }
}

#[test]
fn hosts_that_send_to_each_other_are_shown_once() {
    let both = policy([
        entry("alpha:tank/a", &["beta:tank/a"]),
        with_policy(entry("beta:tank/a", &["alpha:tank/a"]), |p| p.prefix = "C".parse().unwrap()),
    ]);
    let world = "alpha:tank/a B@11-22T01:00 C@11-22T02:00\nbeta:tank/a B@11-22T01:00";
    assert_eq!(
        lines(&both, world, "alpha:tank/a", &Selection::default()),
        ["copy alpha:tank/a exists", "copy beta:tank/a exists", "C@11-22T02:00 x.", "B@11-22T01:00 xx"]
    );
}
