//! Defines the error of an order: why an agent did not carry it out, or why a receiver did not carry out one step of a
//! transfer.
//!
//! Agents and slaves use the same type, because an agent passes on what a slave answers. The error keeps its cause as
//! its source, and a hint apart from it.

use std::fmt;
use std::time::Duration;

use crate::host::clones::CloneError;
use crate::host::hooks::HookError;
use crate::host::queue::queue_timeout;
use crate::model::{OrderId, ResponseStatus, hint};
use crate::policy::Denied;
use crate::transport::tcp::TransportError;
use crate::wire::Response;
use crate::wire::codec::WireError;
use crate::zfs::parse::error_kind;
use crate::zfs::{ErrorKind, ZfsError};

/// Why an order, or a step of a transfer, failed. `Display` gives the whole chain of causes, without the hint.
#[derive(Debug)]
pub struct OrderError {
    /// The status that goes over the wire.
    pub status: ResponseStatus,
    /// Whether the same order may succeed later without intervention.
    pub temporary: bool,
    /// What an administrator can do about it.
    pub hint: Option<String>,
    cause: anyhow::Error,
    /// A second failure that followed.
    also: Option<String>,
}

impl OrderError {
    /// A failure that lasts until somebody fixes its cause.
    #[must_use]
    pub fn new(status: ResponseStatus, reason: impl Into<String>) -> Self {
        Self { status, temporary: false, hint: None, cause: anyhow::Error::msg(reason.into()), also: None }
    }

    /// A failure that may pass by itself.
    #[must_use]
    pub fn temporary(status: ResponseStatus, reason: impl Into<String>) -> Self {
        Self { temporary: true, ..Self::new(status, reason) }
    }

    /// The order is not allowed here, or makes no sense.
    #[must_use]
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::new(ResponseStatus::Refused, reason)
    }

    /// Another order uses the dataset, or all slots for transfers.
    #[must_use]
    pub fn busy(reason: impl Into<String>) -> Self {
        Self::temporary(ResponseStatus::Busy, reason)
    }

    /// No slot became free in a queue of `limit` slots, which `key` of local.json sets.
    #[must_use]
    pub fn queue_timeout(key: &str, limit: usize) -> Self {
        Self::busy(queue_timeout(key, limit))
    }

    /// A process at one end of a stream made no progress for `limit`: `problem` says which, and how.
    #[must_use]
    pub fn stalled(problem: &str, limit: Duration) -> Self {
        let limit = humantime::format_duration(limit);
        Self::temporary(ResponseStatus::Zerror, format!("{problem} for {limit} (stall_timeout)"))
            .with_hint("check with zpool status whether the pool is suspended")
    }

    /// A ZFS command failed on the receiving side, where some failures have a status of their own because they describe
    /// the destination.
    #[must_use]
    pub fn receiving(error: ZfsError) -> Self {
        let status = match error.kind {
            ErrorKind::Modified => ResponseStatus::WasWritten,
            ErrorKind::Exists => ResponseStatus::NotEmpty,
            _ => ResponseStatus::Zerror,
        };
        let hint = match error.kind {
            ErrorKind::Feature => Some("enable the features that the pool lacks; zpool upgrade lists them"),
            ErrorKind::KeyNotLoaded => {
                Some("load the key of the encrypted dataset above the destination (zfs load-key)")
            }
            ErrorKind::ReadOnly => Some("export the pool, and import it without readonly=on"),
            _ => None,
        };
        Self { status, hint: hint.map(str::to_owned), ..Self::from(error) }
    }

    /// The failure that a response reports; `peer` is the host that sent it.
    #[must_use]
    pub fn reported(peer: Option<&str>, response: Response) -> Self {
        let Response { status, error, hint, temporary, .. } = response;
        let reason = peer.map_or_else(|| error.clone(), |peer| format!("{peer}: {error}"));
        Self { temporary, hint, ..Self::new(status, reason) }
    }

    /// Adds a hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        let hint = match self.hint {
            Some(first) => format!("{first}; {hint}"),
            None => hint,
        };
        Self { hint: Some(hint), ..self }
    }

    /// Adds what could not be done; the error so far becomes the cause.
    #[must_use]
    pub fn context(self, what: impl Into<String>) -> Self {
        Self { cause: self.cause.context(what.into()), ..self }
    }

    /// Adds another failure that followed, with its hint.
    #[must_use]
    pub fn followed_by(mut self, other: Self) -> Self {
        let also = self.also.take().into_iter().chain([other.to_string()]);
        let both = Self { also: Some(also.collect::<Vec<_>>().join("; ")), ..self };
        match other.hint {
            Some(hint) => both.with_hint(hint),
            None => both,
        }
    }

    /// What the failure of a ZFS command means. A receiving host answers with the words of its command.
    #[must_use]
    pub fn zfs_error_kind(&self) -> ErrorKind {
        let own = self.cause.downcast_ref::<ZfsError>().map(|error| error.kind);
        own.unwrap_or_else(|| error_kind(&self.to_string()))
    }

    /// Whether a pool or a quota was full.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        self.cause.downcast_ref::<ZfsError>().is_some_and(|error| error.kind == ErrorKind::NoSpace)
    }

    /// The error with its hint, for a log.
    #[must_use]
    pub fn message(&self) -> String {
        hint::join(self, self.hint.as_deref())
    }

    /// The response to an order that failed with this error.
    #[must_use]
    pub fn response(&self, order: OrderId) -> Response {
        // The cause may have a hint of its own.
        let failure = Response::failure(Some(order), self.status, self.message());
        Response { temporary: self.temporary, ..failure }
    }

    fn from_cause(status: ResponseStatus, temporary: bool, cause: impl Into<anyhow::Error>) -> Self {
        Self { status, temporary, hint: None, cause: cause.into(), also: None }
    }
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.cause)?;
        self.also.iter().try_for_each(|also| write!(f, "; {also}"))
    }
}

