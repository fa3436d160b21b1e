//! What a reload does not take: compared, so that nobody waits for a setting that needs a restart.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::load::Loaded;

/// The settings that run and that only a restart changes: all but `destinations` and `log.filter`.
#[derive(Debug, Clone, Default)]
pub struct Running {
    values: BTreeMap<String, Value>,
    /// The only secret among them: the shown one is masked, and may come from a file of an unchanged name.
    broker_url: Option<SecretString>,
}

impl Running {
    /// Of the configuration that is started with.
    pub fn of(loaded: &Loaded) -> Self {
        let stays = |key: &str| key != "log.filter" && !key.starts_with("destinations.");
        let values = loaded.settings.iter().filter(|setting| stays(&setting.key));
        Self {
            values: values.map(|setting| (setting.key.clone(), setting.value.clone())).collect(),
            broker_url: loaded.config.broker.url.clone(),
        }
    }

    /// The dotted keys that are otherwise in `newer`, in their order.
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
    use super::super::load_str;
    use super::*;

    fn differing(before: &str, after: &str) -> Vec<String> {
        Running::of(&load_str(before).unwrap()).differing(&load_str(after).unwrap())
    }

    #[test]
    fn what_needs_a_restart_is_named_and_what_a_reload_takes_is_not() {
        let taken = "log.filter = \"debug\"\n[destinations.a]\nbucket = \"bucket-a\"\nregion = \"eu-west-1\"\n\
                     auth = {method = \"access_key\", access_key_id = \"AKIAEXAMPLE\", secret_access_key = \"s\"}\n";
        assert_eq!(differing("", taken), [""; 0]);
        let other = "[worker]\nslots = 3\nid = \"w\"\n[source]\nfile_root = \"/\"\nschemes = [\"file\"]\n";
        let keys = ["source.file_root", "source.schemes", "worker.id", "worker.slots"];
        assert_eq!(
            (differing("", other), differing(other, "")),
            (keys.map(String::from).to_vec(), keys.map(String::from).to_vec())
        );
        assert_eq!(differing(other, other), [""; 0]);
    }

    #[test]
    fn another_password_of_the_broker_is_noticed() {
        let url = |password: &str| format!("broker.url = \"amqps://consign:{password}@mq.example/v\"\n");
        assert_eq!(differing(&url("one"), &url("two")), ["broker.url"]);
        assert_eq!(differing(&url("one"), &url("one")), [""; 0]);
        let file = tempfile::NamedTempFile::new().unwrap();
        let by_file = format!("broker.url_file = {:?}\n", file.path().display().to_string());
        std::fs::write(file.path(), "amqps://consign:one@mq.example/v").unwrap();
        let before = Running::of(&load_str(&by_file).unwrap());
        std::fs::write(file.path(), "amqps://consign:two@mq.example/v").unwrap();
        assert_eq!(before.differing(&load_str(&by_file).unwrap()), ["broker.url"]);
    }
}
