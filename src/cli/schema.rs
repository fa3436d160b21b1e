//! `consign schema`: machine-readable descriptions of what goes in and out.

mod asyncapi;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::Exit;

/// Which description to print.
#[derive(Debug, Clone, Args)]
pub struct SchemaArgs {
    /// What to describe
    #[arg(value_enum)]
    pub what: Described,
}

/// What can be described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Described {
    /// A job, as JSON Schema
    Job,
    /// An outcome, as JSON Schema
    Outcome,
    /// The message that asks for a connection test, as JSON Schema
    Check,
    /// The answer to a connection test, as JSON Schema
    CheckAnswer,
    /// The configuration, as JSON Schema
    Config,
    /// Exchanges, routing keys and messages, as AsyncAPI 3.0
    Asyncapi,
}

/// Prints it; needs no configuration.
pub fn execute(args: &SchemaArgs) -> Exit {
    super::print_json(&describe(args.what))
}

fn describe(what: Described) -> Value {
    match what {
        Described::Job => crate::domain::job::wire::schema().to_value(),
        Described::Outcome => crate::domain::outcome::outcome_schema().to_value(),
        Described::Check => crate::domain::job::wire::check_schema().to_value(),
        Described::CheckAnswer => crate::check::answer_schema().to_value(),
        Described::Config => crate::config::schema().to_value(),
        Described::Asyncapi => asyncapi::document(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_schema_names_its_subject() {
        for what in [Described::Job, Described::Outcome, Described::Check, Described::CheckAnswer, Described::Config] {
            let schema = describe(what);
            assert_eq!(schema["type"], "object", "{what:?}");
            assert!(schema["title"].as_str().unwrap().starts_with("consign "), "{schema}");
        }
    }
}
