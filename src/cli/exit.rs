//! Defines the exit statuses, and the errors that lead to them.

use std::fmt;
use std::process::ExitCode;

/// Exit statuses, as zsync(8) lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Success = 0,
    /// An order failed, a host could not be listed, or the policy asks for something impossible.
    Failed = 1,
    /// Nothing could be done: wrong arguments, wrong configuration, no catalog, no port.
    Unable = 2,
    /// `plan --exit-code`: there are orders.
    Orders = 3,
}

impl Exit {
    /// The status of `check` for WARNING.
    pub const WARNING: Self = Self::Failed;
    /// The status of `check` for CRITICAL.
    pub const CRITICAL: Self = Self::Unable;
    /// The status of `check` for UNKNOWN.
    pub const UNKNOWN: Self = Self::Orders;
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that ends the program.
#[derive(Debug)]
pub struct Error {
    /// The exit status.
    pub exit: Exit,
    /// The message to print; `None` if everything has been printed.
    pub cause: Option<anyhow::Error>,
}

impl Error {
    /// Nothing could be done.
    pub fn unable(cause: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Unable, cause: Some(cause.into()) }
    }

    /// Some of the work failed, which has been reported already.
    #[must_use]
    pub fn reported() -> Self {
        Self { exit: Exit::Failed, cause: None }
    }

    /// An exit status that is not a failure.
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
