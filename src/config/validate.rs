//! From the serde mirror to the validated types. Each section notes its problems and goes on with a stand-in.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::raw::{RawAdmin, RawAws, RawBroker, RawCheck, RawConfig, RawLog, RawMetrics, RawSession, RawSource};
use super::raw::{RawUpload, RawWorker};
use super::{
    AdminConfig, AwsConfig, BrokerConfig, CheckConfig, Config, LogConfig, MetricsConfig, SessionConfig, SourceConfig,
    UploadConfig, WorkerConfig,
};
use crate::domain::destination::raw::RawDestination;
use crate::domain::destination::{BucketName, DestinationId, Destinations, Invalid, Region, RoleArn};

const MIB: u64 = 1 << 20;
/// The bounds of S3 for a part, the last one of an upload excepted; the upper one is also that of one PutObject.
const PART: std::ops::RangeInclusive<u64> = 5 * MIB..=5 << 30;

const NO_BROKER_URL: &str = "is no broker URL; it begins with amqps:, amqp: or sqlite:, such as \"amqps://user:password@host/vhost\" or \
     \"sqlite:PATH\"";

/// The problems found so far.
#[derive(Default)]
struct Notes(Vec<Invalid>);

impl Notes {
    fn add(&mut self, key: &str, problem: impl Into<String>) {
        self.0.push(Invalid::new(key, problem));
    }

    fn must(&mut self, holds: bool, key: &str, problem: &str) {
        if !holds {
            self.add(key, problem);
        }
    }

    /// The value, or `None` and a note under `key`.
    fn parsed<T>(&mut self, key: &str, parsed: Option<Result<T, Invalid>>) -> Option<T> {
        match parsed? {
            Ok(value) => Some(value),
            Err(invalid) => {
                self.add(key, invalid.problem);
                None
            }
        }
    }

    fn readable(&mut self, key: &str, file: Option<&Path>) {
        let Some(file) = file else { return };
        if let Err(problem) = std::fs::File::open(file) {
            self.add(key, format!("{} cannot be read ({problem}); give the path of a readable file", file.display()));
        }
    }

    fn endpoint(&mut self, key: &str, text: Option<&str>) -> Option<url::Url> {
        let url = text.map(|text| url::Url::parse(text).map_err(|problem| problem.to_string()));
        let plain = |url: &url::Url| {
            let bare = url.username().is_empty() && url.password().is_none();
            matches!(url.scheme(), "http" | "https") && url.has_host() && bare && url.query().is_none()
        };
        match url? {
            Ok(url) if plain(&url) => Some(url),
            _ => {
                self.add(key, "is no endpoint; give a URL such as \"https://s3.example.com\" without user and query");
                None
            }
        }
    }
}

/// Checks everything. `given` tells whether a key was given by somebody or is a default, `raw.worker.id` is set.
pub(super) fn validate(raw: RawConfig, given: impl Fn(&str) -> bool) -> Result<Config, Vec<Invalid>> {
    let mut notes = Notes::default();
    let upload = upload(&raw.upload, &mut notes);
    let config = Config {
        broker: broker(raw.broker, &mut notes),
        worker: worker(raw.worker, &upload, given("worker.backfill_slots"), &mut notes),
        upload,
        session: session(&raw.session, &mut notes),
        aws: aws(&raw.aws, &mut notes),
        source: source(raw.source, &mut notes),
        admin: admin(&raw.admin, &mut notes),
        metrics: metrics(&raw.metrics, &mut notes),
        check: check(raw.check, &mut notes),
        log: log(raw.log, &mut notes),
        destinations: Arc::new(destinations(raw.destinations, &mut notes)),
    };
    if notes.0.is_empty() { Ok(config) } else { Err(notes.0) }
}

