//! A notice states what an administrator should know about a pass in addition to its verdicts.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::leftovers::Leftovers;
use crate::model::inventory::NOT_IMPORTED;
use crate::model::tags::EXCLUDE;
use crate::model::{DatasetName, HostName, Place, SnapName, counted, in_utc, some_of};
use crate::policy::{Forbidden, Local, Policy};

/// Something that an administrator should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Notice {
    /// The index of the entry in `policy.datasets` that it concerns.
    pub entry: usize,
    /// The host that it concerns.
    pub host: HostName,
    /// The dataset that it concerns; `None` if it concerns the whole host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetName>,
    /// What is wrong.
    #[serde(flatten)]
    pub kind: NoticeKind,
}

/// What a notice is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NoticeKind {
    /// The host has not been listed, so nothing is taken or destroyed there.
    HostNotListed,
    /// A pool could not be listed, although its host was, so nothing is taken or destroyed in it, nor sent to it.
    PoolNotListed {
        /// The pool.
        pool: String,
        /// Why it could not be listed.
        reason: String,
    },
    /// The policy names a dataset that its host, which was listed, does not have.
    DatasetMissing,
    /// The dataset does not exist yet. It is a copy, and is created by its first transfer.
    NotReceivedYet {
        /// The source.
        from: Place,
    },
    /// The dataset has `zsync:exclude=on`, so it and all datasets that inherit the property are left alone.
    Excluded,
    /// Another entry, named earlier, covers the same dataset and prefix.
    ClaimedTwice {
        /// The index of that entry.
        by: usize,
        /// The prefix.
        prefix: String,
    },
    /// The newest snapshot is dated in the future.
    FromTheFuture {
        /// The snapshot.
        snapshot: SnapName,
        /// Its creation time.
        creation: DateTime<Utc>,
    },
    /// The dataset is a destination and has a schedule of its own, which is ignored.
    ReceivesAndTakes {
        /// The dataset that it receives from.
        from: Place,
    },
    /// Two datasets have the same destination; only one of them is sent.
    DestinationTaken {
        /// The destination.
        to: Place,
        /// The dataset that it receives from.
        by: Place,
    },
    /// The names of the dataset's snapshots on a destination would be longer than ZFS permits.
    NameTooLong {
        /// The policy's target, below which the destination would lie.
        to: Place,
    },
    /// Snapshots are dated before older ones (by createtxg).
    OutOfOrder {
        /// How many snapshots.
        snapshots: usize,
        /// The newest of them.
        snapshot: SnapName,
    },
    /// Retention rules would destroy snapshots whose destruction local.json of their host forbids.
    AppendOnly {
        /// How many snapshots.
        snapshots: usize,
    },
    /// Retention rules would destroy more snapshots of a dataset in one pass than `max_destroys` permits.
    TooManyDestroys {
        /// How many snapshots they would destroy.
        destroys: usize,
        /// How many snapshots the dataset has.
        snapshots: usize,
        /// The limit, in percent.
        limit: u8,
    },
    /// The director's clock is ahead of the host's, or of the clocks of most other hosts, so nothing is destroyed there.
    ClockAhead {
        /// By how many minutes.
        minutes: u64,
        /// Whether it is the host's own clock that is behind.
        own: bool,
    },
    /// The policy asks something of a host that local.json there forbids.
    Forbidden {
        /// What is forbidden, and where.
        reason: String,
        /// The change of local.json that would permit it.
        way_out: String,
    },
    /// Below a destination there are copies whose sources no longer exist. Nothing prunes them.
    SourcesGone {
        /// The copies.
        copies: Vec<DatasetName>,
    },
    /// Transfers have left holds or cursors for destinations that the policy no longer has.
    Leftovers(Leftovers),
    /// Snapshots that orders would have destroyed are in the trash of the host, and use space.
    InTrash {
        /// How many snapshots.
        snapshots: usize,
        /// How many bytes they use at least; 0 if unknown.
        bytes: u64,
    },
    /// The destination has snapshots, but none in common with the source, so nothing is destroyed there.
    NothingInCommon {
        /// The source.
        with: Place,
        /// The dataset of the same host whose snapshots the destination has: probably two sources were renamed.
        copy_of: Option<Place>,
    },
}

impl NoticeKind {
    /// Whether something holds destroys back that retention asks for.
    #[must_use]
    pub fn is_brake(&self) -> bool {
        matches!(self, Self::TooManyDestroys { .. } | Self::ClockAhead { .. })
    }

