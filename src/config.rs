//! The configuration, validated: flags > environment (`CONSIGN__SECTION__KEY`) > files > defaults.
//!
//! `raw` is the serde mirror, `validate` turns it into these types and reports all problems at once. Each module
//! receives its own section by value, never the whole.
//!
//! [`load`] does it all: `layers` reads files, environment and flags and remembers where each value stands, `decode` makes the
//! mirror of the merged tree, `keys` answers questions about the schema, `show` lists what came of it, `running` compares it on a
//! reload.

mod decode;
mod keys;
mod layers;
mod load;
mod problems;
pub mod raw;
mod running;
mod show;
#[cfg(test)]
mod tests;
pub mod units;
mod validate;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::domain::destination::{Destinations, Invalid, Region, RoleArn};

pub use load::{Loaded, Reload, load, load_from, load_str};
pub use problems::{Place, Problem, Problems};
pub use raw::schema;
pub use running::Running;
pub use show::Setting;
pub use validate::check_network;

/// Everything `consign` can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[broker]`.
    pub broker: BrokerConfig,
    /// `[worker]`.
    pub worker: WorkerConfig,
    /// `[upload]`.
    pub upload: UploadConfig,
    /// `[session]`.
    pub session: SessionConfig,
    /// `[aws]`.
    pub aws: AwsConfig,
    /// `[source]`.
    pub source: SourceConfig,
    /// `[admin]`.
    pub admin: AdminConfig,
    /// `[metrics]`.
    pub metrics: MetricsConfig,
    /// `[check]`.
    pub check: CheckConfig,
    /// `[log]`.
    pub log: LogConfig,
    /// `[destinations.ID]`.
    pub destinations: Arc<Destinations>,
}

/// `[broker]`: where jobs come from.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `amqp://`, `amqps://` or `sqlite:PATH`; `None` where no command needs it. Holds a password, so it is a secret.
    pub url: Option<SecretString>,
    /// The first word of every exchange and queue.
    pub prefix: String,
    /// Whether `run` declares the topology itself, or only checks it.
    pub declare: bool,
    /// After how long a running transfer is put under a lease.
    pub lease_after: Duration,
    /// A private CA (PEM) for amqps.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate (PEM) for amqps.
    pub client_cert_file: Option<PathBuf>,
    /// The client's key (PEM) for amqps.
    pub client_key_file: Option<PathBuf>,
    /// Plain amqp beyond loopback.
    pub allow_plaintext: bool,
}

impl BrokerConfig {
    /// The URL for a command that needs a broker.
    ///
    /// # Errors
    /// A problem of the configuration (exit 78): there is none. The embedded queue is never a default.
    pub fn required_url(&self) -> Result<&SecretString, Invalid> {
        let remedy = "is required by this command; set it, broker.url_file or CONSIGN__BROKER__URL";
        self.url.as_ref().ok_or_else(|| Invalid::new("broker.url", remedy))
    }

    /// The file of the embedded queue, where the URL is `sqlite:PATH`.
    pub fn embedded_file(&self) -> Option<PathBuf> {
        self.url.as_ref()?.expose_secret().strip_prefix("sqlite:").map(PathBuf::from)
    }
}

/// `[worker]`: how much at once.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Transfers at once.
    pub slots: NonZeroU32,
    /// The most of them that backfills may hold.
    pub backfill_slots: u32,
    /// Bytes that buffered parts may hold together.
    pub memory_budget: u64,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// Charged attempts before a job is given up.
    pub max_attempts: NonZeroU32,
    /// The most transfers at once into one destination.
    pub destination_slots: NonZeroU32,
    /// This process's name (host name and pid unless given).
    pub id: String,
}

/// `[upload]`: how objects are cut.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Bytes of a part, 5 MiB to 5 GiB.
    pub part_size: u64,
    /// From this length on, an object is uploaded in parts.
    pub multipart_threshold: u64,
    /// Parts of one upload in flight at once.
    pub part_concurrency: NonZeroU32,
    /// Bytes a second below which a request (or a source) counts as stuck.
    pub min_rate: u64,
}

/// `[session]`: assumed roles.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// How long before its end a session is renewed.
    pub refresh_before: Duration,
    /// Sessions kept at once.
    pub capacity: u64,
    /// How long a refusal is remembered.
    pub denied_for: Duration,
    /// Whether this worker may assume roles at all.
    pub role_auth: bool,
}

/// `[aws]`: where the services are.
#[derive(Debug, Clone, Default)]
pub struct AwsConfig {
    /// The worker's own region: STS is called there.
    pub region: Option<Region>,
    /// An S3-compatible store. Never set by a job.
    pub s3_endpoint_url: Option<url::Url>,
    /// Another STS.
    pub sts_endpoint_url: Option<url::Url>,
    /// `https://endpoint/bucket/key` instead of `https://bucket.endpoint/key`.
    pub force_path_style: bool,
    /// Assumed first from the standard credential chain: the role that customers trust.
    pub identity_role_arn: Option<RoleArn>,
}

/// `[source]`: what may be read.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Allowed schemes, of `https`, `file`, `s3`.
    pub schemes: Vec<String>,
    /// The root of file sources; without it, none may be read.
    pub file_root: Option<PathBuf>,
    /// The staging buckets that may be read.
    pub s3_buckets: Vec<String>,
    /// Whether `http://` may be read.
    pub allow_http: bool,
    /// Whether private, loopback and link-local addresses may be read.
    pub allow_private_networks: bool,
    /// The longest source.
    pub max_bytes: Option<u64>,
}

/// `[admin]`: the HTTP endpoint for people and Prometheus.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// `[metrics]`.
#[derive(Debug, Clone)]
pub struct MetricsConfig {
    /// Destination label values; the rest is `_other`.
    pub max_destinations: usize,
}

/// `[check]`.
#[derive(Debug, Clone, Default)]
pub struct CheckConfig {
    /// This platform's public addresses (or networks), for policies and diagnoses.
    pub egress_addresses: Vec<String>,
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// JSON lines or text for people.
    pub format: LogFormat,
    /// A `tracing` filter such as `info,consign=debug`.
    pub filter: String,
    /// Where traces are sent, if anywhere.
    pub otlp_endpoint: Option<url::Url>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}
