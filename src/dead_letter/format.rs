//! Format of exported letters: one line of JSON each. Version 1; lines of other versions are
//! rejected.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::queue::{DeadLetter, Properties};

const VERSION: u32 = 1;

/// All parts of a letter, and a summary for searching. Headers that are not text (lists, tables,
/// bytes) and AMQP properties that consign does not use are left out.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExportLine {
    version: u32,
    routing_key: String,
    died_at: Option<Timestamp>,
    #[serde(flatten)]
    properties: Properties,
    #[serde(flatten)]
    body: ExportedBody,
    /// Not parsed, as it follows from the rest.
    #[serde(flatten, skip_deserializing)]
    summary: LetterSummary,
}

#[derive(Debug, Default, Serialize)]
struct LetterSummary {
    letter: String,
    job_id: Option<String>,
    destination: Option<String>,
    reason: String,
}

/// Body, as text where it is UTF-8.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ExportedBody {
    Body(String),
    BodyBase64(String),
}

impl ExportLine {
    /// Line of a letter.
    pub fn new(letter: &DeadLetter) -> Self {
        let body = match std::str::from_utf8(letter.body()) {
            Ok(text) => ExportedBody::Body(text.to_owned()),
            Err(_) => ExportedBody::BodyBase64(STANDARD.encode(letter.body())),
        };
        Self {
            version: VERSION,
            routing_key: letter.routing_key().to_owned(),
            died_at: letter.died_at(),
            properties: letter.properties().clone(),
            body,
            summary: LetterSummary {
                letter: letter.id().to_string(),
                job_id: letter.job_id().map(str::to_owned),
                destination: letter.destination().map(str::to_owned),
                reason: letter.reason().to_owned(),
            },
        }
    }

    /// Parses a line.
    ///
    /// # Errors
    /// The problem of the line.
    pub fn parse(text: &str) -> Result<DeadLetter, String> {
        let line: Self = serde_json::from_str(text).map_err(|problem| {
            format!("is not an exported dead letter ({problem}); give a file of `consign dead export`")
        })?;
        if line.version != VERSION {
            return Err(format!(
                "its version is {}, and this version of consign reads {VERSION}; import it with the version that exported it",
                line.version
            ));
        }
        let body = match line.body {
            ExportedBody::Body(text) => Bytes::from(text),
            ExportedBody::BodyBase64(text) => {
                Bytes::from(STANDARD.decode(text).map_err(|problem| format!("body_base64: {problem}"))?)
            }
        };
        let letter = DeadLetter::new(line.routing_key, body, line.properties, line.died_at);
        let unbound = "routing_key: no queue takes it; use `job.scheduled.DEST` or `job.backfill.DEST`";
        letter.bound_lane().map_err(|_| unbound)?;
        Ok(letter)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn letter(body: &[u8]) -> DeadLetter {
        let properties = Properties {
            message_id: Some("a/1".to_owned()),
            kind: Some("consign.check.v1".to_owned()),
            headers: BTreeMap::from([("x-error-reason".to_owned(), "timeout".to_owned())]),
            ..Properties::default()
        };
        let at = Timestamp::from_second(1_800_000_000).ok();
        DeadLetter::new("job.scheduled.acme".to_owned(), Bytes::copy_from_slice(body), properties, at)
    }

    #[test]
    fn a_letter_survives_export_and_import() {
        for body in [&b"{\"a\": \"\\u0000 \xc3\xbc\"}\n "[..], b"\xff\x00\x01", b""] {
            let letter = letter(body);
            let text = serde_json::to_string(&ExportLine::new(&letter)).unwrap();
            assert!(!text.contains('\n') && text.contains("\"reason\":\"timeout\""), "{text}");
            let back = ExportLine::parse(&text).unwrap();
            assert_eq!((back.id(), back.body()), (letter.id(), letter.body()));
            assert_eq!((back.properties(), back.died_at()), (letter.properties(), letter.died_at()));
        }
    }

    #[test]
    fn invalid_lines_are_rejected() {
        let good = serde_json::to_value(ExportLine::new(&letter(b"x"))).unwrap();
        for (field, value) in [("version", 2.into()), ("routing_key", "nowhere".into()), ("headers", 1.into())] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(ExportLine::parse(&bad.to_string()).is_err(), "{field}");
        }
        for text in ["", "{}", "[]", r#"{"version":1,"routing_key":"job.scheduled.a","headers":{}}"#] {
            assert!(ExportLine::parse(text).is_err(), "{text}");
        }
    }
}
