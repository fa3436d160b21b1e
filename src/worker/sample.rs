//! Destination for tests.

use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::destination::{Destination, DestinationId, DestinationIdentity};

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
