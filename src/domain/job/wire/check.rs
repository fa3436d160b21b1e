//! The message that asks for a connection test (CONTRACT, section 8).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RawDestinationRef, check_length, of_our_version, without_byte_order_mark};
use crate::domain::job::{DestinationRef, Rejected};

/// Request for a connection test, published with the AMQP `type` `consign.check.v1`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "consign check request")]
pub struct RawCheckRequest {
    /// Version of the format: 1.
    #[schemars(extend("const" = 1))]
    pub version: u64,
    /// A configured destination's id, or an inline destination without secrets.
    pub destination: RawDestinationRef,
}

/// Reads the message and checks everything that can be checked without the configuration; as strict
/// as a job.
pub fn read_check(body: &[u8]) -> Result<DestinationRef, Rejected> {
    check_length(body)?;
    let text = std::str::from_utf8(without_byte_order_mark(body))
        .map_err(|_| Rejected::job("body", "is not UTF-8; send a connection test as JSON in UTF-8"))?;
    let raw = of_our_version(text, "check", |raw: &RawCheckRequest| raw.version);
    raw.map_err(|(rejected, _)| rejected)?.destination.validated()
}

/// The JSON Schema of the message.
pub fn check_schema() -> schemars::Schema {
    super::without_secrets(schemars::schema_for!(RawCheckRequest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::Reason;

    #[test]
    fn a_check_names_a_destination_or_brings_one() {
        let named = r#"{"version": 1, "destination": "acme"}"#;
        for body in [named.to_owned(), format!("\u{feff}{named}")] {
            let named = read_check(body.as_bytes()).unwrap();
            assert!(matches!(named, DestinationRef::Configured(id) if id.as_str() == "acme"));
        }
        let inline = br#"{"version": 1, "destination": {"id": "beta", "bucket": "bucket", "region": "eu-west-1",
            "auth": {"method": "iam_role", "role_arn": "arn:aws:iam::123456789012:role/r"}}}"#;
        assert!(matches!(read_check(inline).unwrap(), DestinationRef::Inline(to) if to.id.as_str() == "beta"));
    }

    #[test]
    fn the_field_that_is_wrong_is_named_and_its_value_is_not() {
        for (body, field) in [
            (r#"{"version": 1}"#, "destination"),
            (r#"{"version": 1, "destination": "Not An Id"}"#, "destination"),
            (r#"{"version": 1, "destination": "a", "marked": 1}"#, "marked"),
            (
                r#"{"version": 1, "destination": {"id": "a", "bucket": "bucket", "region": "eu-west-1", "auth": 7}}"#,
                "destination.auth",
            ),
            (r#"{"version": 1, "destination": "a"} "marked""#, "body"),
            ("", "body"),
            ("[1]", "body"),
        ] {
            let rejected = read_check(body.as_bytes()).unwrap_err();
            assert_eq!((rejected.reason, rejected.field.as_str()), (Reason::InvalidJob, field), "{body}");
            assert!(
                !rejected.message.contains("marked") && !rejected.message.contains("a job of version"),
                "{}",
                rejected.message
            );
        }
        let newer = read_check(br#"{"version": 2, "destination": "a", "more": true}"#).unwrap_err();
        assert_eq!(newer.reason, Reason::SchemaVersion);
        let secret = br#"{"version": 1, "destination": {"id": "a", "bucket": "bucket", "region": "eu-west-1",
            "auth": {"method": "access_key", "access_key_id": "AKIA", "secret_access_key": "marked"}}}"#;
        let rejected = read_check(secret).unwrap_err();
        assert_eq!(rejected.field, "destination.auth.method", "secrets don't travel in messages");
        assert!(!rejected.to_string().contains("marked"));
    }
}
