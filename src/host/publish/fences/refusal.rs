//! Defines why an agent does not carry out an order of a director that does not lead, and what can be done about it.

use crate::model::HostName;

/// Why an order is not carried out that only the director that leads may give.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The fence is lower than one that was seen before.
    #[error("another director has taken over: {0}")]
    Outdated(String),
    /// The order has no fence, but this director has given one.
    #[error("the order has no fence, but this host takes orders of {0}, whose catalog is in Consul")]
    NoFence(String),
    /// No director can have such a fence.
    #[error("{0}")]
    Impossible(String),
    /// The fences that were seen before are not known, or the new one cannot be saved.
    #[error("{0}")]
    State(String),
}

impl Refusal {
    /// What an administrator can do about it on `host`, which has refused the order.
    #[must_use]
    pub fn hint(&self, host: &HostName) -> Option<String> {
        let forget = format!("run zsync fences --forget on {host}; zsync-fences(8) says when that is safe");
        match self {
            Self::Outdated(_) => Some(format!("if no other director is active, {forget}")),
            Self::NoFence(_) => Some(format!("if the fleet no longer has its catalog in Consul, {forget}")),
            Self::Impossible(_) => Some("find out who gives these orders; see zsync-fences(8)".to_owned()),
            Self::State(_) => None,
        }
    }
}
