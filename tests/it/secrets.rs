//! Every secret in this testbed carries the word `marked-secret`; at trace level it must show up
//! nowhere.

use serde_json::json;

use crate::fixture::{AcmeFixture, REGION, site};
use crate::testbed::scripted::Effect;
use crate::testbed::site::{Site, job};
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::{MIB, bytes};

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