    /// What an administrator can do about it; `None` if the notice itself says enough.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Forbidden { way_out, .. } => Some(way_out),
            Self::DatasetMissing => {
                Some("correct its name in server.json or local.json, create it, or import its pool")
            }
            Self::PoolNotListed { reason, .. } if reason == NOT_IMPORTED => {
                Some("import the pool (zpool import) on that host")
            }
            Self::PoolNotListed { .. } => Some("see zpool status on that host"),
            Self::Leftovers(_) => Some(
                "list them with zsync forget, and remove them with --yes: until then, held snapshots are never pruned; \
                 afterwards, a new transfer to such a destination may need a full copy, for which the old copy has to be \
                 renamed",
            ),
            Self::AppendOnly { .. } => {
                Some("to prune there, set \"append_only\": false for it in local.json of that host")
            }
            Self::FromTheFuture { .. } => {
                Some("correct the clock; if it is right by now, destroy or rename the snapshot to end this notice")
            }
            Self::TooManyDestroys { .. } => Some(
                "check the clock of the director and the retention rules; if the snapshots are to go, stop the director, \
                 save a plan (zsync plan --out FILE), and carry it out (zsync director --once --plan FILE)",
            ),
            Self::ClockAhead { .. } => Some("correct the clock that is wrong"),
            Self::OutOfOrder { .. } => Some(
                "these dates, or the later date of an older snapshot, come from a wrong clock, or from somebody who \
                 backdates snapshots to have genuine ones pruned; find out which before destroying any of them",
            ),
            // A dataset cannot be renamed into itself.
            Self::NothingInCommon { with, copy_of: Some(of) }
                if of.dataset.is_within(&with.dataset) || with.dataset.is_within(&of.dataset) =>
            {
                None
            }
            Self::NothingInCommon { copy_of: Some(_), .. } => {
                Some("if datasets were renamed at the source, rename their copies in the same way (zfs rename)")
            }
            _ => None,
        }
    }

    /// Whether the notice says that datasets of the policy are left alone, or that snapshots are in the trash, which is
    /// meant, but easily forgotten.
    #[must_use]
    pub fn is_reminder(&self) -> bool {
        matches!(self, Self::Excluded | Self::SourcesGone { .. } | Self::InTrash { .. })
    }

    /// Whether the notice is the only sign that part of the policy is not carried out: no order fails because of it.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self {
            Self::PoolNotListed { .. }
            | Self::DatasetMissing
            | Self::Forbidden { .. }
            | Self::ClaimedTwice { .. }
            | Self::FromTheFuture { .. }
            | Self::TooManyDestroys { .. }
            | Self::ClockAhead { .. }
            | Self::DestinationTaken { .. }
            | Self::NameTooLong { .. } => true,
            // For a host that was not listed there is a finding, and without a common snapshot the send fails.
            Self::HostNotListed
            | Self::NotReceivedYet { .. }
            | Self::Excluded
            | Self::ReceivesAndTakes { .. }
            | Self::NothingInCommon { .. }
            | Self::SourcesGone { .. }
            | Self::Leftovers(_)
            | Self::InTrash { .. }
            | Self::OutOfOrder { .. }
            | Self::AppendOnly { .. } => false,
        }
    }
}

/// The notices about what the policy asks of a host, but `local.json` of that host forbids.
#[must_use]
pub fn forbidden(policy: &Policy, host: &HostName, local: &Local) -> Vec<Notice> {
    let notice = |Forbidden { entry, dataset, denied }: Forbidden| {
        let kind = NoticeKind::Forbidden { reason: denied.to_string(), way_out: denied.hint() };
        Notice { entry, host: host.clone(), dataset: Some(dataset), kind }
    };
    policy.forbidden(host, local).into_iter().map(notice).collect()
}

