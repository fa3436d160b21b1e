//! Broker nodes: those that tests may break (kill, freeze, alarm), and the shared one, for settings
//! that touch one test only.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::{exported, ledger, unique};

const USER: &str = "consign";
const PASSWORD: &str = "marked-secret-amqp";

/// A node, with the commands that undo what a test has set on it.
#[derive(Debug)]
pub struct Node {
    dir: PathBuf,
    pub url: String,
    undo: Mutex<Vec<Vec<String>>>,
    /// Locked while the node is this test's; `None` for the shared one.
    turn: Option<File>,
}

impl Node {
    /// One of two nodes that tests break in turn: intact, and this test's alone until it is
    /// dropped. The first test starts it.
    pub fn in_turn() -> Self {
        let first = PathBuf::from(exported("CONSIGN_TEST_NODE"));
        let second = PathBuf::from(format!("{}-2", first.display()));
        let turn = turn_file(&first);
        match turn.try_lock() {
            Ok(()) => Self::locked(first, turn),
            Err(TryLockError::WouldBlock) => Self::below(second),
            Err(TryLockError::Error(e)) => panic!("{e}"),
        }
    }

    /// The node that all tests share, for users and policies that concern the caller's own prefix
    /// only.
    pub fn shared() -> Self {
        let dir = Path::new(&exported("CONSIGN_TEST_NODE")).with_file_name("broker");
        Self { dir, url: exported("CONSIGN_TEST_AMQP_URL"), undo: Mutex::default(), turn: None }
    }

    /// A node of its own, for a test that would keep the others waiting for too long.
    pub fn apart(name: &str) -> Self {
        Self::below(PathBuf::from(format!("{}-{name}", exported("CONSIGN_TEST_NODE"))))
    }

    /// As [`Node::apart`], one that demands client certificates on [`Node::tls_port`] as well.
    /// `certify` writes `ca.pem`, `server.pem` and `server.key` into the folder that it is given.
    pub fn over_tls(name: &str, certify: impl FnOnce(&Path)) -> Self {
        let dir = PathBuf::from(format!("{}-tls-{name}", exported("CONSIGN_TEST_NODE")));
        let files = dir.join("tls");
        std::fs::create_dir_all(&files).unwrap();
        certify(&files);
        Self::below(dir)
    }

    pub fn tls_port(&self) -> u16 {
        std::fs::read_to_string(self.dir.join("tls.port")).unwrap().trim().parse().unwrap()
    }

    fn below(dir: PathBuf) -> Self {
        let turn = turn_file(&dir);
        turn.lock().unwrap();
        Self::locked(dir, turn)
    }

    fn locked(dir: PathBuf, turn: File) -> Self {
        let url = control(&dir, &["start"]);
        Self { dir, url, undo: Mutex::default(), turn: Some(turn) }
    }

    /// As a power cut: kill -9.
    pub fn kill(&self) {
        ledger::fault("broker killed");
        control(&self.dir, &["kill"]);
    }

    /// As an operator stops it.
    pub fn stop(&self) {
        ledger::fault("broker stopped");
        control(&self.dir, &["stop"]);
    }

    /// Starts it again on the same port with the same data.
    pub fn start_again(&self) {
        control(&self.dir, &["start"]);
    }

    /// Nothing moves any more, and no connection is closed: SIGSTOP.
    pub fn freeze(&self) {
        ledger::fault("broker frozen");
        control(&self.dir, &["freeze"]);
    }

    pub fn thaw(&self) {
        control(&self.dir, &["thaw"]);
    }

    /// The memory alarm: publishers are blocked until [`Node::enough_memory`].
    pub fn out_of_memory(&self) {
        ledger::fault("broker out of memory");
        self.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
        self.undo_by(&["set_vm_memory_high_watermark", "0.4"]);
    }

    pub fn enough_memory(&self) {
        self.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    }

    /// Closes every connection, with an error.
    pub fn close_connections(&self) {
        ledger::fault("connections closed");
        self.ctl(&["close_all_connections", "for a test"]);
    }

    /// Lets a user publish to the jobs of `prefix`, and bind to its outcomes, under these keys only.
    pub fn topic_permissions(&self, user: &str, prefix: &str, [write, read]: [&str; 2]) {
        self.ctl(&["set_topic_permissions", user, prefix, write, "^$"]);
        self.ctl(&["set_topic_permissions", user, &format!("{prefix}.outcomes"), "^$", read]);
    }

    /// From now on new connections need another password than that of the URL.
    pub fn change_password(&self) {
        ledger::fault("password changed");
        self.ctl(&["change_password", USER, "another"]);
        self.undo_by(&["change_password", USER, PASSWORD]);
    }

