//! Every command of consign in a block of a page is run as it stands, page by page, from top to
//! bottom: against a real broker, a worker, and a customer's bucket. Only names of hosts that are
//! examples are replaced.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{PAGES, text};
use crate::fixture::{ACME, KMS_KEY, add_acme, role_destination};
use crate::testbed::scripted::ScriptedS3;
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{free_port, http, until};

/// Jobs that the pages take for dead-lettered.
const DEAD_LETTERED: [&str; 2] = ["acme/google_ads/2026-11-22", "acme/2025-03-01"];

/// The reader's machine, as far as the pages take it for granted.
struct Desk {
    site: Site,
    s3: ScriptedS3,
    worker: Worker,
    /// For the page's `consign run`.
    port: u16,
}

impl Desk {
    async fn new() -> Self {
        let mut site = Site::new("docs").await;
        let s3 = add_acme(&mut site).await;
        let port = free_port().await;
        let mut acme = role_destination("acme", ACME);
        acme["kms_key_arn"] = json!(KMS_KEY);
        site.destination("acme", &acme);
        let config = format!("{}admin.listen = \"127.0.0.1:{port}\"\n", site.toml());
        std::fs::write(site.dir.path().join("consign.toml"), config).unwrap();
        std::fs::write(site.dir.path().join("ads.json"), template(&site)).unwrap();
        site.file("a.csv", b"1,2,3\n");
        let mut day = jiff::civil::date(2023, 11, 23);
        while day <= jiff::civil::date(2026, 11, 21) {
            std::fs::write(site.files().join(format!("eu-{day}.csv")), b"1\n").unwrap();
            day = day.tomorrow().unwrap();
        }
        let worker = site.worker().await;
        let desk = Self { site, s3, worker, port };
        for id in DEAD_LETTERED {
            desk.lose(id).await;
        }
        desk
    }

    /// A job whose source is not there.
    async fn lose(&self, id: &str) {
        let gone = format!("file://{}/gone", self.site.files().display());
        let lost = job(id, &gone, "acme", id);
        self.site.broker.publish("scheduled", &lost).await;
        until("it is given up", Duration::from_secs(30), async || {
            self.run(&["dead", "show", id]).status.success().then_some(())
        })
        .await;
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = self.command(words);
        tokio::task::block_in_place(|| command.output().unwrap())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
        command.args(words).current_dir(self.site.dir.path()).env_clear().envs(self.site.variables());
        // As the pages say of those commands that name no file.
        command.env("CONSIGN_CONFIG", "consign.toml").stdin(Stdio::null());
        // Its errors would show that something is left open.
        command.env("CONSIGN__LOG__FILTER", "warn,lapin=error");
        command
    }

    /// With the hosts of the examples replaced.
    fn here(&self, word: &str) -> String {
        word.replace("https://exports.example.com/", &format!("file://{}/", self.site.files().display()))
            .replace("file:///srv/", &format!("file://{}/", self.site.files().display()))
            .replace("http://127.0.0.1:9464", self.worker.admin())
    }

    /// `consign run` runs until a signal ends it.
    async fn run_worker(&self, words: &[&str]) -> Output {
        let mut command = self.command(words);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let ready = format!("http://127.0.0.1:{}/readyz", self.port);
        until("it is ready", Duration::from_secs(30), async || {
            let answer = http().get(&ready).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        tokio::task::block_in_place(|| child.wait_with_output().unwrap())
    }
}

/// The page's template, its source a file of the site.
fn template(site: &Site) -> String {
    let page = text("deploy/docs/backfills.md");
    let blocks = page.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let template = blocks.into_iter().find(|block| block.contains("{region}")).expect("the page shows a template");
    let files = format!("file://{}/", site.files().display());
    template.replace("https://exports.example.com/{region}/", &format!("{files}{{region}}-"))
}

/// The commands of a page in their order, without comments and redirections.
fn shown(page: &str) -> Vec<String> {
    let mut fenced = false;
    let mut commands = Vec::new();
    for line in text(page).lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let command = line.trim_start();
        if (fenced || line.starts_with("    ")) && command.starts_with("consign ") {
            let bare = command.split(" #").next().unwrap_or(command);
            commands.push(bare.split(" > ").next().unwrap_or(bare).trim().to_owned());
        }
    }
    commands
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_that_is_shown_does_what_it_is_shown_for() {
    let desk = Desk::new().await;
    let (mut count, mut problems) = (0, Vec::new());
    for page in PAGES {
        for command in shown(page) {
            let words: Vec<_> =
                command.split_whitespace().skip(1).map(|word| desk.here(word.trim_matches('\''))).collect();
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let output = if words[0] == "run" { desk.run_worker(&words).await } else { desk.run(&words) };
            let said = [&output.stdout[..], &output.stderr[..]]
                .map(|text| String::from_utf8_lossy(text).into_owned())
                .concat();
            // lapin says so of a channel that is still closing when its connection is to close: whoever reads it looks for a fault.
            if output.status.code() != Some(0) || said.contains("Connection error") {
                problems.push(format!("{page} shows: {command}\n{}\n{said}", output.status));
            }
            count += 1;
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(count >= 25, "only {count} commands were found");
    for key in ["in/2026/a.csv", "in/google_ads/2023/2023-11-23.csv", "in/google_ads/2026/2026-11-21.csv"] {
        assert!(desk.s3.object("acme", key).is_some(), "{key} was not delivered");
    }
}
