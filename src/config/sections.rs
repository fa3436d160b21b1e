//! The validated configuration, one type for each section.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::domain::destination::{Destinations, Invalid, Region, RoleArn};

/// The whole configuration.
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
    /// `amqp://`, `amqps://` or `sqlite:PATH`; `None` if no command needs it. A secret, because it
    /// contains a password.
    pub url: Option<SecretString>,
    /// First word of every exchange and queue name.
    pub prefix: String,
    /// True if `run` declares the topology; otherwise it only checks it.
    pub declare: bool,
    /// Running time after which a transfer gets a lease.
    pub lease_after: Duration,
    /// Private CA (PEM) for amqps.
    pub ca_file: Option<PathBuf>,
    /// Client certificate (PEM) for amqps.
    pub client_cert_file: Option<PathBuf>,
    /// Client key (PEM) for amqps.
    pub client_key_file: Option<PathBuf>,
    /// Allows plain amqp to hosts other than loopback.
    pub allow_plaintext: bool,
    /// Names that replies may go to; `*` stands for any characters.
    pub reply_to: Vec<String>,
}

impl BrokerConfig {
    /// Returns the URL for a command that needs a broker.
    ///
    /// # Errors
    /// A problem of the configuration (exit 78) if there is no URL. The embedded queue is never
    /// a default.
    pub fn required_url(&self) -> Result<&SecretString, Invalid> {
        let remedy = "is required by this command; set it, broker.url_file or CONSIGN__BROKER__URL";
        self.url.as_ref().ok_or_else(|| Invalid::new("broker.url", remedy))
    }

    /// Returns the file of the embedded queue if the URL is `sqlite:PATH`.
    pub fn embedded_file(&self) -> Option<PathBuf> {
        self.url.as_ref()?.expose_secret().strip_prefix("sqlite:").map(PathBuf::from)
    }
}

/// `[worker]`: concurrency and memory.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Concurrent transfers.
    pub slots: NonZeroU32,
    /// Slots that backfills may use at most.
    pub backfill_slots: u32,
    /// Total bytes of all buffered parts.
    pub memory_budget: u64,
    /// Time limit of a drain.
    pub drain_timeout: Duration,
    /// Charged attempts before a job is dead-lettered.
    pub max_attempts: NonZeroU32,
    /// Concurrent transfers into one destination.
    pub destination_slots: NonZeroU32,
    /// Name of this process (by default host name and pid).
    pub id: String,
}

/// `[upload]`: multipart uploads.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Part size in bytes, 5 MiB to 5 GiB.
    pub part_size: u64,
    /// Length in bytes from which an object is uploaded in parts.
    pub multipart_threshold: u64,
    /// Concurrent parts of one upload.
    pub part_concurrency: NonZeroU32,
    /// Bytes per second below which a request or a source counts as stuck.
    pub min_rate: u64,
}

/// `[session]`: assumed roles.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// Time before its expiry at which a session is renewed.
    pub refresh_before: Duration,
    /// Cached sessions.
    pub capacity: u64,
    /// Time for which a refusal is cached.
    pub denied_for: Duration,
    /// True if this worker may assume roles.
    pub role_auth: bool,
}

/// `[aws]`: region and endpoints.
#[derive(Debug, Clone, Default)]
pub struct AwsConfig {
    /// The worker's own region, in which STS is called.
    pub region: Option<Region>,
    /// Endpoint of an S3-compatible store. A job cannot set it.
    pub s3_endpoint_url: Option<url::Url>,
    /// Endpoint of another STS.
    pub sts_endpoint_url: Option<url::Url>,
    /// `https://endpoint/bucket/key` instead of `https://bucket.endpoint/key`.
    pub force_path_style: bool,
    /// Role that customers trust. It is assumed first, with the standard credential chain.
    pub identity_role_arn: Option<RoleArn>,
}

/// `[source]`: sources that may be read.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Allowed schemes: `https`, `file`, `s3`.
    pub schemes: Vec<String>,
    /// Root of file sources. Without it, no file may be read.
    pub file_root: Option<PathBuf>,
    /// Staging buckets that may be read.
    pub s3_buckets: Vec<String>,
    /// Allows `http://`.
    pub allow_http: bool,
    /// Allows private, loopback and link-local addresses.
    pub allow_private_networks: bool,
    /// Maximum length of a source in bytes.
    pub max_bytes: Option<u64>,
}

/// `[admin]`: the HTTP endpoint for people and Prometheus.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
}

/// `[metrics]`: bounds on metrics.
#[derive(Debug, Clone)]
pub struct MetricsConfig {
    /// Maximum number of destination label values; all other destinations are `_other`.
    pub max_destinations: usize,
}

/// `[check]`: the connection test.
#[derive(Debug, Clone, Default)]
pub struct CheckConfig {
    /// Public addresses or networks of this platform, for policies and diagnoses.
    pub egress_addresses: Vec<String>,
}

/// `[log]`: log lines and traces.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// JSON lines, or text for people.
    pub format: LogFormat,
    /// A `tracing` filter such as `info,consign=debug`.
    pub filter: String,
    /// OTLP endpoint for traces, if they are exported.
    pub otlp_endpoint: Option<url::Url>,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}
