//! Loading: reads the layers, merges, decodes and validates them, and lists the origin of each
//! value.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::decode::{Decoded, decode};
use super::defaults;
use super::layers::Layers;
use super::problems::{ConfigProblem, ConfigProblems, ValueOrigin};
use super::sections::Config;
use super::show::{EffectiveSetting, effective_settings};
use super::validate::validate;

/// A valid configuration, and the origin of each of its values.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The validated configuration.
    pub config: Config,
    /// Every value that was set or has a default, in the order of the keys, with secrets masked.
    pub settings: Vec<EffectiveSetting>,
}

impl Loaded {
    /// Returns true if the value was set, false if it is a default. `key` is dotted.
    pub fn is_given(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key && setting.origin != ValueOrigin::Default)
    }
}

/// Loads and validates: `overrides` (dotted key, value) > environment `CONSIGN__SECTION__KEY` >
/// `files` (a later one wins) > defaults.
///
/// Keeps no state between calls, so a reload is another call. The file of `secret_access_key_file`
/// is not read here, but when the destination is first used.
///
/// # Errors
/// All problems at once, each with its origin, key, reason and remedy. None shows a secret.
pub fn load(files: &[PathBuf], overrides: &[(String, String)]) -> Result<Loaded, ConfigProblems> {
    load_from(files, std::env::vars_os(), overrides)
}

/// Loads and validates as [`load`], with the environment as a parameter.
pub fn load_from(
    files: &[PathBuf],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    overrides: &[(String, String)],
) -> Result<Loaded, ConfigProblems> {
    let mut layers = Layers::default();
    for file in files {
        layers.file(file);
    }
    layers.environment(environment);
    for (key, value) in overrides {
        layers.flag(key, value);
    }
    build(layers)
}

/// Loads and validates TOML text alone, for tests and examples. ConfigProblems name it `text.toml`.
pub fn load_str(text: &str) -> Result<Loaded, ConfigProblems> {
    let mut layers = Layers::default();
    layers.text(Path::new("text.toml"), text);
    build(layers)
}

fn build(mut layers: Layers) -> Result<Loaded, ConfigProblems> {
    let mut problems = std::mem::take(&mut layers.problems);
    let complete = problems.is_empty();
    let defaults = serde_json::to_value(defaults::with_process_id()).unwrap_or_default();
    let tree = layers.merged(&defaults);
    let Decoded { raw, errors, replaced } = decode(tree.clone(), complete);
    let problem = |path: &[String], text| ConfigProblem { origin: layers.nearest(path), key: path.join("."), text };
    problems.extend(errors.into_iter().map(|error| problem(&error.path, error.text)));
    let is_set = |key: &str| layers.origin(&split(key)) != ValueOrigin::Default;
    let validated = validate(raw, is_set);
    if let Err(found) = &validated {
        let found = found.iter().map(|invalid| (split(&invalid.field), &invalid.problem));
        let independent = found.filter(|(path, _)| !follows_from(path, &replaced));
        problems.extend(independent.map(|(path, text)| problem(&path, text.clone())));
    }
    match validated {
        Ok(config) if problems.is_empty() => Ok(Loaded { settings: effective_settings(&tree, &layers), config }),
        _ => Err(ConfigProblems::sorted(problems)),
    }
}

/// Splits a dotted key into a path. No key contains a dot, and a destination id with one is refused
/// anyway.
fn split(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

/// Returns true for a problem that only exists because a placeholder replaced a wrong value.
/// Without a valid `method`, none of the keys beside it can be validated.
fn follows_from(path: &[String], replaced: &[Vec<String>]) -> bool {
    replaced.iter().any(|wrong| {
        let around = if wrong.last().is_some_and(|key| key == "method") { wrong.len() - 1 } else { wrong.len() };
        path.starts_with(&wrong[..around])
    })
}
