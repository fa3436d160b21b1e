//! Problems of a configuration, and the origin of each value.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "origin", rename_all = "lowercase")]
pub enum ValueOrigin {
    /// The program's default.
    Default,
    /// A file.
    File {
        /// The file.
        file: PathBuf,
        /// The line, if it is known.
        line: Option<usize>,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A command-line flag.
    Flag {
        /// The flag.
        flag: String,
    },
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line: Some(line) } => write!(f, "{}:{line}", file.display()),
            Self::File { file, line: None } => file.display().fmt(f),
            Self::Environment { variable } => write!(f, "environment {variable}"),
            Self::Flag { flag } => write!(f, "flag {flag}"),
        }
    }
}

/// A problem of the configuration. Displays as `FILE:LINE: KEY: reason; remedy`, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigProblem {
    /// Origin of the wrong value.
    #[serde(flatten)]
    pub origin: ValueOrigin,
    /// The dotted key; empty if the problem is about a whole file.
    pub key: String,
    /// The reason and the remedy.
    #[serde(rename = "problem")]
    pub text: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != ValueOrigin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// All problems of a configuration, never empty. Displays one line for each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigProblems(pub Vec<ConfigProblem>);

impl ConfigProblems {
    /// Sorts the problems by file and line, the order in which they are corrected.
    pub(super) fn sorted(mut problems: Vec<ConfigProblem>) -> Self {
        problems.sort_by_key(|problem| match &problem.origin {
            ValueOrigin::File { file, line } => (Some(file.clone()), line.unwrap_or(0)),
            _ => (None, 0),
        });
        Self(problems)
    }
}
