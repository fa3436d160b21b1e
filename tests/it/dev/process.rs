//! The command as a process: what it prints, what it leaves, and what it does not need.

use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::testbed::{KIB, MIB, bytes, free_port, http, until};

/// More than it ever takes; only a broken program waits so long.
const LIMIT: Duration = Duration::from_secs(60);

/// A place to run in: temporary directories are made below it, and it is the working directory.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.path("tmp")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Temporary directories that were left behind.
    fn left_behind(&self) -> usize {
        std::fs::read_dir(self.path("tmp")).unwrap().count()
    }

    /// The command with nothing in its environment but where temporary files go.
    fn consign(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
        command.env_clear().env("TMPDIR", self.path("tmp")).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// `consign dev` with these arguments, on a free port.
    async fn dev(&self, arguments: &[&str]) -> Command {
        let mut command = self.consign();
        command.arg("dev").arg("--port").arg(free_port().await.to_string()).args(arguments);
        command
    }
}

/// Runs it to its end.
async fn output(mut command: Command) -> Output {
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(LIMIT * 2, ended).await.expect("it does not end").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output as JSON lines.
fn outcomes(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The one terminal outcome of the job whose id ends like this.
fn ended<'a>(outcomes: &'a [Value], job: &str) -> &'a Value {
    let of_job = |outcome: &&Value| {
        outcome["subject"].as_str().unwrap().ends_with(job) && outcome["type"] != "consign.transfer.retrying.v1"
    };
    let found: Vec<_> = outcomes.iter().filter(of_job).collect();
    assert_eq!(found.len(), 1, "{job} in {outcomes:#?}");
    found[0]
}

/// A running `consign dev`; killed on drop, by its own id.
struct Running {
    child: Child,
    stdout: PathBuf,
}

impl Running {
    /// Waits until its jobs have ended.
    async fn start(place: &Place, arguments: &[&str]) -> Self {
        let running = Self::start_until(place, arguments, "Ctrl-C ends it").await;
        assert!(running.said().contains("delivered,"), "{}", running.said());
        running
    }

