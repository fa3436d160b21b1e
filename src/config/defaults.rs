//! All defaults of the configuration, in the order of the sections.
//!
//! Not listed: keys without a default, and `worker.id`, which [`with_process_id`] sets. The
//! sections `[aws]`, `[inline]` and `[check]` have empty and false values only and derive them. The
//! defaults of `[destinations.ID]` are those of a job's inline destination, in
//! `domain::destination::raw`.

use std::num::NonZeroU32;
use std::time::Duration;

use super::raw::{RawAdminConfig, RawConfig, RawLogConfig, RawSourceConfig};
use super::sections::{BrokerConfig, LogFormat, MetricsConfig, SessionConfig, UploadConfig, WorkerConfig};
use crate::domain::destination::SessionPolicyMode;

const MIB: u64 = 1 << 20;

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            prefix: "consign".to_owned(),
            declare: false,
            lease_after: Duration::from_secs(600),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            allow_plaintext: false,
            reply_to: ["amq.rabbitmq.reply-to.*", "<prefix>.reply.*"].map(str::to_owned).to_vec(),
            without_file: false,
        }
    }
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            slots: non_zero(16),
            backfill_slots: 8,
            memory_budget: 256 * MIB,
            drain_timeout: Duration::from_secs(30),
            max_attempts: non_zero(8),
            destination_slots: non_zero(8),
            id: String::new(),
        }
    }
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self { part_size: 8 * MIB, multipart_threshold: 16 * MIB, part_concurrency: None, min_rate: 64 << 10 }
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            refresh_before: Duration::from_secs(300),
            capacity: 10_000,
            denied_for: Duration::from_secs(60),
            role_auth: true,
            policy: SessionPolicyMode::Full,
        }
    }
}

impl Default for RawSourceConfig {
    fn default() -> Self {
        Self {
            schemes: ["https", "file", "s3"].map(str::to_owned).to_vec(),
            file_root: None,
            s3: Vec::new(),
            allow_http: false,
            allow_private_networks: false,
            allow_networks: Vec::new(),
            allow_unproven_length: false,
            max_bytes: None,
        }
    }
}

impl Default for RawAdminConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9464".to_owned(), hosts: Vec::new(), token_file: None }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { max_destinations: 500 }
    }
}

impl Default for RawLogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: "info".to_owned(), otlp_endpoint: None }
    }
}

/// Returns the defaults with `worker.id`: this host's name and this process's pid.
pub(super) fn with_process_id() -> RawConfig {
    let mut raw = RawConfig::default();
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let host: String = host.chars().map(fits).take(80).collect();
    raw.worker.id = format!("{host}-{}", std::process::id());
    raw
}

/// Returns a default that is known not to be zero.
const fn non_zero(count: u32) -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(count.saturating_sub(1))
}
