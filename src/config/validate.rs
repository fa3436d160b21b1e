//! Validation: from the serde types to the validated sections. Each section adds its problems; one
//! that parses its values continues with a placeholder, so that all problems are found at once.

mod admin;
mod broker;
mod findings;
mod inline;
mod source;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing_subscriber::filter::LevelFilter;

use super::flavors::Flavor;
use super::raw::{RawAwsConfig, RawConfig, RawLogConfig};
use super::sections::{AwsConfig, Config, LogConfig, SessionConfig, UploadConfig, WorkerConfig};
use super::units::Size;
use crate::domain::destination::raw::RawDestination;
use crate::domain::destination::{DestinationId, Destinations, Invalid, Region, RoleArn};
use findings::Findings;

const MIB: u64 = 1 << 20;
/// Part sizes that S3 allows, except for the last part of an upload. The maximum is also that of
/// one PutObject.
const PART_SIZES: RangeInclusive<u64> = 5 * MIB..=5 << 30;

const MAX_DRAIN_TIMEOUT: Duration = Duration::from_hours(1);

/// Beginnings of the names of crates that log, as far as they are letters.
const LOGGING_CRATES: [&str; 12] = [
    "aws",
    "axum",
    "backoff",
    "consign",
    "hyper",
    "lapin",
    "mio",
    "opentelemetry",
    "reqwest",
    "rustls",
    "tokio",
    "tower",
];

/// Validates the whole configuration. `is_set` returns false for a key that has its default.
/// `raw.worker.id` must be set.
pub(super) fn validate(raw: RawConfig, is_set: impl Fn(&str) -> bool) -> Result<Config, Vec<Invalid>> {
    let mut findings = Findings::default();
    let RawConfig { mut worker, upload, session, metrics, check, .. } = raw;
    // The default is a maximum: lowering `slots` alone is not a conflict.
    if !is_set("worker.backfill_slots") {
        worker.backfill_slots = worker.backfill_slots.min(worker.slots.get());
    }
    check_upload(&upload, &mut findings);
    let broker = broker::broker(raw.broker, &mut findings);
    check_worker(&worker, &upload, &mut findings);
    check_session(&session, &mut findings);
    let aws = self::aws(&raw.aws, &mut findings);
    let source = source::source(raw.source, &mut findings);
    let inline = inline::inline(raw.inline, &mut findings);
    let admin = admin::admin(raw.admin, &mut findings);
    let problem = "is out of range; give 1 to 100000 (each destination adds a dozen time series)";
    findings.require((1..=100_000).contains(&metrics.max_destinations), "metrics.max_destinations", problem);
    findings.networks("check.egress_addresses", &check.egress_addresses);
    let log = self::log(raw.log, &mut findings);
    let destinations = Arc::new(self::destinations(raw.destinations, &mut findings));
    inline::check_publishers(&broker, &destinations, &mut findings);
    check_access_points(&aws, &destinations, &mut findings);
    if !findings.0.is_empty() {
        return Err(findings.0);
    }
    Ok(Config { broker, worker, upload, session, aws, source, inline, admin, metrics, check, log, destinations })
}

fn check_worker(worker: &WorkerConfig, upload: &UploadConfig, findings: &mut Findings) {
    let (slots, backfill_slots) = (worker.slots.get(), worker.backfill_slots);
    findings.require(slots <= 10_000, "worker.slots", "is more than 10000; run more workers instead");
    if backfill_slots > slots {
        findings
            .add("worker.backfill_slots", format!("{backfill_slots} is more than worker.slots = {slots}; lower it"));
    }
    let minimum = upload.multipart_threshold.max(upload.part_size.saturating_mul(2));
    let valid = PART_SIZES.contains(&upload.multipart_threshold) && PART_SIZES.contains(&upload.part_size);
    if valid && worker.memory_budget < minimum {
        let (budget, minimum) = (Size(worker.memory_budget), Size(minimum));
        let problem = format!(
            "{budget} is too small: a buffered source needs upload.multipart_threshold and twice upload.part_size; give \
             at least {minimum} or lower those"
        );
        findings.add("worker.memory_budget", problem);
    }
    let timeout = worker.drain_timeout;
    let problem = "is out of range; give more than 0 and at most 1h, for example \"30s\"";
    findings.require(!timeout.is_zero() && timeout <= MAX_DRAIN_TIMEOUT, "worker.drain_timeout", problem);
    let inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = (1..=100).contains(&worker.id.len()) && worker.id.chars().all(inner);
    findings.require(fits, "worker.id", "is not valid; give 1-100 of A-Z, a-z, 0-9, \".\", \"_\" and \"-\"");
}

