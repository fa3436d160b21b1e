//! Destination for tests.

use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::destination::{Destination, DestinationId};

/// Returns a role destination of this account.
pub(super) fn destination(id: &str, account: &str) -> Destination {
    let auth = RawAuth { role_arn: Some(format!("arn:aws:iam::{account}:role/r")), ..RawAuth::default() };
    let (bucket, region) = ("acme-exports".to_owned(), "eu-central-1".to_owned());
    let raw = RawDestination { bucket, region, auth, ..RawDestination::default() };
    raw.validate(DestinationId::parse(id).unwrap()).unwrap()
}
