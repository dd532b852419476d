//! Parses the output of the `zfs` command, strictly: a line with a column too many or too few is an error that shows
//! the line.

mod datasets;
mod errors;
mod lines;
mod script;
mod snapshots;
mod stream;
mod version;

pub use datasets::{
    DatasetRow, UserProperties, apply_user_properties, datasets, key_states, key_users, properties, properties_of,
    user_properties, values,
};
pub use errors::error_kind;
pub(crate) use lines::lines;
pub use script::{changed, fates};
pub use snapshots::{Histories, Hold, arrivals, cloned, holds, used};
pub use stream::{is_token, resumable, size};
pub use version::{FIRST_WITH_SNAPSHOTS_CHANGED, OLDEST_VERSION, version};
