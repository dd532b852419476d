//! The ZFS properties that a receiving entry of `local.json` sets on received datasets.
//!
//! No property of the source is copied unless `include` has its name or a pattern for it. Properties that could make
//! the receiver mount, run, share, limit or write to something are set only if `include` or `override` has their full
//! names.

use std::collections::BTreeMap;

use glob::Pattern;

use crate::model::DatasetKind;
use crate::model::tags::OURS;

/// The properties to set on received datasets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// The source's properties to copy, by name or pattern.
    include: Vec<Pattern>,
    /// Exceptions from `include`.
    exclude: Vec<Pattern>,
    /// Properties that the receiver sets to its own values.
    overrides: BTreeMap<String, String>,
}

/// What a receive does with its dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveTarget {
    /// It adds to a dataset that exists.
    Existing,
    /// It creates the dataset.
    New,
    /// It replaces the dataset of a pool, from which everything in the pool inherits.
    Pool,
}

/// The native ZFS properties that can be set during a receive (zfsprops(7), OpenZFS 2.3).
pub(crate) const SETTABLE: &[&str] = &[
    "aclinherit",
    "aclmode",
    "acltype",
    "atime",
    "canmount",
    "checksum",
    "compression",
    "context",
    "copies",
    "dedup",
    "defcontext",
    "devices",
    "direct",
    "dnodesize",
    "exec",
    "filesystem_limit",
    "fscontext",
    "jailed",
    "logbias",
    "longname",
    "mlslabel",
    "mountpoint",
    "nbmand",
    "overlay",
    "prefetch",
    "primarycache",
    "quota",
    "readonly",
    "recordsize",
    "redundant_metadata",
    "refquota",
    "refreservation",
    "relatime",
    "reservation",
    "rootcontext",
    "secondarycache",
    "setuid",
    "sharenfs",
    "sharesmb",
    "snapdev",
    "snapdir",
    "snapshot_limit",
    "special_small_blocks",
    "sync",
    "volmode",
    "volthreading",
    "vscan",
    "xattr",
    "zoned",
];

/// Properties that no pattern includes, because they can make a host mount, run, share or write to something, or run
/// out of something.
const DANGEROUS: &[&str] = &[
    "canmount",
    "context",
    "dedup",
    "defcontext",
    "devices",
    "exec",
    "filesystem_limit",
    "fscontext",
    "jailed",
    "mlslabel",
    "mountpoint",
    "nbmand",
    "overlay",
    "quota",
    "readonly",
    "refquota",
    "refreservation",
    "reservation",
    "rootcontext",
    "setuid",
    "sharenfs",
    "sharesmb",
    "snapdev",
    "snapdir",
    "snapshot_limit",
    "volmode",
    "zoned",
];

/// Properties that volumes do not have: setting one makes a receive fail.
const OF_FILESYSTEMS: &[&str] = &[
    "aclinherit",
    "aclmode",
    "acltype",
    "atime",
    "canmount",
    "context",
    "defcontext",
    "devices",
    "direct",
    "dnodesize",
    "exec",
    "filesystem_limit",
    "fscontext",
    "jailed",
    "longname",
    "mlslabel",
    "mountpoint",
    "nbmand",
    "overlay",
    "quota",
    "recordsize",
    "refquota",
    "relatime",
    "rootcontext",
    "setuid",
    "sharenfs",
    "sharesmb",
    "snapdir",
    "special_small_blocks",
    "vscan",
    "xattr",
    "zoned",
];

/// Properties that only volumes have.
const OF_VOLUMES: &[&str] = &["volmode", "volthreading"];

/// Properties that the stream itself determines.
pub(crate) const IN_THE_STREAM: &[&str] = &[
    "casesensitivity",
    "encryption",
    "keyformat",
    "keylocation",
    "normalization",
    "origin",
    "pbkdf2iters",
    "utf8only",
    "volblocksize",
    "volsize",
];

fn is_user_property(name: &str) -> bool {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b":+._-".contains(&b);
    name.contains(':') && name.len() <= 255 && !name.starts_with('-') && name.bytes().all(is_allowed)
}

impl Properties {
    /// The properties of an entry: those of the source in `include` but not in `exclude`, and the receiver's own
    /// values.
    #[must_use]
    pub fn new(include: Vec<Pattern>, exclude: Vec<Pattern>, overrides: BTreeMap<String, String>) -> Self {
        Self { include, exclude, overrides }
    }

    /// Whether nothing is to be set except the defaults of a new dataset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.overrides.is_empty()
    }

    /// Whether any of the source's properties are to be copied.
    #[must_use]
    pub fn asks(&self) -> bool {
        !self.include.is_empty()
    }

    /// The properties to set on a dataset that receives. `offered` are the source's properties. A new dataset
    /// gets defaults, which its administrator may change later. A pool does not get `readonly=on`, because all datasets
    /// in it would inherit that.
    #[must_use]
    pub fn settings(
        &self,
        kind: DatasetKind,
        target: ReceiveTarget,
        offered: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        if target != ReceiveTarget::Existing {
            all.insert("canmount".to_owned(), "noauto".to_owned());
        }
        if target == ReceiveTarget::New {
            all.insert("readonly".to_owned(), "on".to_owned());
        }
        all.extend(
            offered.iter().filter(|(name, _)| self.wants(name)).map(|(name, value)| (name.clone(), value.clone())),
        );
        all.extend(self.overrides.clone());
        let inapplicable = match kind {
            DatasetKind::Filesystem => OF_VOLUMES,
            DatasetKind::Volume => OF_FILESYSTEMS,
        };
        all.retain(|name, _| !inapplicable.contains(&name.as_str()));
        all
    }

    fn wants(&self, name: &str) -> bool {
        let known = SETTABLE.contains(&name) || is_user_property(name);
        let asked = |pattern: &Pattern| pattern.as_str() == name || pattern.matches(name) && !DANGEROUS.contains(&name);
        known
            // zsync's own properties are about one dataset on one host.
            && !name.starts_with(OURS)
            && self.include.iter().any(asked)
            && !self.exclude.iter().any(|pattern| pattern.matches(name))
    }
}

