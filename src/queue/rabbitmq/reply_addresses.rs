//! Names that replies may go to: `broker.reply_to`, and never a queue of consign itself. A
//! scheduler chooses `reply_to`, and a worker may write to every queue of the broker.

use crate::config::BrokerConfig;
use crate::domain::pattern;

/// Names under a prefix that replies are made for: queues of requesters, and the retained outcomes
/// of backfills.
const REPLY_NAMES: [&str; 2] = ["reply.", BACKFILL_NAMES];
/// Streams of outcomes. A backfill declares its own, so no setting is needed.
const BACKFILL_NAMES: &str = "backfill.";

/// Permitted addresses of replies.
#[derive(Debug)]
pub(super) struct ReplyAddresses {
    prefix: String,
    patterns: Vec<String>,
}

impl ReplyAddresses {
    /// Addresses that the configuration permits.
    pub(super) fn new(config: &BrokerConfig) -> Self {
        Self { prefix: config.prefix.clone(), patterns: config.reply_to.clone() }
    }

    /// Returns the reason why no reply goes to this queue; `None` for a permitted one.
    pub(super) fn refusal(&self, queue: &str) -> Option<String> {
        let own = queue.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('.'));
        if own.is_some_and(|name| name.starts_with(BACKFILL_NAMES)) {
            return None;
        }
        if queue == self.prefix || own.is_some_and(|name| !REPLY_NAMES.iter().any(|reply| name.starts_with(reply))) {
            return Some("it is the name of a queue or an exchange of consign itself".to_owned());
        }
        let allowed = self.patterns.iter().any(|pattern| pattern::matches(pattern, queue));
        (!allowed).then(|| format!("broker.reply_to permits {}", self.patterns.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(patterns: &[&str]) -> ReplyAddresses {
        ReplyAddresses { prefix: "consign".to_owned(), patterns: patterns.iter().map(|p| (*p).to_owned()).collect() }
    }

    #[test]
    fn replies_go_where_a_pattern_permits_and_to_no_queue_of_consign() {
        let usual = addresses(&["amq.rabbitmq.reply-to.*", "consign.reply.*"]);
        for queue in ["amq.rabbitmq.reply-to.g1h2.eIX==", "consign.reply.scheduler-a", "consign.backfill.0123456789ab"]
        {
            assert_eq!(usual.refusal(queue), None, "{queue}");
        }
        for queue in ["answers", "amq.gen-1", "", "consign.replyx", "xconsign.reply.a", "amq.rabbitmq.reply-to"] {
            assert!(usual.refusal(queue).is_some(), "{queue}");
        }
        assert!(usual.refusal("answers").unwrap().contains("consign.reply.*"));
        let all = addresses(&["*"]);
        for queue in ["answers", "consigned", "consign.reply.a", "amq.gen-1"] {
            assert_eq!(all.refusal(queue), None, "{queue}");
        }
        for queue in [
            "consign",
            "consign.jobs.scheduled",
            "consign.dead",
            "consign.dead.lock",
            "consign.control",
            "consign.wait.5s",
            "consign.lease",
            "consign.owner.worker.1",
            "consign.outcomes.unrouted",
        ] {
            assert!(all.refusal(queue).unwrap().contains("itself"), "{queue}");
        }
    }
}
