//! A headless Chromium over WebDriver, with nothing of the user's own: a fresh profile, no calls
//! home.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use url::{ParseError, Url};

use super::{exported, free_port, http, until};

/// A browser with one window. Ends on drop, with its driver.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    driver: Driver,
}

/// The driver's process; it knows the session, so that the browser goes with it even when a test
/// fails.
#[derive(Debug)]
struct Driver {
    child: Child,
    url: String,
    session: Option<String>,
    _profile: TempDir,
}

impl Driver {
    async fn start(profile: TempDir) -> Self {
        let port = free_port().await;
        let child = Command::new(exported("CONSIGN_TEST_CHROMEDRIVER"))
            .arg(format!("--port={port}"))
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let driver = Self { child, url: format!("http://127.0.0.1:{port}"), session: None, _profile: profile };
        until("the driver answers", Duration::from_secs(60), async || {
            let answer = http().get(format!("{}/status", driver.url)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        driver
    }

    /// Ends the browser, without a runtime: this runs on the way out of a failed test too.
    fn quit(&self) -> std::io::Result<()> {
        use std::io::{Read as _, Write as _};
        let Some(session) = &self.session else { return Ok(()) };
        let address = self.url.trim_start_matches("http://");
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "DELETE /session/{session} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
        stream.read(&mut [0; 16]).map(drop)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.quit();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command of Chromium's own driver: a path below the session, and a body.
#[derive(Debug)]
struct Extra(&'static str, Value);

impl WebDriverCompatibleCommand for Extra {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.0))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.1.to_string()))
    }
}

impl Browser {
    pub async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let switches = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--lang=en-GB",
        ];
        let mut switches: Vec<_> = switches.map(str::to_owned).into();
        switches.push(format!("--user-data-dir={}", profile.path().display()));
        let mut driver = Driver::start(profile).await;
        let capabilities = json!({
            "goog:chromeOptions": {"args": switches},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&driver.url).await.unwrap();
        driver.session = client.session_id().await.unwrap();
        let browser = Self { client, driver };
        browser.window(1280, 900, false).await;
        browser
    }

    /// The size of the window's inside in CSS pixels; `phone` adds touch and a phone's way of
    /// layout.
    pub async fn window(&self, width: u32, height: u32, phone: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Sets a preference of the user, such as `prefers-color-scheme` = `dark`.
    pub async fn prefers(&self, feature: &str, value: &str) {
        let media = json!({"features": [{"name": feature, "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", media).await;
    }

    async fn devtools(&self, command: &str, params: Value) {
        let body = json!({"cmd": command, "params": params});
        self.client.issue_cmd(Extra("goog/cdp/execute", body)).await.unwrap();
    }

    pub async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// The value of an expression in the page.
    pub async fn value(&self, expression: &str) -> Value {
        self.run(&format!("return ({expression});")).await
    }

    /// Runs a script in the page; `return` gives its value.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap_or_else(|error| panic!("{error}\n{script}"))
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        until(expression, Duration::from_secs(60), async || (self.value(expression).await == true).then_some(())).await;
    }

    /// The text of the one element that is meant.
    pub async fn text(&self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({}).textContent", json!(selector))).await;
        text.as_str().unwrap_or_else(|| panic!("nothing is {selector}")).to_owned()
    }

    /// Presses keys, such as `\u{E004}` for the tabulator, wherever the focus is.
    pub async fn press(&self, keys: &str) {
        self.client.active_element().await.unwrap().send_keys(keys).await.unwrap();
    }

    /// Console entries since the last look: errors, warnings, violations of the page's policy.
    pub async fn console(&self) -> Vec<String> {
        let entries = self.client.issue_cmd(Extra("se/log", json!({"type": "browser"}))).await.unwrap();
        let line = |entry: &Value| format!("{} {}", entry["level"], entry["message"]);
        entries.as_array().unwrap().iter().map(line).collect()
    }

    /// Keeps a picture of the window among the artefacts of the tests.
    pub async fn picture(&self, name: &str) -> PathBuf {
        let path = artefacts().join(format!("{name}.png"));
        std::fs::write(&path, self.client.screenshot().await.unwrap()).unwrap();
        path
    }

    pub async fn close(self) {
        let Self { client, driver } = self;
        // The driver ends the session itself.
        drop(client);
        tokio::task::spawn_blocking(move || drop(driver)).await.unwrap();
    }
}

/// Folder of pictures: beside the servers' files, below the target directory.
fn artefacts() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_consign"));
    let dir = binary.ancestors().nth(2).unwrap().join("testbed/pictures");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
