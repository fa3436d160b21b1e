//! What workers say of destinations: who is asked, and what is taken from the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use url::Url;

use super::{State, Why};
use crate::cli::status::{self, Asker};
use crate::config::Config;

/// A worker that is slower than this tells nothing.
const ASKING: Duration = Duration::from_secs(5);

/// What workers know of destinations in trouble.
#[derive(Debug, Default)]
pub(in crate::cli) struct Heard {
    pub(super) troubles: BTreeMap<String, Trouble>,
    /// Where nobody answered who was asked.
    pub(super) silent: Option<String>,
}

/// A destination's trouble; of several workers' the worst.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Trouble {
    /// That of jobs of which no outcome tells more.
    pub(super) state: State,
    pub(super) why: Why,
}

impl Trouble {
    /// `None` of a destination that is well, or was mended since.
    fn of(state: &Value) -> Option<Self> {
        let count = |name: &str| state[name].as_u64().unwrap_or(0);
        let (kind, told) = if state["circuit_open"] == true {
            (State::CircuitOpen, &state["circuit"])
        } else if !state["mended_at"].is_null() || !state["last_failure"].is_object() {
            return None;
        } else if count("awaiting_repair") > 0 {
            (State::PutOff, &state["last_failure"])
        } else if count("consecutive_failures") > 0 {
            (State::Queued, &state["last_failure"])
        } else {
            return None;
        };
        Some(Self { state: kind, why: Why::of_worker(told) })
    }
}

/// Whom to ask.
#[derive(Debug)]
pub(in crate::cli) struct Workers {
    urls: Vec<Url>,
    prefix: String,
}

impl Workers {
    /// Those that were named, else the one of this configuration.
    pub(in crate::cli) fn of(config: &Config, named: Vec<Url>) -> Self {
        Self { urls: status::workers(config, named), prefix: config.broker.prefix.clone() }
    }

    /// The troubles of `destinations`, as far as workers of this queue answer. Nobody is asked about none.
    pub(in crate::cli) async fn troubles(&self, destinations: &BTreeSet<&str>) -> Heard {
        let (Some(first), Ok(asker)) = (destinations.first(), Asker::new()) else { return Heard::default() };
        // Without a filter those in trouble come first.
        let filter = if destinations.len() == 1 { first } else { "" };
        let asked = self.urls.iter().map(async |url| tokio::time::timeout(ASKING, asker.status(url, filter)).await);
        let answers = join_all(asked).await.into_iter().filter_map(|answer| answer.ok()?.ok());
        let ours: Vec<_> = answers.filter(|status| status["prefix"] == self.prefix.as_str()).collect();
        Heard { troubles: troubles(&ours, destinations), silent: ours.is_empty().then(|| self.places()) }
    }

    /// Without a name and a password that a URL may hold.
    fn places(&self) -> String {
        let places: Vec<_> = self.urls.iter().map(|url| url.origin().ascii_serialization()).collect();
        places.join(", ")
    }
}

pub(super) fn troubles(answers: &[Value], destinations: &BTreeSet<&str>) -> BTreeMap<String, Trouble> {
    let mut worst: BTreeMap<String, Trouble> = BTreeMap::new();
    let states = answers.iter().filter_map(|status| status["destination_states"]["shown"].as_array()).flatten();
    for state in states {
        let id = state["id"].as_str().filter(|id| destinations.contains(id));
        let Some((id, trouble)) = id.and_then(|id| Some((id, Trouble::of(state)?))) else { continue };
        let known = worst.entry(id.to_owned()).or_insert_with(|| trouble.clone());
        if trouble < *known {
            *known = trouble;
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_destination_the_worst_is_heard_and_nothing_once_it_is_mended() {
        let failed = |reason: &str| json!({"reason": reason, "message": "no", "hint": ""});
        let of = |id: &str, awaiting: u32, failures: u32, mended: Value| {
            json!({
                "id": id, "circuit_open": false, "awaiting_repair": awaiting, "consecutive_failures": failures,
                "mended_at": mended, "last_failure": failed("access_denied")
            })
        };
        let open = json!({"id": "open", "circuit_open": true, "circuit": failed("bucket_not_found")});
        let one = json!({"destination_states": {"shown": [
            of("open", 3, 3, Value::Null), of("away", 0, 2, Value::Null), of("slow", 0, 2, Value::Null),
            of("well", 0, 0, Value::Null), of("mended", 3, 3, json!("2026-01-01T00:00:00Z")), of("other", 1, 1, Value::Null)
        ]}});
        let other = json!({"destination_states": {"shown": [open, of("away", 1, 1, Value::Null)]}});
        let asked = BTreeSet::from(["away", "mended", "open", "slow", "well"]);
        for answers in [[one.clone(), other.clone()], [other, one]] {
            let heard = troubles(&answers, &asked);
            let told: Vec<_> =
                heard.iter().map(|(id, one)| (id.as_str(), one.state, one.why.reason.as_deref())).collect();
            let expected = [
                ("away", State::PutOff, Some("access_denied")),
                ("open", State::CircuitOpen, Some("bucket_not_found")),
                ("slow", State::Queued, Some("access_denied")),
            ];
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn a_password_is_no_part_of_the_place() {
        let urls = ["http://me:pw@w.example:9464/", "https://[::1]/"].map(|url| Url::parse(url).unwrap()).to_vec();
        let workers = Workers { urls, prefix: String::new() };
        assert_eq!(workers.places(), "http://w.example:9464, https://[::1]");
    }
}
