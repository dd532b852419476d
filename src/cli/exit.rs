//! How the program ends: kinds of failure and their exit statuses.

use std::fmt;
use std::process::ExitCode;

/// Exit statuses, as zsync(8) lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Success = 0,
    /// Some order failed, some host could not be looked at, or the policy asks for what cannot be.
    Failed = 1,
    /// Nothing could be done at all: arguments, configuration, catalog, port.
    Unable = 2,
    /// `plan --exit-code`: there are orders.
    Orders = 3,
}

impl Exit {
    /// `check`: something should be looked at.
    pub const WARNING: Self = Self::Failed;
    /// `check`: something has to be looked at.
    pub const CRITICAL: Self = Self::Unable;
    /// `check`: it is not known how things are.
    pub const UNKNOWN: Self = Self::Orders;
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure that ends the program.
#[derive(Debug)]
pub struct Error {
    /// The exit status.
    pub exit: Exit,
    /// What to say; `None` when all was said.
    pub cause: Option<anyhow::Error>,
}

impl Error {
    /// Nothing could be done.
    pub fn unable(cause: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Unable, cause: Some(cause.into()) }
    }

    /// Some of the work failed, and that was told where it happened.
    #[must_use]
    pub fn told() -> Self {
        Self { exit: Exit::Failed, cause: None }
    }

    /// Not a failure, but a status to end with.
    #[must_use]
    pub fn exit(exit: Exit) -> Self {
        Self { exit, cause: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{cause:#}"),
            None => Ok(()),
        }
    }
}
