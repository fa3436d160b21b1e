//! `[inline]`, and the publishers of destinations: who may deliver where.

use secrecy::ExposeSecret as _;

use super::Findings;
use crate::config::raw::{RawExternalIdRule, RawInlineConfig};
use crate::config::sections::BrokerConfig;
use crate::domain::destination::{AccountId, Destinations, InlinePolicy, Invalid};

/// Longest pattern in bytes: that of an ARN.
const MAX_PATTERN_BYTES: usize = 2048;

/// Returns the rules for destinations that come in jobs.
pub(super) fn inline(raw: RawInlineConfig, findings: &mut Findings) -> InlinePolicy {
    let patterns = [
        ("inline.external_id_pattern", raw.external_id_pattern.as_slice()),
        ("inline.role_arns", raw.role_arns.as_slice()),
        ("inline.prefix_pattern", raw.prefix_pattern.as_slice()),
    ];
    for (key, pattern) in patterns.into_iter().flat_map(|(key, all)| all.iter().map(move |one| (key, one))) {
        let fits = (1..=MAX_PATTERN_BYTES).contains(&pattern.len()) && !pattern.chars().any(char::is_control);
        let problem = "has a pattern that is empty, too long or has control characters; write for example \
            \"arn:aws:iam::*:role/consign-*\"";
        findings.require(fits, key, problem);
        let rest = pattern.replace("{tenant}", "");
        let problem = "has braces; only {tenant} is known, which stands for the tenant of the job";
        findings.require(!rest.contains(['{', '}']), key, problem);
    }
    let accounts = raw.accounts.iter().filter_map(|account| {
        let problem = "has an entry that is not an account of 12 digits, such as \"123456789012\"";
        let parsed = AccountId::parse(account).map_err(|invalid| Invalid::new(invalid.field, problem));
        findings.parsed("inline.accounts", Some(parsed))
    });
    InlinePolicy {
        enabled: raw.enabled,
        external_id_required: raw.external_id == RawExternalIdRule::Required,
        accounts: accounts.collect(),
        external_id_pattern: raw.external_id_pattern,
        role_arns: raw.role_arns,
        prefix_pattern: raw.prefix_pattern,
    }
}

/// Checks that the queue can tell who has published a job, where that matters.
pub(super) fn check_publishers(broker: &BrokerConfig, destinations: &Destinations, findings: &mut Findings) {
    let Some(problem) = publisher_problem(broker) else { return };
    for destination in destinations.values().filter(|destination| !destination.publishers.is_empty()) {
        findings.add(&format!("destinations.{}.publishers", destination.id), problem);
    }
}

fn publisher_problem(broker: &BrokerConfig) -> Option<&'static str> {
    if broker.embedded_file().is_some() {
        return Some("needs RabbitMQ: the embedded queue has no users; remove it, or set broker.url = \"amqps://...\"");
    }
    let url = broker.url.as_ref().and_then(|url| url::Url::parse(url.expose_secret()).ok())?;
    let unnamed = broker.client_cert_file.is_some() && url.username().is_empty();
    unnamed.then_some(
        "needs the user of the workers' certificate, to tell their own copies from others; name it in broker.url, as in \
         \"amqps://USER@host?auth_mechanism=external\"",
    )
}
