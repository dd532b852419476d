//! The `zsync` executable: it parses the arguments, runs the subcommand, and exits with the status of the result.

use std::process::ExitCode;

use clap::Parser;
use zsync::cli::exit::Exit;
use zsync::commands::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            if let Some(cause) = &error.cause {
                zsync::cli::report::print_error(&format_args!("{cause:#}"));
            }
            error.exit.into()
        }
    }
}
