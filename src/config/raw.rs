//! The configuration as serde reads it: the name and the type of every key. The defaults are in
//! `defaults`.
//!
//! The JSON Schema of these types (`consign schema config`) is also used to find unknown and
//! missing keys, and to parse the text of environment variables.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::sections::LogFormat;
use super::units::{Size, Span};
use crate::domain::destination::raw::RawDestination;

/// The configuration as written. Only its shape is checked.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "consign configuration", rename = "config")]
pub(super) struct RawConfig {
    /// The queue of jobs.
    pub(super) broker: RawBrokerConfig,
    /// Concurrency and memory.
    pub(super) worker: RawWorkerConfig,
    /// Multipart uploads.
    pub(super) upload: RawUploadConfig,
    /// Assumed roles.
    pub(super) session: RawSessionConfig,
    /// Region and endpoints.
    pub(super) aws: RawAwsConfig,
    /// Sources that may be read.
    pub(super) source: RawSourceConfig,
    /// The HTTP endpoint for people and Prometheus.
    pub(super) admin: RawAdminConfig,
    /// Bounds on metrics.
    pub(super) metrics: RawMetricsConfig,
    /// The connection test.
    pub(super) check: RawCheckConfig,
    /// Log lines and traces.
    pub(super) log: RawLogConfig,
    /// The customers' buckets, by id.
    pub(super) destinations: BTreeMap<String, RawDestination>,
}

/// `[broker]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawBroker")]
pub(super) struct RawBrokerConfig {
    /// "amqps://..." or "amqp://..." for RabbitMQ, "sqlite:PATH" for the embedded queue of one
    /// machine. A broker's URL contains a password, so prefer `url_file` or the environment for it.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub(super) url: Option<SecretString>,
    /// File that contains the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url_file: Option<PathBuf>,
    /// First word of every exchange and queue name.
    pub(super) prefix: String,
    /// True if `run` declares the topology; otherwise it only checks it.
    pub(super) declare: bool,
    /// Running time after which a transfer gets a lease.
    pub(super) lease_after: Span,
    /// Private CA (PEM) for amqps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ca_file: Option<PathBuf>,
    /// Client certificate (PEM) for amqps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_cert_file: Option<PathBuf>,
    /// Client key (PEM) for amqps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_key_file: Option<PathBuf>,
    /// Allows plain amqp to hosts other than loopback.
    pub(super) allow_plaintext: bool,
    /// Names that replies may go to; `*` stands for any characters, `<prefix>` for the prefix. The
    /// queues and exchanges of consign itself are refused in any case.
    pub(super) reply_to: Vec<String>,
}

/// `[worker]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawWorker")]
pub(super) struct RawWorkerConfig {
    /// Concurrent transfers.
    pub(super) slots: NonZeroU32,
    /// Slots that backfills may use at most. A backfill job only starts if one slot in eight stays
    /// free for scheduled jobs.
    pub(super) backfill_slots: u32,
    /// Total bytes of all buffered parts.
    pub(super) memory_budget: Size,
    /// Time limit of a drain.
    pub(super) drain_timeout: Span,
    /// Charged attempts before a job is dead-lettered.
    pub(super) max_attempts: NonZeroU32,
    /// Concurrent transfers into one destination.
    pub(super) destination_slots: NonZeroU32,
    /// Name of this process; by default host name and pid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
}

/// `[upload]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawUpload")]
pub(super) struct RawUploadConfig {
    /// Part size in bytes, 5 MiB to 5 GiB.
    pub(super) part_size: Size,
    /// Length from which an object is uploaded in parts.
    pub(super) multipart_threshold: Size,
    /// Concurrent parts of one upload.
    pub(super) part_concurrency: NonZeroU32,
    /// Bytes per second below which a request or a source counts as stuck.
    pub(super) min_rate: Size,
}

/// `[session]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawSession")]
pub(super) struct RawSessionConfig {
    /// Time before its expiry at which a session is renewed.
    pub(super) refresh_before: Span,
    /// Cached sessions.
    pub(super) capacity: u64,
    /// Time for which a refusal is cached.
    pub(super) denied_for: Span,
    /// True if this worker may assume roles.
    pub(super) role_auth: bool,
}

/// `[aws]` as written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawAws")]
pub(super) struct RawAwsConfig {
    /// The worker's own region, in which STS is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) region: Option<String>,
    /// Endpoint of an S3-compatible store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) s3_endpoint_url: Option<String>,
    /// Endpoint of another STS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sts_endpoint_url: Option<String>,
    /// Puts the bucket into the path instead of the host name, for S3-compatible stores.
    pub(super) force_path_style: bool,
    /// Role that customers trust. It is assumed first, with the standard credential chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity_role_arn: Option<String>,
}

/// `[source]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawSource")]
pub(super) struct RawSourceConfig {
    /// Allowed schemes: "https", "file", "s3".
    pub(super) schemes: Vec<String>,
    /// Root of file sources. Without it, no file may be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file_root: Option<PathBuf>,
    /// Staging buckets that may be read.
    pub(super) s3_buckets: Vec<String>,
    /// Allows http://.
    pub(super) allow_http: bool,
    /// Allows private, loopback and link-local addresses.
    pub(super) allow_private_networks: bool,
    /// Maximum length of a source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_bytes: Option<Size>,
}

/// `[admin]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawAdmin")]
pub(super) struct RawAdminConfig {
    /// Address and port to listen on.
    pub(super) listen: String,
}

/// `[metrics]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawMetrics")]
pub(super) struct RawMetricsConfig {
    /// Maximum number of destination label values; all other destinations are counted as `_other`.
    pub(super) max_destinations: usize,
}

/// `[check]` as written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawCheck")]
pub(super) struct RawCheckConfig {
    /// Public addresses or networks of this platform, for policies and diagnoses.
    pub(super) egress_addresses: Vec<String>,
}

/// `[log]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawLog")]
pub(super) struct RawLogConfig {
    /// JSON lines, or text for people.
    pub(super) format: LogFormat,
    /// A `tracing` filter such as "info,consign=debug".
    pub(super) filter: String,
    /// OTLP endpoint for traces, if they are exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) otlp_endpoint: Option<String>,
}

/// Returns the JSON Schema of the configuration.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(RawConfig)
}
