//! Letters as JSON, with secrets redacted.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::dead_letter::filter::age;
use crate::queue::DeadLetter;

const HIDDEN: &str = "***";
/// Parts of the names of fields with secrets, at any depth: an invalid job may contain anything.
const SECRETS: [&str; 7] = ["secret", "password", "token", "external_id", "signature", "credential", "api_key"];

/// Returns the fields of a letter that `list` shows.
pub(super) fn summary(letter: &DeadLetter, now: Timestamp) -> Map<String, Value> {
    let data = json!({
        "letter": letter.id().as_str(),
        "job_id": letter.job_id(),
        "destination": letter.destination(),
        "lane": letter.lane().as_str(),
        "reason": letter.reason(),
        "class": letter.class(),
        "message": letter.message(),
        "attempts": letter.attempts(),
        "run": letter.run(),
        "died_at": letter.died_at(),
        "age_seconds": age(letter, now).map(|age| age.as_secs()),
        "first_failure_at": letter.first_failure_at(),
        "last_failure_at": letter.last_failure_at(),
    });
    if let Value::Object(map) = data { map } else { Map::new() }
}

/// Redacts a document: queries and credentials of URLs, external ids and other secrets.
pub(super) fn redacted(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.into_iter().map(|(name, value)| field(name, value)).collect()),
        Value::Array(values) => Value::Array(values.into_iter().map(redacted).collect()),
        Value::String(text) => Value::String(redacted_text(&text)),
        other => other,
    }
}

fn field(name: String, value: Value) -> (String, Value) {
    let lower = name.to_lowercase();
    // The path of a file is not a secret.
    let secret = SECRETS.iter().any(|word| lower.contains(word)) && !lower.ends_with("_file");
    let value = match value {
        _ if secret => Value::String(HIDDEN.to_owned()),
        Value::String(text) if lower == "url" => Value::String(without_query(&text)),
        other => redacted(other),
    };
    (name, value)
}

/// Redacts a text that may be a URL.
pub(super) fn redacted_text(text: &str) -> String {
    if text.contains("://") { without_query(text) } else { text.to_owned() }
}

fn without_query(url: &str) -> String {
    let (path, query) = url.split_once('?').map_or((url, ""), |(path, _)| (path, "?***"));
    let shown = match path.split_once("://") {
        Some((scheme, rest)) => {
            let (host, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit_once('@').map_or(host.to_owned(), |(_, host)| format!("{HIDDEN}@{host}"));
            format!("{scheme}://{host}{rest}")
        }
        None => path.to_owned(),
    };
    format!("{shown}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_redacted() {
        let marked = json!({
            "source": { "url": "https://me:marked@host/a.csv?X-Amz-Signature=marked", "etag": "e" },
            "destination": { "id": "d", "auth": { "external_id": "marked", "secret_access_key_file": "/run/key" } },
            "metadata": { "from": "https://host/?q=marked", "Password": { "a": ["marked"] } },
            "list": ["s3://bucket/key?marked"],
            "url": "https:/host?marked",
        });
        let shown = redacted(marked);
        assert!(!shown.to_string().contains("marked"), "{shown:#}");
        assert_eq!(shown["source"]["url"], "https://***@host/a.csv?***");
        assert_eq!(shown["source"]["etag"], "e");
        assert_eq!(shown["destination"]["auth"]["secret_access_key_file"], "/run/key");
    }
}
