//! JSON form of a control message, and its schema.

use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BackfillId, CircuitChange, Control, ControlCommand, GenerationChange};
use crate::domain::destination::{DestinationIdentity, Invalid, strict};
use crate::domain::generation::ObjectDigest;
use crate::domain::job::JobId;
use crate::domain::outcome::{Failure, Reason};
use crate::domain::text_enum::text_enum;

/// Version that this program reads and writes.
pub const VERSION: u64 = 1;
/// Most bytes of a control message.
const MAX_BYTES: usize = 4096;
/// Most characters of a message, a hint and a key that workers report to each other.
const MAX_TEXT_CHARS: usize = 300;

#[serde_with::skip_serializing_none]
#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "consign control message")]
struct Raw {
    /// Version of the format: 1.
    #[schemars(extend("const" = 1))]
    version: u64,
    /// A UUID.
    id: String,
    /// Time of the request, RFC 3339.
    #[schemars(with = "String", extend("format" = "date-time"))]
    at: Timestamp,
    /// Command.
    #[schemars(extend("enum" = Kind::ALL.map(Kind::as_str)))]
    kind: String,
    /// With `cancel_backfill` alone: the backfill's id.
    backfill: Option<String>,
    /// With `reset_circuit` and the kinds of a circuit breaker: the destination's identity. That is
    /// its id, and for an inline one also `~` and a digest.
    destination: Option<String>,
    /// With `worker_started` and `worker_stopped` alone: the worker's address.
    worker: Option<String>,
    /// With `job_delivered` and `generation_writing`: digest of the job's run.
    run: Option<String>,
    /// With `circuit_denied` and `circuit_opened`: the failure.
    failure: Option<RawFailure>,
    /// With `circuit_denied` alone: the key of the denied object.
    key: Option<String>,
    /// With `circuit_opened` alone: failed probes so far.
    probes: Option<u32>,
    /// With `circuit_opened` alone: seconds until the next probe.
    next_probe_seconds: Option<u32>,
    /// With the kinds of a generation: digest of destination and key.
    object: Option<String>,
    /// With `generation_pending`, `generation_writing` and `generation_delivered`: the generation.
    generation: Option<u64>,
    /// With `generation_writing` and `generation_ended`, and perhaps `generation_delivered`: id of
    /// the write.
    write: Option<String>,
    /// With `generation_delivered` alone: id of the job.
    job: Option<String>,
}

/// Failure of a job that workers report to each other.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawFailure {
    /// Reason, as in outcomes.
    reason: String,
    /// Description in plain words.
    message: String,
    /// Remedy for the customer.
    #[serde(default)]
    hint: String,
}

/// Returns the JSON Schema of a control message.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Raw)
}

text_enum! {
    /// Value of `kind`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Kind {
        CancelBackfill = "cancel_backfill",
        ResetCircuit = "reset_circuit",
        WorkerStarted = "worker_started",
        WorkerStopped = "worker_stopped",
        JobDelivered = "job_delivered",
        CircuitDenied = "circuit_denied",
        CircuitOpened = "circuit_opened",
        CircuitProbing = "circuit_probing",
        CircuitClosed = "circuit_closed",
        GenerationPending = "generation_pending",
        GenerationWriting = "generation_writing",
        GenerationEnded = "generation_ended",
        GenerationDelivered = "generation_delivered",
    }
}

impl Control {
    /// Renders it as JSON.
    pub fn render(&self) -> Vec<u8> {
        let raw = Raw { version: VERSION, id: self.id.to_string(), at: self.at, ..Raw::of(&self.command) };
        // Strings and numbers: serde_json always serializes them.
        serde_json::to_vec(&raw).unwrap_or_default()
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
        let raw = raw.map_err(|problem| Invalid::new("body", format!("is not a control message: {problem}")))?;
        if raw.version != VERSION {
            let problem =
                format!("is {}, and this version of consign reads {VERSION}; upgrade the workers first", raw.version);
            return Err(Invalid::new("version", problem));
        }
        let id = raw.id.parse().map_err(|_| Invalid::new("id", "is no UUID"))?;
        Ok(Self { id, at: raw.at, command: raw.command()? })
    }
}

