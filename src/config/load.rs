//! Loading: reads the layers, merges, decodes and validates them, and lists the origin of each
//! value.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::decode::{Decoded, decode};
use super::defaults;
use super::files::ConfigFiles;
use super::keys;
use super::layers::Layers;
use super::problems::{ConfigProblem, ConfigProblems};
use super::sections::Config;
use super::show::{EffectiveSetting, effective_settings};
use super::validate::validate;

/// A valid configuration, and the origin of each of its values.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The validated configuration.
    pub config: Config,
    layers: Layers,
}

impl Loaded {
    /// Returns true if the value was set, false if it is a default. `key` is dotted.
    pub fn is_given(&self, key: &str) -> bool {
        self.layers.is_set(&split(key))
    }

    /// Returns every value that was set or has a default, in the order of the keys, with secrets
    /// masked.
    pub fn settings(&self) -> Vec<EffectiveSetting> {
        effective_settings(&self.layers, None)
    }

    /// Returns the settings but those of destinations.
    pub(super) fn settings_of_sections(&self) -> Vec<EffectiveSetting> {
        effective_settings(&self.layers, Some("destinations"))
    }
}

/// Loads and validates: `overrides` (dotted key, value) > environment `CONSIGN__SECTION__KEY` >
/// `files` (a later one wins; a directory stands for every `*.toml` in it, in the order of their
/// names) > defaults.
///
/// Keeps no state between calls. The file of `secret_access_key_file` is not read here, but when
/// the destination is first used.
///
/// # Errors
/// All problems at once, each with its origin, key, reason and remedy. None quotes a value.
pub fn load(files: &[PathBuf], overrides: &[(String, String)]) -> Result<Loaded, ConfigProblems> {
    load_from(files, std::env::vars_os(), overrides)
}

/// Loads and validates as [`load`], with the environment as a parameter.
pub fn load_from(
    files: &[PathBuf],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    overrides: &[(String, String)],
) -> Result<Loaded, ConfigProblems> {
    load_files(&ConfigFiles::read(files), environment, overrides)
}

/// Loads and validates as [`load_from`], with files that were read before.
pub(super) fn load_files(
    files: &ConfigFiles,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    overrides: &[(String, String)],
) -> Result<Loaded, ConfigProblems> {
    let mut layers = defaults_only();
    layers.files(files);
    layers.environment(environment);
    for (key, value) in overrides {
        layers.flag(key, value);
    }
    let mut loaded = build(layers)?;
    loaded.config.broker.without_file = files.files.is_empty();
    Ok(loaded)
}

/// Loads and validates TOML text alone, for tests and examples. Problems name it `text.toml`.
pub fn load_str(text: &str) -> Result<Loaded, ConfigProblems> {
    let mut layers = defaults_only();
    layers.text(Path::new("text.toml"), 0, text);
    build(layers)
}

fn defaults_only() -> Layers {
    Layers::of_defaults(serde_json::to_value(defaults::with_process_id()).unwrap_or_default())
}

fn build(mut layers: Layers) -> Result<Loaded, ConfigProblems> {
    layers.presets();
    let mut problems = std::mem::take(&mut layers.problems);
    let complete = problems.is_empty();
    let Decoded { raw, errors, replaced } = decode(&layers.root, complete);
    let problem = |path: &[String], text| ConfigProblem::new(layers.nearest(path), keys::shown(path), text);
    problems.extend(errors.into_iter().map(|error| problem(&error.path, error.text)));
    let validated = validate(raw, |key| layers.is_set(&split(key)));
    if let Err(found) = &validated {
        let found = found.iter().map(|invalid| (split(&invalid.field), &invalid.problem));
        let independent = found.filter(|(path, _)| !follows_from(path, &replaced));
        problems.extend(independent.map(|(path, text)| problem(&path, text.clone())));
    }
    match validated {
        Ok(config) if problems.is_empty() => Ok(Loaded { config, layers }),
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
fn follows_from(path: &[String], replaced: &HashSet<Vec<String>>) -> bool {
    let beside = |length: usize| [&path[..length - 1], &["method".to_owned()]].concat();
    (1..=path.len()).any(|length| replaced.contains(&path[..length]) || replaced.contains(&beside(length)))
}