    /// The password of the URL is right again.
    pub fn restore_password(&self) {
        self.ctl(&["change_password", USER, PASSWORD]);
    }

    /// The URL of a new user that may configure, write and read only what matches. The user is
    /// deleted after the test.
    pub fn login(&self, may: [&str; 3]) -> String {
        let name = &unique("user");
        self.ctl(&["add_user", name, PASSWORD]);
        self.undo_by(&["delete_user", name]);
        self.ctl(&[&["set_permissions", name], &may[..]].concat());
        self.url.replace(&format!("//{USER}:"), &format!("//{name}:"))
    }

    /// Channels that are opened from now on are closed when a delivery is not acknowledged within
    /// `limit`.
    pub fn acknowledge_within(&self, limit: Duration) {
        ledger::fault("low consumer_timeout");
        let set = |name: &str, value: u128| format!("application:set_env(rabbit, {name}, {value}).");
        self.ctl(&["eval", &set("consumer_timeout", limit.as_millis())]);
        self.ctl(&["eval", &set("channel_tick_interval", 1000)]);
        self.undo_by(&["eval", &set("consumer_timeout", 1_800_000)]);
        self.undo_by(&["eval", &set("channel_tick_interval", 60_000)]);
    }

    /// Limits the length of queues whose names match; more is not accepted.
    pub fn limit_length(&self, pattern: &str, most: usize) {
        ledger::fault("queue full");
        let definition = format!("{{\"max-length\":{most},\"overflow\":\"reject-publish\"}}");
        self.ctl(&["set_policy", "--apply-to", "queues", "full", pattern, &definition]);
        self.undo_by(&["clear_policy", "full"]);
    }

    /// Channels that are opened from now on take messages of up to 128 MiB, as 3.10 does by itself.
    pub fn take_large_messages(&self) {
        let set = "application:set_env(rabbit, max_message_size, 134217728), \
                   persistent_term:put(max_message_size, 134217728).";
        self.ctl(&["eval", set]);
    }

    /// A queue confirms nothing from now on, as one without a majority.
    pub fn silence(&self, queue: &str) {
        ledger::fault("queue silent");
        self.ctl(&["eval", &format!("sys:suspend('%2F_{queue}').")]);
        self.undo_by(&["eval", &format!("catch sys:resume('%2F_{queue}').")]);
    }

    /// A queue that was silent confirms again, all that came meanwhile as well.
    pub fn give_voice(&self, queue: &str) {
        self.ctl(&["eval", &format!("sys:resume('%2F_{queue}').")]);
    }

    /// The leases of a prefix come back, or go to other workers, after `time`: the lower of policy
    /// and declaration counts.
    pub fn shorten_leases(&self, prefix: &str, time: Duration) {
        let (pattern, definition) =
            (format!("^{prefix}\\.(lease$|owner\\.)"), format!("{{\"message-ttl\":{}}}", time.as_millis()));
        let name = format!("short-leases-{prefix}");
        self.ctl(&["set_policy", "--apply-to", "queues", &name, &pattern, &definition]);
        self.undo_by(&["clear_policy", &name]);
    }

    /// Runs rabbitmqctl.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        control(&self.dir, &[&["ctl"], arguments].concat())
    }

    /// Everything the node has logged since it was made.
    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read(self.dir.join("log").join(name)).unwrap_or_default();
        String::from_utf8_lossy(&[read("earlier.log"), read("node.log")].concat()).into_owned()
    }

    fn undo_by(&self, arguments: &[&str]) {
        let arguments = arguments.iter().copied().map(str::to_owned).collect();
        let mut undo = self.undo.lock().unwrap();
        if !undo.contains(&arguments) {
            undo.push(arguments);
        }
    }
}

impl Drop for Node {
    /// Repairs it for the next test.
    fn drop(&mut self) {
        if self.turn.is_some() {
            control(&self.dir, &["start"]);
            control(&self.dir, &["thaw"]);
        }
        for arguments in self.undo.lock().unwrap().drain(..) {
            // What the test has undone itself may be gone.
            let arguments: Vec<_> = ["ctl"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
            let _ = try_control(&self.dir, &arguments);
        }
    }
}

fn turn_file(dir: &Path) -> File {
    std::fs::create_dir_all(dir).unwrap();
    File::create(dir.join("turn")).unwrap()
}

fn control(dir: &Path, what: &[&str]) -> String {
    let done = try_control(dir, what);
    assert!(done.is_some() || std::thread::panicking(), "the node did not {what:?}");
    done.unwrap_or_default()
}

fn try_control(dir: &Path, what: &[&str]) -> Option<String> {
    let mut command = Command::new(exported("CONSIGN_TEST_RUN"));
    command.arg("--node").arg(dir).args(what).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}
