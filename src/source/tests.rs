use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::domain::staging::StagingPlace;
use scripted::{ResponseStep, ScriptedOrigin, response};

mod hostile;
pub(in crate::source) mod scripted;
mod tenants;

const TEXT: &[u8] = b"0123456789";
const LENGTH: (&str, &str) = ("content-length", "10");

fn config() -> SourceConfig {
    SourceConfig {
        schemes: ["https", "file", "s3"].map(Into::into).to_vec(),
        file_root: None,
        s3: vec![StagingPlace::parse("staging", "", None).unwrap()],
        allow_http: true,
        allow_private_networks: true,
        allow_networks: Vec::new(),
        allow_unproven_length: false,
        max_bytes: None,
    }
}

const ANYONE: SourceReader<'_> = SourceReader::Inline;

fn folder(root: &Path, below: &str) -> TenantFolder {
    TenantFolder::parse(&format!("{}{below}", root.display())).unwrap()
}

fn sources(config: SourceConfig) -> Sources {
    Sources::new(config, 0, Arc::new(Metrics::new(1)), None).unwrap()
}

fn job(location: Location) -> job::Source {
    job::Source { location, size: None, sha256: None, etag: None, allow_unproven_length: false }
}

async fn read(sources: &Sources, source: &job::Source) -> Result<Vec<u8>, Failure> {
    let chunks = match sources.open(source, ANYONE).await?.body {
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
async fn http_is_read_counted_and_verified() {
    let origin = ScriptedOrigin::start(|_, _| response(200, &[LENGTH, ("etag", "\"v1\"")], TEXT)).await;
    let sources = sources(config());
    let good = job::Source {
        size: Some(10),
        sha256: Some(Sha256::digest(TEXT).into()),
        etag: Some("v1".into()),
        ..job(Location::Http(origin.url("/f")))
    };
    let opened = sources.open(&good, ANYONE).await.unwrap();
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
async fn without_a_length_the_size_in_the_job_is_used_and_enforced() {
    let origin = ScriptedOrigin::start(|_, _| response(200, &[], TEXT)).await;
    let sources = sources(config());
    let source = |size| job::Source { size, ..job(Location::Http(origin.url("/f"))) };
    assert_eq!(sources.open(&source(Some(10)), ANYONE).await.unwrap().length, Some(10));
    assert_eq!(reason(&sources, &source(Some(10))).await, None);
    assert_eq!(reason(&sources, &source(Some(9))).await, Some(Reason::SourceMismatch));
    assert_eq!(reason(&sources, &source(Some(11))).await, Some(Reason::SourceUnavailable), "like a broken connection");
}

#[tokio::test]
async fn a_length_that_nothing_proves_is_refused_or_reported() {
    let origin = ScriptedOrigin::start(|_, _| response(200, &[("etag", "\"v1\"")], TEXT)).await;
    let chunks = [("transfer-encoding", "chunked")];
    let chunked = ScriptedOrigin::start(move |_, _| response(200, &chunks, b"a\r\n0123456789\r\n0\r\n\r\n")).await;
    let staging = Some(s3::tests::client(&origin));
    let bucket = crate::domain::destination::BucketName::parse("staging").unwrap();
    let (strict, lenient) = (config(), SourceConfig { allow_unproven_length: true, ..config() });
    let [strict, lenient] =
        [strict, lenient].map(|config| Sources::new(config, 0, Arc::new(Metrics::new(1)), staging.clone()).unwrap());
    let (plain, object) = (job(Location::Http(origin.url("/f"))), job(Location::S3 { bucket, key: "k".into() }));
    for source in [&plain, &object] {
        let failure = strict.open(source, ANYONE).await.unwrap_err();
        assert_eq!(failure.reason, Reason::SourceUnavailable);
        assert!(failure.message.contains("ended without saying how long it is"), "{}", failure.message);
        assert!(failure.hint.contains("allow_unproven_length"), "{}", failure.hint);
        for proven in [
            job::Source { size: Some(10), ..source.clone() },
            job::Source { sha256: Some(Sha256::digest(TEXT).into()), ..source.clone() },
        ] {
            assert!(!strict.open(&proven, ANYONE).await.unwrap().length_unproven);
            assert_eq!(read(&strict, &proven).await.unwrap(), TEXT);
        }
        let accepted = job::Source { allow_unproven_length: true, ..source.clone() };
        for (sources, source) in [(&strict, &accepted), (&lenient, source)] {
            assert!(sources.open(source, ANYONE).await.unwrap().length_unproven);
            assert_eq!(read(sources, source).await.unwrap(), TEXT);
        }
    }
    let marked = job(Location::Http(chunked.url("/f")));
    assert!(!strict.open(&marked, ANYONE).await.unwrap().length_unproven);
    assert_eq!(read(&strict, &marked).await.unwrap(), TEXT);
}

#[tokio::test]
async fn an_endless_body_ends_at_max_bytes() {
    let origin = ScriptedOrigin::start(|_, _| [response(200, &[], b""), vec![ResponseStep::Endless]].concat()).await;
    let sources = sources(SourceConfig { max_bytes: Some(1_000_000), allow_unproven_length: true, ..config() });
    assert_eq!(reason(&sources, &job(Location::Http(origin.url("/f")))).await, Some(Reason::TooLarge));
}

#[tokio::test]
async fn a_source_over_max_bytes_is_refused_before_it_is_read() {
    let origin = ScriptedOrigin::start(|_, _| response(200, &[LENGTH], TEXT)).await;
    let sources = sources(SourceConfig { max_bytes: Some(9), ..config() });
    assert_eq!(
        sources.open(&job(Location::Http(origin.url("/f"))), ANYONE).await.unwrap_err().reason,
        Reason::TooLarge
    );
}

#[tokio::test]
async fn files_are_compared_with_the_job() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    std::fs::write(&path, TEXT).unwrap();
    let sources = sources(SourceConfig { file_root: Some(folder(root.path(), "")), max_bytes: Some(10), ..config() });
    let good =
        job::Source { size: Some(10), sha256: Some(Sha256::digest(TEXT).into()), ..job(Location::File(path.clone())) };
    let validator = sources.open(&good, ANYONE).await.unwrap().validator;
    let tagged = job::Source { etag: validator, ..good.clone() };
    assert_eq!(read(&sources, &tagged).await.unwrap(), TEXT);
    assert!(counted_as(&sources, "file", 10), "reading for the digest is not counted");
    for bad in [
        job::Source { size: Some(9), ..good.clone() },
        job::Source { sha256: Some([1; 32]), ..good.clone() },
        job::Source { etag: Some("v2".into()), ..good.clone() },
    ] {
        assert_eq!(sources.open(&bad, ANYONE).await.unwrap_err().reason, Reason::SourceMismatch, "{bad:?}");
    }
    std::fs::write(&path, [0; 11]).unwrap();
    assert_eq!(reason(&sources, &job(Location::File(path))).await, Some(Reason::TooLarge));
}

#[tokio::test]
async fn disabled_sources_are_forbidden_and_the_setting_is_named() {
    let url = |text| Location::Http(url::Url::parse(text).unwrap());
    let bucket = crate::domain::destination::BucketName::parse("staging").unwrap();
    let s3 = Location::S3 { bucket, key: "k".into() };
    let only = |scheme: &str| SourceConfig { schemes: vec![scheme.into()], allow_http: false, ..config() };
    for (config, location, setting) in [
        (only("https"), Location::File("/x".into()), "source.schemes"),
        (only("file"), Location::File("/x".into()), "source.file_root"),
        (only("file"), url("https://example.com/"), "source.schemes"),
        (only("https"), url("http://example.com/"), "source.allow_http"),
        (only("file"), s3.clone(), "source.schemes"),
        (SourceConfig { s3: Vec::new(), ..only("s3") }, s3, "source.s3 lists no bucket; add staging to [[source.s3]]"),
        (SourceConfig { allow_private_networks: false, ..config() }, url("https://10.0.0.1/"), "private"),
    ] {
        let failure = sources(config).open(&job(location.clone()), ANYONE).await.unwrap_err();
        assert_eq!(failure.reason, Reason::SourceForbidden, "{location:?}");
        let said = format!("{}; {}", failure.message, failure.hint);
        assert!(said.contains(setting), "{said}");
    }
}

#[tokio::test]
async fn staging_objects_are_read_and_counted() {
    let origin = ScriptedOrigin::start(|_, _| response(200, &[LENGTH, ("etag", "\"v1\"")], TEXT)).await;
    let staging = Some(s3::tests::client(&origin));
    let sources = Sources::new(config(), 0, Arc::new(Metrics::new(1)), staging).unwrap();
    let bucket = crate::domain::destination::BucketName::parse("staging").unwrap();
    let source = job(Location::S3 { bucket, key: "k".into() });
    assert_eq!(read(&sources, &source).await.unwrap(), TEXT);
    assert!(counted_as(&sources, "s3", 10));
}

#[tokio::test]
async fn bytes_are_counted_before_compression() {
    let items = [Ok(Bytes::from_static(b"abc")), Ok(Bytes::from_static(b"de"))];
    let (chunks, count) = counted(Box::pin(futures_util::stream::iter(items)));
    let compressed = compress::compress(chunks, job::Compression::Gzip);
    compressed.try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 5);
}

/// A transfer is a task of its own, so opening and reading must be `Send`.
#[tokio::test]
async fn opening_and_reading_can_be_spawned() {
    let origin = ScriptedOrigin::start(|_, _| response(200, &[LENGTH], TEXT)).await;
    let (sources, source) = (sources(config()), job(Location::Http(origin.url("/f"))));
    let task = tokio::spawn(async move { read(&sources, &source).await });
    assert_eq!(task.await.unwrap().unwrap(), TEXT);
}

fn mark(validator: &str, length: Option<u64>) -> SourceMark {
    SourceMark { validator: validator.into(), length }
}

/// Returns the rest from byte `offset` on, as a worker that resumes reads it.
async fn rest(
    sources: &Sources,
    source: &job::Source,
    mark: &SourceMark,
    offset: u64,
) -> Result<Option<Vec<u8>>, Reason> {
    let opened = sources.open_at(source, ANYONE, mark, offset).await.map_err(|failure| failure.reason)?;
    let Some(stream) = opened else { return Ok(None) };
    assert_eq!((stream.length, stream.validator.as_ref(), stream.resumable), (Some(10), Some(&mark.validator), true));
    let chunks = match stream.body {
        SourceBody::File(file) => file.chunks_from(offset),
        SourceBody::Chunks(chunks) => chunks,
    };
    Ok(Some(chunks.try_collect::<Vec<_>>().await.map_err(|failure| failure.reason)?.concat()))
}

/// Starts an origin with ranges, and returns it as an http source and as a staging object.
async fn resumable_sources() -> (ScriptedOrigin, Sources, [job::Source; 2]) {
    let origin = ScriptedOrigin::start(|_, head| scripted::ranged_response(head, "\"v1\"", TEXT)).await;
    let staging = Some(s3::tests::client(&origin));
    let sources = Sources::new(config(), 0, Arc::new(Metrics::new(1)), staging).unwrap();
    let bucket = crate::domain::destination::BucketName::parse("staging").unwrap();
    let jobs = [Location::Http(origin.url("/f")), Location::S3 { bucket, key: "k".into() }].map(job);
    (origin, sources, jobs)
}

#[tokio::test]
async fn a_source_resumes_at_every_byte_and_at_its_end() {
    let (_origin, sources, jobs) = resumable_sources().await;
    for source in &jobs {
        let first = sources.open(source, ANYONE).await.unwrap();
        assert!(first.resumable);
        let reported = SourceMark { validator: first.validator.unwrap(), length: first.length };
        for mark in [reported, mark("\"v1\"", None)] {
            for offset in 0..=10 {
                let left = &TEXT[usize::try_from(offset).unwrap()..];
                assert_eq!(
                    rest(&sources, source, &mark, offset).await,
                    Ok(Some(left.to_vec())),
                    "{offset} of {mark:?}"
                );
            }
        }
        assert_eq!(rest(&sources, source, &mark("\"v1\"", Some(10)), 11).await, Ok(None));
        assert_eq!(rest(&sources, source, &mark("\"v1\"", None), 12).await, Ok(None));
    }
}

#[tokio::test]
async fn different_content_starts_from_the_beginning() {
    let (_origin, sources, jobs) = resumable_sources().await;
    for source in &jobs {
        for offset in [0, 4, 10] {
            for other in [mark("\"v2\"", Some(10)), mark("W/\"v1\"", Some(10)), mark("\"v1\"", Some(12))] {
                assert_eq!(rest(&sources, source, &other, offset).await, Ok(None), "{offset} of {other:?}");
                let digested = job::Source { sha256: Some(Sha256::digest(TEXT).into()), ..source.clone() };
                assert_eq!(rest(&sources, &digested, &other, offset).await, Ok(None), "{offset} of {other:?}");
            }
        }
    }
}

#[tokio::test]
async fn only_the_rest_is_read_unless_a_digest_needs_the_whole() {
    let (origin, sources, [source, _]) = resumable_sources().await;
    let digested = job::Source { sha256: Some(Sha256::digest(TEXT).into()), ..source.clone() };
    let mark = mark("\"v1\"", Some(10));
    assert_eq!(rest(&sources, &source, &mark, 4).await, Ok(Some(TEXT[4..].to_vec())));
    assert!(counted_as(&sources, "http", 6));
    for offset in [4, 10] {
        let left = &TEXT[usize::try_from(offset).unwrap()..];
        assert_eq!(rest(&sources, &digested, &mark, offset).await, Ok(Some(left.to_vec())));
    }
    assert!(counted_as(&sources, "http", 26));
    let ranges = origin.heads().iter().filter(|head| head.contains("range: ")).count();
    assert_eq!(ranges, 1, "a digest needs the whole");
}

#[tokio::test]
async fn a_wrong_digest_is_detected_at_every_offset() {
    let (_origin, sources, jobs) = resumable_sources().await;
    for source in jobs {
        let wrong = job::Source { sha256: Some([1; 32]), ..source };
        for offset in [0, 4, 10] {
            let ended = rest(&sources, &wrong, &mark("\"v1\"", Some(10)), offset).await;
            assert_eq!(ended, Err(Reason::SourceMismatch), "from {offset}");
        }
    }
}

#[tokio::test]
async fn the_size_in_the_job_and_max_bytes_apply_to_the_whole() {
    let (_origin, sources, [source, _]) = resumable_sources().await;
    let same = mark("\"v1\"", Some(10));
    let sized = |size| job::Source { size: Some(size), ..source.clone() };
    assert_eq!(rest(&sources, &sized(10), &same, 4).await, Ok(Some(TEXT[4..].to_vec())));
    assert_eq!(rest(&sources, &sized(9), &same, 4).await, Err(Reason::SourceMismatch));
    let strict = self::sources(SourceConfig { max_bytes: Some(9), ..config() });
    assert_eq!(rest(&strict, &source, &same, 4).await, Err(Reason::TooLarge));
}

/// Neither response reports the length: the one known when the upload began still applies.
#[tokio::test]
async fn a_length_that_is_not_reported_again_still_applies() {
    let origin = ScriptedOrigin::start(|_, head| {
        let tag = [("accept-ranges", "bytes"), ("etag", "\"v1\"")];
        if !head.contains("range: ") {
            return response(200, &tag, &TEXT[..9]);
        }
        response(206, &[tag[1], ("content-range", "bytes 4-8/*"), ("content-length", "5")], &TEXT[4..9])
    });
    let (origin, mark) = (origin.await, mark("\"v1\"", Some(10)));
    let source = job(Location::Http(origin.url("/f")));
    // The second case requests the missing byte and gets the same range again.
    for (offset, reason) in [(0, Reason::SourceUnavailable), (4, Reason::SourceUnavailable)] {
        assert_eq!(rest(&sources(config()), &source, &mark, offset).await, Err(reason), "from {offset}");
    }
}

#[tokio::test]
async fn a_broken_range_resumes_before_it_is_verified() {
    let origin = ScriptedOrigin::start(|number, head| {
        let mut steps = scripted::ranged_response(head, "\"v1\"", TEXT);
        if let (0 | 2, Some(ResponseStep::Send(body))) = (number, steps.last_mut()) {
            body.truncate(3);
        }
        steps
    });
    let origin = origin.await;
    let source = job(Location::Http(origin.url("/f")));
    let digested = job::Source { sha256: Some(Sha256::digest(TEXT).into()), ..source.clone() };
    for source in [source, digested] {
        let left = rest(&sources(config()), &source, &mark("\"v1\"", Some(10)), 4).await;
        assert_eq!(left, Ok(Some(TEXT[4..].to_vec())));
    }
    let ranges: Vec<_> = origin.heads().iter().map(|head| head.contains("range: bytes=7-\r\n")).collect();
    assert_eq!((ranges, origin.heads()[3].contains("range: bytes=3-\r\n")), (vec![false, true, false, false], true));
}

#[tokio::test]
async fn a_file_resumes_unless_it_was_written_to() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    std::fs::write(&path, TEXT).unwrap();
    let sources = sources(SourceConfig { file_root: Some(folder(root.path(), "")), ..config() });
    let source = job(Location::File(path.clone()));
    let first = sources.open(&source, ANYONE).await.unwrap();
    assert!(first.resumable);
    let same = SourceMark { validator: first.validator.unwrap(), length: first.length };
    // The digest was verified by the first open and is not computed again.
    let digested = job::Source { sha256: Some([1; 32]), ..source.clone() };
    for source in [&source, &digested] {
        for offset in [0, 4, 10] {
            let left = &TEXT[usize::try_from(offset).unwrap()..];
            assert_eq!(rest(&sources, source, &same, offset).await, Ok(Some(left.to_vec())));
        }
    }
    assert_eq!(rest(&sources, &source, &same, 11).await, Ok(None));
    assert_eq!(rest(&sources, &source, &mark(&same.validator, Some(9)), 4).await, Ok(None));
    let longer = job::Source { size: Some(9), ..source.clone() };
    assert_eq!(rest(&sources, &longer, &same, 4).await, Err(Reason::SourceMismatch));
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(rest(&sources, &source, &same, 4).await, Ok(None), "rewritten");
    std::fs::write(&path, b"other").unwrap();
    assert_eq!(rest(&sources, &source, &same, 4).await, Ok(None), "another length");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(rest(&sources, &source, &same, 4).await, Err(Reason::SourceNotFound));
}

#[tokio::test]
async fn a_forbidden_source_is_not_resumed() {
    let only_files = sources(SourceConfig { schemes: vec!["file".into()], allow_http: false, ..config() });
    let url = Location::Http(url::Url::parse("https://example.com/").unwrap());
    for location in [url, Location::File("/x".into())] {
        let ended = rest(&only_files, &job(location), &mark("\"v1\"", Some(10)), 4).await;
        assert_eq!(ended, Err(Reason::SourceForbidden));
    }
}
