use chrono::DateTime;

use super::*;

/// Snapshots in one line: `a1 b2 x9` are snapshots named a, b and x with the guids 1, 2 and 9, oldest first.
fn snapshots(line: &str) -> Vec<Snapshot> {
    let parse = |(i, word): (usize, &str)| Snapshot {
        name: word[..1].parse().unwrap(),
        guid: Guid(word[1..].parse().unwrap()),
        createtxg: i as u64 * 10,
        creation: DateTime::UNIX_EPOCH,
        userrefs: 0,
        has_clones: false,
        used: 0,
        marks: Default::default(),
    };
    line.split_whitespace().enumerate().map(parse).collect()
}

/// The destination.
fn copy() -> DatasetName {
    "pool/copy".parse().unwrap()
}

/// Plans a transfer from a source that has bookmarks of the snapshots named in `marked`, and of whose snapshots only
/// those named in `keep` still exist.
fn plan(source: &str, keep: &str, marked: &str, destination: &str, target: u64) -> Result<Transfer, Conflict> {
    let all = snapshots(source);
    let is_in = |s: &Snapshot, line: &str| line.split_whitespace().any(|w| w == s.name.as_str());
    let bookmarks: Vec<Bookmark> = all
        .iter()
        .filter(|s| is_in(s, marked))
        .map(|s| Bookmark { name: s.name.clone(), guid: s.guid, createtxg: s.createtxg, creation: s.creation })
        .collect();
    let source: Vec<Snapshot> = all.into_iter().filter(|s| is_in(s, keep)).collect();
    steps(&copy(), &source, &bookmarks, &snapshots(destination), None, None, Guid(target))
}

/// A result in one line.
fn render(result: Result<Transfer, Conflict>) -> String {
    let list = |points: &[Point]| points.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(" ");
    match result {
        Ok(Transfer::NothingToDo) => "nothing to do".to_owned(),
        Ok(Transfer::MostActual { newest }) => format!("has {}", newest.name),
        Ok(Transfer::WasRenamed { there }) => format!("there as {there}"),
        Ok(Transfer::Steps { steps }) => {
            let show = |step: &Step| match step {
                Step::Resume { token } => format!("-t {token}"),
                Step::Discard { token } => format!("abort {token}"),
                Step::Full { to } => format!("@{}", to.name),
                Step::Incremental { from, to, intermediates } => {
                    let flag = if *intermediates { "-I" } else { "-i" };
                    match from {
                        Base::Snapshot(from) => format!("{flag} @{} @{}", from.name, to.name),
                        Base::Bookmark(from) => format!("{flag} #{} @{}", from.name, to.name),
                        Base::Origin(of, _) => format!("{flag} {} @{}", of.dataset.at(&of.name), to.name),
                    }
                }
            };
            steps.iter().map(show).collect::<Vec<_>>().join(", ")
        }
        Err(Conflict::NoSuchSnapshot { guid }) => format!("no {guid}"),
        Err(Conflict::Diverged { common, ours, theirs, .. }) => {
            format!("diverged after {}: ours {}, theirs {}", common.name, list(&ours), list(&theirs))
        }
        Err(Conflict::NameTaken { name, here }) => {
            format!("{name} taken{}", here.map(|here| format!(" by {here}")).unwrap_or_default())
        }
        Err(Conflict::NameTooLong { name }) => format!("{} too long", name.as_str().len()),
        Err(Conflict::NotEmpty { ours, theirs }) => {
            format!("not empty: ours {}, theirs {}", list(&ours), list(&theirs))
        }
    }
}

