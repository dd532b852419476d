//! `zsync completions`: prints shell completions.

use clap::{Args, Command};

use crate::cli::exit::Error;
use crate::cli::report;

/// Arguments of `zsync completions`.
#[derive(Args, Debug)]
#[command(after_help = "For the current shell:  source <(zsync completions bash)\n\
                        Permanently:            make install, or see zsync-completions(8)")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// A shell for which there are completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// GNU Bash
    Bash,
    /// The Z shell
    Zsh,
    /// The friendly interactive shell
    Fish,
}

impl CompletionsArgs {
    /// The completions for a program, as the shell reads them.
    #[must_use]
    pub fn text(&self, mut program: Command) -> Vec<u8> {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut program, "zsync", &mut text);
        text
    }
}

/// Prints the completions.
pub fn run(args: &CompletionsArgs, program: Command) -> Result<(), Error> {
    report::print(&String::from_utf8_lossy(&args.text(program)));
    Ok(())
}