impl Notice {
    /// Adds notices to others. What was noticed as missing is not noticed again if it is known to be forbidden.
    pub fn add(notices: &mut Vec<Self>, more: Vec<Self>) {
        let is_of = |a: &Self, b: &Self| (&a.host, &a.dataset) == (&b.host, &b.dataset);
        notices.retain(|n| n.kind != NoticeKind::DatasetMissing || !more.iter().any(|forbidden| is_of(n, forbidden)));
        notices.extend(more);
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        if let NoticeKind::PoolNotListed { pool, reason } = &self.kind {
            return write!(
                f,
                "cannot list the pool {pool} of {host}: {reason}; nothing is taken, sent or pruned there"
            );
        }
        if let NoticeKind::Forbidden { reason, .. } = &self.kind {
            return write!(f, "the policy asks for something that {host} forbids: {reason}");
        }
        match &self.dataset {
            Some(dataset) => write!(f, "{host}:{dataset} ")?,
            None => write!(f, "{host} ")?,
        }
        match &self.kind {
            // It is written above.
            NoticeKind::PoolNotListed { .. } | NoticeKind::Forbidden { .. } => Ok(()),
            NoticeKind::HostNotListed => f.write_str("has not answered, so nothing is taken or destroyed there"),
            NoticeKind::DatasetMissing => write!(
                f,
                "cannot be used: either it does not exist (destroyed, misspelt, pool not imported), or local.json on \
                 {host} does not list it, or disables it"
            ),
            NoticeKind::NotReceivedYet { from } => {
                write!(f, "does not exist until it receives its first snapshot from {from}")
            }
            NoticeKind::Excluded => write!(
                f,
                "has {EXCLUDE}=on, itself or from a dataset above it, so no snapshot of it is taken, sent or pruned; \
                 zfs get {EXCLUDE} shows where it is set, and zfs inherit removes it there"
            ),
            NoticeKind::ClaimedTwice { by, prefix } => {
                write!(
                    f,
                    "is already covered with the prefix {prefix} by entry {by} of the policy, which takes precedence"
                )
            }
            NoticeKind::FromTheFuture { snapshot, creation } => {
                let creation = in_utc(*creation);
                write!(f, "has the snapshot {snapshot}, dated in the future ({creation}): a clock is or was wrong")
            }
            NoticeKind::ReceivesAndTakes { from } => write!(
                f,
                "receives from {from}, so its own schedule is ignored: a snapshot of its own would make the two diverge"
            ),
            NoticeKind::DestinationTaken { to, by } => {
                write!(f, "is not sent to {to}, which already receives from {by}")
            }
            NoticeKind::NameTooLong { to } => {
                write!(f, "is not sent below {to}: the names of its snapshots would be longer there than ZFS permits")
            }
            NoticeKind::OutOfOrder { snapshots, snapshot } => write!(
                f,
                "has {} dated before older ones, such as {snapshot}: retention does not count them in place of others",
                counted(*snapshots, "snapshot")
            ),
            NoticeKind::AppendOnly { snapshots } => write!(
                f,
                "keeps {} that retention would destroy, because local.json of {host} makes it append-only",
                counted(*snapshots, "snapshot")
            ),
            NoticeKind::TooManyDestroys { destroys, snapshots, limit } => write!(
                f,
                "keeps {destroys} of its {snapshots} snapshots that retention would destroy, because max_destroys \
                 permits a pass to destroy {limit}%"
            ),
            NoticeKind::ClockAhead { minutes, own: true } => {
                write!(f, "has a clock that is {minutes} minutes behind the director's, so nothing is destroyed there")
            }
            NoticeKind::ClockAhead { minutes, own: false } => write!(
                f,
                "loses no snapshot, because the director's clock is {minutes} minutes ahead of most other hosts' clocks"
            ),
            NoticeKind::SourcesGone { copies } => {
                let names: Vec<&str> = copies.iter().map(DatasetName::as_str).collect();
                let what = match copies.len() {
                    1 => "a copy whose source no longer exists, so nothing prunes it",
                    _ => "copies whose sources no longer exist, so nothing prunes them",
                };
                write!(f, "contains {what}: {}", some_of(&names, 5))
            }
            NoticeKind::Leftovers(left) => left.fmt(f),
            NoticeKind::InTrash { snapshots, bytes } => {
                let mib = bytes >> 20;
                let size = if mib < 10_000 { format!("{mib} MiB") } else { format!("{} GiB", mib >> 10) };
                let what = if *snapshots == 1 { "snapshot" } else { "snapshots" };
                write!(f, "has {snapshots} {what} in the trash (at least {size}); see zsync trash {host}")
            }
            NoticeKind::NothingInCommon { with, copy_of } => {
                write!(f, "has no snapshot in common with {with}, so nothing is destroyed there")?;
                copy_of.iter().try_for_each(|of| write!(f, "; it is a copy of {of}"))
            }
        }
    }
}
