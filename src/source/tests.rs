use futures_util::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::scripted::{Act, Scripted, answer};
use super::*;

const TEXT: &[u8] = b"0123456789";
const LENGTH: (&str, &str) = ("content-length", "10");

fn config() -> SourceConfig {
    SourceConfig {
        schemes: ["https", "file", "s3"].map(Into::into).to_vec(),
        file_root: None,
        s3_buckets: vec!["staging".into()],
        allow_http: true,
        allow_private_networks: true,
        max_bytes: None,
    }
}

fn sources(config: SourceConfig) -> Sources {
    Sources::new(config, 0, Arc::new(Metrics::new(1)), None).unwrap()
}

fn job(location: Location) -> job::Source {
    job::Source { location, size: None, sha256: None, etag: None }
}

async fn read(sources: &Sources, source: &job::Source) -> Result<Vec<u8>, Failure> {
    let chunks = match sources.open(source).await?.body {
        SourceBody::File(file) => file.chunks(),
        SourceBody::Chunks(chunks) => chunks,
    };
    Ok(chunks.try_collect::<Vec<_>>().await?.concat())
}

async fn reason(sources: &Sources, source: &job::Source) -> Option<Reason> {
    read(sources, source).await.err().map(|failure| failure.reason)
}

fn counted_as(sources: &Sources, scheme: &str, bytes: u64) -> bool {
    let line = format!("consign_source_read_bytes_total{{scheme=\"{scheme}\"}} {bytes}\n");
    sources.metrics.render().1.contains(&line)
}

#[tokio::test]
async fn http_is_read_counted_and_proven() {
    let origin = Scripted::start(|_, _| answer(200, &[LENGTH, ("etag", "\"v1\"")], TEXT)).await;
    let sources = sources(config());
    let good = job::Source {
        size: Some(10),
        sha256: Some(Sha256::digest(TEXT).into()),
        etag: Some("v1".into()),
        ..job(Location::Http(origin.url("/f")))
    };
    let opened = sources.open(&good).await.unwrap();
    assert_eq!((opened.length, opened.validator.as_deref()), (Some(10), Some("\"v1\"")));
    drop(opened);
    assert_eq!(read(&sources, &good).await.unwrap(), TEXT);
    assert!(counted_as(&sources, "http", 10));
    for bad in [
        job::Source { size: Some(9), ..good.clone() },
        job::Source { sha256: Some([1; 32]), ..good.clone() },
        job::Source { etag: Some("v2".into()), ..good.clone() },
    ] {
        assert_eq!(reason(&sources, &bad).await, Some(Reason::SourceMismatch), "{bad:?}");
    }
}

#[tokio::test]
async fn without_a_length_the_jobs_size_is_planned_with_and_held_to() {
    let origin = Scripted::start(|_, _| answer(200, &[], TEXT)).await;
    let sources = sources(config());
    let source = |size| job::Source { size, ..job(Location::Http(origin.url("/f"))) };
    assert_eq!(sources.open(&source(None)).await.unwrap().length, None);
    assert_eq!(sources.open(&source(Some(10))).await.unwrap().length, Some(10));
    assert_eq!(reason(&sources, &source(Some(10))).await, None);
    assert_eq!(reason(&sources, &source(Some(9))).await, Some(Reason::SourceMismatch));
    assert_eq!(reason(&sources, &source(Some(11))).await, Some(Reason::SourceMismatch));
}

#[tokio::test]
async fn an_endless_body_ends_at_max_bytes() {
    let origin = Scripted::start(|_, _| [answer(200, &[], b""), vec![Act::Endless]].concat()).await;
    let sources = sources(SourceConfig { max_bytes: Some(1_000_000), ..config() });
    assert_eq!(reason(&sources, &job(Location::Http(origin.url("/f")))).await, Some(Reason::TooLarge));
}

#[tokio::test]
async fn too_long_is_known_before_a_byte_is_read() {
    let origin = Scripted::start(|_, _| answer(200, &[LENGTH], TEXT)).await;
    let sources = sources(SourceConfig { max_bytes: Some(9), ..config() });
    assert_eq!(sources.open(&job(Location::Http(origin.url("/f")))).await.unwrap_err().reason, Reason::TooLarge);
}

