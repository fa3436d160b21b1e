//! Validation of `[broker]`.

use std::net::IpAddr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::findings::Findings;
use crate::config::files::reason;
use crate::config::sections::BrokerConfig;
use crate::domain::destination::Invalid;

/// Maximum of `broker.lease_after`: the default consumer_timeout of RabbitMQ, after which the
/// broker requeues an unacknowledged delivery.
const MAX_LEASE_AFTER: Duration = Duration::from_mins(30);

const NOT_A_BROKER_URL: &str = "is not a broker URL; it begins with amqps:, amqp: or sqlite:, such as \"amqps://user:password@host/vhost\" or \
     \"sqlite:PATH\"";

pub(super) fn broker(raw: BrokerConfig, findings: &mut Findings) -> BrokerConfig {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let fits = (1..=40).contains(&raw.prefix.len()) && raw.prefix.chars().all(inner);
    let starts = raw.prefix.starts_with(|c: char| c.is_ascii_lowercase());
    let problem = "is not valid; give 1-40 of a-z, 0-9, \".\", \"_\" and \"-\" that begin with a letter";
    findings.require(fits && starts, "broker.prefix", problem);
    let lease_after = raw.lease_after;
    let problem = "is out of range; give more than 0 and at most 30m (the default consumer_timeout of RabbitMQ)";
    findings.require(!lease_after.is_zero() && lease_after <= MAX_LEASE_AFTER, "broker.lease_after", problem);
    let url = broker_url(&raw, findings);
    for (key, file, pair) in [
        ("broker.client_cert_file", &raw.client_cert_file, &raw.client_key_file),
        ("broker.client_key_file", &raw.client_key_file, &raw.client_cert_file),
        ("broker.ca_file", &raw.ca_file, &raw.ca_file),
    ] {
        findings.require_readable(key, file.as_deref());
        let problem = "is only one of a pair; give client_cert_file and client_key_file together";
        findings.require(file.is_none() || pair.is_some(), key, problem);
        let tls = url.as_ref().is_none_or(|url| url.expose_secret().starts_with("amqps:"));
        findings.require(file.is_none() || tls, key, "has no effect without TLS; use an amqps:// URL or remove it");
    }
    let reply_to = reply_to(&raw, findings);
    BrokerConfig { url, reply_to, ..raw }
}

/// Returns the patterns with the prefix filled in.
fn reply_to(raw: &BrokerConfig, findings: &mut Findings) -> Vec<String> {
    let patterns: Vec<_> = raw.reply_to.iter().map(|pattern| pattern.replace("<prefix>", &raw.prefix)).collect();
    let (own, replies) = (format!("{}.", raw.prefix), format!("{}.reply.", raw.prefix));
    let useless = |pattern: &String| pattern.is_empty() || pattern.starts_with(&own) && !pattern.starts_with(&replies);
    let problem = "has a pattern that permits nothing; the names below \"<prefix>.reply.\" are for replies";
    findings.require(!patterns.iter().any(useless), "broker.reply_to", problem);
    patterns
}

/// Returns the URL from its key or its file. No problem quotes it, because it contains a password.
fn broker_url(raw: &BrokerConfig, findings: &mut Findings) -> Option<SecretString> {
    let (key, url) = match (&raw.url, &raw.url_file) {
        (Some(_), Some(_)) => {
            findings.add("broker.url_file", "conflicts with broker.url; give only one of them");
            return None;
        }
        (Some(url), None) => ("broker.url", url.clone()),
        (None, Some(file)) => {
            let read = std::fs::read_to_string(file).map_err(|problem| {
                let reason = reason(&problem);
                let problem = format!("names a file that can't be read: {reason}; give the path of a readable file");
                Invalid::new("broker.url_file", problem)
            });
            let text = findings.parsed("broker.url_file", Some(read))?;
            ("broker.url_file", SecretString::from(text.trim()))
        }
        (None, None) => return None,
    };
    match check_broker_url(url.expose_secret(), raw.allow_plaintext) {
        Ok(()) => Some(url),
        Err(problem) => {
            findings.add(key, problem);
            None
        }
    }
}

fn check_broker_url(text: &str, allow_plaintext: bool) -> Result<(), &'static str> {
    if let Some(path) = text.strip_prefix("sqlite:") {
        return check_embedded_file(path);
    }
    let parsed = url::Url::parse(text);
    let has_invalid_port = text.starts_with("amqp")
        && match &parsed {
            Ok(url) => url.port() == Some(0),
            Err(problem) => *problem == url::ParseError::InvalidPort,
        };
    let parsed = parsed.ok();
    if cuts_password(text, parsed.as_ref()) {
        return Err("has \"#\", \"/\" or \"?\" in the user name or password; percent-encode it as %23, %2F or %3F");
    }
    if has_invalid_port {
        return Err("has an invalid port; give 1-65535");
    }
    let url = parsed.filter(|url| matches!(url.scheme(), "amqp" | "amqps")).ok_or(NOT_A_BROKER_URL)?;
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or("has no host; write \"amqps://user:password@host/vhost\"")?;
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if url.scheme() == "amqp" && !loopback && !allow_plaintext {
        return Err("would send the password in plain text; use amqps://, or set broker.allow_plaintext = true");
    }
    Ok(())
}

/// Returns true if the user name or password has a character that ends the host. The `@` then comes
/// after it, and what is before it is no host or has no user. A virtual host may have an `@`, too.
fn cuts_password(text: &str, parsed: Option<&url::Url>) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let Some((before, after)) = rest.find(['#', '/', '?']).map(|end| rest.split_at(end)) else { return false };
    let cut = matches!(scheme, "amqp" | "amqps") && after.contains('@') && !before.contains('@');
    cut && parsed.is_none_or(|_| !after.starts_with('/'))
}

fn check_embedded_file(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        Err("has no file; write \"sqlite:/var/lib/consign/queue.db\"")
    } else if path.starts_with(":memory:") {
        Err("would keep the jobs in memory and lose them; name a file on a local disk")
    } else if path.starts_with("//") && !path.starts_with("///") {
        Err("has a host, which the embedded queue does not support; write \"sqlite:/absolute/path\" or \
             \"sqlite:relative/path\"")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_ends_the_host_is_named_and_not_quoted() {
        for password in ["pa#ss", "pa/ss", "pa?ss", "12#ss", "12?ss"] {
            let problem =
                check_broker_url(&format!("amqps://user:{password}@mq.example.com/vhost"), false).unwrap_err();
            assert!(problem.contains("percent-encode") && !problem.contains("ss@"), "{password}: {problem}");
        }
        for url in [
            "amqps://user:pa%23ss@mq.example.com/vhost",
            "amqps://user:pass@mq.example.com/v@host",
            "amqp://localhost:5672/v@host",
        ] {
            assert_eq!(check_broker_url(url, false), Ok(()), "{url}");
        }
        assert_eq!(check_broker_url("https://user:pa#ss@mq.example.com", false), Err(NOT_A_BROKER_URL));
    }

    #[test]
    fn an_invalid_port_is_named() {
        for port in ["99999", "x", "0"] {
            let url = &format!("amqps://guest:guest@mq.example.com:{port}/vhost");
            assert_eq!(check_broker_url(url, false), Err("has an invalid port; give 1-65535"), "{url}");
        }
        assert_eq!(check_broker_url("http://mq.example.com:99999", false), Err(NOT_A_BROKER_URL));
    }
}
