//! A directory with one file for each customer: what changes is taken up, and what is broken
//! touches nobody else.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::fixture::{ACME, REGION, add_acme, role_destination};
use crate::testbed::scripted::ScriptedS3;
use crate::testbed::site::{Site, section};
use crate::testbed::until;
use crate::testbed::worker::Worker;

const SUCCESSFUL: &str = "consign_config_last_reload_successful";
const CANARY: &str = "marked-secret-canary";

/// Customers in a directory as the kubelet mounts one: each file is a link through a link that is
/// replaced.
struct Customers {
    site: Site,
    s3: ScriptedS3,
    version: std::cell::Cell<u32>,
}

impl Customers {
    async fn new(word: &str) -> Self {
        let mut site = Site::embedded(word);
        let s3 = add_acme(&mut site).await;
        site.without_destination("acme").without_destination("acme-kms");
        std::fs::create_dir(site.dir.path().join("customers")).unwrap();
        let directory = site.dir.path().join("customers");
        site.further_config(directory);
        Self { site, s3, version: std::cell::Cell::new(0) }
    }

    fn directory(&self) -> PathBuf {
        self.site.dir.path().join("customers")
    }

    /// Replaces all files at once.
    fn mount(&self, files: &[(&str, String)]) {
        self.version.set(self.version.get() + 1);
        let (directory, data) = (self.directory(), format!("..v{}", self.version.get()));
        std::fs::create_dir(directory.join(&data)).unwrap();
        for (name, text) in files {
            std::fs::write(directory.join(&data).join(name), text).unwrap();
        }
        symlink(&data, directory.join("..tmp")).unwrap();
        std::fs::rename(directory.join("..tmp"), directory.join("..data")).unwrap();
        let kept = |name: &str| files.iter().any(|(file, _)| *file == name);
        for (name, _) in files.iter().filter(|(name, _)| !directory.join(name).is_symlink()) {
            symlink(Path::new("..data").join(name), directory.join(name)).unwrap();
        }
        for entry in std::fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if !name.starts_with("..") && !kept(&name) {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    /// The file of a customer whose bucket is called like it.
    fn customer(&self, id: &str) -> String {
        self.s3.bucket(id, REGION, ACME);
        section(id, &role_destination(id, ACME))
    }

    fn consign(&self, arguments: &[&str]) -> std::process::Output {
        tokio::task::block_in_place(|| self.site.consign(arguments))
    }

    /// Delivers a file to a customer, or gives the outcome's reason.
    fn deliver(&self, to: &str, id: &str) -> Result<(), String> {
        let url = self.site.file(id, b"hello");
        let arguments = ["enqueue", "--json", "--source", &url, "--to", to, "--key", id, "--id", id, "--wait"];
        let output = self.consign(&arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        let outcome: Value = serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap();
        match outcome["type"].as_str() {
            Some("consign.transfer.delivered.v1") => Ok(()),
            _ => Err(format!("{outcome:#} {}", String::from_utf8_lossy(&output.stderr))),
        }
    }
}

async fn reloaded(worker: &Worker, successful: f64, part: &str) {
    until(&format!("a reload logs {part}"), Duration::from_secs(60), async || {
        (worker.metric(SUCCESSFUL, "").await == successful && worker.log().contains(part)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_noticed_and_a_broken_one_keeps_its_customer() {
    let customers = Customers::new("watch").await;
    let (acme, beta, gamma) = (customers.customer("acme"), customers.customer("beta"), customers.customer("gamma"));
    // Nobody has that bucket, so its circuit opens.
    let sick = section("sick", &role_destination("nowhere", ACME));
    let files = |beta: &str| [("acme.toml", acme.clone()), ("beta.toml", beta.to_owned()), ("sick.toml", sick.clone())];
    customers.mount(&files(&beta));
    let worker = customers.site.worker().await;
    customers.deliver("acme", "first").unwrap();
    let url = customers.site.file("f", b"hello");
    let open = "consign_destination_circuit_open";
    let mut number = 0;
    until("the circuit is open", Duration::from_secs(60), async || {
        number += 1;
        let id = format!("sick-{number}");
        customers.consign(&["enqueue", "--source", &url, "--to", "sick", "--key", &id, "--id", &id]);
        (worker.metric(open, "destination=\"sick\"").await == 1.0).then_some(())
    })
    .await;
    let assumed = customers.s3.calls("AssumeRole").len();

    // No signal: the files change under the worker.
    let mut changed = files("[destinations.beta]\nbucket = [\"x\"]\n").to_vec();
    changed.push(("gamma.toml", gamma.clone()));
    customers.mount(&changed);
    reloaded(&worker, 0.0, "beta.toml:2: destinations.beta.bucket: is a list; give text in quotes").await;
    let status: Value = serde_json::from_str(&worker.get("/status").await).unwrap();
    assert!(status["reload_refused"]["problem"].as_str().unwrap().contains("beta.toml:2"), "{status:#}");
    assert_eq!(status["destinations"], 4);
    // The commands refuse what the worker keeps out, so the job comes from a file without customers.
    customers.deliver("acme", "second").unwrap_err();
    changed[1].1.clone_from(&beta);
    changed.swap(1, 2);
    customers.mount(&changed);
    reloaded(&worker, 1.0, "\"added\":1").await;
    for id in ["acme", "beta", "gamma"] {
        customers.deliver(id, &format!("third-{id}")).unwrap();
    }
    assert_eq!(worker.metric(open, "destination=\"sick\"").await, 1.0, "another customer's circuit is not touched");
    let now = customers.s3.calls("AssumeRole").len();
    assert!(now <= assumed + 3, "acme's session is not touched: {assumed}, then {now}");
    customers.mount(&[("acme.toml", acme)]);
    reloaded(&worker, 1.0, "\"removed\":3").await;
    customers.deliver("acme", "fourth").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_start_every_file_must_be_right() {
    let customers = Customers::new("strict").await;
    let acme = customers.customer("acme");
    customers.mount(&[("a.toml", acme.clone()), ("b.toml", acme.clone())]);
    for command in ["validate", "show"] {
        let refused = customers.consign(&["config", command]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(78), "{text}");
        let both = ["customers/a.toml:1", "customers/b.toml:1", "destinations.acme: is also defined in"];
        assert!(both.iter().all(|part| text.contains(part)), "{text}");
    }
    assert_eq!(customers.consign(&["run"]).status.code(), Some(78));
    customers.mount(&[("a.toml", acme)]);
    let shown = customers.consign(&["config", "show"]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("destinations.acme.bucket = \"acme\"") && text.contains("customers/a.toml:"), "{text}");
}

/// Secrets at wrong places, in files that a running worker reads.
#[tokio::test(flavor = "multi_thread")]
async fn no_problem_quotes_a_secret_wherever_it_is_reported() {
    let customers = Customers::new("canaries").await;
    let acme = customers.customer("acme");
    customers.mount(&[("acme.toml", acme.clone())]);
    let worker = customers.site.worker().await;
    let key = "bucket = \"abc\"\nregion = \"eu-central-1\"\nauth.method = \"access_key\"\nauth.access_key_id = \"AKIA\"\nauth.";
    let broken = [
        format!("broker.url = [\"{CANARY}\"]\n"),
        format!("broker.url = \"amqp://u:{CANARY}@mq.example.com\"\n"),
        format!("broker.url_file = \"amqps://u:{CANARY}@mq.example.com\"\n"),
        format!("admin.token_file = \"{CANARY}\"\n"),
        format!("log.filter = \"{CANARY}=loud\"\n"),
        format!("[destinations.x]\n{key}secret_access_key = [\"{CANARY}\"]\n"),
        format!("[destinations.x]\n{key}secret_access_key = {{ \"{CANARY}!\" = 1 }}\n"),
        format!("[destinations.x]\n{key}secret_access_key_file = \"{CANARY}\"\n"),
        format!("[destinations.x]\n{key}secret_access_key = \"{CANARY}\n"),
        format!("[destinations.x]\nauth = \"{CANARY}\"\n"),
        format!("[destinations.x]\nauth = {{ method = \"{CANARY}\" }}\n"),
        format!("[destinations.x]\nauth = {{ method = \"iam_role\", external_id = \"{CANARY}!\" }}\n"),
        format!("[destinations.x]\nbucket = \"{CANARY}!\"\nkms_key_arn = \"{CANARY}\"\nchecksum = \"{CANARY}\"\n"),
    ];
    let mut reported = String::new();
    for (number, text) in broken.iter().enumerate() {
        customers.mount(&[("acme.toml", acme.clone()), ("broken.toml", text.clone())]);
        for arguments in [&["config", "validate"][..], &["config", "validate", "--json"], &["config", "show", "--json"]]
        {
            let output = customers.consign(arguments);
            assert_eq!(output.status.code(), Some(78), "{text}");
            reported += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
        }
        worker.reload();
        until("the reload is refused", Duration::from_secs(60), async || {
            (worker.log().matches("failed to reload").count() > number).then_some(())
        })
        .await;
        reported += &worker.get("/status").await;
        reported += &worker.get("/metrics").await;
    }
    reported += &worker.log();
    assert!(reported.contains("broken.toml") && !reported.contains(CANARY), "{reported}");
    for (variable, value) in
        [("CONSIGN__BROKER__URL", "amqp://u:CANARY@mq.example.com"), ("CONSIGN__WORKER__SLOTS", "CANARY")]
    {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_consign"))
            .args(["config", "validate"])
            .env(variable, value.replace("CANARY", CANARY))
            .output()
            .unwrap();
        let shown = format!("{output:?}");
        assert!(output.status.code() == Some(78) && shown.contains(variable) && !shown.contains(CANARY), "{shown}");
    }
}
