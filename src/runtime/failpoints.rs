//! Crash points: places where a test kills the process, to show that nothing is lost there. Only in builds with debug assertions;
//! a release build has none of it.
//!
//! `CONSIGN_CRASH_AT=completed` kills the process with SIGKILL when it first comes by that point; `completed:3` the third time.

/// Every point, in the order in which a job comes by; the tests go through this list.
pub const FAILPOINTS: &[(&str, &str)] = &[
    ("taken", "a delivery is in our hands, and nothing is done about it"),
    ("session", "the session is there"),
    ("put", "S3 has taken a PutObject"),
    ("created", "S3 has an upload that nobody else knows of"),
    ("recorded", "the upload is in the journal"),
    ("part", "S3 has taken a part"),
    ("parts", "S3 has all parts"),
    ("completed", "S3 has completed the upload"),
    ("aborted", "S3 has given an upload up"),
    ("ended", "the transfer has ended, and nobody was told"),
    ("lease_written", "the lease is recorded, and the delivery not yet acknowledged"),
    ("leased", "the job is under a lease"),
    ("outcome", "the outcome is confirmed, and the copy not yet"),
    ("copy", "the copy is confirmed, and the delivery not yet acknowledged"),
    ("settled", "the delivery is settled"),
    ("requeued", "a dead letter is a job again, and still a dead letter"),
    ("put_back", "a dead letter is put back, and its file may hold more"),
];

/// Comes by a point.
#[cfg(debug_assertions)]
pub fn hit(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("CONSIGN_CRASH_AT").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), times.parse().ok()?))
    });
    debug_assert!(FAILPOINTS.iter().any(|(known, _)| *known == name), "{name} is no point of the list");
    let Some((_, times)) = wanted.as_ref().filter(|(wanted, _)| wanted == name) else { return };
    if PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *times {
        // Nothing can be done about a refusal, and nothing is to be cleaned up: that is the point.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

/// Comes by a point: nothing, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_: &'static str) {}
