//! The `zsync` executable: arguments in, exit status out.

use std::process::ExitCode;

use clap::Parser;
use zsync::cli::args::Cli;
use zsync::cli::exit::Exit;

fn main() -> ExitCode {
    match zsync::run(Cli::parse()) {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            if let Some(cause) = &error.cause {
                zsync::cli::report::complain(&format_args!("{cause:#}"));
            }
            error.exit.into()
        }
    }
}
