//! The figures of `benches/reference_celery.py`, if somebody ran it: what a usual Python worker
//! costs here.

use std::path::Path;

use serde::Deserialize;

/// One measured Python worker.
#[derive(Debug, Deserialize)]
pub struct Reference {
    pub name: String,
    pub cpu_micros_per_job: f64,
}

/// Reads the result file; none means that nobody ran it.
pub fn load(folder: &Path) -> Option<Reference> {
    let text = std::fs::read_to_string(folder.join("reference_celery.json")).ok()?;
    serde_json::from_str(&text).ok()
}
