//! Tests of the engine. They describe an inventory in a notation of one line per dataset, snapshots oldest first:
//!
//! ```text
//! alpha:tank/foo  B@11-23T09:00 B@11-23T10:00! #B@11-22T10:00 -B@11-23T11:00
//! beta:tank/copy  B@11-23T09:00>renamed
//! gamma
//! delta?
//! ```
//!
//! `B@11-23T09:00` is the snapshot `B_2026-11-23_09:00:00`, created at that time. The same word means the same snapshot
//! (guid) everywhere; `B@...=2` is another one of that name. Suffixes: `!` it is held, `^` it has clones, `~` it is
//! marked deleted, `>name` it has another name, `+2h` it was created two hours after the time in its name. Prefixes:
//! `#` a bookmark, `-` a NotWritten mark. A host without a dataset was listed and is empty; a host with `?` was never
//! listed; `host:pool?` is a pool that could not be listed. `append-only` before the snapshots means that local.json
//! forbids destroying them; `trash=7days` there means that it keeps them in the trash first. With the suffix `*`, a
//! snapshot has been in the trash since its own time.

mod adopt;
mod bad_input;
mod brakes;
mod forecasts;
mod health;
mod leftovers;
mod neighbours;
mod properties;
mod protections;
mod restore;
mod sends;
mod simulation;
mod takes;
mod trash;
mod whereabouts;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::*;
use crate::model::*;
use crate::policy::*;

pub(super) fn utc(text: &str) -> DateTime<Utc> {
    let text = if text.len() == 11 { format!("2026-{text}:00Z") } else { text.to_owned() };
    DateTime::parse_from_rfc3339(&text).unwrap_or_else(|e| panic!("{text}: {e}")).with_timezone(&Utc)
}

fn snapshot(word: &str, createtxg: u64) -> Snapshot {
    let mut rest = word;
    let mut flag = |c: char| rest.strip_suffix(c).map(|r| rest = r).is_some();
    let (userrefs, has_clones, deleted) = (flag('!').into(), flag('^'), flag('~'));
    let (rest, renamed) = rest.split_once('>').map_or((rest, None), |(r, n)| (r, Some(n)));
    let (identity, late) = rest.split_once('+').map_or((rest, "0h"), |(r, l)| (r, l));
    let late = humantime::parse_duration(late).unwrap_or_else(|e| panic!("{word}: {e}"));
    let (stamped, _) = identity.split_once('=').unwrap_or((identity, ""));
    let (name, creation) = match stamped.split_once('@') {
        Some((prefix, time)) => (prefix.parse::<Prefix>().unwrap().stamp(utc(time)), utc(time)),
        None => (stamped.parse().unwrap_or_else(|e| panic!("{word}: {e}")), utc("01-01T00:00")),
    };
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    Snapshot {
        name: renamed.map_or(name, |n| n.parse().unwrap()),
        guid: Guid(hasher.finish()),
        createtxg,
        creation: creation + TimeDelta::from_std(late).unwrap(),
        userrefs,
        has_clones,
        used: 1000,
        marks: Marks { deleted, ..Marks::default() },
    }
}

pub(super) fn world(text: &str) -> Inventory {
    let mut inventory = Inventory::default();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (place, words) = line.split_once(' ').unwrap_or((line, ""));
        let (host, dataset) = place.split_once(':').map_or((place, None), |(h, d)| (h, Some(d)));
        let (host, listed) = host.strip_suffix('?').map_or((host, true), |h| (h, false));
        let known = inventory.hosts.entry(host.parse().unwrap()).or_default();
        known.observed = listed.then(|| utc("11-23T00:00"));
        let Some(dataset) = dataset else { continue };
        if let Some(pool) = dataset.strip_suffix('?') {
            known.unlisted.insert(pool.to_owned(), "it is not imported".to_owned());
            continue;
        }
        let found = known.datasets.entry(dataset.parse().unwrap()).or_default();
        let words = words.strip_prefix("append-only ").inspect(|_| found.append_only = Some(true)).unwrap_or(words);
        let (trash, words) = match words.strip_prefix("trash=").and_then(|words| words.split_once(' ')) {
            Some((after, words)) => (humantime::parse_duration(after).unwrap(), words),
            None => (Duration::ZERO, words),
        };
        found.destroy_after = Some(trash.as_secs());
        let mut trashed = Vec::new();
        for (word, createtxg) in words.split_whitespace().zip(1..) {
            if let Some(word) = word.strip_prefix('#') {
                let Snapshot { name, guid, creation, .. } = snapshot(word, createtxg);
                found.bookmarks.push(Bookmark { name, guid, createtxg, creation });
            } else if let Some(word) = word.strip_prefix('-') {
                let Snapshot { name, creation, .. } = snapshot(word, createtxg);
                found.not_written.push(NotWritten { name, at: creation });
            } else if let Some(word) = word.strip_suffix('*') {
                let of = snapshot(word, createtxg);
                trashed.push(Trashed { guid: of.guid, since: of.creation, used: 1000 });
                found.snapshots.push(Snapshot { userrefs: of.userrefs + 1, ..of });
            } else {
                found.snapshots.push(snapshot(word, createtxg));
            }
        }
        found.set_trashed(trashed);
    }
    inventory
}

/// Parses a place such as `alpha:tank/foo`.
pub(super) fn place(text: &str) -> Place {
    let (host, dataset) = text.split_once(':').unwrap();
    Place { host: host.parse().unwrap(), dataset: dataset.parse().unwrap() }
}

