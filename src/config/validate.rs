//! Validation: from the serde types to the validated sections. Each section adds its problems and
//! continues with a placeholder, so that all problems are found at once.

mod broker;
mod findings;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{
    RawAdminConfig, RawAwsConfig, RawCheckConfig, RawConfig, RawLogConfig, RawMetricsConfig, RawSessionConfig,
    RawSourceConfig, RawUploadConfig, RawWorkerConfig,
};
use super::sections::{
    AdminConfig, AwsConfig, CheckConfig, Config, LogConfig, MetricsConfig, SessionConfig, SourceConfig, UploadConfig,
    WorkerConfig,
};
use super::units::Size;
use crate::domain::destination::raw::RawDestination;
use crate::domain::destination::{BucketName, DestinationId, Destinations, Invalid, Region, RoleArn};
use findings::Findings;

const MIB: u64 = 1 << 20;
/// Part sizes that S3 allows, except for the last part of an upload. The maximum is also that of
/// one PutObject.
const PART_SIZES: RangeInclusive<u64> = 5 * MIB..=5 << 30;

const MAX_DRAIN_TIMEOUT: Duration = Duration::from_hours(1);

/// Replaces an address that does not parse, until the problems are reported.
const PLACEHOLDER_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// Validates the whole configuration. `is_set` returns false for a key that has its default.
/// `raw.worker.id` must be set.
pub(super) fn validate(raw: RawConfig, is_set: impl Fn(&str) -> bool) -> Result<Config, Vec<Invalid>> {
    let mut findings = Findings::default();
    let upload = upload(&raw.upload, &mut findings);
    let config = Config {
        broker: broker::broker(raw.broker, &mut findings),
        worker: worker(raw.worker, &upload, is_set("worker.backfill_slots"), &mut findings),
        upload,
        session: session(&raw.session, &mut findings),
        aws: aws(&raw.aws, &mut findings),
        source: source(raw.source, &mut findings),
        admin: admin(&raw.admin, &mut findings),
        metrics: metrics(&raw.metrics, &mut findings),
        check: check(raw.check, &mut findings),
        log: log(raw.log, &mut findings),
        destinations: Arc::new(destinations(raw.destinations, &mut findings)),
    };
    if findings.is_empty() { Ok(config) } else { Err(findings.into_problems()) }
}

fn worker(
    raw: RawWorkerConfig,
    upload: &UploadConfig,
    backfill_slots_set: bool,
    findings: &mut Findings,
) -> WorkerConfig {
    let slots = raw.slots.get();
    findings.require(slots <= 10_000, "worker.slots", "is more than 10000; run more workers instead");
    // The default is a maximum: lowering `slots` alone is not a conflict.
    let backfill_slots = if backfill_slots_set { raw.backfill_slots } else { raw.backfill_slots.min(slots) };
    if backfill_slots > slots {
        findings
            .add("worker.backfill_slots", format!("{backfill_slots} is more than worker.slots = {slots}; lower it"));
    }
    let minimum = upload.multipart_threshold.max(upload.part_size.saturating_mul(2));
    let valid = PART_SIZES.contains(&upload.multipart_threshold) && PART_SIZES.contains(&upload.part_size);
    if valid && raw.memory_budget.0 < minimum {
        let minimum = Size(minimum);
        let problem = format!(
            "{} is too small: a buffered source needs upload.multipart_threshold and twice upload.part_size; give at \
             least {minimum} or lower those",
            raw.memory_budget
        );
        findings.add("worker.memory_budget", problem);
    }
    let problem = "is out of range; give more than 0 and at most 1h, for example \"30s\"";
    findings.require(
        !raw.drain_timeout.0.is_zero() && raw.drain_timeout.0 <= MAX_DRAIN_TIMEOUT,
        "worker.drain_timeout",
        problem,
    );
    let id = raw.id.unwrap_or_default();
    let inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = (1..=100).contains(&id.len()) && id.chars().all(inner);
    findings.require(fits, "worker.id", "is not valid; give 1-100 of A-Z, a-z, 0-9, \".\", \"_\" and \"-\"");
    WorkerConfig {
        slots: raw.slots,
        backfill_slots,
        memory_budget: raw.memory_budget.0,
        drain_timeout: raw.drain_timeout.0,
        max_attempts: raw.max_attempts,
        destination_slots: raw.destination_slots,
        id,
    }
}

fn upload(raw: &RawUploadConfig, findings: &mut Findings) -> UploadConfig {
    for (key, size) in [("upload.part_size", raw.part_size), ("upload.multipart_threshold", raw.multipart_threshold)] {
        if !PART_SIZES.contains(&size.0) {
            findings.add(key, format!("{size} is outside the limits of S3; give 5MiB to 5GiB"));
        }
    }
    findings.require(
        raw.min_rate.0 > 0,
        "upload.min_rate",
        "is 0, so a stuck request would never end; give at least 1B",
    );
    let parts = raw.part_concurrency.get() <= 1000;
    findings.require(parts, "upload.part_concurrency", "is more than 1000; give a number from 1 to 1000");
    UploadConfig {
        part_size: raw.part_size.0,
        multipart_threshold: raw.multipart_threshold.0,
        part_concurrency: raw.part_concurrency,
        min_rate: raw.min_rate.0,
    }
}