#[test]
fn steps_lead_to_the_target() {
    let all = "a b c d";
    for (keep, marked, destination, target, expected) in [
        // A first copy, with its history.
        (all, "", "", 4, "@a, -I @a @d"),
        ("d", "", "", 4, "@d"),
        (all, "", "", 1, "@a"),
        (all, "a b", "", 3, "@a, -I @a @c"),
        // Increments.
        (all, "", "a1", 4, "-I @a @d"),
        (all, "", "a1 b2 c3", 4, "-i @c @d"),
        (all, "", "a1 c3", 4, "-i @c @d"),
        (all, "", "a1", 2, "-i @a @b"),
        (all, "", "z1", 4, "-I @a @d"),
        // From a bookmark to the next snapshot, then from there.
        ("c d", "a", "a1", 4, "-i #a @c, -i @c @d"),
        ("d", "a", "a1", 4, "-i #a @d"),
        ("a c d", "a b", "a1 b2", 4, "-i #b @c, -i @c @d"),
        ("a b c d", "b", "a1 b2", 4, "-I @b @d"),
        ("b d", "a c", "a1 b2", 4, "-i @b @d"),
        // The destination already has the snapshot.
        (all, "", "a1 d4", 4, "nothing to do"),
        (all, "", "a1 d4 x9", 4, "nothing to do"),
        (all, "", "a1 z4", 4, "there as z"),
        (all, "", "a1 c3", 2, "has c"),
        (all, "", "c3 d4", 3, "has d"),
        ("a b", "c", "a1 c3", 2, "has c"),
        // A snapshot whose name another one has there is left out, unless it is the target.
        (all, "", "b9 a1", 4, "-i @a @c, -i @c @d"),
        (all, "", "b8 c9 a1", 4, "-i @a @d"),
        (all, "", "c9 a1", 4, "-i @a @b, -i @b @d"),
        ("c d", "a", "c9 a1", 4, "-i #a @d"),
        (all, "", "d9 a1", 3, "-I @a @c"),
        (all, "", "d9 a1", 4, "d taken"),
        (all, "", "d1", 4, "d taken by a"),
        // Conflicts.
        (all, "", "a1 x9", 4, "diverged after a: ours b c d, theirs x"),
        (all, "", "x8 a1 x9 y10", 2, "diverged after a: ours b, theirs x y"),
        ("a c d", "", "a1 b2", 4, "diverged after a: ours c d, theirs b"),
        ("c d", "b", "b2 x9", 4, "diverged after b: ours c d, theirs x"),
        (all, "", "x9", 2, "not empty: ours a b, theirs x"),
        (all, "", "x8 a1", 4, "-I @a @d"),
        (all, "", "a1", 5, "no 5"),
        ("a b", "d", "d4", 2, "has d"),
    ] {
        let found = render(plan("a1 b2 c3 d4", keep, marked, destination, target));
        assert_eq!(
            found, expected,
            "keep {keep:?}, bookmarks {marked:?}, destination {destination:?}, target {target}"
        );
    }
}

#[test]
fn interrupted_receive_is_resumed_or_discarded() {
    let source = snapshots("a1 b2 c3");
    let go = |destination: &str, to: Option<u64>, target: u64| {
        let resume = Resume { token: "T".to_owned(), to: to.map(Guid) };
        render(steps(&copy(), &source, &[], &snapshots(destination), Some(&resume), None, Guid(target)))
    };
    assert_eq!(go("a1", Some(2), 3), "-t T");
    assert_eq!(go("", Some(1), 3), "-t T");
    assert_eq!(go("a1", None, 3), "-t T", "a token that cannot be read is used nevertheless");
    assert_eq!(go("a1", Some(9), 3), "abort T, -I @a @c", "the source no longer has it");
    assert_eq!(go("a1 b2", Some(2), 3), "abort T, -i @b @c", "the destination already has it");
    assert_eq!(go("a1", Some(3), 2), "abort T, -i @a @b", "it is newer than the target");
    assert_eq!(go("", Some(9), 3), "abort T, @a, -I @a @c");
    assert_eq!(go("a1 c3", Some(2), 3), "nothing to do");
    assert_eq!(go("a1 x9", Some(2), 3), "diverged after a: ours b c, theirs x");
}

#[test]
fn snapshot_whose_name_would_be_too_long_is_left_out() {
    let deep: DatasetName = format!("pool/{}", "d".repeat(240)).parse().unwrap();
    // Nine bytes are left for the name.
    let long = |at: usize, of: &mut Vec<Snapshot>| of[at].name = "ten_bytes_".parse().unwrap();
    let go = |at: usize, destination: &str, target: u64| {
        let mut source = snapshots("a1 b2 c3 d4");
        long(at, &mut source);
        render(steps(&deep, &source, &[], &snapshots(destination), None, None, Guid(target)))
    };
    assert_eq!(go(1, "a1", 4), "-i @a @c, -i @c @d");
    assert_eq!(go(2, "a1", 4), "-i @a @b, -i @b @d");
    assert_eq!(go(2, "", 4), "@a, -i @a @b, -i @b @d");
    assert_eq!(go(0, "", 4), "@b, -I @b @d");
    assert_eq!(go(0, "", 2), "@b");
    assert_eq!(go(3, "a1", 4), "10 too long");
    assert_eq!(go(3, "", 4), "10 too long");
    assert_eq!(go(3, "a1", 3), "-I @a @c");
}

