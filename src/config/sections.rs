//! The validated configuration, one type for each section.
//!
//! A section whose values need no parsing is read into its type as it is written; the others have a
//! type of their own in `raw`.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::flavors::Flavor;
use super::units::{Size, Span};
use crate::domain::destination::{Destinations, InlinePolicy, Invalid, Region, RoleArn, SessionPolicyMode};
use crate::domain::staging::{StagingPlace, TenantFolder};

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
    /// `[inline]`.
    pub inline: InlinePolicy,
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

/// `[broker]`: where jobs come from. Once it is checked, `url` is set for `url_file`, too, and
/// `reply_to` names the prefix itself.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawBroker", description = "`[broker]` as written.")]
pub struct BrokerConfig {
    /// "amqps://..." or "amqp://..." for RabbitMQ, "sqlite:PATH" for the embedded queue of one
    /// machine. A broker's URL contains a password, so prefer `url_file` or the environment for it.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub url: Option<SecretString>,
    /// File that contains the URL.
    pub url_file: Option<PathBuf>,
    /// Prefix of all exchange and queue names.
    pub prefix: String,
    /// True if `consign run` declares exchanges and queues; otherwise it only checks them.
    pub declare: bool,
    /// Running time after which a transfer gets a lease: at most 30m, and less than half of the
    /// broker's `consumer_timeout`.
    #[serde(with = "Span")]
    pub lease_after: Duration,
    /// File of a private CA (PEM) for amqps.
    pub ca_file: Option<PathBuf>,
    /// File of the client certificate (PEM) for amqps; needs `client_key_file`.
    pub client_cert_file: Option<PathBuf>,
    /// File of the client key (PEM) for amqps.
    pub client_key_file: Option<PathBuf>,
    /// Allows amqp:// without TLS to hosts other than loopback. It sends the password in plain
    /// text.
    pub allow_plaintext: bool,
    /// Queues that the `reply_to` of a job may name: `*` stands for any characters, `<prefix>` for
    /// `broker.prefix`. Queues of consign itself are always refused, except `<prefix>.backfill.*`.
    pub reply_to: Vec<String>,
    /// True if no configuration file was read, the usual cause of a missing URL.
    #[serde(skip)]
    pub without_file: bool,
}

impl BrokerConfig {
    /// Returns the URL for a command that needs a broker.
    ///
    /// # Errors
    /// A problem of the configuration (exit 78) if there is no URL. The embedded queue is never
    /// a default.
    pub fn required_url(&self) -> Result<&SecretString, Invalid> {
        let remedy = if self.without_file {
            "is required by this command, and no configuration file was read; name one with -c or CONSIGN_CONFIG \
             (a directory needs a *.toml file), or set broker.url, broker.url_file or CONSIGN__BROKER__URL"
        } else {
            "is required by this command; set it, broker.url_file or CONSIGN__BROKER__URL"
        };
        self.url.as_ref().ok_or_else(|| Invalid::new("broker.url", remedy))
    }

    /// Returns the file of the embedded queue if the URL is `sqlite:PATH`.
    pub fn embedded_file(&self) -> Option<PathBuf> {
        self.url.as_ref()?.expose_secret().strip_prefix("sqlite:").map(PathBuf::from)
    }
}

/// `[worker]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawWorker")]
pub struct WorkerConfig {
    /// Transfers that a worker runs at the same time.
    pub slots: NonZeroU32,
    /// Maximum number of slots for backfills. A backfill job starts only if one slot in eight stays
    /// free for scheduled jobs.
    pub backfill_slots: u32,
    /// Total size of all part buffers.
    #[serde(with = "Size")]
    pub memory_budget: u64,
    /// Time limit of a drain after SIGTERM.
    #[serde(with = "Span")]
    pub drain_timeout: Duration,
    /// Charged attempts before a job is dead-lettered.
    pub max_attempts: NonZeroU32,
    /// Concurrent transfers into a destination without a `max_concurrency` of its own.
    pub destination_slots: NonZeroU32,
    /// Name of this process, unique among the workers of a broker. Default: host name and process
    /// id.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(with = "Option<String>")]
    pub id: String,
}

