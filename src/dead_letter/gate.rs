//! Gate of a requeue: a destination receives its jobs again when its circuit is closed and its
//! connection test passes.

use std::collections::BTreeMap;
use std::future::Future;

use crate::queue::DeadLetter;

/// Queries about destinations.
pub trait DestinationProbe {
    /// Returns the cause for which the workers hold back jobs of a destination, such as an open
    /// circuit.
    fn find_open_circuit(&self, destination: &str) -> impl Future<Output = Option<String>>;

    /// Tests the connection to a destination. Returns a remark, if there is one.
    ///
    /// # Errors
    /// The failure of the test.
    fn test(&mut self, destination: &str) -> impl Future<Output = Result<Option<String>, String>>;
}

/// Gate that probes each destination once.
pub struct RequeueGate<P> {
    probe: P,
    decisions: BTreeMap<String, GateDecision>,
}

/// Decision about the letters of a destination.
#[derive(Debug, Clone)]
pub struct GateDecision {
    /// Cause for which its letters stay.
    pub refusal: Option<String>,
    /// Part that could not be verified.
    pub remark: Option<String>,
    /// True where the decision is new and has a text to report.
    pub is_new: bool,
}

impl<P: DestinationProbe> RequeueGate<P> {
    /// Gate without decisions.
    pub fn new(probe: P) -> Self {
        Self { probe, decisions: BTreeMap::new() }
    }

    /// Decides whether this letter's destination may receive its jobs.
    pub async fn decide(&mut self, letter: &DeadLetter) -> GateDecision {
        let name = letter.destination().unwrap_or_default().to_owned();
        let key = if letter.is_inline() { format!("{name} (inline)") } else { name.clone() };
        if let Some(known) = self.decisions.get(&key) {
            return GateDecision { is_new: false, ..known.clone() };
        }
        let refused = |cause: String| GateDecision { refusal: Some(cause), remark: None, is_new: true };
        let decision = match self.probe.find_open_circuit(&name).await {
            Some(cause) => refused(cause),
            None if letter.is_inline() => {
                let remark = "is defined in its job, not in this configuration; its connection was not tested";
                GateDecision { refusal: None, remark: Some(remark.to_owned()), is_new: true }
            }
            None => match self.probe.test(&name).await {
                Ok(remark) => GateDecision { refusal: None, is_new: remark.is_some(), remark },
                Err(cause) => refused(cause),
            },
        };
        self.decisions.insert(key, decision.clone());
        decision
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::queue::Properties;

    #[derive(Default)]
    struct FakeProbe {
        tests: u32,
    }

    impl DestinationProbe for FakeProbe {
        async fn find_open_circuit(&self, destination: &str) -> Option<String> {
            (destination == "open").then(|| "its circuit breaker is open".to_owned())
        }

        async fn test(&mut self, destination: &str) -> Result<Option<String>, String> {
            self.tests += 1;
            if destination == "denied" { Err("its connection test fails".to_owned()) } else { Ok(None) }
        }
    }

    #[tokio::test]
    async fn each_destination_is_probed_once() {
        let mut gate = RequeueGate::new(FakeProbe::default());
        for (destination, refused) in [("open", true), ("denied", true), ("acme", false)] {
            let key = format!("job.scheduled.{destination}");
            let letter = DeadLetter::new(key, Bytes::new(), Properties::default(), None);
            for is_new in [true, false] {
                let decision = gate.decide(&letter).await;
                assert_eq!((decision.refusal.is_some(), decision.is_new), (refused, refused && is_new));
            }
        }
        assert_eq!(gate.probe.tests, 2, "an open circuit breaker is not tested");
    }
}