fn broker(raw: RawBroker, notes: &mut Notes) -> BrokerConfig {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let fits = (1..=40).contains(&raw.prefix.len()) && raw.prefix.chars().all(inner);
    let starts = raw.prefix.starts_with(|c: char| c.is_ascii_lowercase());
    let problem = "does not fit; give 1-40 of a-z, 0-9, \".\", \"_\" and \"-\" that begin with a letter";
    notes.must(fits && starts, "broker.prefix", problem);
    let limit = Duration::from_mins(30);
    let problem = "is out of bounds; give more than 0 and at most 30m, when a broker gives a delivery up by default";
    notes.must(!raw.lease_after.0.is_zero() && raw.lease_after.0 <= limit, "broker.lease_after", problem);
    let url = broker_url(&raw, notes);
    for (key, file, pair) in [
        ("broker.client_cert_file", &raw.client_cert_file, &raw.client_key_file),
        ("broker.client_key_file", &raw.client_key_file, &raw.client_cert_file),
        ("broker.ca_file", &raw.ca_file, &raw.ca_file),
    ] {
        notes.readable(key, file.as_deref());
        let problem = "is half of a pair; give client_cert_file and client_key_file together";
        notes.must(file.is_none() || pair.is_some(), key, problem);
        let tls = url.as_ref().is_none_or(|url| url.expose_secret().starts_with("amqps:"));
        notes.must(file.is_none() || tls, key, "has no effect without TLS; use an amqps:// URL or leave this out");
    }
    BrokerConfig {
        url,
        prefix: raw.prefix,
        declare: raw.declare,
        lease_after: raw.lease_after.0,
        ca_file: raw.ca_file,
        client_cert_file: raw.client_cert_file,
        client_key_file: raw.client_key_file,
        allow_plaintext: raw.allow_plaintext,
    }
}

/// The URL, from its key or its file. No problem quotes it: it holds a password.
fn broker_url(raw: &RawBroker, notes: &mut Notes) -> Option<SecretString> {
    let (key, url) = match (&raw.url, &raw.url_file) {
        (Some(_), Some(_)) => {
            notes.add("broker.url_file", "contradicts broker.url; give one of them");
            return None;
        }
        (Some(url), None) => ("broker.url", url.clone()),
        (None, Some(file)) => {
            notes.readable("broker.url_file", Some(file));
            let text = std::fs::read_to_string(file).ok()?;
            ("broker.url_file", SecretString::from(text.trim()))
        }
        (None, None) => return None,
    };
    match check_broker_url(url.expose_secret(), raw.allow_plaintext) {
        Ok(()) => Some(url),
        Err(problem) => {
            notes.add(key, problem);
            None
        }
    }
}

fn check_broker_url(text: &str, allow_plaintext: bool) -> Result<(), &'static str> {
    if let Some(path) = text.strip_prefix("sqlite:") {
        return check_embedded_file(path);
    }
    let url = url::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "amqp" | "amqps"));
    let url = url.ok_or(NO_BROKER_URL)?;
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or("names no host; write \"amqps://user:password@host/vhost\"")?;
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if url.scheme() == "amqp" && !loopback && !allow_plaintext {
        return Err("would send the password in the clear; use amqps://, or set broker.allow_plaintext = true");
    }
    Ok(())
}

fn check_embedded_file(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        Err("names no file; write \"sqlite:/var/lib/consign/queue.db\"")
    } else if path.starts_with(":memory:") {
        Err("would keep the jobs in memory and lose them; name a file on a local disk")
    } else if path.starts_with("//") && !path.starts_with("///") {
        Err(
            "names a host, and the embedded queue has none; write \"sqlite:/absolute/path\" or \"sqlite:relative/path\"",
        )
    } else {
        Ok(())
    }
}

