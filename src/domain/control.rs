//! Control messages: commands of an operator for every worker of a fleet, published to the stream
//! `consign.control` alone.
//!
//! Every worker reads the messages of the last 7 days and then live ones. It may read one more than
//! once, so performing a command must be idempotent.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::destination::{DestinationId, Invalid, strict};

/// Version that this program reads and writes.
pub const VERSION: u64 = 1;
/// Days for which messages are kept, and for which their commands hold.
pub const KEPT_DAYS: u64 = 7;
/// Header of a backfill's jobs: the backfill's id.
pub const BACKFILL_HEADER: &str = "consign-backfill";
/// Header beside it: start of the command that published them (RFC 3339). A cancellation covers
/// commands that started before it.
pub const BACKFILL_BEGUN_HEADER: &str = "consign-backfill-at";
/// Most bytes of a control message.
const MAX_BYTES: usize = 4096;

/// Id of a backfill: 1-64 of `[A-Za-z0-9._-]`, valid in the names of queues and files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackfillId(String);

impl BackfillId {
    /// Parses an id; the error's field is `backfill`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        // It becomes a file name: neither hidden nor a parent directory.
        if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.bytes().all(inner) {
            let problem = "a backfill's id is 1-64 of A-Z, a-z, 0-9 and ._- and does not begin with a dot";
            return Err(Invalid::new("backfill", problem));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for BackfillId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Cancellations of a backfill that were published before a command started. They do not cover the
/// jobs that it publishes, and every other cancellation does, whatever any clock says.
///
/// As text, in a header and in the record: their ids with spaces between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EarlierCancellations(Vec<Uuid>);

impl EarlierCancellations {
    /// Collects those of `backfill` from control messages.
    pub fn of<'a>(backfill: &BackfillId, messages: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let messages = messages.into_iter().filter_map(|body| Control::parse(body).ok());
        let ours = messages.filter(|control| control.cancels(backfill));
        Self(ours.map(|control| control.id).collect())
    }

    /// Returns true for the id of one of them.
    pub fn contains(&self, id: Uuid) -> bool {
        self.0.contains(&id)
    }
}

impl std::fmt::Display for EarlierCancellations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.iter().map(Uuid::to_string).collect::<Vec<_>>().join(" "))
    }
}

impl std::str::FromStr for EarlierCancellations {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_whitespace().map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Command for every worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlCommand {
    /// Ends the jobs of this backfill that have not started as `skipped`.
    CancelBackfill(BackfillId),
    /// Closes the circuit breaker of this destination, and releases its delayed jobs.
    ResetCircuit(DestinationId),
}

/// Control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Unique id; the same when the message is read again.
    pub id: Uuid,
    /// Time of the request.
    pub at: Timestamp,
    /// Command.
    pub command: ControlCommand,
}

#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "consign control message")]
struct Raw {
    /// 1.
    #[schemars(extend("const" = 1))]
    version: u64,
    /// A UUID.
    id: String,
    /// Time of the request, RFC 3339.
    #[schemars(with = "String", extend("format" = "date-time"))]
    at: Timestamp,
    /// Command.
    #[schemars(extend("enum" = ["cancel_backfill", "reset_circuit"]))]
    kind: String,
    /// With `cancel_backfill` alone: the backfill's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backfill: Option<String>,
    /// With `reset_circuit` alone: the destination's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
}

/// Returns the JSON Schema of a control message.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Raw)
}

const CANCEL_BACKFILL: &str = "cancel_backfill";
const RESET_CIRCUIT: &str = "reset_circuit";

impl Control {
    /// Creates a message with a new id.
    pub fn new(command: ControlCommand, at: Timestamp) -> Self {
        Self { id: Uuid::new_v4(), at, command }
    }

    /// Returns true for a cancellation of this backfill.
    pub fn cancels(&self, backfill: &BackfillId) -> bool {
        matches!(&self.command, ControlCommand::CancelBackfill(id) if id == backfill)
    }

    /// Renders it as JSON.
    pub fn render(&self) -> Vec<u8> {
        let (kind, backfill, destination) = match &self.command {
            ControlCommand::CancelBackfill(id) => (CANCEL_BACKFILL, Some(id.to_string()), None),
            ControlCommand::ResetCircuit(id) => (RESET_CIRCUIT, None, Some(id.to_string())),
        };
        let (id, kind) = (self.id.to_string(), kind.to_owned());
        // Strings and numbers: serde_json always serializes them.
        serde_json::to_vec(&Raw { version: VERSION, id, at: self.at, kind, backfill, destination }).unwrap_or_default()
    }