fn session(raw: &RawSessionConfig, findings: &mut Findings) -> SessionConfig {
    let hour = Duration::from_hours(1);
    let problem = "is not below 1h, which is all that a session of a chained role lasts; give for example \"5m\"";
    findings.require(raw.refresh_before.0 < hour, "session.refresh_before", problem);
    let problem = "is more than 1h: a corrected role would stay refused; give for example \"1m\"";
    findings.require(raw.denied_for.0 <= hour, "session.denied_for", problem);
    findings.require(raw.capacity > 0, "session.capacity", "is 0, so no session could be cached; give at least 1");
    SessionConfig {
        refresh_before: raw.refresh_before.0,
        capacity: raw.capacity,
        denied_for: raw.denied_for.0,
        role_auth: raw.role_auth,
    }
}

fn aws(raw: &RawAwsConfig, findings: &mut Findings) -> AwsConfig {
    AwsConfig {
        region: findings.parsed("aws.region", raw.region.as_deref().map(Region::parse)),
        s3_endpoint_url: findings.endpoint("aws.s3_endpoint_url", raw.s3_endpoint_url.as_deref()),
        sts_endpoint_url: findings.endpoint("aws.sts_endpoint_url", raw.sts_endpoint_url.as_deref()),
        force_path_style: raw.force_path_style,
        identity_role_arn: findings
            .parsed("aws.identity_role_arn", raw.identity_role_arn.as_deref().map(RoleArn::parse)),
    }
}

fn source(raw: RawSourceConfig, findings: &mut Findings) -> SourceConfig {
    for scheme in &raw.schemes {
        match scheme.as_str() {
            "https" | "file" | "s3" => {}
            "http" => findings
                .add("source.schemes", "\"http\" is not listed here; remove it and set source.allow_http = true"),
            other => {
                findings.add("source.schemes", format!("{other:?} is unknown; give \"https\", \"file\" or \"s3\""));
            }
        }
    }
    if let Some(root) = raw.file_root.as_deref().filter(|root| !root.is_absolute()) {
        findings.add("source.file_root", format!("{} is relative; give an absolute path", root.display()));
    } else if let Some(root) = raw.file_root.as_deref().filter(|root| !root.is_dir()) {
        findings
            .add("source.file_root", format!("{} is not a directory; create it or remove this key", root.display()));
    }
    for bucket in &raw.s3_buckets {
        findings.parsed("source.s3_buckets", Some(BucketName::parse(bucket)));
    }
    let max = raw.max_bytes.map(|size| size.0);
    findings.require(max != Some(0), "source.max_bytes", "is 0, so nothing could be read; remove it for no limit");
    SourceConfig {
        schemes: raw.schemes,
        file_root: raw.file_root,
        s3_buckets: raw.s3_buckets,
        allow_http: raw.allow_http,
        allow_private_networks: raw.allow_private_networks,
        max_bytes: max,
    }
}

fn admin(raw: &RawAdminConfig, findings: &mut Findings) -> AdminConfig {
    let listen = raw.listen.parse::<SocketAddr>();
    let problem = "is not an address with a port; write for example \"127.0.0.1:9464\" or \"[::1]:9464\"";
    findings.require(listen.is_ok(), "admin.listen", problem);
    AdminConfig { listen: listen.unwrap_or(PLACEHOLDER_ADDRESS) }
}

fn metrics(raw: &RawMetricsConfig, findings: &mut Findings) -> MetricsConfig {
    let problem = "is out of range; give 1 to 100000 (every destination adds a dozen series)";
    findings.require((1..=100_000).contains(&raw.max_destinations), "metrics.max_destinations", problem);
    MetricsConfig { max_destinations: raw.max_destinations }
}

fn check(raw: RawCheckConfig, findings: &mut Findings) -> CheckConfig {
    for text in &raw.egress_addresses {
        if let Err(problem) = check_network(text) {
            findings.add("check.egress_addresses", problem);
        }
    }
    CheckConfig { egress_addresses: raw.egress_addresses }
}

/// Checks that the text is an IP address or a network. The error has the reason and the remedy.
pub fn check_network(text: &str) -> Result<(), String> {
    if is_network(text) {
        Ok(())
    } else {
        Err(format!("{text:?} is not an address or a network; write \"192.0.2.1\" or \"192.0.2.0/24\""))
    }
}

/// Returns true for an IP address, alone or with the prefix length of its network.
fn is_network(text: &str) -> bool {
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let max = if address.is_ipv4() { 32 } else { 128 };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= max))
}

fn log(raw: RawLogConfig, findings: &mut Findings) -> LogConfig {
    if let Err(problem) = raw.filter.parse::<tracing_subscriber::EnvFilter>() {
        findings.add("log.filter", format!("does not parse ({problem}); write for example \"info,consign=debug\""));
    }
    let otlp_endpoint = findings.endpoint("log.otlp_endpoint", raw.otlp_endpoint.as_deref());
    LogConfig { format: raw.format, filter: raw.filter, otlp_endpoint }
}

fn destinations(raw: BTreeMap<String, RawDestination>, findings: &mut Findings) -> Destinations {
    let mut all = Destinations::new();
    for (name, destination) in raw {
        let section = format!("destinations.{name}");
        if destination.id.as_ref().is_some_and(|id| *id != name) {
            findings.add(&format!("{section}.id"), "differs from the section's name; remove it");
        }
        let Some(id) = findings.parsed(&section, Some(DestinationId::parse(&name))) else { continue };
        match destination.validate(id.clone()) {
            Ok(destination) => drop(all.insert(id, Arc::new(destination))),
            Err(found) => findings.extend(found.into_iter().map(|problem| problem.under(&section))),
        }
    }
    all
}