fn worker(raw: RawWorker, upload: &UploadConfig, backfill_given: bool, notes: &mut Notes) -> WorkerConfig {
    let slots = raw.slots.get();
    notes.must(slots <= 10_000, "worker.slots", "is more than 10000; run more workers instead");
    // The default is a ceiling, not a wish: whoever lowers `slots` alone has not contradicted himself.
    let backfill_slots = if backfill_given { raw.backfill_slots } else { raw.backfill_slots.min(slots) };
    if backfill_slots > slots {
        notes.add("worker.backfill_slots", format!("{backfill_slots} is more than worker.slots = {slots}; lower it"));
    }
    let least = upload.multipart_threshold.max(upload.part_size.saturating_mul(2));
    let sound = PART.contains(&upload.multipart_threshold) && PART.contains(&upload.part_size);
    if sound && raw.memory_budget.0 < least {
        let least = super::units::Size(least);
        let problem = format!(
            "{} is too little: a buffered source needs upload.multipart_threshold and two of upload.part_size; give at \
             least {least} or lower those",
            raw.memory_budget
        );
        notes.add("worker.memory_budget", problem);
    }
    let drain = Duration::from_hours(1);
    let problem = "is not above 0 and at most 1h; give for example \"30s\"";
    notes.must(!raw.drain_timeout.0.is_zero() && raw.drain_timeout.0 <= drain, "worker.drain_timeout", problem);
    let id = raw.id.unwrap_or_default();
    let inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = (1..=100).contains(&id.len()) && id.chars().all(inner);
    notes.must(fits, "worker.id", "does not fit; give 1-100 of A-Z, a-z, 0-9, \".\", \"_\" and \"-\"");
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

fn upload(raw: &RawUpload, notes: &mut Notes) -> UploadConfig {
    for (key, size) in [("upload.part_size", raw.part_size), ("upload.multipart_threshold", raw.multipart_threshold)] {
        if !PART.contains(&size.0) {
            notes.add(key, format!("{size} is outside the limits of S3; give 5MiB to 5GiB"));
        }
    }
    notes.must(raw.min_rate.0 > 0, "upload.min_rate", "is 0, and no stuck request would ever end; give at least 1B");
    let parts = raw.part_concurrency.get() <= 1000;
    notes.must(parts, "upload.part_concurrency", "is more than 1000; give a number from 1 to 1000");
    UploadConfig {
        part_size: raw.part_size.0,
        multipart_threshold: raw.multipart_threshold.0,
        part_concurrency: raw.part_concurrency,
        min_rate: raw.min_rate.0,
    }
}

fn session(raw: &RawSession, notes: &mut Notes) -> SessionConfig {
    let hour = Duration::from_hours(1);
    let problem = "is not below 1h, which is all that a session of a chained role lasts; give for example \"5m\"";
    notes.must(raw.refresh_before.0 < hour, "session.refresh_before", problem);
    let problem = "is more than 1h: a mended role would stay refused; give for example \"1m\"";
    notes.must(raw.denied_for.0 <= hour, "session.denied_for", problem);
    notes.must(raw.capacity > 0, "session.capacity", "is 0, and no session could be kept; give at least 1");
    SessionConfig {
        refresh_before: raw.refresh_before.0,
        capacity: raw.capacity,
        denied_for: raw.denied_for.0,
        role_auth: raw.role_auth,
    }
}

fn aws(raw: &RawAws, notes: &mut Notes) -> AwsConfig {
    AwsConfig {
        region: notes.parsed("aws.region", raw.region.as_deref().map(Region::parse)),
        s3_endpoint_url: notes.endpoint("aws.s3_endpoint_url", raw.s3_endpoint_url.as_deref()),
        sts_endpoint_url: notes.endpoint("aws.sts_endpoint_url", raw.sts_endpoint_url.as_deref()),
        force_path_style: raw.force_path_style,
        identity_role_arn: notes.parsed("aws.identity_role_arn", raw.identity_role_arn.as_deref().map(RoleArn::parse)),
    }
}

fn source(raw: RawSource, notes: &mut Notes) -> SourceConfig {
    for scheme in &raw.schemes {
        match scheme.as_str() {
            "https" | "file" | "s3" => {}
            "http" => notes.add("source.schemes", "\"http\" is no scheme of its own; set source.allow_http = true"),
            other => notes.add("source.schemes", format!("{other:?} is unknown; give \"https\", \"file\" or \"s3\"")),
        }
    }
    if let Some(root) = raw.file_root.as_deref().filter(|root| !root.is_absolute()) {
        notes.add("source.file_root", format!("{} is relative; give the whole path", root.display()));
    } else if let Some(root) = raw.file_root.as_deref().filter(|root| !root.is_dir()) {
        notes.add("source.file_root", format!("{} is no directory; create it or leave this out", root.display()));
    }
    for bucket in &raw.s3_buckets {
        notes.parsed("source.s3_buckets", Some(BucketName::parse(bucket)));
    }
    let max = raw.max_bytes.map(|size| size.0);
    notes.must(max != Some(0), "source.max_bytes", "is 0, and nothing could be read; leave it out for no limit");
    SourceConfig {
        schemes: raw.schemes,
        file_root: raw.file_root,
        s3_buckets: raw.s3_buckets,
        allow_http: raw.allow_http,
        allow_private_networks: raw.allow_private_networks,
        max_bytes: max,
    }
}

fn admin(raw: &RawAdmin, notes: &mut Notes) -> AdminConfig {
    let listen = raw.listen.parse::<SocketAddr>();
    let problem = "is no address with a port; write for example \"127.0.0.1:9464\" or \"[::1]:9464\"";
    notes.must(listen.is_ok(), "admin.listen", problem);
    AdminConfig { listen: listen.unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 9464))) }
}