#[test]
fn clone_starts_from_its_origin_if_the_destination_has_it() {
    let origin = (Origin { dataset: "tank/o".parse().unwrap(), name: "x".parse().unwrap() }, Guid(7));
    let source = snapshots("a1 b2 c3");
    let go = |destination: &str, origin, target| {
        render(steps(&copy(), &source, &[], &snapshots(destination), None, origin, Guid(target)))
    };
    assert_eq!(go("", Some(&origin), 3), "-i tank/o@x @a, -I @a @c");
    assert_eq!(go("", Some(&origin), 1), "-i tank/o@x @a");
    assert_eq!(go("", None, 3), "@a, -I @a @c", "in full if the destination lacks the origin");
    assert_eq!(go("a1", Some(&origin), 3), "-I @a @c", "an ordinary increment");
    assert_eq!(go("x9", Some(&origin), 3), "not empty: ours a b c, theirs x");
    let resume = Resume { token: "T".to_owned(), to: Some(Guid(1)) };
    assert_eq!(render(steps(&copy(), &source, &[], &[], Some(&resume), Some(&origin), Guid(3))), "-t T");
}

#[test]
fn rolled_back_source_is_distinguished_from_diverged_destination() {
    let source = snapshots("a1 d4");
    let mut destination = snapshots("a1 b2 c3");
    let received = |destination: &[Snapshot]| match steps(&copy(), &source, &[], destination, None, None, Guid(4)) {
        Err(Conflict::Diverged { received, .. }) => received,
        other => panic!("{other:?}"),
    };
    assert!(!received(&destination));
    destination[2].userrefs = 1;
    assert!(received(&destination), "a held snapshot on the destination came from the source");
}

#[test]
fn conflict_messages_count_snapshots() {
    let diverged = plan("a1 b2 c3", "a b c", "", "a1 x9 y8", 3).unwrap_err();
    assert_eq!(
        diverged.to_string(),
        "the destination has diverged: since a, the newest common snapshot, the destination has 2 of its own, and the source 2"
    );
    let not_empty = plan("a1", "a", "", "x9", 1).unwrap_err();
    assert_eq!(not_empty.to_string(), "the destination is not empty, and has no snapshot in common with the source");
}

/// Changes lists of guids as ZFS would change the snapshots by these steps.
fn carry_out(steps: &[Step], source: &[u64], bookmarks: &[u64], destination: &mut Vec<u64>) -> Result<(), String> {
    for step in steps {
        match step {
            Step::Resume { .. } | Step::Discard { .. } => return Err("there is nothing to resume".to_owned()),
            Step::Full { to } => {
                if !destination.is_empty() || !source.contains(&to.guid.0) {
                    return Err(format!("{step:?} into {destination:?}"));
                }
                destination.push(to.guid.0);
            }
            Step::Incremental { from, to, intermediates } => {
                let known_snapshot = matches!(from, Base::Snapshot(_));
                let (from, known) = match from {
                    Base::Snapshot(p) => (p.guid.0, source.contains(&p.guid.0)),
                    Base::Bookmark(p) => (p.guid.0, bookmarks.contains(&p.guid.0) && !intermediates),
                    Base::Origin(_, guid) => return Err(format!("{guid} is not the guid of an origin")),
                };
                let to = to.guid.0;
                if !known || destination.last() != Some(&from) || !source.contains(&to) || to <= from {
                    return Err(format!("{step:?} into {destination:?}"));
                }
                let between: Vec<u64> = source.iter().copied().filter(|s| *s > from && *s < to).collect();
                // An increment must include all snapshots between, except from a bookmark.
                if *intermediates == between.is_empty() && known_snapshot {
                    return Err(format!("{step:?} with {between:?} between"));
                }
                destination.extend(between.into_iter().filter(|_| *intermediates));
                destination.push(to);
            }
        }
    }
    Ok(())
}

