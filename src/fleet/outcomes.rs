//! Records the outcomes of orders, and learns from them how long transfers take.

use crate::catalog::{CatalogError, CatalogWrite, Outcome};
use crate::fleet::durations::{KnownDurations, LEARNED_FROM};
use crate::fleet::state::FleetState;

impl<C: CatalogWrite + ?Sized + 'static> FleetState<C> {
    /// Records how an order ended.
    pub async fn record_outcome(&self, outcome: Outcome) -> Result<(), CatalogError> {
        self.durations.add(&outcome);
        self.with_catalog(move |catalog| catalog.record_outcome(&outcome)).await
    }

    /// Reads from the catalog how long transfers took, if that was not done yet.
    pub async fn learn_durations(&self) -> Result<(), CatalogError> {
        if !self.durations.are_known() {
            let outcomes = self.with_catalog(|catalog| catalog.outcomes(LEARNED_FROM)).await?;
            self.durations.learn(&outcomes);
        }
        Ok(())
    }

    /// How long transfers took.
    pub fn durations(&self) -> &KnownDurations {
        &self.durations
    }

    /// Writes the outcomes that the catalog has buffered.
    pub async fn flush(&self) -> Result<(), CatalogError> {
        self.with_catalog(CatalogWrite::flush).await
    }
}