/// `[upload]` as written.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawUpload")]
pub struct UploadConfig {
    /// Size of a part, 5 MiB to 5 GiB. It is raised automatically if an object would need more than
    /// 10,000 parts.
    #[serde(with = "Size")]
    pub part_size: u64,
    /// Objects of at least this size are uploaded in parts.
    #[serde(with = "Size")]
    pub multipart_threshold: u64,
    /// Maximum number of parts of one upload that are sent at the same time. Default: adaptive for
    /// each destination; starts at 8, at most 32.
    pub part_concurrency: Option<NonZeroU32>,
    /// Minimum bytes per second. Slower requests and sources count as stalled.
    #[serde(with = "Size")]
    pub min_rate: u64,
}

/// `[session]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawSession")]
pub struct SessionConfig {
    /// Time before the expiry of a session at which it is renewed.
    #[serde(with = "Span")]
    pub refresh_before: Duration,
    /// Maximum number of cached sessions.
    pub capacity: u64,
    /// Time for which a refusal of STS is cached.
    #[serde(with = "Span")]
    pub denied_for: Duration,
    /// False for a worker without an AWS identity of its own. It refuses destinations with a role.
    pub role_auth: bool,
    /// Session policy of assumed roles. "s3" leaves out KMS actions, for stores whose STS refuses
    /// them.
    pub policy: SessionPolicyMode,
}

/// `[aws]`: region and endpoints.
#[derive(Debug, Clone, Default)]
pub struct AwsConfig {
    /// The store, if it is named.
    pub flavor: Option<Flavor>,
    /// The worker's own region, in which STS is called.
    pub region: Option<Region>,
    /// Endpoint of an S3-compatible store. A job cannot set it.
    pub s3_endpoint_url: Option<url::Url>,
    /// Endpoint of another STS.
    pub sts_endpoint_url: Option<url::Url>,
    /// `https://endpoint/bucket/key` instead of `https://bucket.endpoint/key`.
    pub force_path_style: bool,
    /// Endpoints with FIPS cryptography; `None`: as in the environment or the profile.
    pub use_fips_endpoint: Option<bool>,
    /// Endpoints for IPv4 and IPv6; `None`: as in the environment or the profile.
    pub use_dualstack_endpoint: Option<bool>,
    /// Role that customers trust. It is assumed first, with the standard credential chain.
    pub identity_role_arn: Option<RoleArn>,
}

/// `[source]`: what may be read.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Allowed schemes: "https", "file", "s3".
    pub schemes: Vec<String>,
    /// Root of file sources, an absolute path. Without it, no file may be read.
    pub file_root: Option<TenantFolder>,
    /// Staging places on S3 that may be read.
    pub s3: Vec<StagingPlace>,
    /// Allows http://.
    pub allow_http: bool,
    /// Allows private and loopback addresses.
    pub allow_private_networks: bool,
    /// Networks that may be read though they are not public.
    pub allow_networks: Vec<IpNet>,
    /// Accepts https and s3 sources that do not tell their length, although a broken connection
    /// looks like their end. Their outcomes have `length_unproven`.
    pub allow_unproven_length: bool,
    /// Maximum length of a source.
    pub max_bytes: Option<u64>,
}

/// `[admin]`: the HTTP endpoint for people and Prometheus.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Further names that the Host header may have, in lower case.
    pub hosts: Vec<String>,
    /// File that contains the bearer token for the status and its page.
    pub token_file: Option<PathBuf>,
}

/// `[metrics]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawMetrics")]
pub struct MetricsConfig {
    /// Maximum number of destinations with metric series of their own. All others count as
    /// `_other`.
    pub max_destinations: usize,
}

/// `[check]` as written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawCheck")]
pub struct CheckConfig {
    /// Public addresses or networks of your platform, for `consign policy` and the connection test.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}