#[tokio::test]
async fn files_are_held_to_what_the_job_says() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    std::fs::write(&path, TEXT).unwrap();
    let sources = sources(SourceConfig { file_root: Some(root.path().into()), max_bytes: Some(10), ..config() });
    let good =
        job::Source { size: Some(10), sha256: Some(Sha256::digest(TEXT).into()), ..job(Location::File(path.clone())) };
    let validator = sources.open(&good).await.unwrap().validator;
    let tagged = job::Source { etag: validator, ..good.clone() };
    assert_eq!(read(&sources, &tagged).await.unwrap(), TEXT);
    assert!(counted_as(&sources, "file", 10), "the digest's pass is not counted");
    for bad in [
        job::Source { size: Some(9), ..good.clone() },
        job::Source { sha256: Some([1; 32]), ..good.clone() },
        job::Source { etag: Some("v2".into()), ..good.clone() },
    ] {
        assert_eq!(sources.open(&bad).await.unwrap_err().reason, Reason::SourceMismatch, "{bad:?}");
    }
    std::fs::write(&path, [0; 11]).unwrap();
    assert_eq!(reason(&sources, &job(Location::File(path))).await, Some(Reason::TooLarge));
}

#[tokio::test]
async fn what_is_off_is_forbidden_by_name() {
    let url = |text| Location::Http(url::Url::parse(text).unwrap());
    let bucket = crate::destination::BucketName::parse("staging").unwrap();
    let s3 = Location::S3 { bucket, key: "k".into() };
    let only = |scheme: &str| SourceConfig { schemes: vec![scheme.into()], allow_http: false, ..config() };
    for (config, location, setting) in [
        (only("https"), Location::File("/x".into()), "source.schemes"),
        (only("file"), Location::File("/x".into()), "source.file_root"),
        (only("file"), url("https://example.com/"), "source.schemes"),
        (only("https"), url("http://example.com/"), "source.allow_http"),
        (only("file"), s3.clone(), "source.schemes"),
        (only("s3"), s3, "identity"),
        (SourceConfig { allow_private_networks: false, ..config() }, url("https://10.0.0.1/"), "private"),
    ] {
        let failure = sources(config).open(&job(location.clone())).await.unwrap_err();
        assert_eq!(failure.reason, Reason::SourceForbidden, "{location:?}");
        assert!(failure.message.contains(setting), "{}", failure.message);
    }
}

#[tokio::test]
async fn staging_objects_are_read_and_counted() {
    let origin = Scripted::start(|_, _| answer(200, &[LENGTH, ("etag", "\"v1\"")], TEXT)).await;
    let staging = Some(s3::tests::client(&origin));
    let sources = Sources::new(config(), 0, Arc::new(Metrics::new(1)), staging).unwrap();
    let bucket = crate::destination::BucketName::parse("staging").unwrap();
    let source = job(Location::S3 { bucket, key: "k".into() });
    assert_eq!(read(&sources, &source).await.unwrap(), TEXT);
    assert!(counted_as(&sources, "s3", 10));
}

#[tokio::test]
async fn a_count_follows_the_chunks() {
    let items = [Ok(Bytes::from_static(b"abc")), Ok(Bytes::from_static(b"de"))];
    let (chunks, count) = counted(Box::pin(futures_util::stream::iter(items)));
    let compressed = compress::compress(chunks, job::Compression::Gzip);
    compressed.try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 5);
}

/// A transfer is a task of its own, so opening and reading must be able to move between threads.
#[tokio::test]
async fn opening_and_reading_can_be_spawned() {
    let origin = Scripted::start(|_, _| answer(200, &[LENGTH], TEXT)).await;
    let (sources, source) = (sources(config()), job(Location::Http(origin.url("/f"))));
    let task = tokio::spawn(async move { read(&sources, &source).await });
    assert_eq!(task.await.unwrap().unwrap(), TEXT);
}
