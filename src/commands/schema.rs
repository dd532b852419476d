//! `zsync schema`: prints the JSON schema of a configuration file.

use clap::Args;

use crate::cli::exit::Error;
use crate::cli::report;
use crate::config;

/// Arguments of `zsync schema`.
#[derive(Args, Debug)]
pub struct SchemaArgs {
    /// Which file: server.json or local.json
    #[arg(value_enum, value_name = "FILE")]
    pub file: ConfigFile,
}

/// A configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ConfigFile {
    /// The policy, server.json
    Server,
    /// The local configuration of a host, local.json
    Local,
}

/// Prints the schema.
pub fn run(args: &SchemaArgs) -> Result<(), Error> {
    report::print(match args.file {
        ConfigFile::Server => config::SERVER_SCHEMA,
        ConfigFile::Local => config::LOCAL_SCHEMA,
    });
    Ok(())
}
