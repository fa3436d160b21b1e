//! Every secret in this testbed carries the word `marked-secret`; at trace level it must show up
//! nowhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::fixture::{ACME, AcmeFixture, REGION, role_destination, site};
use crate::testbed::broker::{Message, RETRY_DELAYS};
use crate::testbed::scripted::Effect;
use crate::testbed::site::{Site, job, section};
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::worker::Worker;
use crate::testbed::{MIB, bytes, until};

const MARK: &str = "marked-secret";

/// A customer with an access key, and a web source: more places for secrets.
async fn furnished() -> (AcmeFixture, WebSource) {
    let (mut site, s3) = site("secrets").await;
    s3.bucket("keyed", REGION, "333333333333");
    let auth = json!({
        "method": "access_key", "access_key_id": "AKIACUSTOMER00000001", "secret_access_key": "marked-secret-customer-key",
    });
    site.destination("keyed", &json!({"bucket": "keyed", "region": REGION, "auth": auth}));
    let ca = site.dir.path().join("ca.pem");
    let web = WebSource::https(&ca).await;
    site.environment("SSL_CERT_FILE", &ca.display().to_string()).set("log.filter", "trace");
    let worker = site.worker().await;
    (AcmeFixture { site, s3, worker }, web)
}

/// The lines that give a secret away, shortened.
fn hits(place: &str, text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.contains(MARK));
    lines
        .map(|line| {
            let at = line.find(MARK).unwrap();
            let from = line.char_indices().map(|(i, _)| i).rfind(|i| *i + 300 <= at).unwrap_or(0);
            format!("{place}: ...{}", line[from..].chars().take(400).collect::<String>())
        })
        .collect()
}

fn shown_config(site: &Site) -> String {
    let shown = site.consign(&["config", "show"]);
    format!("{}{}", String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr))
}

#[tokio::test]
async fn no_secret_shows_up_anywhere_even_at_trace_level() {
    let (fixture, web) = furnished().await;
    let presigned = |url: String| format!("{url}?X-Amz-Signature=marked-secret-presigned");
    let url = presigned(web.put("f", Content::new(bytes(1, 20 * MIB))));
    let url = fixture.site.can_settle(url, bytes(1, 20 * MIB));
    fixture.site.broker.schedule(&job("by-role", &url, "acme", "by-role")).await;
    fixture.site.broker.schedule(&job("by-key", &url, "keyed", "by-key")).await;
    fixture.delivered("by-role").await;
    fixture.delivered("by-key").await;

    // Failures talk more: a source that is gone, a refusal of S3, an unknown host, a redirect to nowhere.
    let gone = presigned(web.put("gone", Content::refused(404)));
    fixture.site.broker.schedule(&job("gone", &gone, "acme", "gone")).await;
    let gone = fixture.site.broker.taken("dead", "\"gone\"").await;
    let nowhere = presigned("https://localhost:1/f".to_owned());
    fixture.site.broker.schedule(&job("nowhere", &nowhere, "acme", "nowhere")).await;
    let waiting = fixture.site.broker.taken("wait.5s", "\"nowhere\"").await;
    fixture.s3.on("PutObject").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    fixture.schedule("refused", b"hello").await;
    let refused = fixture.site.broker.taken("wait.30s", "\"refused\"").await;

    let mut found = Vec::new();
    found.extend(hits("log", &fixture.worker.log()));
    found.extend(hits("metrics", &fixture.worker.get("/metrics").await));
    found.extend(hits("status", &fixture.worker.get("/status").await));
    found.extend(hits("config show", &shown_config(&fixture.site)));
    for outcome in fixture.site.broker.outcomes().await {
        found.extend(hits("outcome", &outcome.text()));
    }
    // Bodies are the producer's own and stay untouched; what the worker adds is in the headers.
    for copy in [gone, waiting, refused] {
        found.extend(hits("headers", &format!("{:?}", copy.headers)));
    }
    assert!(fixture.worker.log().contains("\"TRACE\""), "the worker does not log at trace level");
    assert!(found.is_empty(), "{} hits, such as:\n{}", found.len(), found[..found.len().min(12)].join("\n"));
    fixture.close().await;
}

