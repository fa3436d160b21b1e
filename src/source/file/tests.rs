use std::io::Write as _;
use std::os::unix::fs::symlink;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rustix::fs::{CWD, FileType, Mode};

use super::*;

struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn open(&self, path: &Path) -> Result<Arc<FileSource>, Failure> {
        let metrics = Arc::new(Metrics::new(1));
        let cached = FileSource::open_cached(self.0.path(), path, &metrics);
        let opened = FileSource::open(self.0.path(), path, metrics).map(Arc::new);
        // The non-blocking open may return None, but must not reach anything that the other refuses.
        assert!(cached.is_none_or(|cached| opened.as_ref().is_ok_and(|opened| opened.opened == cached.opened)));
        opened
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from((i / 7) % 251).unwrap()).collect()
}

async fn collect(chunks: Chunks) -> Result<Vec<u8>, Failure> {
    chunks
        .try_fold(Vec::new(), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await
}

#[tokio::test]
async fn every_length_is_read_and_counted() {
    let root = Root::new();
    for length in [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE + 17] {
        let bytes = pattern(length);
        let file = root.open(&root.write("f", &bytes)).unwrap();
        assert_eq!(file.length(), length as u64);
        assert_eq!(collect(Arc::clone(&file).chunks()).await.unwrap(), bytes, "{length}");
        let counted = format!("consign_source_read_bytes_total{{scheme=\"file\"}} {length}\n");
        assert!(file.metrics.render().1.contains(&counted), "{counted}");
    }
}

#[test]
fn escapes_and_special_files_are_forbidden() {
    let outside = Root::new();
    let secret = outside.write("secret", b"s");
    let root = Root::new();
    root.write("real", b"r");
    std::fs::create_dir(root.path("dir")).unwrap();
    symlink(&secret, root.path("link")).unwrap();
    symlink(root.path("real"), root.path("inner-link")).unwrap();
    symlink(outside.0.path(), root.path("linked-dir")).unwrap();
    rustix::fs::mknodat(CWD, root.path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(root.path("socket")).unwrap();
    let up = root.path("dir").join("..").join("real");
    let cases =
        ["link", "inner-link", "linked-dir/secret", "fifo", "dir", "socket", "", "../secret"].map(|n| root.path(n));
    for path in cases.iter().chain([&secret, &up, &PathBuf::from("/dev/zero"), &PathBuf::from("relative")]) {
        let failure = root.open(path).unwrap_err();
        assert_eq!(failure.reason, Reason::SourceForbidden, "{}: {}", path.display(), failure.message);
    }
    drop(socket);
}

#[test]
fn a_device_below_the_root_is_forbidden() {
    let failure = FileSource::open(Path::new("/dev"), Path::new("/dev/zero"), Arc::new(Metrics::new(1))).unwrap_err();
    assert_eq!(failure.reason, Reason::SourceForbidden);
    assert!(failure.message.contains("a device"), "{}", failure.message);
}

#[test]
fn missing_files_are_not_found() {
    let root = Root::new();
    root.write("file", b"x");
    for name in ["none", "none/deeper", "file/below", &"n".repeat(300)] {
        assert_eq!(root.open(&root.path(name)).unwrap_err().reason, Reason::SourceNotFound, "{name}");
    }
}

#[test]
fn a_missing_root_is_not_a_failure_of_the_job() {
    let gone = Path::new("/nonexistent-root");
    let failure = FileSource::open(gone, &gone.join("x"), Arc::new(Metrics::new(1))).unwrap_err();
    assert_eq!(failure.reason, Reason::SourceUnavailable);
}

#[tokio::test]
async fn truncation_and_growth_fail_as_changed() {
    let root = Root::new();
    for new_length in [0, CHUNK_SIZE, 3 * CHUNK_SIZE - 1, 3 * CHUNK_SIZE + 1] {
        let path = root.write("f", &pattern(3 * CHUNK_SIZE));
        let file = root.open(&path).unwrap();
        let mut chunks = Arc::clone(&file).chunks();
        chunks.next().await.unwrap().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(new_length as u64).unwrap();
        let failure = collect(chunks).await.unwrap_err();
        assert_eq!(failure.reason, Reason::SourceChanged, "{new_length}");
        assert_eq!(file.verify_unchanged().unwrap_err().reason, Reason::SourceChanged);
    }
}

#[tokio::test]
async fn a_change_of_the_same_length_is_found_before_the_last_chunk() {
    let root = Root::new();
    let path = root.write("f", &pattern(2 * CHUNK_SIZE));
    let file = root.open(&path).unwrap();
    let mut chunks = Arc::clone(&file).chunks();
    chunks.next().await.unwrap().unwrap();
    let mut writer = File::options().write(true).open(&path).unwrap();
    writer.write_all(b"changed").unwrap();
    writer.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(chunks.next().await.unwrap().unwrap_err().reason, Reason::SourceChanged);
    assert!(chunks.next().await.is_none(), "nothing follows an error");
}

#[tokio::test]
async fn a_replacement_by_rename_does_not_affect_the_open_file() {
    let root = Root::new();
    let path = root.write("f", b"old");
    let file = root.open(&path).unwrap();
    std::fs::rename(root.write("new", b"newer"), &path).unwrap();
    assert_eq!(collect(file.chunks()).await.unwrap(), b"old");
}

#[tokio::test]
async fn without_nowait_everything_is_read_on_blocking_threads() {
    let root = Root::new();
    let bytes = pattern(2 * CHUNK_SIZE + 5);
    let file = root.open(&root.write("f", &bytes)).unwrap();
    file.nowait_unsupported.store(true, Ordering::Relaxed);
    assert_eq!(file.read_at_cached(0, &mut [0; 8]).unwrap(), None);
    assert_eq!(collect(file.chunks()).await.unwrap(), bytes);
}

#[test]
fn read_at_fills_the_buffer_up_to_the_end() {
    let root = Root::new();
    let file = root.open(&root.write("f", b"0123456789")).unwrap();
    let mut buf = [0; 6];
    assert_eq!(file.read_at(2, &mut buf).unwrap(), 6);
    assert_eq!(&buf, b"234567");
    assert_eq!(file.read_at(8, &mut buf).unwrap(), 2);
    assert_eq!(file.read_at(10, &mut buf).unwrap(), 0);
}

#[test]
fn the_validator_follows_the_content() {
    let root = Root::new();
    let first = root.open(&root.write("f", b"one")).unwrap().validator();
    assert!(first.ends_with("-3"), "{first}");
    assert_ne!(first, root.open(&root.write("f", b"three")).unwrap().validator());
}

#[tokio::test]
async fn the_digest_is_that_of_the_whole_file() {
    let root = Root::new();
    let bytes = pattern(CHUNK_SIZE + 100);
    let file = root.open(&root.write("f", &bytes)).unwrap();
    assert_eq!(FileSource::sha256(&file).await.unwrap(), <[u8; 32]>::from(Sha256::digest(&bytes)));
    assert!(!file.metrics.render().1.contains("scheme=\"file\"} 2"), "a digest is not counted as reading");
}

#[tokio::test]
async fn chunks_can_begin_anywhere() {
    let root = Root::new();
    let bytes = pattern(2 * CHUNK_SIZE + 5);
    let file = root.open(&root.write("f", &bytes)).unwrap();
    for offset in [0, 1, CHUNK_SIZE, 2 * CHUNK_SIZE + 4, bytes.len()] {
        let rest = collect(Arc::clone(&file).chunks_from(offset as u64)).await.unwrap();
        assert_eq!(rest, &bytes[offset..], "from {offset}");
    }
    File::options().write(true).open(root.path("f")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let nothing = collect(Arc::clone(&file).chunks_from(bytes.len() as u64)).await;
    assert_eq!(nothing.unwrap_err().reason, Reason::SourceChanged, "even if nothing remains");
}
