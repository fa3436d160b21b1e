//! `consign schema`: machine-readable descriptions of messages and configuration.

mod asyncapi;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::Exit;

/// Arguments of `consign schema`.
#[derive(Debug, Clone, Args)]
pub struct SchemaArgs {
    /// Schema to print
    #[arg(value_enum)]
    pub what: SchemaSubject,
}

/// Subjects of descriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchemaSubject {
    /// Job, as JSON Schema
    Job,
    /// Outcome, as JSON Schema
    Outcome,
    /// Request for a connection test, as JSON Schema
    Check,
    /// Answer to a connection test, as JSON Schema
    CheckAnswer,
    /// Configuration, as JSON Schema
    Config,
    /// Exchanges, routing keys and messages, as AsyncAPI 3.0
    Asyncapi,
}

/// Prints a description; needs no configuration.
pub fn execute(args: &SchemaArgs) -> Exit {
    super::print_json(&describe(args.what))
}

fn describe(what: SchemaSubject) -> Value {
    match what {
        SchemaSubject::Job => crate::domain::job::wire::schema().to_value(),
        SchemaSubject::Outcome => crate::domain::outcome::outcome_schema().to_value(),
        SchemaSubject::Check => crate::domain::job::wire::check_schema().to_value(),
        SchemaSubject::CheckAnswer => crate::check::answer_schema().to_value(),
        SchemaSubject::Config => crate::config::schema().to_value(),
        SchemaSubject::Asyncapi => asyncapi::document(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_schema_names_its_subject() {
        for what in [
            SchemaSubject::Job,
            SchemaSubject::Outcome,
            SchemaSubject::Check,
            SchemaSubject::CheckAnswer,
            SchemaSubject::Config,
        ] {
            let schema = describe(what);
            assert_eq!(schema["type"], "object", "{what:?}");
            assert!(schema["title"].as_str().unwrap().starts_with("consign "), "{schema}");
        }
    }
}