/// Tries every world with up to five snapshots: which of them the source still has, which of them have bookmarks there,
/// which of them the destination has, which snapshot of its own the destination has and where, and which snapshot is
/// wanted.
#[test]
fn steps_agree_with_a_model_on_all_small_inputs() {
    const SIZE: u64 = 5;
    let subset = |mask: u64| (1..=SIZE).filter(move |i| mask >> (i - 1) & 1 == 1);
    let point_of = |guid: u64| Snapshot { name: format!("s{guid}").parse().unwrap(), ..snapshots("a1")[0].clone() };
    let make = |guids: &[u64]| -> Vec<Snapshot> {
        guids.iter().map(|g| Snapshot { guid: Guid(*g), createtxg: *g * 10, ..point_of(*g) }).collect()
    };
    let (mut worlds, mut conflicts) = (0, 0);
    for (have, marked) in (1..1 << SIZE).flat_map(|h| (0..1 << SIZE).map(move |m| (h, m))) {
        let (source, bookmarks): (Vec<u64>, Vec<u64>) = (subset(have).collect(), subset(marked).collect());
        let sources = make(&source);
        let as_bookmark =
            |s: Snapshot| Bookmark { name: s.name, guid: s.guid, createtxg: s.createtxg, creation: s.creation };
        let marks: Vec<Bookmark> = make(&bookmarks).into_iter().map(as_bookmark).collect();
        for there in 0..1 << SIZE {
            let shared: Vec<u64> = subset(there).collect();
            // The destination has a snapshot of its own at each position in turn, or none.
            for foreign in (0..=shared.len()).map(Some).chain([None]) {
                let mut destination = shared.clone();
                foreign.into_iter().for_each(|at| destination.insert(at, 100));
                let destinations: Vec<Snapshot> = {
                    let mut list = make(&destination);
                    (0..).zip(&mut list).for_each(|(i, s)| s.createtxg = 1000 + i);
                    list
                };
                for target in &source {
                    worlds += 1;
                    let result = steps(&copy(), &sources, &marks, &destinations, None, None, Guid(*target));
                    let world = || format!("{source:?} #{bookmarks:?} -> {destination:?}, {target}: {result:?}");

                    let known = |g: &u64| source.contains(g) || bookmarks.contains(g);
                    let common = destination.iter().filter(|g| known(g)).max();
                    let own_after = common.map(|c| {
                        let at = destination.iter().position(|d| d == c).unwrap();
                        destination[at + 1..].to_vec()
                    });
                    match (&result, common, own_after) {
                        (Ok(Transfer::NothingToDo), Some(c), _) => assert_eq!(c, target, "{}", world()),
                        (Ok(Transfer::MostActual { newest }), Some(c), _) => {
                            assert!(newest.guid.0 > *target && newest.guid.0 <= *c, "{}", world());
                        }
                        (Err(Conflict::Diverged { common: at, ours, theirs, .. }), Some(c), Some(after)) => {
                            conflicts += 1;
                            assert!(!after.is_empty() && c < target && at.guid.0 == *c, "{}", world());
                            assert_eq!(theirs.iter().map(|p| p.guid.0).collect::<Vec<_>>(), after, "{}", world());
                            let expected = source.iter().filter(|s| **s > *c && *s <= target);
                            assert!(ours.iter().map(|p| &p.guid.0).eq(expected), "{}", world());
                        }
                        (Err(Conflict::NotEmpty { .. }), None, _) => {
                            conflicts += 1;
                            assert!(!destination.is_empty(), "{}", world());
                        }
                        (Ok(Transfer::Steps { steps }), _, after) => {
                            assert!(after.is_none_or(|a| a.is_empty()), "{}", world());
                            assert!(common.is_none_or(|c| c < target) && (1..=2).contains(&steps.len()), "{}", world());
                            let mut received = destination.clone();
                            if let Err(e) = carry_out(steps, &source, &bookmarks, &mut received) {
                                panic!("{e}: {}", world());
                            }
                            // All snapshots of the source after the base have arrived, and the destination still has
                            // those that it had.
                            let mut expected = destination.clone();
                            expected.extend(source.iter().filter(|s| common.is_none_or(|c| *s > c) && *s <= target));
                            assert_eq!(received, expected, "{}", world());
                        }
                        _ => panic!("{}", world()),
                    }
                }
            }
        }
    }
    assert!(worlds > 300_000 && conflicts > 10_000, "{worlds} worlds, {conflicts} conflicts");
}
