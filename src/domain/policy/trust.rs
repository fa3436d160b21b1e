//! Trust policy of the customer's role.

use serde_json::{Value, json};

use super::document::{document, from_addresses};
use super::principal::Principal;
use crate::domain::destination::ExternalId;

/// The trust policy of the customer's role: only the platform's principal, only with the external
/// id agreed on, and, where addresses are given, only from there.
///
/// Without an external id the policy has no such condition: anybody who could make the platform use
/// this role's ARN would write into the bucket (the confused deputy), so one should always be
/// agreed on.
pub fn trust(principal: &Principal, external_id: Option<&ExternalId>, source_addresses: &[String]) -> Value {
    let mut statement = json!({
        "Sid": "ConsignAssumesThisRole",
        "Effect": "Allow",
        "Principal": { "AWS": principal.as_str() },
        "Action": "sts:AssumeRole",
    });
    if let Some(id) = external_id {
        statement["Condition"] = json!({ "StringEquals": { "sts:ExternalId": id.expose() } });
    }
    document(&[from_addresses(statement, source_addresses)])
}