    /// Waits until it has said `word`.
    async fn start_until(place: &Place, arguments: &[&str], word: &str) -> Self {
        let stdout = place.path("stdout");
        let mut command = place.dev(arguments).await;
        command.stdout(std::fs::File::create(&stdout).unwrap());
        command.stderr(std::fs::File::create(place.path("stderr")).unwrap());
        let mut running = Self { child: command.spawn().unwrap(), stdout };
        until(word, LIMIT, async || {
            assert_eq!(running.child.try_wait().unwrap(), None, "{}", running.said());
            running.said().contains(word).then_some(())
        })
        .await;
        running
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// The rest of the first line that begins with `word`.
    fn after(&self, word: &str) -> String {
        let said = self.said();
        let line = said.lines().find_map(|line| line.strip_prefix(word));
        line.unwrap_or_else(|| panic!("{word} is not in {said}")).trim().to_owned()
    }

    async fn end(&mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        until("it ends", LIMIT, async || self.child.try_wait().unwrap()).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_samples_end_as_they_should_whatever_the_environment_says() {
    let place = Place::new();
    let mut command = place.dev(&["--once", "--json"]).await;
    let nowhere = "http://127.0.0.1:9";
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "AKIAWRONG"),
        ("AWS_SECRET_ACCESS_KEY", "wrong"),
        ("AWS_ENDPOINT_URL", nowhere),
        ("AWS_PROFILE", "nobody"),
        ("AWS_REGION", "mars-north-1"),
        ("HTTP_PROXY", nowhere),
        ("HTTPS_PROXY", nowhere),
        ("ALL_PROXY", nowhere),
        ("CONSIGN__BROKER__URL", "amqp://127.0.0.1:9"),
        ("CONSIGN__UPLOAD__PART_SIZE", "nonsense"),
        ("CONSIGN_CONFIG", "/nonexistent/consign.toml"),
    ] {
        command.env(name, value);
    }
    let output = output(command).await;
    let people = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{people}");

    let outcomes = outcomes(&output);
    for (job, bucket, encryption) in [
        ("/orders.csv", "acme-exports", "aws:kms"),
        ("/contacts.csv", "globex-landing-zone", "AES256"),
        ("/events.ndjson", "acme-exports", "aws:kms"),
        ("/telemetry.bin", "acme-exports", "aws:kms"),
    ] {
        let outcome = ended(&outcomes, job);
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
        assert_eq!((&outcome["data"]["bucket"], &outcome["data"]["attempts"]), (&bucket.into(), &1.into()));
        assert_eq!(outcome["data"]["encryption"]["algorithm"], encryption);
    }
    assert_eq!(ended(&outcomes, "/telemetry.bin")["data"]["parts"], 8);
    let events = &ended(&outcomes, "/events.ndjson")["data"];
    assert!(events["bytes"].as_u64().unwrap() < events["source_bytes"].as_u64().unwrap() / 4, "{events:#}");
    let failed = ended(&outcomes, "/invoices.csv");
    assert_eq!(failed["data"]["reason"], "source_mismatch", "{failed:#}");

    assert!(people.contains("NOT for production"), "{people}");
    let (before, _) = people.split_once("delivered  ").unwrap();
    for place in ["status page http://", "metrics        http://", "aws s3 ls --recursive --endpoint-url http://"] {
        assert!(before.contains(place), "{place}: {people}");
    }
    assert!(people.contains("8 parts (1 sent again after 503 SlowDown)"), "the retry of a part is seen: {people}");
    assert!(people.contains("the source has 483 bytes, the job says 966"), "{people}");
    assert!(people.contains("4 of 5 delivered, 1 failed, as expected."), "{people}");
    assert!(!people.contains('\u{1b}'), "colours are for terminals");
    assert!(!people.contains("WARN") && !people.contains("ERROR"), "{people}");
    assert_eq!(place.left_behind(), 0);
    println!("{}", people.lines().find(|line| line.contains("the first object")).unwrap());
}

#[tokio::test]
async fn a_data_directory_is_kept_holds_the_same_bytes_and_is_gone_on_with() {
    let place = Place::new();
    let run = async || {
        let output = output(place.dev(&["--once", "--data-dir", "kept"]).await).await;
        assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    let said = run().await;
    let (buckets, files) = (place.path("kept/buckets"), place.path("kept/files"));
    let place_of_objects = buckets.canonicalize().unwrap().display().to_string();
    assert!(said.contains(&place_of_objects), "{said}");
    let (_, command) = said.split_once("\ndead letters   ").unwrap();
    let mut printed = Command::new("sh");
    printed.env_clear().arg("-c").arg(command.lines().next().unwrap());
    let shown = output(printed).await;
    let listed = text(&shown.stdout);
    assert!(listed.contains("/invoices.csv") && listed.contains("source_mismatch"), "{listed}{}", text(&shown.stderr));
    let acme = buckets.join("acme-exports/platform/samples");
    let same = |object: PathBuf, source: &str| {
        assert!(std::fs::read(&object).unwrap() == std::fs::read(files.join(source)).unwrap(), "{}", object.display());
    };
    same(acme.join("orders.csv"), "orders.csv");
    same(acme.join("telemetry.bin"), "telemetry.bin");
    same(buckets.join("globex-landing-zone/imports/samples/contacts.csv"), "contacts.csv");
    assert!(!acme.join("invoices.csv").exists(), "what is not what was announced is not delivered");
    assert!(unpacked(&acme.join("events.ndjson.gz")).await == std::fs::read(files.join("events.ndjson")).unwrap());

    std::fs::write(acme.join("of-an-earlier-start"), "x").unwrap();
    run().await;
    assert!(acme.join("of-an-earlier-start").exists());
    assert_eq!(dead_letters(&place.path("kept/queue.db")), 2, "the queue is the same one");
    assert_eq!(place.left_behind(), 0);
}

fn dead_letters(queue: &Path) -> i64 {
    let file = rusqlite::Connection::open(queue).unwrap();
    file.query_row("select count(*) from dead_letters where reason = 'source_mismatch'", [], |row| row.get(0)).unwrap()
}

async fn unpacked(path: &Path) -> Vec<u8> {
    let packed = tokio::fs::read(path).await.unwrap();
    let mut reader = async_compression::tokio::bufread::GzipDecoder::new(&packed[..]);
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn files_of_ones_own_are_delivered_under_distinct_names() {
    let place = Place::new();
    let large = bytes(3, 20 * MIB + 5 * KIB);
    std::fs::create_dir(place.path("a folder")).unwrap();
    for (name, content) in [("x.csv", b"one".as_slice()), ("a folder/x.csv", b""), ("große datei.bin", &large)] {
        std::fs::write(place.path(name), content).unwrap();
    }
    std::os::unix::fs::symlink("x.csv", place.path("link.csv")).unwrap();
    let arguments = ["--once", "--data-dir", "d", "--file", "x.csv", "--file", "a folder/x.csv"];
    let mut command = place.dev(&arguments).await;
    command.args(["--file", "große datei.bin", "--file", "link.csv"]);
    let output = output(command).await;
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    let object = |name: &str| std::fs::read(place.path("d/buckets/acme-exports/platform").join(name)).unwrap();
    assert_eq!((object("x.csv"), object("x-2.csv"), object("x-3.csv")), (b"one".to_vec(), vec![], b"one".to_vec()));
    assert!(object("große datei.bin") == large);
    assert!(said.contains("4 of 4 delivered") && said.contains("20.0 MiB") && said.contains("3 parts"), "{said}");
}

#[tokio::test]
async fn the_exit_code_says_whether_all_some_or_none_of_the_files_were_delivered() {
    let place = Place::new();
    // A valid key, and too long a name for a store that keeps objects as files.
    let long = "n".repeat(200);
    std::fs::write(place.path("good"), "x").unwrap();
    std::fs::write(place.path(&long), "x").unwrap();
    let code = async |files: &[&str]| {
        let arguments: Vec<_> = files.iter().flat_map(|file| ["--file", file]).chain(["--once"]).collect();
        let output = output(place.dev(&arguments).await).await;
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    };
    assert_eq!(code(&["good"]).await.0, 0);
    let (partly, said) = code(&["good", &long]).await;
    assert_eq!(
        (partly, said.contains("invalid_key"), said.contains("1 of 2 delivered, 1 failed.")),
        (75, true, true),
        "{said}"
    );
    assert_eq!(code(&[&long]).await.0, 1);
    let (missing, said) = code(&["good", "no-such-file"]).await;
    assert_eq!((missing, said.contains("--file: no-such-file can't be delivered: No such file")), (2, true), "{said}");
    assert!(!said.contains("All data is in"), "nothing was started: {said}");
    assert_eq!(code(&["tmp"]).await.0, 2, "a directory is no file");
    assert_eq!(place.left_behind(), 0);
}

#[tokio::test]
async fn a_port_that_is_taken_is_no_obstacle() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    std::fs::write(place.path("f"), "x").unwrap();
    let mut command = place.consign();
    let port = taken.local_addr().unwrap().port().to_string();
    command.args(["dev", "--once", "--file", "f", "--port", &port]);
    let output = output(command).await;
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    assert!(said.contains(&format!("port {port} can't be used")), "{said}");
    assert!(!said.contains(&format!("http://127.0.0.1:{port}/")), "{said}");
}

#[tokio::test]
async fn a_running_one_takes_more_jobs_shows_its_pages_and_ends_cleanly_with_a_signal() {
    let place = Place::new();
    let mut running = Running::start(&place, &[]).await;
    let page = running.after("status page    ");
    let answer = http().get(format!("{page}readyz")).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    let metrics = http().get(running.after("metrics        ")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("consign_transfers_total{lane=\"scheduled\",outcome=\"delivered\"} 4"), "{metrics}");

    let buckets = PathBuf::from(running.after("objects        "));
    let config = buckets.parent().unwrap().join("consign.toml");
    std::fs::write(place.path("more"), "more").unwrap();
    let enqueue = async |source: &Path| {
        let mut command = place.consign();
        command.arg("enqueue").arg("-c").arg(&config).args(["--to", "acme", "--key", "more", "--id", "mine", "--wait"]);
        command.arg("--source").arg(format!("file://{}", source.display()));
        output(command).await
    };
    let sent = enqueue(&place.path("more").canonicalize().unwrap()).await;
    assert_eq!(sent.status.code(), Some(0), "{}", text(&sent.stderr));
    assert_eq!(std::fs::read(buckets.join("acme-exports/platform/more")).unwrap(), b"more");
    until("its line is shown", LIMIT, async || running.said().contains("delivered  mine").then_some(())).await;

    let said = running.said();
    let (_, check) = said.split_once("\ncheck  ").unwrap();
    let (check, _) = check.split_once("Ctrl-C").unwrap();
    let mut printed = Command::new("sh");
    printed.env_clear().env("AWS_EC2_METADATA_DISABLED", "true").arg("-c").arg(check.trim());
    let checked = output(printed).await;
    assert_eq!(checked.status.code(), Some(0), "{}{}", text(&checked.stdout), text(&checked.stderr));
    assert!(text(&checked.stdout).contains("verdict: ready"), "{}", text(&checked.stdout));

    assert_eq!(place.left_behind(), 1);
    let ended = running.end(Signal::TERM).await;
    assert_eq!(ended.code(), Some(0), "{}", running.said());
    assert_eq!(place.left_behind(), 0, "the temporary directory goes with it");
}

#[tokio::test]
async fn a_data_directory_has_one_user_and_a_closed_terminal_ends_it() {
    let place = Place::new();
    std::fs::write(place.path("f"), "x").unwrap();
    let mut running = Running::start(&place, &["--data-dir", "d", "--file", "f"]).await;
    let second = output(place.dev(&["--once", "--data-dir", "d"]).await).await;
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("in use by another consign dev"), "{}", text(&second.stderr));
    assert_eq!(running.end(Signal::HUP).await.code(), Some(0), "{}", running.said());
    let kept = format!("kept in {}; the same command continues", place.path("d").canonicalize().unwrap().display());
    assert!(running.said().contains(&kept), "{}", running.said());
    let mut stderr = String::new();
    std::fs::File::open(place.path("stderr")).unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "", "nothing went wrong");
}

