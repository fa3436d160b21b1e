//! Trust policy of the customer's role.

use serde_json::{Map, Value, json};

use super::document::document;
use super::network::from_addresses;
use super::principal::Principal;
use crate::domain::destination::ExternalId;

/// The trust policy of the customer's role: only the platform's principal, only with the external
/// id agreed on, and, where addresses are given, only from there.
///
/// Without an external id the policy has no such condition: anybody who could make the platform use
/// this role's ARN would write into the bucket (the confused deputy), so one should always be
/// agreed on.
pub fn trust(principal: &Principal, external_id: Option<&ExternalId>, source_addresses: &[String]) -> Value {
    document(&[trust_statement(principal.as_str(), external_id.map(ExternalId::expose), source_addresses)])
}

pub(super) fn trust_statement(principal: &str, external_id: Option<&str>, source_addresses: &[String]) -> Value {
    let mut statement = Map::new();
    statement.insert("Sid".to_owned(), "ConsignAssumesThisRole".into());
    statement.insert("Effect".to_owned(), "Allow".into());
    statement.insert("Principal".to_owned(), json!({ "AWS": principal }));
    statement.insert("Action".to_owned(), "sts:AssumeRole".into());
    if let Some(id) = external_id {
        statement.insert("Condition".to_owned(), json!({ "StringEquals": { "sts:ExternalId": id } }));
    }
    Value::Object(from_addresses(statement, source_addresses))
}
