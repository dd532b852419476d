//! Defines the input and the outcome of a step of a transfer.

use crate::host::error::OrderError;
use crate::model::{DatasetInventory, ResponseStatus};
use crate::slave::receive::IncomingStream;
use crate::zfs::SendSpec;

/// The destination's dataset; `None` if it does not exist.
pub(crate) type Destination = Option<DatasetInventory>;

/// How a step ended, and the destination after it. A failed step does not end the conversation.
pub(crate) struct StepOutcome<T = ()> {
    pub(crate) result: Result<T, OrderError>,
    pub(crate) destination: Destination,
}

impl<T> StepOutcome<T> {
    pub(crate) fn new(result: Result<T, OrderError>, destination: Destination) -> Self {
        Self { result, destination }
    }

    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> StepOutcome<U> {
        StepOutcome { result: self.result.map(f), destination: self.destination }
    }

    pub(crate) fn map_err(self, f: impl FnOnce(OrderError) -> OrderError) -> Self {
        Self { result: self.result.map_err(f), ..self }
    }
}

/// A stream to be received.
pub(crate) struct StreamToSend<'a> {
    pub(crate) spec: &'a SendSpec,
    pub(crate) incoming: &'a IncomingStream,
    pub(crate) status: ResponseStatus,
}
