//! Brings the layers together: read, merge, decode, validate, and say where everything came from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Config;
use super::decode::{Decoded, decode};
use super::layers::Layers;
use super::problems::{Problem, Problems};
use super::raw::RawConfig;
use super::running::Running;
use super::show::{Setting, settings};
use super::validate::validate;

/// A configuration that may be used, and where each of its values was given.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Every value that was given or has a default, in the order of the keys, secrets masked.
    pub settings: Vec<Setting>,
}

impl Loaded {
    /// True where somebody gave the value, false where it is a default. `key` is dotted.
    pub fn is_given(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key && setting.origin != super::Place::Default)
    }
}

/// Where a configuration comes from: what the command line said, kept for SIGHUP.
#[derive(Debug, Clone, Default)]
pub struct Reload {
    /// TOML files; a later one wins.
    pub files: Vec<PathBuf>,
    /// Dotted keys and their values.
    pub overrides: Vec<(String, String)>,
    /// What runs, once something does.
    pub running: Running,
}

impl Reload {
    /// As [`load`]; of a reload only `destinations` and `log.filter` are taken.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(&self) -> Result<Loaded, Problems> {
        load(&self.files, &self.overrides)
    }
}

/// Loads and validates: `overrides` (dotted key, value) > environment `CONSIGN__SECTION__KEY` > `files` (a later one
/// wins) > defaults.
///
/// Keeps nothing between calls, so a reload is another call ([`Reload`]); its caller takes `destinations` and `log.filter` of
/// the result and leaves the rest as it runs. The file of `secret_access_key_file` is not read here but when the destination is
/// used.
///
/// # Errors
/// All problems at once, each with its place, key, reason and remedy; none shows a secret.
pub fn load(files: &[PathBuf], overrides: &[(String, String)]) -> Result<Loaded, Problems> {
    load_from(files, std::env::vars_os(), overrides)
}

/// As [`load`], with the environment handed in.
pub fn load_from(
    files: &[PathBuf],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    overrides: &[(String, String)],
) -> Result<Loaded, Problems> {
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

/// As [`load`] for TOML text alone, named `text.toml` in problems: for tests and examples.
pub fn load_str(text: &str) -> Result<Loaded, Problems> {
    let mut layers = Layers::default();
    layers.text(Path::new("text.toml"), text);
    build(layers)
}

fn build(mut layers: Layers) -> Result<Loaded, Problems> {
    let mut problems = std::mem::take(&mut layers.problems);
    let complete = problems.is_empty();
    let tree = layers.merged(&defaults());
    let Decoded { raw, misfits, spoilt } = decode(tree.clone(), complete);
    let problem = |path: &[String], text| Problem { place: layers.nearest(path), key: path.join("."), text };
    problems.extend(misfits.into_iter().map(|(path, text)| problem(&path, text)));
    let given = |key: &str| layers.origin(&split(key)) != super::Place::Default;
    let validated = validate(raw, given);
    if let Err(found) = &validated {
        let found = found.iter().map(|invalid| (split(&invalid.field), &invalid.problem));
        let fresh = found.filter(|(path, _)| !follows_from(path, &spoilt));
        problems.extend(fresh.map(|(path, text)| problem(&path, text.clone())));
    }
    match validated {
        Ok(config) if problems.is_empty() => Ok(Loaded { settings: settings(&tree, &layers), config }),
        _ => Err(Problems::sorted(problems)),
    }
}

/// The dotted key as a path. No key of ours has a dot; a destination's name with one is refused at its section anyway.
fn split(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

/// True for a problem that only exists because a placeholder stands where a misfit was. Without a method, nothing that
/// stands beside it can be judged.
fn follows_from(path: &[String], spoilt: &[Vec<String>]) -> bool {
    spoilt.iter().any(|wrong| {
        let around = if wrong.last().is_some_and(|key| key == "method") { wrong.len() - 1 } else { wrong.len() };
        path.starts_with(&wrong[..around])
    })
}

/// The defaults as a tree, with this process's own name in it.
fn defaults() -> Value {
    let mut raw = RawConfig::default();
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let host: String = host.chars().map(fits).take(80).collect();
    raw.worker.id = Some(format!("{host}-{}", std::process::id()));
    serde_json::to_value(raw).unwrap_or_default()
}