#[tokio::test]
async fn after_a_crash_the_next_start_continues_with_the_jobs_that_were_left() {
    let place = Place::new();
    let large = bytes(9, 80 * MIB);
    std::fs::write(place.path("small"), "x").unwrap();
    std::fs::write(place.path("large"), &large).unwrap();
    let arguments = ["--data-dir", "d", "--file", "small", "--file", "large"];
    let mut crashed = Running::start_until(&place, &arguments, "first object").await;
    assert_eq!(crashed.end(Signal::KILL).await.code(), None);
    let said = crashed.said();
    let id = &said.split_once("dev-").unwrap().1[..8];
    let next = ["--data-dir", "d", "--file", "small"];
    // On a fast machine the large one may have made it before the crash.
    let line = format!("delivered  dev-{id}/2");
    let mut again = Running::start_until(&place, &next, if said.contains(&line) { "Ctrl-C" } else { &line }).await;
    assert_eq!(again.end(Signal::TERM).await.code(), Some(0), "{}", again.said());
    let object = std::fs::read(place.path("d/buckets/acme-exports/platform/large")).unwrap();
    assert!(object == large, "the object is the file");
    let parts = std::fs::read_dir(place.path("d/buckets")).unwrap().map(|entry| entry.unwrap().file_name());
    let parts: Vec<_> = parts.filter(|name| name.to_string_lossy().starts_with(".upload")).collect();
    assert!(parts.is_empty(), "parts of the upload that was cut off are gone: {parts:?}");
}