/// A directory of customers, one of whom is broken later.
fn customers(site: &mut Site) -> PathBuf {
    let directory = site.dir.path().join("customers");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("beta.toml"), section("beta", &role_destination("beta", ACME))).unwrap();
    site.further_config(directory.clone());
    directory
}

/// What is written or served beside transfers: configuration directories and their reloads, leases,
/// control messages, connection tests, backfills, and every command that shows something.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_up_in_reloads_leases_control_messages_and_commands() {
    let (mut site, s3) = site("canaries").await;
    s3.bucket("beta", REGION, ACME);
    let directory = customers(&mut site);
    site.set("log.filter", "trace").set("broker.lease_after", "1s");
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    let (site, worker) = (&fixture.site, &fixture.worker);
    let mut found = Vec::new();

    // A lease, of a job that takes longer than a second.
    fixture.s3.on("PutObject").key("slow").first(1).before(Effect::Delay(Duration::from_secs(4)));
    fixture.schedule("slow", b"hello").await;
    let lease =
        until("a lease", Duration::from_secs(30), async || site.broker.take("lease").await.into_iter().next()).await;
    found.extend(hits("lease", &format!("{:?} {}", lease.headers, String::from_utf8_lossy(&lease.body))));
    fixture.delivered("slow").await;

    // A circuit breaker that opens is a control message, and so are the commands of an operator.
    fixture.s3.on("AssumeRole").before(Effect::Error(403, "AccessDenied", "not authorized: sts:AssumeRole"));
    site.broker.schedule(&job("denied", &site.file("denied", b"x"), "beta", "denied")).await;
    let denied = until("the denied job waits", Duration::from_secs(60), async || waiting(site).await).await;
    found.extend(hits("headers", &format!("{:?}", denied.headers)));
    found.extend(commands(site));
    let config = consign::config::load_str(&site.toml()).unwrap().config;
    let control = consign::queue::admin(&config.broker, "secrets").control_messages().await.unwrap();
    let control: String = control.iter().map(|body| String::from_utf8_lossy(body).into_owned() + "\n").collect();
    assert!(control.contains("beta"), "no control message names the circuit breaker: {control}");
    found.extend(hits("control", &control));

    found.extend(refused_reloads(worker, &directory.join("broken.toml")).await);
    for outcome in site.broker.outcomes().await {
        found.extend(hits("outcome", &outcome.text()));
    }
    found.extend(hits("log", &worker.log()));
    found.extend(hits("metrics", &worker.get("/metrics").await));
    assert!(worker.log().contains("\"TRACE\""), "the worker does not log at trace level");
    assert!(found.is_empty(), "{} hits, such as:\n{}", found.len(), found[..found.len().min(12)].join("\n"));
    fixture.close().await;
}

/// Every command that shows something, at trace level as the worker.
fn commands(site: &Site) -> Vec<String> {
    let all: [&[&str]; 13] = [
        &["check", "acme", "--json"],
        &["check", "beta"],
        &["policy", "trust", "acme"],
        &["policy", "cloudformation", "acme"],
        &["policy", "terraform", "acme"],
        &["status"],
        &["status", "reset", "beta"],
        &["status", "--json"],
        &["dead", "list", "--json"],
        &["config", "show"],
        &["config", "show", "--json"],
        &["topology", "print"],
        &["enqueue", "--source", "https://x.example/?marked-secret-query", "--to", "nobody", "--key", "k"],
    ];
    let run = |arguments: &&[&str]| {
        let said = tokio::task::block_in_place(|| site.consign(arguments));
        let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(!text.contains("unrecognized subcommand") && !text.is_empty(), "{arguments:?}: {text}");
        // Documents for a customer to paste have that customer's external id.
        let statement = "\"sts:ExternalId\": \"marked-secret-external-id\"";
        let theirs = |line: &String| match arguments[0] {
            "policy" => line.contains("marked-secret-external-id"),
            "check" => line.contains(statement),
            _ => false,
        };
        hits(&arguments.join(" "), &text).into_iter().filter(|line| !theirs(line)).collect::<Vec<_>>()
    };
    all.iter().flat_map(run).collect()
}