impl std::error::Error for OrderError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}

impl From<ZfsError> for OrderError {
    fn from(error: ZfsError) -> Self {
        Self::from_cause(ResponseStatus::Zerror, error.kind.is_temporary(), error)
    }
}

impl From<Denied> for OrderError {
    fn from(denied: Denied) -> Self {
        let hint = denied.hint();
        Self::from_cause(ResponseStatus::Refused, false, denied).with_hint(hint)
    }
}

impl From<HookError> for OrderError {
    fn from(error: HookError) -> Self {
        Self::from_cause(ResponseStatus::Refused, false, error)
    }
}

impl From<CloneError> for OrderError {
    fn from(error: CloneError) -> Self {
        // Its text already includes the error of ZFS below it.
        Self::new(ResponseStatus::Refused, error.to_string())
    }
}

impl From<TransportError> for OrderError {
    fn from(error: TransportError) -> Self {
        Self::from_cause(ResponseStatus::Unreachable, error.is_temporary(), error)
    }
}

impl From<WireError> for OrderError {
    fn from(error: WireError) -> Self {
        Self::from_cause(ResponseStatus::Unreachable, error.is_temporary(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_space() -> ZfsError {
        ZfsError {
            kind: ErrorKind::NoSpace,
            command: "zfs receive".into(),
            status: "exit status 1".into(),
            stderr: "out of space".into(),
        }
    }

    #[test]
    fn context_and_hint_keep_cause_and_status() {
        let error = OrderError::receiving(no_space()).context("cannot receive into pool/copy").with_hint("free space");
        assert!(error.is_out_of_space());
        assert_eq!(
            error.to_string(),
            "cannot receive into pool/copy: \"zfs receive\" failed (exit status 1): out of space"
        );
        let response = error.response(OrderId(uuid::Uuid::nil()));
        assert_eq!((response.status, response.temporary), (ResponseStatus::Zerror, false));
        assert_eq!(response.hint.as_deref(), Some("free space"));
        assert_eq!(error.message(), format!("{error}; hint: free space"));
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn second_failure_adds_text_and_hint() {
        let second = OrderError::refused("rollback is forbidden").with_hint("permit it");
        let error = OrderError::busy("diverged").with_hint("rename it").followed_by(second);
        assert_eq!(
            (error.status, error.to_string().as_str()),
            (ResponseStatus::Busy, "diverged; rollback is forbidden")
        );
        assert_eq!(error.hint.as_deref(), Some("rename it; permit it"));
    }

    #[test]
    fn hints_add_up() {
        let error = OrderError::busy("no slot").with_hint("wait").with_hint("raise max_sends");
        assert_eq!(error.hint.as_deref(), Some("wait; raise max_sends"));
    }
}
