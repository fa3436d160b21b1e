//! The status page in a real browser: it lives without reloads, stays safe whatever a job is called, and can be used by
//! everybody. Without a browser `tests/run` counts these tests as skipped.

mod access;
mod hostile;
mod live;
mod stub;

use crate::testbed::browser::Browser;

/// What the browser complains about, but for connections to a worker that is gone on purpose.
async fn complaints(browser: &Browser) -> Vec<String> {
    let said = browser.console().await;
    said.into_iter().filter(|line| !line.contains("net::ERR_")).collect()
}
