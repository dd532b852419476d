//! The vocabulary of orders: actions and status numbers, as the ancestor numbered them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Identifies one order; random, so that two directors never make the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrderId(pub Uuid);

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
    /// Destroy what `SnapshotUUID` lists.
    DestroySnapshot,
    /// List `DestDataset`, or everything.
    KvResync,
    /// Tell how large a `send_snapshot` would be. An action of its own, so that an agent that does not know it refuses
    /// it: a mark on the real order might be passed over.
    EstimateSend,
    /// Tell what a `destroy_snapshot` would free.
    EstimateDestroy,
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
    /// What a slave says of the destination dataset before a transfer.
    DatasetStatus {
        /// It exists and has snapshots.
        True = 1,
        /// It is absent or has no snapshots.
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
    /// How an order ended, beyond success or failure.
    ResponseStatus {
        /// The snapshot is there under another name.
        WasRenamed = 1,
        /// The destination was written to since its newest snapshot, or has snapshots of its own.
        WasWritten = 2,
        /// There was nothing to do; of a take: nothing was written since the last snapshot.
        NothingToDo = 3,
        /// ZFS refused or failed.
        Zerror = 4,
        /// The destination exists and has no snapshot in common.
        NotEmpty = 5,
        /// An increment was sent.
        Incremental = 6,
        /// The destination already has a newer snapshot.
        MostActual = 7,
        /// The destination was made anew: a full stream, and what followed it.
        Full = 8,
        /// The order was carried out (a take or a destroy).
        Done = 9,
        /// The order is not allowed here, or makes no sense.
        Refused = 10,
        /// Another order works on the same dataset.
        Busy = 11,
        /// A peer could not be reached or went away; trying again later may work.
        Unreachable = 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ancestors_numbers_keep_their_meaning() {
        let statuses: Vec<u8> = DatasetStatus::ALL.iter().map(|s| s.number()).collect();
        assert_eq!(statuses, [1, 2, 3, 4, 5]);
        assert_eq!(serde_json::to_string(&ResponseStatus::MostActual).unwrap(), "7");
        assert_eq!(serde_json::from_str::<ResponseStatus>("6").unwrap(), ResponseStatus::Incremental);
        assert!(serde_json::from_str::<ResponseStatus>("99").is_err());
        assert_eq!(serde_json::to_string(&Action::KvResync).unwrap(), "\"kv_resync\"");
    }
}