impl Raw {
    /// Fields of a command; the others are empty.
    fn of(command: &ControlCommand) -> Self {
        let raw = |kind: Kind| Self { kind: kind.as_str().to_owned(), ..Self::default() };
        match command {
            ControlCommand::CancelBackfill(id) => Self { backfill: Some(id.to_string()), ..raw(Kind::CancelBackfill) },
            ControlCommand::ResetCircuit(id) => Self { destination: Some(id.to_string()), ..raw(Kind::ResetCircuit) },
            ControlCommand::WorkerStarted(worker) => Self { worker: Some(worker.clone()), ..raw(Kind::WorkerStarted) },
            ControlCommand::WorkerStopped(worker) => Self { worker: Some(worker.clone()), ..raw(Kind::WorkerStopped) },
            ControlCommand::JobDelivered(run) => Self { run: Some(run.to_string()), ..raw(Kind::JobDelivered) },
            ControlCommand::Circuit(id, change) => {
                let raw = match change {
                    CircuitChange::Denied { failure, key } => Self {
                        failure: Some(RawFailure::of(failure)),
                        key: Some(shortened(key)),
                        ..raw(Kind::CircuitDenied)
                    },
                    CircuitChange::Opened { failure, probes, next_probe } => Self {
                        failure: Some(RawFailure::of(failure)),
                        probes: Some(*probes),
                        next_probe_seconds: Some(u32::try_from(next_probe.as_secs()).unwrap_or(u32::MAX)),
                        ..raw(Kind::CircuitOpened)
                    },
                    CircuitChange::Probing => raw(Kind::CircuitProbing),
                    CircuitChange::Closed => raw(Kind::CircuitClosed),
                };
                Self { destination: Some(id.to_string()), ..raw }
            }
            ControlCommand::Generation(object, change) => {
                let raw = match change {
                    GenerationChange::Pending { generation } => {
                        Self { generation: Some(*generation), ..raw(Kind::GenerationPending) }
                    }
                    GenerationChange::Writing { generation, run, write } => Self {
                        generation: Some(*generation),
                        run: Some(run.to_string()),
                        write: Some(write.to_string()),
                        ..raw(Kind::GenerationWriting)
                    },
                    GenerationChange::Ended { write } => {
                        Self { write: Some(write.to_string()), ..raw(Kind::GenerationEnded) }
                    }
                    GenerationChange::Delivered { generation, job, write } => Self {
                        generation: Some(*generation),
                        job: Some(job.to_string()),
                        write: write.map(|write| write.to_string()),
                        ..raw(Kind::GenerationDelivered)
                    },
                };
                Self { object: Some(object.to_string()), ..raw }
            }
        }
    }

