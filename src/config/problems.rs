//! Problems of a configuration, and the origin of each value.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::flavors::Flavor;

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
    /// A preset of `aws.flavor`.
    Flavor {
        /// The flavor.
        flavor: Flavor,
    },
}

impl ValueOrigin {
    pub(super) fn file(file: &Path, line: Option<usize>) -> Self {
        Self::File { file: file.to_owned(), line }
    }
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line: Some(line) } => write!(f, "{}:{line}", file.display()),
            Self::File { file, line: None } => file.display().fmt(f),
            Self::Environment { variable } => write!(f, "environment {variable}"),
            Self::Flag { flag } => write!(f, "flag {flag}"),
            Self::Flavor { flavor } => write!(f, "flavor {}", flavor.as_str()),
        }
    }
}

/// A problem of the configuration. Displays as `FILE:LINE: KEY: reason; remedy`. It never quotes a
/// value: what stands at the wrong place may be a secret.
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
    /// The other file of two that contradict each other.
    #[serde(skip)]
    pub(super) other_file: Option<PathBuf>,
}

impl ConfigProblem {
    pub(super) fn new(origin: ValueOrigin, key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { origin, key: key.into(), text: text.into(), other_file: None }
    }

    /// The file with the wrong value.
    pub(super) fn file(&self) -> Option<&Path> {
        match &self.origin {
            ValueOrigin::File { file, .. } => Some(file),
            _ => None,
        }
    }
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

/// Problems that are displayed; a file with ten thousand destinations may have more.
const MAX_SHOWN: usize = 200;

/// All problems of a configuration, never empty. Displays one line for each, up to a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigProblems(pub Vec<ConfigProblem>);

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<_> = self.0.iter().take(MAX_SHOWN).map(ToString::to_string).collect();
        f.write_str(&shown.join("\n"))?;
        match self.0.len().saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n... and {more} more; correct these first"),
        }
    }
}

impl ConfigProblems {
    /// Sorts the problems by file and line, the order in which they are corrected.
    pub(super) fn sorted(mut problems: Vec<ConfigProblem>) -> Self {
        problems.sort_by_cached_key(|problem| match &problem.origin {
            ValueOrigin::File { file, line } => (Some(file.clone()), line.unwrap_or(0)),
            _ => (None, 0),
        });
        Self(problems)
    }
}
