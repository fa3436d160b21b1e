//! The status page in a real browser: it lives without reloads, stays safe whatever a job is
//! called, and can be used by everybody. Without a browser `tests/run` counts these tests as
//! skipped.

mod access;
mod attention;
mod hostile;
mod live;
mod picture;
pub mod stub;

use std::path::Path;

use crate::testbed::browser::Browser;

/// Complaints of the browser, except about connections to a worker that was stopped on purpose.
async fn complaints(browser: &Browser) -> Vec<String> {
    let said = browser.console().await;
    said.into_iter().filter(|line| !line.contains("net::ERR_")).collect()
}

/// A PNG of the whole window, with something on it.
fn check_picture(path: &Path) {
    let picture = std::fs::read(path).unwrap();
    assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n"), "{} is no PNG", path.display());
    let number = |at: usize| u32::from_be_bytes(picture[at..at + 4].try_into().unwrap());
    assert_eq!((number(16), number(20)), (1280, 900), "{}", path.display());
    assert!((20_000..1_000_000).contains(&picture.len()), "{} bytes", picture.len());
}