#[tokio::test]
async fn two_signals_end_it_at_once_and_leave_nothing() {
    let place = Place::new();
    let mut running = Running::start(&place, &[]).await;
    kill_process(Pid::from_child(&running.child), Signal::INT).unwrap();
    let code = running.end(Signal::TERM).await.code();
    // The drain of an idle worker may win over the second signal, and signals that wait together come in any order.
    assert!(matches!(code, Some(0 | 130 | 143)), "{code:?}");
    assert_eq!(place.left_behind(), 0);
}

#[tokio::test]
async fn flags_that_have_no_effect_are_refused() {
    let place = Place::new();
    for flags in [["-c", "consign.toml"], ["--set", "broker.url=sqlite:x"]] {
        let mut command = place.dev(&["--once"]).await;
        command.args(flags);
        let output = output(command).await;
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(&format!("omit {}", flags[0])), "{}", text(&output.stderr));
    }
}

/// A shell in namespaces of its own; `None`, and said so, where `probe` fails in them.
fn unshared(place: &Place, flags: &str, probe: &str, script: &str) -> Option<Command> {
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command.args([flags, "sh", "-c", script]).env("TMPDIR", place.path("tmp")).current_dir(place.0.path());
        command.stdin(Stdio::null());
        command
    };
    let allowed = inside(probe).output().is_ok_and(|allowed| allowed.status.success());
    if !allowed {
        println!("SKIPPED: `unshare {flags} sh -c '{probe}'` is not to be had here");
    }
    allowed.then(|| inside(script))
}

#[tokio::test]
async fn no_network_is_needed() {
    let place = Place::new();
    let script = format!("ip link set lo up && exec {} dev --once", env!("CARGO_BIN_EXE_consign"));
    let probe = "ip link set lo up && ! ip route get 192.0.2.1";
    let Some(command) = unshared(&place, "-rn", probe, &script) else { return };
    let output = output(command).await;
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("4 of 5 delivered"), "{}", text(&output.stdout));
}

#[tokio::test]
async fn a_full_disk_is_said_with_what_to_do_and_nothing_is_left_on_it() {
    let place = Place::new();
    let mount = "mount -t tmpfs -o size=24m tmpfs tmp";
    let program = env!("CARGO_BIN_EXE_consign");
    let script = format!("{mount} && {{ {program} dev --once --port 0; code=$?; ls -A tmp; exit $code; }}");
    let Some(command) = unshared(&place, "-rm", mount, &script) else { return };
    let output = output(command).await;
    let (said, problem) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}{problem}");
    assert!(problem.contains("No space left on device") && problem.contains("--data-dir"), "{problem}");
    assert!(said.trim_end().lines().last().is_some_and(|line| !line.starts_with("consign-dev")), "left behind: {said}");
}
