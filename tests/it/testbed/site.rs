//! One test's world: a prefix on the broker, a directory, and the configuration of its workers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::broker::Broker;
use super::moto::Key;
use super::worker::Worker;
use super::{free_port, unique};

/// The directory is deleted on drop; the workers end with their own handles.
#[derive(Debug)]
pub struct Site {
    pub broker: Broker,
    pub dir: TempDir,
    settings: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    destinations: BTreeMap<String, Value>,
    sources: Mutex<BTreeMap<String, Bytes>>,
    limit: Option<(&'static str, u32)>,
    further: Vec<PathBuf>,
}

impl Site {
    /// A world on the shared node.
    pub async fn new(word: &str) -> Self {
        Self::on(Broker::shared(&unique(word))).await
    }

    /// A world without a broker: the embedded queue, in the site's directory. `broker` reaches
    /// nothing.
    pub fn embedded(word: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        let broker = Broker::at(format!("sqlite:{}", dir.path().join("queue.db").display()), &unique(word));
        let mut site = Self::bare(broker, dir);
        site.defaults();
        site
    }

    /// A world on any node. The topology is declared and the outcomes are collected from here on.
    pub async fn on(broker: Broker) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        let mut site = Self::bare(broker, dir);
        site.defaults();
        site.topology();
        site.broker.collect_outcomes().await;
        site
    }

    /// Declares it, or makes the file. Needed to publish before a worker has started.
    pub fn topology(&self) {
        let applied = self.consign(&["topology", "apply"]);
        assert!(applied.status.success(), "topology apply: {}", String::from_utf8_lossy(&applied.stderr));
    }