fn check_upload(upload: &UploadConfig, findings: &mut Findings) {
    let sizes = [("upload.part_size", upload.part_size), ("upload.multipart_threshold", upload.multipart_threshold)];
    for (key, size) in sizes.into_iter().filter(|(_, size)| !PART_SIZES.contains(size)) {
        findings.add(key, format!("{} is outside the limits of S3; give 5MiB to 5GiB", Size(size)));
    }
    let problem = "is 0, so a stuck request would never end; give at least 1B";
    findings.require(upload.min_rate > 0, "upload.min_rate", problem);
    let parts = upload.part_concurrency.is_none_or(|parts| parts.get() <= 1000);
    findings.require(parts, "upload.part_concurrency", "is more than 1000; give a number from 1 to 1000");
}

fn check_session(session: &SessionConfig, findings: &mut Findings) {
    let hour = Duration::from_hours(1);
    let problem = "must be below 1h, the lifetime of a session of a chained role; give for example \"5m\"";
    findings.require(session.refresh_before < hour, "session.refresh_before", problem);
    let problem = "is more than 1h: a corrected role would stay denied for that long; give for example \"1m\"";
    findings.require(session.denied_for <= hour, "session.denied_for", problem);
    findings.require(session.capacity > 0, "session.capacity", "is 0, so no session could be cached; give at least 1");
}

fn aws(raw: &RawAwsConfig, findings: &mut Findings) -> AwsConfig {
    let endpoints = [("s3_endpoint_url", &raw.s3_endpoint_url), ("sts_endpoint_url", &raw.sts_endpoint_url)];
    for (key, set) in
        [("use_fips_endpoint", raw.use_fips_endpoint), ("use_dualstack_endpoint", raw.use_dualstack_endpoint)]
    {
        if let Some((endpoint, _)) = endpoints.iter().find(|(_, url)| set == Some(true) && url.is_some()) {
            let problem = format!(
                "has no effect on aws.{endpoint}; remove one of the two, or set the endpoint in aws.{endpoint}"
            );
            findings.add(&format!("aws.{key}"), problem);
        }
    }
    if let Some(flavor) = raw.flavor.filter(|flavor| *flavor != Flavor::Aws && raw.s3_endpoint_url.is_none()) {
        let problem = format!(
            "is \"{}\", but there is no endpoint of that store; set aws.s3_endpoint_url, or the flavor \"aws\"",
            flavor.as_str()
        );
        findings.add("aws.flavor", problem);
    }
    AwsConfig {
        flavor: raw.flavor,
        region: findings.parsed("aws.region", raw.region.as_deref().map(Region::parse)),
        s3_endpoint_url: findings.endpoint("aws.s3_endpoint_url", raw.s3_endpoint_url.as_deref()),
        sts_endpoint_url: findings.endpoint("aws.sts_endpoint_url", raw.sts_endpoint_url.as_deref()),
        force_path_style: raw.force_path_style,
        use_fips_endpoint: raw.use_fips_endpoint,
        use_dualstack_endpoint: raw.use_dualstack_endpoint,
        identity_role_arn: findings
            .parsed("aws.identity_role_arn", raw.identity_role_arn.as_deref().map(RoleArn::parse)),
    }
}

/// The SDK can't put the ARN of an access point into a path.
fn check_access_points(aws: &AwsConfig, destinations: &Destinations, findings: &mut Findings) {
    let points = destinations.values().filter(|one| aws.force_path_style && one.bucket.is_access_point());
    for destination in points {
        let problem = "is the ARN of an access point, which can't be used with aws.force_path_style = true; give the name of a \
             bucket";
        findings.add(&format!("destinations.{}.bucket", destination.id), problem);
    }
}

/// Parses an IP address or a network. The error has the reason and the remedy.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .or_else(|_| address())
        .map_err(|_| "is not an address or a network; write \"192.0.2.1\" or \"192.0.2.0/24\"".to_owned())
}

fn log(raw: RawLogConfig, findings: &mut Findings) -> LogConfig {
    let parses = raw.filter.parse::<tracing_subscriber::EnvFilter>().is_ok();
    findings.require(parses, "log.filter", "is not a filter; write for example \"info,consign=debug\"");
    let problem = "is not a level; write error, warn, info, debug or trace";
    findings.require(!is_mistyped_level(&raw.filter), "log.filter", problem);
    let otlp_endpoint = findings.endpoint("log.otlp_endpoint", raw.otlp_endpoint.as_deref());
    LogConfig { format: raw.format, filter: raw.filter, otlp_endpoint }
}

/// Returns true for a word that is neither a level nor the name of a crate: as a target, it would
/// hardly select a line.
fn is_mistyped_level(filter: &str) -> bool {
    let is_word = !filter.is_empty() && filter.bytes().all(|b| b.is_ascii_lowercase());
    is_word && filter.parse::<LevelFilter>().is_err() && !LOGGING_CRATES.iter().any(|name| filter.starts_with(name))
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
            Err(found) => findings.0.extend(found.into_iter().map(|problem| problem.under(&section))),
        }
    }
    all
}
