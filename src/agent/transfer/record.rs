//! Finds out what a copy records of its source: the properties that were set on it.

use std::sync::Arc;

use crate::agent::transfer::state::Transfer;
use crate::model::{DatasetInventory, Place, SourceRecord, tags};
use crate::policy::properties::is_in_the_stream;
use crate::sys::runtime;
use crate::zfs::{Zfs, ZfsError, ZfsRead};

/// What copies of a dataset record of it. A copy passes on what it has recorded itself, because its own properties are
/// not those of the source; `None` if it has recorded nothing.
pub(in crate::agent) async fn record_of<Z: ZfsRead>(
    zfs: &Z,
    place: Place,
    found: &DatasetInventory,
) -> Result<Option<SourceRecord>, ZfsError> {
    let mut properties = zfs.properties(&place.dataset).await?;
    let recorded = properties.remove(tags::PROPERTIES);
    if found.flags.is_some() {
        return Ok(recorded.and_then(|value| SourceRecord::parse(&value)));
    }
    properties.retain(|name, _| !is_in_the_stream(name));
    let record =
        SourceRecord { source: Some(place), key_from: found.key_from.clone(), properties, left_out: Vec::new() };
    Ok(Some(record.fitting()))
}

impl<Z: Zfs> Transfer<'_, Z> {
    /// Begins to find out what the destination is to record, unless that was begun already. A restore records nothing.
    pub(super) fn begin_recording(&mut self) {
        if self.recording.is_some() || self.plan.purpose.is_restore() {
            return;
        }
        let place = Place { host: self.agent.host.clone(), dataset: self.plan.source.clone() };
        let (zfs, found) = (Arc::clone(&self.agent.zfs), self.ours.clone());
        self.recording = Some(runtime::spawn(async move {
            let dataset = place.dataset.clone();
            record_of(&*zfs, place, &found).await.unwrap_or_else(|error| {
                log::warn!("{dataset}: its copy does not record its properties: {error}");
                None
            })
        }));
    }

    /// What the destination is to record of the source, if a stream was sent.
    pub(super) async fn recorded(&mut self) -> Option<SourceRecord> {
        self.recording.take()?.await
    }
}
