//! Stub.

/// The JSON Schema of a job, for producers.
pub fn schema() -> schemars::Schema {
    schemars::json_schema!({"title": "consign job", "type": "object"})
}