fn metrics(raw: &RawMetrics, notes: &mut Notes) -> MetricsConfig {
    let problem = "is not 1 to 100000; every destination adds a dozen series";
    notes.must((1..=100_000).contains(&raw.max_destinations), "metrics.max_destinations", problem);
    MetricsConfig { max_destinations: raw.max_destinations }
}

fn check(raw: RawCheck, notes: &mut Notes) -> CheckConfig {
    for text in &raw.egress_addresses {
        if let Err(problem) = check_network(text) {
            notes.add("check.egress_addresses", problem);
        }
    }
    CheckConfig { egress_addresses: raw.egress_addresses }
}

/// Refuses what is neither an IP address nor a network, with the reason and the remedy.
pub fn check_network(text: &str) -> Result<(), String> {
    if is_network(text) {
        Ok(())
    } else {
        Err(format!("{text:?} is no address; write \"192.0.2.1\" or \"192.0.2.0/24\""))
    }
}

/// True for an IP address, alone or with the length of its network.
fn is_network(text: &str) -> bool {
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= most))
}

fn log(raw: RawLog, notes: &mut Notes) -> LogConfig {
    if let Err(problem) = raw.filter.parse::<tracing_subscriber::EnvFilter>() {
        notes.add("log.filter", format!("does not parse ({problem}); write for example \"info,consign=debug\""));
    }
    let otlp_endpoint = notes.endpoint("log.otlp_endpoint", raw.otlp_endpoint.as_deref());
    LogConfig { format: raw.format, filter: raw.filter, otlp_endpoint }
}

fn destinations(raw: std::collections::BTreeMap<String, RawDestination>, notes: &mut Notes) -> Destinations {
    let mut all = Destinations::new();
    for (name, destination) in raw {
        let section = format!("destinations.{name}");
        if destination.id.as_ref().is_some_and(|id| *id != name) {
            notes.add(&format!("{section}.id"), "differs from the section's name; leave it out");
        }
        let Some(id) = notes.parsed(&section, Some(DestinationId::parse(&name))) else { continue };
        match destination.validate(id.clone()) {
            Ok(destination) => drop(all.insert(id, Arc::new(destination))),
            Err(found) => notes.0.extend(found.into_iter().map(|problem| problem.under(&section))),
        }
    }
    all
}
