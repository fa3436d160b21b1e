//! The configuration as serde reads it: the whole, and the sections that are not read into their
//! own types in `sections`. The defaults are in `defaults`.
//!
//! The JSON Schema of these types (`consign schema config`) is also used to find unknown and
//! missing keys, and to parse the text of environment variables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::flavors::Flavor;
use super::sections::{BrokerConfig, CheckConfig, LogFormat, MetricsConfig, SessionConfig, UploadConfig, WorkerConfig};
use super::units::Size;
use crate::domain::destination::raw::RawDestination;

/// Configuration of consign.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "consign configuration", rename = "config")]
pub(super) struct RawConfig {
    /// The queue of jobs.
    pub(super) broker: BrokerConfig,
    /// Concurrency and memory.
    pub(super) worker: WorkerConfig,
    /// Multipart uploads.
    pub(super) upload: UploadConfig,
    /// Assumed roles.
    pub(super) session: SessionConfig,
    /// Region and endpoints.
    pub(super) aws: RawAwsConfig,
    /// Sources that may be read.
    pub(super) source: RawSourceConfig,
    /// Destinations that come in jobs.
    pub(super) inline: RawInlineConfig,
    /// The HTTP endpoint for people and Prometheus.
    pub(super) admin: RawAdminConfig,
    /// Bounds on metrics.
    pub(super) metrics: MetricsConfig,
    /// The connection test.
    pub(super) check: CheckConfig,
    /// Log lines and traces.
    pub(super) log: RawLogConfig,
    /// The customers' buckets, by id.
    pub(super) destinations: BTreeMap<String, RawDestination>,
}

/// `[aws]` as written.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawAws")]
pub(super) struct RawAwsConfig {
    /// Kind of store. It presets the settings that the store needs. An explicit setting overrides a
    /// preset.
    pub(super) flavor: Option<Flavor>,
    /// The worker's own region, in which STS is called. Default: that of the environment or
    /// profile, else the home region of the partition of `identity_role_arn`, else the
    /// destination's region.
    pub(super) region: Option<String>,
    /// Endpoint of an S3-compatible store. Default: AWS.
    pub(super) s3_endpoint_url: Option<String>,
    /// Endpoint of the STS of an S3-compatible store. Default: AWS.
    pub(super) sts_endpoint_url: Option<String>,
    /// Puts the bucket into the path instead of the host name, for S3-compatible stores.
    pub(super) force_path_style: bool,
    /// True for the endpoints of S3 and STS with FIPS cryptography. Default:
    /// `AWS_USE_FIPS_ENDPOINT` or the profile.
    pub(super) use_fips_endpoint: Option<bool>,
    /// True for the endpoints of S3 and STS for IPv4 and IPv6. Default:
    /// `AWS_USE_DUALSTACK_ENDPOINT` or the profile.
    pub(super) use_dualstack_endpoint: Option<bool>,
    /// Role that the worker assumes first, with the standard credential chain, and that customers
    /// trust.
    pub(super) identity_role_arn: Option<String>,
}

/// `[inline]` as written.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawInline")]
pub(super) struct RawInlineConfig {
    /// True if jobs may contain a destination of their own. Every scheduler can then have data sent
    /// to every role that trusts the worker.
    pub(super) enabled: bool,
    /// "required" if each inline destination must have an external id.
    pub(super) external_id: RawExternalIdRule,
    /// Pattern of permitted external ids: `*` stands for any characters, `{tenant}` for the tenant
    /// that the job names.
    pub(super) external_id_pattern: Option<String>,
    /// Patterns of permitted roles, with `*` and `{tenant}`. An empty list permits all.
    pub(super) role_arns: Vec<String>,
    /// Permitted accounts of the roles. An empty list permits all.
    pub(super) accounts: Vec<String>,
    /// Pattern of permitted prefixes, with `*` and `{tenant}`.
    pub(super) prefix_pattern: Option<String>,
}

/// `inline.external_id`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawExternalIdRule {
    /// Each must have one.
    #[default]
    Required,
    /// None is needed.
    Optional,
}

/// `[source]` as written.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawSource")]
pub(super) struct RawSourceConfig {
    /// Allowed schemes: "https", "file", "s3".
    pub(super) schemes: Vec<String>,
    /// Directory that contains all file sources. Without it, file sources are refused. A segment
    /// `{tenant}` stands for the tenant of the job's configured destination.
    pub(super) file_root: Option<String>,
    /// Buckets, optionally with a prefix, from which sources may be read.
    pub(super) s3: Vec<RawStagingPlace>,
    /// Allows http:// sources.
    pub(super) allow_http: bool,
    /// Allows sources at all private and loopback addresses. Link-local addresses and those of
    /// cloud metadata services are always refused.
    pub(super) allow_private_networks: bool,
    /// Private networks from which sources may be read, such as "10.1.0.0/16".
    pub(super) allow_networks: Vec<String>,
    /// Accepts https and s3 sources that do not announce their length. A broken connection can't be
    /// distinguished from the end of such a source. Its outcome has `length_unproven`.
    pub(super) allow_unproven_length: bool,
    /// Maximum size of a source. Default: no limit.
    #[serde(serialize_with = "Size::serialize", deserialize_with = "Size::deserialize")]
    #[schemars(with = "Option<Size>")]
    pub(super) max_bytes: Option<u64>,
}

/// A staging place as written.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStagingPlace {
    /// The bucket's name.
    pub(super) bucket: String,
    /// Folder that may be read; by default the whole bucket. A segment `{tenant}` stands for the
    /// tenant of the job's configured destination.
    #[serde(default)]
    pub(super) prefix: String,
    /// The account that must own the bucket.
    pub(super) owner: Option<String>,
}

/// `[admin]` as written.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawAdmin")]
pub(super) struct RawAdminConfig {
    /// Address and port of the admin endpoint.
    pub(super) listen: String,
    /// Further names that the Host header may have, without a port. Loopback and the address of the
    /// connection are always accepted.
    pub(super) hosts: Vec<String>,
    /// File that contains the bearer token for `/status` and the status page, at least 16
    /// characters.
    pub(super) token_file: Option<PathBuf>,
}

/// `[log]` as written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "RawLog")]
pub(super) struct RawLogConfig {
    /// Format of log lines: one JSON object per line, or text for people.
    pub(super) format: LogFormat,
    /// Log level, or a filter such as "info,consign=debug". The AMQP library logs only if it is
    /// named: "info,lapin=error".
    pub(super) filter: String,
    /// Endpoint to which traces are exported (OTLP over HTTP), such as "http://127.0.0.1:4318".
    /// Default: none are exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) otlp_endpoint: Option<String>,
}

/// Returns the JSON Schema of the configuration.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(RawConfig)
}
