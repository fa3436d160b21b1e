//! The cached lookup of a session: paid by every request to S3. Target: at most 2 us.

#![expect(clippy::expect_used, reason = "a bench without its surroundings ends")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use consign::config::{AwsConfig, SessionConfig};
use consign::domain::destination::raw::{RawAuth, RawDestination, RawMethod};
use consign::domain::destination::{Destination, DestinationId, Region};
use consign::metrics::Metrics;
use consign::session::{Sessions, WorkerIdentity};
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;

/// A destination with a key, so that no service is called.
fn destination() -> Destination {
    let auth = RawAuth {
        method: RawMethod::AccessKey,
        access_key_id: Some("AKIAIOSFODNN7EXAMPLE".to_owned()),
        secret_access_key: Some("not-a-secret".to_owned().into()),
        ..RawAuth::default()
    };
    let raw = RawDestination {
        bucket: "acme-exports".to_owned(),
        region: "eu-central-1".to_owned(),
        prefix: "platform/exports/".to_owned(),
        auth,
        kms_key_arn: Some("arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab".to_owned()),
        tenant: Some("acme".to_owned()),
        ..RawDestination::default()
    };
    let id = DestinationId::parse("acme").expect("an id");
    raw.validate(id).expect("a destination")
}

fn cached_lookup(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let aws = AwsConfig { region: Region::parse("eu-central-1").ok(), ..AwsConfig::default() };
    let config = SessionConfig {
        refresh_before: Duration::from_secs(300),
        capacity: 10_000,
        denied_for: Duration::from_secs(60),
        role_auth: true,
        policy: consign::domain::destination::SessionPolicyMode::Full,
    };
    let identity = runtime.block_on(WorkerIdentity::load(&aws));
    let sessions = Sessions::new(config, aws, identity, Arc::new(Metrics::new(10)));
    let destination = destination();
    c.bench_function("session, cached", |b| {
        b.to_async(&runtime).iter(async || black_box(sessions.get(&destination).await).is_ok());
    });
}

criterion_group!(benches, cached_lookup);
criterion_main!(benches);
