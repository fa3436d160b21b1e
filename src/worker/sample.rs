//! Destinations and deliveries for tests.

use bytes::Bytes;

use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::destination::{Destination, DestinationId, DestinationIdentity};
use crate::domain::lane::Lane;
use crate::queue::{Delivery, DeliveryOrigin, DeliveryTag, Properties};

/// Returns a role destination of this account.
pub(super) fn destination(id: &str, account: &str) -> Destination {
    let auth = RawAuth { role_arn: Some(format!("arn:aws:iam::{account}:role/r")), ..RawAuth::default() };
    let (bucket, region) = ("acme-exports".to_owned(), "eu-central-1".to_owned());
    let raw = RawDestination { bucket, region, auth, ..RawDestination::default() };
    raw.validate(DestinationId::parse(id).unwrap()).unwrap()
}

/// Returns a destination that came with a job of this tenant.
pub(super) fn inline(id: &str, tenant: &str) -> Destination {
    let auth = RawAuth { role_arn: Some("arn:aws:iam::123456789012:role/r".to_owned()), ..RawAuth::default() };
    let (bucket, region, tenant) = ("acme-exports".to_owned(), "eu-central-1".to_owned(), Some(tenant.to_owned()));
    let raw = RawDestination { id: Some(id.to_owned()), bucket, region, auth, tenant, ..RawDestination::default() };
    raw.validate_inline().unwrap()
}

/// Returns the identity of one of many destinations that came with jobs.
pub(super) fn made_up(n: usize) -> DestinationIdentity {
    DestinationIdentity::parse(&format!("made-up-{}~{n:032x}", n % 1000)).unwrap()
}

/// Returns the first delivery of a scheduled job.
pub(super) fn delivery(body: impl Into<Bytes>) -> Delivery {
    Delivery {
        lane: Lane::Scheduled,
        body: body.into(),
        properties: Properties::default(),
        routing_key: "job.scheduled.acme".to_owned(),
        origin: DeliveryOrigin::Worker,
        publisher: String::new(),
        redelivered: false,
        delivery_count: 0,
        ticket: DeliveryTag { generation: 1, lane: Lane::Scheduled, tag: 1 },
    }
}
