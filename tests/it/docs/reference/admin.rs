//! The admin endpoints: the page lists every route of the program, and each answers as listed.

use std::collections::BTreeSet;
use std::sync::Arc;

use consign::admin::{AdminAccess, AdminState, serve};
use consign::metrics::Metrics;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::docs::text;
use crate::testbed::http;
use crate::testbed::rust;

const PAGE: &str = "deploy/docs/reference/admin.md";

/// Rows of the page: path and content type.
fn listed() -> Vec<(String, String)> {
    let rows = text(PAGE);
    let rows = rows.lines().filter_map(|line| line.strip_prefix("| `/"));
    rows.map(|row| {
        let cells: Vec<_> = row.split(" | ").map(|cell| cell.trim_matches('`').to_owned()).collect();
        (format!("/{}", cells[0].trim_end_matches('`')), cells[1].clone())
    })
    .collect()
}

/// Paths that the program routes: text literals that begin with a slash and stand in its route
/// tables.
fn routed() -> BTreeSet<String> {
    let sources = rust::files("src")
        .into_iter()
        .filter(|source| ["src/admin.rs", "src/admin/page.rs"].contains(&source.path.as_str()));
    sources
        .flat_map(|source| source.strings.into_iter().map(|(_, text)| text))
        .filter(|text| text.starts_with('/'))
        .collect()
}

#[test]
fn the_admin_page_lists_every_route() {
    let listed: BTreeSet<_> = listed().into_iter().map(|(path, _)| path).collect();
    assert_eq!(listed, routed());
}

#[tokio::test]
async fn every_listed_endpoint_answers_with_the_listed_type() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let state = AdminState {
        metrics: Arc::new(Metrics::new(1)),
        ready: Arc::new(|| Ok(())),
        live: Arc::new(|| true),
        status: Arc::new(|_| serde_json::json!({})),
        access: AdminAccess::default(),
    };
    let server = tokio::spawn(serve(listener, state, stop.clone()));
    for (path, kind) in listed() {
        let answer = http().get(format!("http://{address}{path}")).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()),
            (200, &*kind),
            "{path}"
        );
    }
    stop.cancel();
    server.await.unwrap();
}
