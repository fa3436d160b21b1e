//! The reports about generations that the workers of a prefix made, from the control stream.

use std::collections::BTreeMap;

use consign::domain::control::{Control, ControlCommand, GenerationChange};
use consign::domain::generation::ObjectDigest;

use crate::Fallible;
use crate::ports;
use crate::worker::Surroundings;

/// All reports, in the stream's order.
pub struct Reports(Vec<(ObjectDigest, String, GenerationChange)>);

impl Reports {
    /// Reads those of all workers; a build without generations made none.
    pub async fn read(around: &Surroundings<'_>) -> Fallible<Self> {
        let loaded =
            consign::config::load_str(&around.config(ports::free().await?)).map_err(|problems| problems.to_string())?;
        let messages = consign::queue::admin(&loaded.config.broker, "bench").control_messages().await?;
        let controls = messages.iter().filter_map(|body| Control::parse(body).ok());
        let reports = controls.filter_map(|control| match control.command {
            ControlCommand::Generation(object, change) => Some((object, control.at.to_string(), change)),
            _ => None,
        });
        Ok(Self(reports.collect()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many there are of each kind.
    pub fn kinds(&self) -> BTreeMap<&'static str, u32> {
        let mut kinds = BTreeMap::new();
        for (.., change) in &self.0 {
            *kinds.entry(name(change)).or_insert(0) += 1;
        }
        kinds
    }

    /// Those of an object, one line each.
    pub fn of(&self, object: ObjectDigest) -> Vec<String> {
        let ours = self.0.iter().filter(|(reported, ..)| *reported == object);
        ours.map(|(_, at, change)| format!("{at} {change:?}")).collect()
    }
}

fn name(change: &GenerationChange) -> &'static str {
    match change {
        GenerationChange::Pending { .. } => "pending",
        GenerationChange::Writing { .. } => "writing",
        GenerationChange::Ended { .. } => "ended",
        GenerationChange::Delivered { .. } => "delivered",
    }
}
