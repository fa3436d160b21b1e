//! A worker under systemd, or under a person: what it says of itself, unasked and when a signal
//! asks.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::testbed::site::Site;
use crate::testbed::until;

const LIMIT: Duration = Duration::from_secs(30);

/// Stands for systemd: a socket, and everything that came out of it so far.
struct Manager(Arc<Mutex<Vec<String>>>);

impl Manager {
    fn of(site: &mut Site) -> Self {
        let path = site.dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        site.environment("NOTIFY_SOCKET", path.to_str().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let writes = heard.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                writes.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned());
            }
        });
        Self(heard)
    }

    fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Waits for a message with this text, from the message `from` on; gives its place.
    async fn hears(&self, from: usize, text: &str) -> usize {
        until(&format!("systemd receives {text}"), LIMIT, async || {
            let heard = self.heard();
            heard.iter().skip(from).position(|message| message.contains(text)).map(|place| from + place)
        })
        .await
    }
}

#[tokio::test]
async fn systemd_hears_of_start_life_reload_and_stop() {
    let mut site = Site::embedded("notify");
    let manager = Manager::of(&mut site);
    site.environment("WATCHDOG_USEC", "400000");
    let worker = site.worker().await;
    let ready = manager.hears(0, "READY=1").await;
    assert_eq!(ready, 0, "something came before READY=1: {:?}", manager.heard());
    manager.hears(0, "STATUS=taking jobs").await;
    let sign = manager.hears(0, "WATCHDOG=1").await;
    let sign = manager.hears(sign + 1, "WATCHDOG=1").await;
    manager.hears(sign + 1, "WATCHDOG=1").await;

    worker.reload();
    let reloading = manager.hears(ready + 1, "RELOADING=1").await;
    let message = manager.heard()[reloading].clone();
    let clock = message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap_or_default();
    assert!(clock.parse::<u64>().is_ok(), "{message}");
    manager.hears(reloading + 1, "READY=1").await;

    worker.rewrite_config("destinations.gamma.bucket = \"Not A Bucket\"\n");
    worker.reload();
    let refused = manager.hears(reloading + 1, "RELOADING=1").await;
    let last = manager.hears(refused + 1, "READY=1").await;
    worker.terminate();
    manager.hears(last + 1, "STOPPING=1").await;
    assert!(worker.exit(LIMIT).await.success());
}

#[tokio::test]
async fn a_worker_without_its_broker_is_up_and_says_what_it_waits_for() {
    let mut site = Site::embedded("notify-away");
    let manager = Manager::of(&mut site);
    site.set("broker.url", "amqp://127.0.0.1:1/%2f");
    let worker = site.starting_worker().await;
    manager.hears(0, "READY=1").await;
    let why = manager.hears(0, "STATUS=not ready: ").await;
    let why = manager.heard()[why].clone();
    assert!(!why.contains("taking jobs") && why.len() > "STATUS=not ready: ".len(), "{why}");
    // No WATCHDOG_USEC: nobody waits for a sign of life.
    worker.terminate();
    manager.hears(0, "STOPPING=1").await;
    worker.exit(LIMIT).await;
    assert!(!manager.heard().iter().any(|message| message.contains("WATCHDOG")), "{:?}", manager.heard());
}

#[tokio::test]
async fn usr1_puts_the_status_into_the_log_and_ends_nothing() {
    let site = Site::embedded("usr1");
    let worker = site.worker().await;
    worker.ask();
    let line: Value = until("the status is in the log", LIMIT, async || {
        let log = worker.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|line| line["status"].is_string())
    })
    .await;
    let logged: Value = serde_json::from_str(line["status"].as_str().unwrap()).unwrap();
    let shown: Value = serde_json::from_str(&worker.get("/status").await).unwrap();
    let keys = |status: &Value| status.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!((keys(&logged), &logged["worker"], &line["level"]), (keys(&shown), &shown["worker"], &"INFO".into()));
    worker.ready().await;
    worker.terminate();
    assert!(worker.exit(LIMIT).await.success());
}
