//! The vocabulary of orders: actions and status numbers, with the numbers that zeplic gave them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The identifier of an order. It is random, so that two directors never choose the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrderId(pub Uuid);

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What to do about a destination that cannot take an increment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDivergence {
    /// Leave it as it is and fail the transfer.
    #[default]
    Stop,
    /// Rename it and start the copy from scratch.
    SetAside,
}

impl OnDivergence {
    /// Whether it is the default, which orders omit.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        *self == Self::Stop
    }
}

/// What an order asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Take a snapshot of `DestDataset` named `SnapshotName`.
    TakeSnapshot,
    /// Send `SnapshotUUID[0]` to `DestDataset` on `Destination`.
    SendSnapshot,
    /// Destroy the snapshots that `SnapshotUUID` lists.
    DestroySnapshot,
    /// List `DestDataset`, or all datasets.
    KvResync,
    /// Report how large a `send_snapshot` would be. This is a separate action, not a flag of the real order, so that an
    /// agent that does not know it refuses it.
    EstimateSend,
    /// Report what a `destroy_snapshot` would free.
    EstimateDestroy,
    /// Release the holds and destroy the cursors of transfers to destinations that are given up.
    ForgetDestination,
    /// Take the snapshots that `SnapshotUUID` lists back from the trash.
    UndeleteSnapshot,
    /// Bring a copy back: receive it into `DestDataset`, which must not exist.
    RestoreDataset,
    /// Have the restored datasets within `DestDataset` use the keys that the lost ones used.
    JoinKeys,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TakeSnapshot => "take_snapshot",
            Self::SendSnapshot => "send_snapshot",
            Self::DestroySnapshot => "destroy_snapshot",
            Self::KvResync => "kv_resync",
            Self::EstimateSend => "estimate_send",
            Self::EstimateDestroy => "estimate_destroy",
            Self::ForgetDestination => "forget_destination",
            Self::UndeleteSnapshot => "undelete_snapshot",
            Self::RestoreDataset => "restore_dataset",
            Self::JoinKeys => "join_keys",
        })
    }
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant = $number),+ }

        impl $name {
            /// Every value, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The number on the wire.
            #[must_use]
            pub fn number(self) -> u8 {
                self as u8
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_u8(self.number())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let number = u8::deserialize(d)?;
                Self::ALL.iter().copied().find(|v| v.number() == number).ok_or_else(|| {
                    serde::de::Error::custom(format_args!("{number} is not a {}", stringify!($name)))
                })
            }
        }
    };
}

numbered! {
    /// What a slave reports about the destination dataset before a transfer.
    DatasetStatus {
        /// It exists and has snapshots.
        True = 1,
        /// It does not exist or has no snapshots.
        False = 2,
        /// Its entry in local.json is disabled.
        Disable = 3,
        /// Its entry in local.json is not open for receiving.
        Docker = 4,
        /// local.json has no entry for it.
        NotConf = 5,
    }
}

numbered! {
    /// How an order ended, in addition to success or failure.
    ResponseStatus {
        /// The destination has the snapshot under another name.
        WasRenamed = 1,
        /// The destination was written to since its newest snapshot, or has snapshots of its own.
        WasWritten = 2,
        /// There was nothing to do. For a take, this means that nothing was written since the last snapshot.
        NothingToDo = 3,
        /// ZFS refused or failed.
        Zerror = 4,
        /// The destination exists and has no snapshot in common with the source.
        NotEmpty = 5,
        /// An increment was sent.
        Incremental = 6,
        /// The destination already has a newer snapshot.
        MostActual = 7,
        /// The destination was created by a full stream and the increments that followed it.
        Full = 8,
        /// The order was carried out (a take or a destroy).
        Done = 9,
        /// The order is not permitted here, or makes no sense.
        Refused = 10,
        /// Another order works on the same dataset, or no slot or connection is free. A later attempt may succeed.
        Busy = 11,
        /// A peer could not be reached or disconnected; a later attempt may succeed.
        Unreachable = 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_numbers_are_those_of_zeplic() {
        let statuses: Vec<u8> = DatasetStatus::ALL.iter().map(|s| s.number()).collect();
        assert_eq!(statuses, [1, 2, 3, 4, 5]);
        assert_eq!(serde_json::to_string(&ResponseStatus::MostActual).unwrap(), "7");
        assert_eq!(serde_json::from_str::<ResponseStatus>("6").unwrap(), ResponseStatus::Incremental);
        assert!(serde_json::from_str::<ResponseStatus>("99").is_err());
        assert_eq!(serde_json::to_string(&Action::KvResync).unwrap(), "\"kv_resync\"");
    }
}