pub(super) fn rules(rules: &[&str]) -> Option<Retention> {
    Some(Retention::parse(rules).unwrap_or_else(|e| panic!("{e:?}")))
}

/// An entry with one policy with the prefix `B`: hourly, asap, `1 in last day` on both sides.
pub(super) fn entry(source: &str, targets: &[&str]) -> DatasetPolicy {
    let Place { host: hostname, dataset } = place(source);
    DatasetPolicy {
        hostname,
        dataset,
        recursive: false,
        policies: vec![SnapshotPolicy {
            name: "backup".to_owned(),
            prefix: "B".parse().unwrap(),
            creation: Some("0 * * * *".parse().unwrap()),
            catch_up: DEFAULT_CATCH_UP,
            sync_on: targets.iter().map(|t| place(t)).collect(),
            sync_policy: SyncPolicy::Asap,
            retention: rules(&["1 in last day"]),
            sync_retention: rules(&["1 in last day"]),
            prune_unsent: false,
            lag: None,
            check: crate::policy::Thresholds::default(),
        }],
        rollback_if_needed: false,
        skip_if_renamed: true,
        skip_if_not_written: true,
        skip_if_cloned: true,
        exclude: Default::default(),
        rollback_may_destroy: false,
        on_divergence: Default::default(),
    }
}

/// An entry with a change.
pub(super) fn with(mut entry: DatasetPolicy, change: impl FnOnce(&mut DatasetPolicy)) -> DatasetPolicy {
    change(&mut entry);
    entry
}

pub(super) fn recursive(entry: DatasetPolicy) -> DatasetPolicy {
    with(entry, |e| e.recursive = true)
}

/// An entry with a change of its only policy.
pub(super) fn with_policy(entry: DatasetPolicy, change: impl FnOnce(&mut SnapshotPolicy)) -> DatasetPolicy {
    with(entry, |e| change(&mut e.policies[0]))
}

pub(super) fn policy(datasets: impl IntoIterator<Item = DatasetPolicy>) -> Policy {
    Policy {
        datacenter: None,
        timezone: Zone::UTC,
        catalog: CatalogConfig::Embedded { path: "catalog".into() },
        hosts: Default::default(),
        tls: None,
        consul_resync: None,
        retry_for: std::time::Duration::ZERO,
        max_destroys: 100,
        datasets: datasets.into_iter().collect(),
    }
}

fn short(name: &SnapName) -> String {
    let text = name.as_str();
    // B_2026-11-23_09:00:00 becomes B@11-23T09:00.
    match text.split_once("_2026-").and_then(|(prefix, time)| Some((prefix, time.strip_suffix(":00")?))) {
        Some((prefix, time)) if time.len() == 11 => format!("{prefix}@{}", time.replace('_', "T")),
        _ => text.to_owned(),
    }
}

/// The orders of a plan, one line each.
pub(super) fn render(orders: &[Order]) -> Vec<String> {
    let show = |order: &Order| match order {
        Order::Take { host, name, datasets, .. } => {
            let datasets: Vec<&str> = datasets.iter().map(DatasetName::as_str).collect();
            format!("take {} on {host}: {}", short(name), datasets.join(" "))
        }
        Order::Send { host, dataset, snapshot, to, .. } => {
            format!("send {host}:{dataset} to {}:{}: {}", to.host, to.dataset, short(snapshot))
        }
        Order::Destroy { host, dataset, snapshots, .. } => {
            let names: Vec<String> = snapshots.iter().map(|(_, name)| short(name)).collect();
            format!("destroy {host}:{dataset}: {}", names.join(" "))
        }
    };
    orders.iter().map(show).collect()
}

/// The orders for a policy and an inventory.
pub(super) fn orders(policy: &Policy, world_text: &str, now: &str) -> Vec<String> {
    render(&decide(policy, &world(world_text), utc(now)).orders(policy))
}

/// The orders whose text begins with `what`.
pub(super) fn only(what: &str, policy: &Policy, world_text: &str, now: &str) -> Vec<String> {
    orders(policy, world_text, now).into_iter().filter(|o| o.starts_with(what)).collect()
}

/// Why the snapshots of a dataset stay or go, one line each: `B@11-23T09:00 stays: it is held`.
pub(super) fn why(policy: &Policy, world_text: &str, now: &str, at: &str) -> Vec<String> {
    let inventory = world(world_text);
    let at = place(at);
    let plan = decide(policy, &inventory, utc(now));
    let here = plan.prunes.iter().filter(|p| p.subject.host == at.host && p.subject.dataset == at.dataset);
    let dataset = inventory.dataset(&at.host, &at.dataset).unwrap();
    here.flat_map(|p| p.explain(dataset))
        .map(|e| {
            let reasons: Vec<String> = e.reasons.iter().map(ToString::to_string).collect();
            format!("{} {}: {}", short(&e.name), if e.keep { "stays" } else { "goes" }, reasons.join("; "))
        })
        .collect()
}

pub(super) fn notices(policy: &Policy, world_text: &str, now: &str) -> Vec<String> {
    decide(policy, &world(world_text), utc(now)).notices.iter().map(ToString::to_string).collect()
}

/// The reasons of all takes.
pub(super) fn take_reasons(policy: &Policy, world_text: &str, now: &str) -> Vec<String> {
    decide(policy, &world(world_text), utc(now)).takes.iter().map(|t| t.reason.to_string()).collect()
}

/// The reasons of all sends.
pub(super) fn send_reasons(policy: &Policy, world_text: &str, now: &str) -> Vec<String> {
    decide(policy, &world(world_text), utc(now)).sends.iter().map(|t| t.reason.to_string()).collect()
}