    fn command(&self) -> Result<ControlCommand, Invalid> {
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == self.kind) else {
            let problem = format!("`{}` is not one of {}", self.kind, Kind::ALL.map(Kind::as_str).join(", "));
            return Err(Invalid::new("kind", problem));
        };
        let command = match kind {
            Kind::CancelBackfill => {
                ControlCommand::CancelBackfill(BackfillId::parse(given(self.backfill.as_deref(), "backfill")?)?)
            }
            Kind::ResetCircuit => ControlCommand::ResetCircuit(self.destination()?),
            Kind::WorkerStarted => ControlCommand::WorkerStarted(given(self.worker.clone(), "worker")?),
            Kind::WorkerStopped => ControlCommand::WorkerStopped(given(self.worker.clone(), "worker")?),
            Kind::JobDelivered => ControlCommand::JobDelivered(uuid(self.run.as_deref(), "run")?),
            Kind::CircuitDenied => {
                let (failure, key) = (self.failure()?, given(self.key.clone(), "key")?);
                ControlCommand::Circuit(self.destination()?, CircuitChange::Denied { failure, key })
            }
            Kind::CircuitOpened => {
                let (failure, probes) = (self.failure()?, given(self.probes, "probes")?);
                let next_probe = Duration::from_secs(given(self.next_probe_seconds, "next_probe_seconds")?.into());
                ControlCommand::Circuit(self.destination()?, CircuitChange::Opened { failure, probes, next_probe })
            }
            Kind::CircuitProbing => ControlCommand::Circuit(self.destination()?, CircuitChange::Probing),
            Kind::CircuitClosed => ControlCommand::Circuit(self.destination()?, CircuitChange::Closed),
            Kind::GenerationPending => {
                self.generation_of(GenerationChange::Pending { generation: self.generation()? })?
            }
            Kind::GenerationWriting => self.generation_of(GenerationChange::Writing {
                generation: self.generation()?,
                run: uuid(self.run.as_deref(), "run")?,
                write: uuid(self.write.as_deref(), "write")?,
            })?,
            Kind::GenerationEnded => {
                self.generation_of(GenerationChange::Ended { write: uuid(self.write.as_deref(), "write")? })?
            }
            Kind::GenerationDelivered => self.generation_of(GenerationChange::Delivered {
                generation: self.generation()?,
                job: JobId::parse(given(self.job.as_deref(), "job")?)?.as_str().into(),
                write: self.write.as_deref().map(|write| uuid(Some(write), "write")).transpose()?,
            })?,
        };
        // A message says nothing beside its command.
        if Self::of(&command).fields() == self.fields() {
            Ok(command)
        } else {
            Err(Invalid::new("kind", format!("`{}` takes only the fields of its kind", self.kind)))
        }
    }

    /// Which optional fields are present.
    fn fields(&self) -> [bool; 12] {
        [
            self.backfill.is_some(),
            self.destination.is_some(),
            self.worker.is_some(),
            self.run.is_some(),
            self.failure.is_some(),
            self.key.is_some(),
            self.probes.is_some(),
            self.next_probe_seconds.is_some(),
            self.object.is_some(),
            self.generation.is_some(),
            self.write.is_some(),
            self.job.is_some(),
        ]
    }

    fn destination(&self) -> Result<DestinationIdentity, Invalid> {
        DestinationIdentity::parse(given(self.destination.as_deref(), "destination")?)
    }

    fn generation_of(&self, change: GenerationChange) -> Result<ControlCommand, Invalid> {
        let object = ObjectDigest::parse(given(self.object.as_deref(), "object")?);
        Ok(ControlCommand::Generation(object.ok_or_else(|| Invalid::new("object", "is no UUID"))?, change))
    }

    fn generation(&self) -> Result<u64, Invalid> {
        given(self.generation, "generation")
    }

    fn failure(&self) -> Result<Box<Failure>, Invalid> {
        let RawFailure { reason, message, hint } = given(self.failure.as_ref(), "failure")?;
        let reason = Reason::parse(reason).ok_or_else(|| Invalid::new("failure.reason", "is not a known reason"))?;
        Ok(Box::new(Failure::new(reason, message.clone()).hint(hint.clone())))
    }
}

impl RawFailure {
    fn of(failure: &Failure) -> Self {
        let (message, hint) = (shortened(&failure.message), shortened(&failure.hint));
        Self { reason: failure.reason.as_str().to_owned(), message, hint }
    }
}

fn given<T>(field: Option<T>, name: &'static str) -> Result<T, Invalid> {
    field.ok_or_else(|| Invalid::new("kind", format!("takes the field `{name}`")))
}

fn uuid(field: Option<&str>, name: &'static str) -> Result<Uuid, Invalid> {
    given(field, name)?.parse().map_err(|_| Invalid::new(name, "is no UUID"))
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).collect()
}

#[cfg(test)]
mod tests;