    fn bare(broker: Broker, dir: TempDir) -> Self {
        let (settings, environment, destinations) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            broker,
            dir,
            settings,
            environment,
            destinations,
            sources: Mutex::default(),
            limit: None,
            further: Vec::new(),
        }
    }

    fn defaults(&mut self) {
        let (url, prefix) = (self.broker.url.clone(), self.broker.prefix.clone());
        let files = self.files().display().to_string();
        self.set("broker.url", url).set("broker.prefix", prefix).set("broker.declare", true);
        // Most tests have one customer, who may have the whole worker.
        self.set("worker.destination_slots", 64);
        self.set("source.file_root", files).set("source.allow_private_networks", true);
        self.set("aws.region", "us-east-1").set("aws.force_path_style", true);
        // Many tests bring a destination along.
        self.set("inline.enabled", true);
        self.set("log.format", "json").set("log.filter", "info,consign=debug");
        self.environment("AWS_EC2_METADATA_DISABLED", "true").environment("RUST_BACKTRACE", "1");
        self.identity(&Key { id: "AKIAPLATFORM00000001".into(), secret: "marked-secret-platform-key".into() });
    }

    /// Sets a key of the configuration by its dotted name.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.settings.insert(key.to_owned(), toml(&value.into()));
        self
    }

    /// Forgets a key of the configuration.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        self.settings.remove(key);
        self
    }

    /// Names a file or directory with `--config`, after the site's own file.
    pub fn further_config(&mut self, path: PathBuf) -> &mut Self {
        self.further.push(path);
        self
    }

    /// The arguments that name the files of the configuration.
    pub fn config_arguments(&self, own: &Path) -> Vec<PathBuf> {
        let files = std::iter::once(own.to_owned()).chain(self.further.iter().cloned());
        files.flat_map(|file| [PathBuf::from("--config"), file]).collect()
    }

    /// Starts workers under a limit of `ulimit`, such as `-n` for file descriptors.
    pub fn limit(&mut self, which: &'static str, most: u32) -> &mut Self {
        self.limit = Some((which, most));
        self
    }

    /// The limit that workers are started under.
    pub fn limited(&self) -> Option<(&'static str, u32)> {
        self.limit
    }

    /// Sets an environment variable of the workers.
    pub fn environment(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The worker's own AWS identity, by the standard chain.
    pub fn identity(&mut self, key: &Key) -> &mut Self {
        self.environment("AWS_ACCESS_KEY_ID", &key.id).environment("AWS_SECRET_ACCESS_KEY", &key.secret)
    }

    /// No AWS identity at all.
    pub fn without_identity(&mut self) -> &mut Self {
        self.environment.retain(|name, _| name != "AWS_ACCESS_KEY_ID" && name != "AWS_SECRET_ACCESS_KEY");
        self
    }

    /// Both endpoints.
    pub fn aws(&mut self, url: &str) -> &mut Self {
        self.set("aws.s3_endpoint_url", url).set("aws.sts_endpoint_url", url)
    }

    /// Forgets a destination.
    pub fn without_destination(&mut self, id: &str) -> &mut Self {
        self.settings.retain(|key, _| !key.starts_with(&format!("destinations.{id}.")));
        self
    }

    /// Configures a destination from an object of its keys.
    pub fn destination(&mut self, id: &str, keys: &Value) -> &mut Self {
        self.destinations.insert(id.to_owned(), keys.clone());
        for (key, value) in keys.as_object().unwrap() {
            self.set(&format!("destinations.{id}.{key}"), value.clone());
        }
        self
    }

    /// The destinations that were ever configured here.
    pub fn destinations(&self) -> &BTreeMap<String, Value> {
        &self.destinations
    }

    /// Tells the checker what a source holds, and gives its URL back.
    pub fn can_settle(&self, url: String, bytes: impl Into<Bytes>) -> String {
        self.sources.lock().unwrap().insert(url.clone(), bytes.into());
        url
    }

    /// Content of a source, where it is known.
    pub fn held(&self, url: &str) -> Option<Bytes> {
        self.sources.lock().unwrap().get(url).cloned()
    }

    /// Folder of the `file:` sources.
    pub fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    /// Writes a source file and gives its URL.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.files().join(name);
        std::fs::write(&path, bytes).unwrap();
        self.can_settle(format!("file://{}", path.display()), bytes.to_vec())
    }

    /// The configuration as TOML.
    pub fn toml(&self) -> String {
        self.settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
    }

    /// The environment of every process of this site: nothing of the caller's own.
    pub fn variables(&self) -> impl Iterator<Item = (String, String)> {
        let home = self.dir.path().display().to_string();
        let path = std::env::var("PATH").unwrap_or_default();
        let base = [("HOME".to_owned(), home), ("PATH".to_owned(), path)];
        self.environment.clone().into_iter().chain(base)
    }

    /// Runs a command of the binary with this configuration to its end.
    pub fn consign(&self, arguments: &[&str]) -> Output {
        let file = self.dir.path().join("command.toml");
        std::fs::write(&file, self.toml()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
        command
            .args(arguments)
            .args(self.config_arguments(&file))
            .env_clear()
            .envs(self.variables())
            .stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Starts a worker and waits until it is ready.
    pub async fn worker(&self) -> Worker {
        let worker = self.starting_worker().await;
        worker.ready().await;
        worker
    }

    /// Starts a worker without waiting for it.
    pub async fn starting_worker(&self) -> Worker {
        let port = free_port().await;
        let file = self.dir.path().join(format!("worker-{port}.toml"));
        Worker::start(self, file, port)
    }
}

/// A job from a source to a key.
pub fn job(id: &str, url: &str, destination: &str, key: &str) -> Value {
    json!({"version": 1, "id": id, "source": {"url": url}, "destination": destination, "key": key})
}

/// The section of a destination, as a file of its own.
pub fn section(id: &str, keys: &Value) -> String {
    let lines = keys.as_object().unwrap().iter().map(|(key, value)| format!("{key} = {}\n", toml(value)));
    format!("[destinations.{id}]\n{}", lines.collect::<String>())
}

/// JSON as an inline TOML value.
fn toml(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let pairs: Vec<_> = map.iter().map(|(key, value)| format!("{key} = {}", toml(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Array(values) => format!("[{}]", values.iter().map(toml).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
