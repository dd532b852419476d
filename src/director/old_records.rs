//! Deletes old records from the catalog: marks and `#deleted` records, and hosts that the policy no longer names.

use chrono::{DateTime, Utc};

use crate::catalog::{CatalogError, CatalogWrite, FORGET_AFTER};
use crate::fleet::FleetState;
use crate::policy::Policy;

/// Deletes what is older than [`FORGET_AFTER`]. A failure is only logged: it costs nothing but space, and the next attempt
/// is made a day later.
pub(crate) async fn delete(policy: &Policy, state: &FleetState<dyn CatalogWrite>, now: DateTime<Utc>) {
    if let Err(error) = try_delete(policy, state, now - FORGET_AFTER).await {
        log::warn!("cannot delete old records from the catalog: {:#}", anyhow::Error::from(error));
    }
}

async fn try_delete(
    policy: &Policy,
    state: &FleetState<dyn CatalogWrite>,
    older_than: DateTime<Utc>,
) -> Result<(), CatalogError> {
    for host in state.forget_hosts(policy.hosts_named(), older_than).await? {
        log::info!(
            "deleted {host} from the catalog: the policy does not name it, and nothing was recorded about it in the last \
             {} days",
            FORGET_AFTER.num_days()
        );
    }
    match state.forget_marks(older_than).await? {
        0 => {}
        records => log::info!("deleted {records} old records from the catalog"),
    }
    Ok(())
}