/// Whether the stream itself determines a property, so that nothing else sets it.
#[must_use]
pub fn is_in_the_stream(name: &str) -> bool {
    IN_THE_STREAM.contains(&name)
}

/// Whether a restore sets a property of this name if the order says so. It never sets one that the stream determines,
/// such as where a key comes from, nor zsync's own.
#[must_use]
pub fn is_restorable(name: &str) -> bool {
    is_known(name) && !name.starts_with(OURS) && !is_in_the_stream(name)
}

/// Whether a property can make a host mount, run, share or write to something, or run out of something.
#[must_use]
pub fn is_dangerous(name: &str) -> bool {
    DANGEROUS.contains(&name)
}

/// Whether a property says where its dataset is found. In another place, two datasets would be found in one.
#[must_use]
pub fn is_about_place(name: &str) -> bool {
    matches!(name, "mountpoint" | "sharenfs" | "sharesmb")
}

/// Whether a property of this name can be set on a received dataset.
pub(crate) fn is_known(name: &str) -> bool {
    SETTABLE.contains(&name) || is_user_property(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> BTreeMap<String, String> {
        let pair = |word: &str| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        text.split_whitespace().filter_map(pair).collect()
    }

    fn with(include: &[&str], exclude: &[&str], overrides: &str) -> Properties {
        let patterns = |texts: &[&str]| texts.iter().map(|t| Pattern::new(t).unwrap()).collect();
        Properties { include: patterns(include), exclude: patterns(exclude), overrides: map(overrides) }
    }

    const SOURCE: &str = "compression=zstd recordsize=1M mountpoint=/ canmount=on sharenfs=on setuid=on readonly=off \
                          com.example:owner=ann com.example:secret=x zsync:exclude=on volsize=8M quota=1G";

    #[test]
    fn no_source_property_is_copied_by_default() {
        let set = with(&[], &[], "").settings(DatasetKind::Filesystem, ReceiveTarget::New, &map(SOURCE));
        assert_eq!(set, map("canmount=noauto readonly=on"));
        assert_eq!(
            with(&[], &[], "").settings(DatasetKind::Filesystem, ReceiveTarget::Existing, &map(SOURCE)),
            map("")
        );
        assert_eq!(
            with(&[], &[], "").settings(DatasetKind::Volume, ReceiveTarget::New, &map(SOURCE)),
            map("readonly=on")
        );
    }

    #[test]
    fn pool_is_not_made_read_only_unless_configured() {
        let settings = |of: Properties| of.settings(DatasetKind::Filesystem, ReceiveTarget::Pool, &map(SOURCE));
        assert_eq!(settings(with(&[], &[], "")), map("canmount=noauto"));
        assert_eq!(settings(with(&[], &[], "readonly=on")), map("canmount=noauto readonly=on"));
    }

    #[test]
    fn pattern_includes_no_dangerous_property() {
        let set = with(&["*"], &["com.example:secret"], "").settings(
            DatasetKind::Filesystem,
            ReceiveTarget::New,
            &map(SOURCE),
        );
        assert_eq!(
            set,
            map("canmount=noauto readonly=on compression=zstd recordsize=1M com.example:owner=ann"),
            "a pattern includes nothing that mounts, shares, runs or limits"
        );
    }

    #[test]
    fn dangerous_property_is_included_by_its_full_name() {
        let set = with(&["mountpoint", "quota"], &[], "").settings(
            DatasetKind::Filesystem,
            ReceiveTarget::Existing,
            &map(SOURCE),
        );
        assert_eq!(set, map("mountpoint=/ quota=1G"));
    }

    #[test]
    fn override_wins_over_include_and_defaults() {
        let own = with(&["compression"], &[], "compression=lz4 canmount=on atime=off volmode=none");
        assert_eq!(
            own.settings(DatasetKind::Filesystem, ReceiveTarget::New, &map(SOURCE)),
            map("compression=lz4 canmount=on atime=off readonly=on")
        );
        assert_eq!(
            own.settings(DatasetKind::Volume, ReceiveTarget::New, &map(SOURCE)),
            map("compression=lz4 volmode=none readonly=on")
        );
    }

    #[test]
    fn property_lists_are_sorted_and_consistent() {
        for list in [SETTABLE, DANGEROUS, OF_FILESYSTEMS, OF_VOLUMES, IN_THE_STREAM] {
            assert!(list.is_sorted(), "{list:?}");
        }
        for name in DANGEROUS.iter().chain(OF_FILESYSTEMS).chain(OF_VOLUMES) {
            assert!(SETTABLE.contains(name), "{name}");
        }
    }
}
