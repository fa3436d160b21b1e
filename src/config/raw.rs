//! The serde mirror of the configuration: the names, shapes and defaults of every key, and nothing else.
//!
//! Its JSON Schema (`consign schema config`) is also what finds unknown and missing keys, and what tells how the text of
//! an environment variable is to be read.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::LogFormat;
use super::units::{Size, Span};
use crate::domain::destination::raw::RawDestination;

/// The configuration as it is written. Nothing is checked yet but the shape.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "consign configuration", rename = "config")]
pub struct RawConfig {
    /// Where jobs come from.
    pub broker: RawBroker,
    /// How much at once.
    pub worker: RawWorker,
    /// How objects are cut.
    pub upload: RawUpload,
    /// Assumed roles.
    pub session: RawSession,
    /// Where the services are.
    pub aws: RawAws,
    /// What may be read.
    pub source: RawSource,
    /// The HTTP endpoint for people and Prometheus.
    pub admin: RawAdmin,
    /// Bounds on metrics.
    pub metrics: RawMetrics,
    /// The connection test.
    pub check: RawCheck,
    /// Log lines and traces.
    pub log: RawLog,
    /// The customers' buckets by id.
    pub destinations: BTreeMap<String, RawDestination>,
}

/// `[broker]` as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawBroker {
    /// "amqps://..." or "amqp://..." for RabbitMQ, "sqlite:PATH" for the embedded queue of one machine. A broker's URL holds a password,
    /// so prefer `url_file` or the environment for it.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub url: Option<SecretString>,
    /// The file that holds the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_file: Option<PathBuf>,
    /// The first word of every exchange and queue.
    pub prefix: String,
    /// Whether `run` declares the topology itself; otherwise it only checks it.
    pub declare: bool,
    /// After how long a running transfer is put under a lease.
    pub lease_after: Span,
    /// A private CA (PEM) for amqps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The client's certificate (PEM) for amqps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert_file: Option<PathBuf>,
    /// The client's key (PEM) for amqps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key_file: Option<PathBuf>,
    /// Plain amqp beyond loopback.
    pub allow_plaintext: bool,
}

impl Default for RawBroker {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            prefix: "consign".to_owned(),
            declare: false,
            lease_after: Span::seconds(600),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            allow_plaintext: false,
        }
    }
}

/// `[worker]` as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawWorker {
    /// Transfers at once.
    pub slots: NonZeroU32,
    /// The most of them that backfills may hold. A backfill begins only where one slot in eight stays free for scheduled jobs.
    pub backfill_slots: u32,
    /// Bytes that buffered parts may hold together.
    pub memory_budget: Size,
    /// How long a drain may take.
    pub drain_timeout: Span,
    /// Charged attempts before a job is given up.
    pub max_attempts: NonZeroU32,
    /// The most transfers at once into one destination.
    pub destination_slots: NonZeroU32,
    /// This process's name; host name and pid unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Default for RawWorker {
    fn default() -> Self {
        Self {
            slots: at_least_one(16),
            backfill_slots: 8,
            memory_budget: Size::mib(256),
            drain_timeout: Span::seconds(30),
            max_attempts: at_least_one(8),
            destination_slots: at_least_one(8),
            id: None,
        }
    }
}

/// `[upload]` as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawUpload {
    /// Bytes of a part, 5 MiB to 5 GiB.
    pub part_size: Size,
    /// From this length on, an object is uploaded in parts.
    pub multipart_threshold: Size,
    /// Parts of one upload in flight at once.
    pub part_concurrency: NonZeroU32,
    /// Bytes a second below which a request (or a source) counts as stuck.
    pub min_rate: Size,
}

impl Default for RawUpload {
    fn default() -> Self {
        Self {
            part_size: Size::mib(8),
            multipart_threshold: Size::mib(16),
            part_concurrency: at_least_one(8),
            min_rate: Size(64 << 10),
        }
    }
}

/// `[session]` as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawSession {
    /// How long before its end a session is renewed.
    pub refresh_before: Span,
    /// Sessions kept at once.
    pub capacity: u64,
    /// How long a refusal is remembered.
    pub denied_for: Span,
    /// Whether this worker may assume roles at all.
    pub role_auth: bool,
}

impl Default for RawSession {
    fn default() -> Self {
        Self { refresh_before: Span::seconds(300), capacity: 10_000, denied_for: Span::seconds(60), role_auth: true }
    }
}

/// `[aws]` as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawAws {
    /// The worker's own region: STS is called there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// An S3-compatible store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_endpoint_url: Option<String>,
    /// Another STS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sts_endpoint_url: Option<String>,
    /// The bucket in the path instead of the host name, for S3-compatible stores.
    pub force_path_style: bool,
    /// Assumed first from the standard credential chain: the role that customers trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_role_arn: Option<String>,
}

/// `[source]` as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawSource {
    /// Allowed schemes, of "https", "file" and "s3".
    pub schemes: Vec<String>,
    /// The root of file sources; without it, none may be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_root: Option<PathBuf>,
    /// The staging buckets that may be read.
    pub s3_buckets: Vec<String>,
    /// Whether http:// may be read.
    pub allow_http: bool,
    /// Whether private, loopback and link-local addresses may be read.
    pub allow_private_networks: bool,
    /// The longest source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Size>,
}

impl Default for RawSource {
    fn default() -> Self {
        Self {
            schemes: ["https", "file", "s3"].map(str::to_owned).to_vec(),
            file_root: None,
            s3_buckets: Vec::new(),
            allow_http: false,
            allow_private_networks: false,
            max_bytes: None,
        }
    }
}

/// `[admin]` as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawAdmin {
    /// Address and port to listen on.
    pub listen: String,
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9464".to_owned() }
    }
}

/// `[metrics]` as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawMetrics {
    /// Destination label values; the rest is counted as `_other`.
    pub max_destinations: usize,
}

impl Default for RawMetrics {
    fn default() -> Self {
        Self { max_destinations: 500 }
    }
}

/// `[check]` as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawCheck {
    /// This platform's public addresses or networks, for policies and diagnoses.
    pub egress_addresses: Vec<String>,
}

/// `[log]` as it is written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawLog {
    /// JSON lines, or text for people.
    pub format: LogFormat,
    /// What is logged, such as "info,consign=debug".
    pub filter: String,
    /// Where traces are sent, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: "info".to_owned(), otlp_endpoint: None }
    }
}

/// A default that is known not to be zero.
const fn at_least_one(count: u32) -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(count.saturating_sub(1))
}

/// The JSON Schema of the configuration.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(RawConfig)
}