/// Files that a running worker refuses, each reported in its log and in `/status`.
async fn refused_reloads(worker: &Worker, file: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let refused = || worker.log().matches("failed to reload").count();
    for text in ["auth = \"marked-secret-key\"", "bucket = [\"marked-secret-key\"]"] {
        let before = refused();
        std::fs::write(file, format!("[destinations.broken]\n{text}\n")).unwrap();
        worker.reload();
        until("the reload is refused", Duration::from_secs(60), async || (refused() > before).then_some(())).await;
        found.extend(hits("status", &worker.get("/status").await));
    }
    std::fs::remove_file(file).unwrap();
    found
}

/// A copy that waits, in whatever tier.
async fn waiting(site: &Site) -> Option<Message> {
    for tier in RETRY_DELAYS {
        if let Some(copy) = site.broker.take(&format!("wait.{tier}")).await.into_iter().next() {
            return Some(copy);
        }
    }
    None
}

/// Shapes that a value may have by mistake; `@` is a secret of letters, `#` one of digits.
const SHAPES: [&str; 22] = [
    "\"@",
    "@",
    "[\"@\"]",
    "[[\"@\"]]",
    "{ value = \"@\" }",
    "{ \"@\" = 1 }",
    "{ @ = { @ = [\"@\"] } }",
    "\"\"\"\n@\n\"\"\"",
    "\"a\\u0000@\"",
    "\"@\\q\"",
    "\"@\" \"@\"",
    "\"@\"\nbogus = \"@\"",
    "'@\"",
    "#",
    "-#",
    "#.5",
    "[#, #]",
    "{ value = # }",
    "true@",
    "1979-05-27T07:32:00Z@",
    "\" @ \"",
    "\"https://user:@@[\"",
];

/// Every key that has a secret, or whose neighbour has one.
const SECRET_KEYS: [&str; 15] = [
    "broker.url",
    "broker.url_file",
    "broker.client_key_file",
    "admin.token_file",
    "aws.s3_endpoint_url",
    "aws.sts_endpoint_url",
    "log.otlp_endpoint",
    "destinations.x.auth",
    "destinations.x.auth.method",
    "destinations.x.auth.role_arn",
    "destinations.x.auth.external_id",
    "destinations.x.auth.access_key_id",
    "destinations.x.auth.secret_access_key",
    "destinations.x.auth.secret_access_key_file",
    "destinations.x.session_policy",
];

#[test]
fn every_wrong_shape_of_every_secret_key_is_reported_without_it() {
    const DIGITS: &str = "7300451987";
    let mut reported = 0;
    for key in SECRET_KEYS {
        for shape in SHAPES {
            // The name of a key is quoted, and is not a secret.
            if key == "destinations.x.auth" && (shape.starts_with("{ \"@") || shape.starts_with("{ @")) {
                continue;
            }
            let value = shape.replace('@', "marked-secret").replace('#', DIGITS);
            for text in [format!("{key} = {value}\n"), format!("{key} = {value}\n{key} = {value}\n")] {
                let Err(problems) = consign::config::load_str(&text) else { continue };
                let shown = format!("{problems} {problems:?}");
                assert!(!shown.contains(MARK) && !shown.contains(DIGITS), "{text}\n{shown}");
                reported += 1;
            }
            // On the command line and in the environment it is all text.
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_consign"))
                .args(["config", "validate"])
                .env(format!("CONSIGN__{}", key.replace('.', "__").to_uppercase()), &value)
                .output();
            let shown = format!("{:?}", output.unwrap());
            assert!(!shown.contains(MARK) && !shown.contains(DIGITS), "{key} {value}\n{shown}");
        }
    }
    assert!(reported > SECRET_KEYS.len() * SHAPES.len(), "only {reported} were wrong");
}
