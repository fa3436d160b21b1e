//! Failpoints: places at which a test kills the process, to prove that no job is lost there. Only
//! builds with debug assertions have them.
//!
//! `CONSIGN_FAILPOINT=completed` kills the process with SIGKILL when it first reaches that
//! failpoint; `completed:3` the third time.

/// Every failpoint with the state of the job there, in the order in which a job reaches them. The
/// tests iterate over this list.
pub const FAILPOINTS: &[(&str, &str)] = &[
    ("taken", "the delivery is received, and nothing else has happened"),
    ("session", "the session is available"),
    ("put", "S3 has accepted a PutObject"),
    ("created", "S3 has created a multipart upload that is not recorded yet"),
    ("recorded", "the upload is recorded"),
    ("part", "S3 has accepted a part"),
    ("parts", "S3 has all parts"),
    ("completed", "S3 has completed the upload"),
    ("aborted", "S3 has aborted the upload"),
    ("ended", "the transfer has ended, and its outcome is not published"),
    ("lease_written", "the lease is recorded, and the delivery not yet acknowledged"),
    ("leased", "the queue holds the lease of the job"),
    ("outcome", "the outcome is confirmed, and the copy of the job not yet published"),
    ("copy", "the copy of the job is confirmed, and the delivery not yet acknowledged"),
    ("settled", "the delivery is settled"),
    ("requeued", "a dead letter is requeued as a job, and not yet removed"),
    ("put_back", "a dead letter is imported, and its file may hold more"),
];

/// Kills the process if the environment names this failpoint.
#[cfg(debug_assertions)]
pub fn hit(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static TARGET: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static HITS: AtomicU32 = AtomicU32::new(0);
    let target = TARGET.get_or_init(|| {
        let text = std::env::var("CONSIGN_FAILPOINT").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), times.parse().ok()?))
    });
    debug_assert!(FAILPOINTS.iter().any(|(known, _)| *known == name), "{name} is not in FAILPOINTS");
    let Some((_, times)) = target.as_ref().filter(|(target, _)| target == name) else { return };
    if HITS.fetch_add(1, Ordering::Relaxed) + 1 == *times {
        // An error is ignored, and nothing is cleaned up: the process must die here.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

/// Does nothing in builds without debug assertions.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_: &'static str) {}
