//! A broker that lets somebody in, and not at everything.

use std::process::Output;
use std::time::{Duration, Instant};

use consign::domain::lane::Lane;
use consign::metrics::Metrics;
use consign::queue::{self, QueueError, Reply};
use serde_json::Value;

use crate::testbed::broker::Broker;
use crate::testbed::node::Node;
use crate::testbed::site::{Site, job};
use crate::testbed::unique;

const TEMPLATE: &str = r#"{"version": 1, "id": "a/{date}", "source": {"url": "file:///srv/{date}"}, "destination": "acme", "key": "{date}"}"#;

/// Well below the time that commands wait for a broker that is away.
const ABSENT: Duration = Duration::from_secs(20);

/// Message of a command that is denied something.
fn denied(command: &[&str], output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(77), "{command:?}: {said}");
    assert!(said.contains("ACCESS_REFUSED"), "the broker's own words: {command:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_end_with_77_and_name_the_permission_that_is_missing() {
    let node = Node::shared();
    let mut site = Site::on(Broker::at(node.url.clone(), &unique("denied"))).await;
    let prefix = site.broker.prefix.clone();
    let letter = job("dead", "file:///srv/f", "acme", "k").to_string();
    site.broker.put_into("dead", letter.as_bytes(), &[]).await;
    let template = site.dir.path().join("template.json");
    std::fs::write(&template, TEMPLATE).unwrap();
    let template = template.display().to_string();
    let backfill = ["backfill", "--template", &template, "--from", "2026-01-01", "--to", "2026-01-02"];
    let enqueue = ["enqueue", "--source", "file:///srv/f", "--to", "acme", "--key", "k"];
    let requeue = ["dead", "requeue", "--all", "--force"];
    let published = format!("write on the exchange `{prefix}`");

    site.set("broker.url", node.login(["^$", "^$", ".*"]));
    let jobs: String =
        (0..100).map(|n| format!("{}\n", job(&format!("j-{n}"), "file:///srv/f", "acme", "k"))).collect();
    let many = site.dir.path().join("jobs.ndjson");
    std::fs::write(&many, jobs).unwrap();
    let many = ["enqueue", &many.display().to_string()];
    let cases: [(&[&str], &str); 7] = [
        (&enqueue, &published),
        (&many, &published),
        (&backfill, &published),
        (&["topology", "apply"], "configure on it"),
        (&["dead", "list"], "configure on"),
        (&requeue, "configure on"),
        (&["status", "reset", "acme"], "write on the exchange `amq.default`"),
    ];
    for (command, permission) in cases {
        let said = denied(command, &site.consign(command));
        assert!(said.contains(permission), "{command:?}: {said}");
    }
    site.set("broker.url", node.login([".*", "^$", ".*"]));
    for (command, permission) in [(&requeue[..], published.as_str()), (&["topology", "apply"], "write on it, and read")]
    {
        let said = denied(command, &site.consign(command));
        assert!(said.contains(permission), "{command:?}: {said}");
    }
    assert_eq!(site.broker.take("dead").await.len(), 1, "the letter is still there");
    site.broker.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requeue_that_may_not_read_control_messages_does_not_count_superseded_jobs() {
    let node = Node::shared();
    let mut site = Site::on(Broker::at(node.url.clone(), &unique("uncounted"))).await;
    let letter = job("dead", "file:///srv/f", "acme", "k").to_string();
    site.broker.put_into("dead", letter.as_bytes(), &[("x-original-routing-key", "job.scheduled.acme")]).await;
    let letters = format!("^{}\\.dead", site.broker.prefix);
    site.set("broker.url", node.login([".*", ".*", &letters]));
    let requeued = site.consign(&["dead", "requeue", "--all", "--force"]);
    let [said, notices] = [requeued.stdout, requeued.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!((requeued.status.code(), said.as_str()), (Some(0), "1 requeued\n"), "{notices}");
    assert!(notices.contains("newer deliveries are not known") && notices.contains("ACCESS_REFUSED"), "{notices}");
    site.broker.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_a_worker_may_not_write_to_is_as_good_as_none_for_a_reply() {
    let node = Node::shared();
    let site = Site::on(Broker::at(node.url.clone(), &unique("noreply"))).await;
    let prefix = &site.broker.prefix;
    let own = format!("^{prefix}(\\.|$)");
    let url = node.login([&own, &own, &own]);
    let config = format!("[broker]\nurl = \"{url}\"\nprefix = \"{prefix}\"");
    let config = consign::config::load_str(&config).unwrap().config.broker;
    let queue = queue::start(&config, "mute", vec![(Lane::Scheduled, 1)], Metrics::new(1).into()).unwrap();
    queue.wait_connected(Duration::from_secs(60)).await.unwrap();
    let to = site.broker.own("reply.answers").await;
    let reply = Reply { to, correlation_id: None, kind: "k".to_owned(), body: "{}".into() };
    let answered = queue.reply(reply).await;
    assert!(matches!(&answered, Err(QueueError::Refused(why)) if why.contains("ACCESS_REFUSED")), "{answered:?}");
    queue.close().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_broker_that_refuses_the_login_ends_commands_with_77_at_once() {
    let mut site = Site::new("login").await;
    let url = site.broker.url.replace("marked-secret-amqp", "marked-secret-wrong");
    site.set("broker.url", url.as_str());
    let template = site.dir.path().join("template.json");
    std::fs::write(&template, TEMPLATE).unwrap();
    let template = template.display().to_string();
    let commands: [&[&str]; 7] = [
        &["topology", "apply"],
        &["dead", "list"],
        &["enqueue", "--source", "file:///srv/f", "--to", "acme", "--key", "k"],
        &["backfill", "--template", &template, "--from", "2026-01-01", "--to", "2026-01-02"],
        &["backfill", "status", "some"],
        &["backfill", "cancel", "some"],
        &["status", "reset", "acme"],
    ];
    for command in commands {
        let begun = Instant::now();
        let output = site.consign(command);
        assert!(begun.elapsed() < ABSENT, "{command:?}: as if the broker were away");
        let said = denied(command, &output);
        assert!(said.contains("denies access") && !said.contains("marked-secret"), "{said}");
    }
    site.broker.clean().await;
}

#[tokio::test]
async fn a_test_of_the_worker_ends_with_77_where_the_broker_refuses_the_login() {
    let mut site = Site::new("logincheck").await;
    let url = site.broker.url.replace("marked-secret-amqp", "marked-secret-wrong");
    site.set("session.role_auth", false);
    assert_eq!(site.consign(&["check"]).status.code(), Some(0));
    site.set("broker.url", url.as_str());
    let output = site.consign(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(77), "{}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["steps"][1]["step"], &report["steps"][1]["code"]),
        (&"broker".into(), &"broker_unavailable".into())
    );
    site.broker.clean().await;
}