    /// Parses a message. An unknown version, kind or field, a field that is missing or belongs to
    /// another kind, and trailing data are errors, which name the field.
    pub fn parse(body: &[u8]) -> Result<Self, Invalid> {
        if body.len() > MAX_BYTES {
            return Err(Invalid::new(
                "body",
                format!("has {} bytes, and a control message at most {MAX_BYTES}", body.len()),
            ));
        }
        let mut json = serde_json::Deserializer::from_slice(body);
        let raw: Result<Raw, _> = strict::object(&mut json).and_then(|raw| json.end().map(|()| raw));
        let raw = raw.map_err(|problem| Invalid::new("body", format!("is no control message: {problem}")))?;
        if raw.version != VERSION {
            let problem = format!("is {}, and this worker reads {VERSION}; upgrade the workers first", raw.version);
            return Err(Invalid::new("version", problem));
        }
        let id = raw.id.parse().map_err(|_| Invalid::new("id", "is no UUID"))?;
        Ok(Self { id, at: raw.at, command: raw.command()? })
    }
}

impl Raw {
    fn command(&self) -> Result<ControlCommand, Invalid> {
        match (self.kind.as_str(), self.backfill.as_deref(), self.destination.as_deref()) {
            (CANCEL_BACKFILL, Some(id), None) => BackfillId::parse(id).map(ControlCommand::CancelBackfill),
            (RESET_CIRCUIT, None, Some(id)) => DestinationId::parse(id).map(ControlCommand::ResetCircuit),
            (CANCEL_BACKFILL, ..) => Err(Invalid::new("kind", "cancel_backfill takes the field `backfill` alone")),
            (RESET_CIRCUIT, ..) => Err(Invalid::new("kind", "reset_circuit takes the field `destination` alone")),
            (kind, ..) => {
                Err(Invalid::new("kind", format!("`{kind}` is neither {CANCEL_BACKFILL} nor {RESET_CIRCUIT}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANCEL: &str = r#"{"version":1,"id":"0f0c5d3e-8f7a-4d0e-9a39-1d1f0c3c2b1a","at":"2026-11-22T10:00:00Z","kind":"cancel_backfill","backfill":"b-1"}"#;

    #[test]
    fn what_is_written_is_read() {
        let commands = [
            ControlCommand::CancelBackfill(BackfillId::parse("nightly.2026_11-22").unwrap()),
            ControlCommand::ResetCircuit(DestinationId::parse("acme").unwrap()),
        ];
        for command in commands {
            let control = Control::new(command, Timestamp::from_second(1_800_000_000).unwrap());
            assert_eq!(Control::parse(&control.render()).unwrap(), control);
        }
    }

    #[test]
    fn the_written_form_never_changes() {
        let control = Control::parse(CANCEL.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(control.render()).unwrap(), CANCEL);
    }

    #[test]
    fn a_malformed_message_is_rejected_by_field() {
        for (from, to, field) in [
            ("\"version\":1", "\"version\":2", "version"),
            ("cancel_backfill", "cancel_everything", "kind"),
            ("\"backfill\":\"b-1\"", "\"destination\":\"acme\"", "kind"),
            ("\"backfill\":\"b-1\"", "\"backfill\":\"b-1\",\"destination\":\"acme\"", "kind"),
            (",\"backfill\":\"b-1\"", "", "kind"),
            ("\"b-1\"", "\"a/b\"", "backfill"),
            ("\"b-1\"", "\"b-1\",\"more\":1", "body"),
            ("\"b-1\"", "\"b-1\",\"backfill\":\"b-2\"", "body"),
            ("2026-11-22T10:00:00Z", "yesterday", "body"),
            ("0f0c5d3e", "xxxxxxxx", "id"),
            ("\"b-1\"}", "\"b-1\"} {}", "body"),
        ] {
            let changed = CANCEL.replace(from, to);
            assert_ne!(changed, CANCEL);
            assert_eq!(Control::parse(changed.as_bytes()).unwrap_err().field, field, "{changed}");
        }
        let by_position =
            br#"[1,"0f0c5d3e-8f7a-4d0e-9a39-1d1f0c3c2b1a","2026-11-22T10:00:00Z","cancel_backfill","b-1"]"#;
        assert_eq!(Control::parse(by_position).unwrap_err().field, "body");
        assert_eq!(Control::parse(&[b' '; MAX_BYTES + 1]).unwrap_err().field, "body");
    }

    #[test]
    fn earlier_cancellations_are_those_of_the_backfill_and_survive_as_text() {
        let cancel = |id: &str| {
            let command = ControlCommand::CancelBackfill(BackfillId::parse(id).unwrap());
            Control::new(command, Timestamp::UNIX_EPOCH)
        };
        let (first, other, second) = (cancel("b"), cancel("c"), cancel("b"));
        let messages = [first.render(), other.render(), b"no message".to_vec(), second.render()];
        let earlier = EarlierCancellations::of(&BackfillId::parse("b").unwrap(), messages.iter().map(Vec::as_slice));
        assert_eq!([first.id, other.id, second.id].map(|id| earlier.contains(id)), [true, false, true]);
        assert_eq!(earlier.to_string().parse(), Ok(earlier));
        assert_eq!("".parse(), Ok(EarlierCancellations::default()));
        assert!("b".parse::<EarlierCancellations>().is_err());
    }

    #[test]
    fn a_backfills_id_is_fit_for_a_file_and_a_queue() {
        for good in ["a", "A-1_b.c", &"x".repeat(64)] {
            assert!(BackfillId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(BackfillId::parse(bad).is_err(), "{bad}");
        }
    }
}
