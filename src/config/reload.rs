//! Reloading: the sources of the configuration, and the settings that a reload does not apply.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::load::{Loaded, load};
use super::problems::ConfigProblems;

/// Sources of the configuration from the command line, kept for SIGHUP.
#[derive(Debug, Clone, Default)]
pub struct Reload {
    /// TOML files; a later one wins.
    pub files: Vec<PathBuf>,
    /// Dotted keys and their values.
    pub overrides: Vec<(String, String)>,
    /// Settings in use, once the program runs.
    pub running: RunningSettings,
}

impl Reload {
    /// Loads and validates as [`load`]. A reload applies only `destinations` and `log.filter` of
    /// the result.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(&self) -> Result<Loaded, ConfigProblems> {
        load(&self.files, &self.overrides)
    }
}

/// Settings in use that only a restart changes: all but `destinations` and `log.filter`.
#[derive(Debug, Clone, Default)]
pub struct RunningSettings {
    values: BTreeMap<String, Value>,
    /// The only secret among them. Its setting is masked, and may come from a file whose name is
    /// unchanged.
    broker_url: Option<SecretString>,
}

impl RunningSettings {
    /// Returns the settings of the configuration that the program starts with.
    pub fn of(loaded: &Loaded) -> Self {
        let needs_restart = |key: &str| key != "log.filter" && !key.starts_with("destinations.");
        let values = loaded.settings.iter().filter(|setting| needs_restart(&setting.key));
        Self {
            values: values.map(|setting| (setting.key.clone(), setting.value.clone())).collect(),
            broker_url: loaded.config.broker.url.clone(),
        }
    }

    /// Returns the dotted keys that differ in `newer`, sorted.
    pub fn differing(&self, newer: &Loaded) -> Vec<String> {
        let newer = Self::of(newer);
        let keys: BTreeSet<_> = self.values.keys().chain(newer.values.keys()).collect();
        let other = keys.into_iter().filter(|key| self.values.get(*key) != newer.values.get(*key));
        let mut keys: BTreeSet<_> = other.cloned().collect();
        let url = |of: &Self| of.broker_url.as_ref().map(|url| url.expose_secret().to_owned());
        if url(self) != url(&newer) && !keys.contains("broker.url_file") {
            keys.insert("broker.url".to_owned());
        }
        keys.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::load_str;
    use super::*;

    fn differing(before: &str, after: &str) -> Vec<String> {
        RunningSettings::of(&load_str(before).unwrap()).differing(&load_str(after).unwrap())
    }

    #[test]
    fn settings_that_need_a_restart_are_named_and_reloadable_ones_are_not() {
        let reloadable = "log.filter = \"debug\"\n[destinations.a]\nbucket = \"bucket-a\"\nregion = \"eu-west-1\"\n\
                     auth = {method = \"access_key\", access_key_id = \"AKIAEXAMPLE\", secret_access_key = \"s\"}\n";
        assert_eq!(differing("", reloadable), [""; 0]);
        let other = "[worker]\nslots = 3\nid = \"w\"\n[source]\nfile_root = \"/\"\nschemes = [\"file\"]\n";
        let keys = ["source.file_root", "source.schemes", "worker.id", "worker.slots"];
        assert_eq!(
            (differing("", other), differing(other, "")),
            (keys.map(String::from).to_vec(), keys.map(String::from).to_vec())
        );
        assert_eq!(differing(other, other), [""; 0]);
    }

    #[test]
    fn a_changed_broker_password_is_detected() {
        let url = |password: &str| format!("broker.url = \"amqps://consign:{password}@mq.example/v\"\n");
        assert_eq!(differing(&url("one"), &url("two")), ["broker.url"]);
        assert_eq!(differing(&url("one"), &url("one")), [""; 0]);
        let file = tempfile::NamedTempFile::new().unwrap();
        let by_file = format!("broker.url_file = {:?}\n", file.path().display().to_string());
        std::fs::write(file.path(), "amqps://consign:one@mq.example/v").unwrap();
        let before = RunningSettings::of(&load_str(&by_file).unwrap());
        std::fs::write(file.path(), "amqps://consign:two@mq.example/v").unwrap();
        assert_eq!(before.differing(&load_str(&by_file).unwrap()), ["broker.url"]);
    }
}
