//! Where the bytes come from. [`Sources::open`] gives a [`SourceStream`] whatever the origin is.
//!
//! Who retries: a stream that breaks off is reopened inside, at the byte where it broke, where the origin has ranges and a
//! strong validator; a stream that ends without an error is complete and unchanged.

pub mod compress;
pub mod file;
pub mod guard;
mod https;
mod proof;
mod resume;
mod s3;
#[cfg(test)]
mod scripted;

use std::fmt;
use std::future::ready;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};

use crate::config::SourceConfig;
use crate::domain::job::lease::SourceMark;
use crate::domain::job::{self, Location};
use crate::domain::outcome::{Failure, Reason};
use crate::metrics::Metrics;
use file::FileSource;
use guard::Guard;
use https::HttpSource;
use proof::Expected;
use resume::{Limits, Opened};
use s3::S3Source;

/// Chunks of a source in order. After the first error nothing follows. Ends without error only if the source was read whole.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// An opened source.
pub struct SourceStream {
    /// The exact length in bytes where the origin tells it; a stream that differs ends in a failure.
    pub length: Option<u64>,
    /// What identifies this very content: a strong entity tag, or modification time and size of a file.
    pub validator: Option<String>,
    /// Whether the rest can be had later, by another worker, where [`Sources::open_at`] is given `validator`: the origin has ranges
    /// and a strong validator.
    pub resumable: bool,
    /// The bytes.
    pub body: SourceBody,
}

/// The two ways to read.
pub enum SourceBody {
    /// A local file: any range can be read any number of times, so no part needs a buffer.
    File(Arc<file::FileSource>),
    /// Anything else: once, from the start.
    Chunks(Chunks),
}

impl fmt::Debug for SourceStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceStream").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Opens sources, within what `[source]` allows. Built once, shared.
#[derive(Debug)]
pub struct Sources {
    config: SourceConfig,
    root: Option<Arc<Path>>,
    http: Option<HttpSource>,
    s3: Option<S3Source>,
    metrics: Arc<Metrics>,
}

impl Sources {
    /// `min_rate` is in bytes a second; `staging` is a client with the worker's own identity, for `s3://` sources. The error
    /// says why https sources can't be read at all (no root certificates).
    pub fn new(
        config: SourceConfig,
        min_rate: u64,
        metrics: Arc<Metrics>,
        staging: Option<s3::Client>,
    ) -> Result<Self, String> {
        let limits = Limits::new(min_rate);
        let guard = Guard { allow_http: config.allow_http, allow_private_networks: config.allow_private_networks };
        let wants_http = config.allow_http || config.schemes.iter().any(|scheme| scheme == "https");
        let http = wants_http.then(|| HttpSource::new(guard, limits)).transpose()?;
        let s3 = staging.map(|client| S3Source::new(client, config.s3_buckets.clone(), limits, metrics.clone()));
        let root = config.file_root.as_deref().map(Arc::from);
        Ok(Self { config, root, http, s3, metrics })
    }

    /// Opens a source and compares it with what the job says of it.
    ///
    /// The stream ends without an error only if it was read whole and is what origin and job say: its length (against the job
    /// `source_mismatch`, against the origin `source_changed` or `source_unavailable`), its SHA-256 (`source_mismatch`) and
    /// `source.max_bytes` (`too_large`). The last chunk comes only after that. A file's digest is taken before this returns;
    /// whoever reads a file by ranges calls [`FileSource::verify_unchanged`] and [`FileSource::count_read`].
    pub async fn open(&self, source: &job::Source) -> Result<SourceStream, Failure> {
        self.open_from(source).await.map_err(named)
    }

    /// Opens a source again to go on at byte `offset` of the content that `mark` names: the chunks begin there (a file is a
    /// file, whatever the offset), `length` is still that of the whole, and the stream ends as one of [`Sources::open`] does.
    ///
    /// `None` when it is not that content any more, or can't be gone on with: then the job begins anew, and [`Sources::open`]
    /// compares what is there with what the job says. Fails as that does.
    ///
    /// Where nothing is left the stream is empty, but it must be read to its end: a SHA-256 is only proven there, by reading
    /// everything once more.
    pub async fn open_at(
        &self,
        source: &job::Source,
        mark: &SourceMark,
        offset: u64,
    ) -> Result<Option<SourceStream>, Failure> {
        if mark.length.is_some_and(|length| offset > length) {
            return Ok(None);
        }
        self.open_again(source, mark, offset).await.map_err(named)
    }

    async fn open_from(&self, source: &job::Source) -> Result<SourceStream, Failure> {
        self.allowed(source.location.scheme())?;
        let opened = match &source.location {
            Location::File(path) => return self.open_file(source, path).await,
            Location::Http(url) => self.http()?.open(url).await?,
            Location::S3 { bucket, key } => self.s3()?.open(bucket, key).await?,
        };
        self.stream(source, opened, 0)
    }

    async fn open_again(
        &self,
        source: &job::Source,
        mark: &SourceMark,
        offset: u64,
    ) -> Result<Option<SourceStream>, Failure> {
        self.allowed(source.location.scheme())?;
        let from = first_byte(source, mark, offset);
        let opened = match &source.location {
            Location::File(path) => return self.open_file_again(source, path, mark).await,
            Location::Http(url) => self.http()?.open_at(url, mark, from).await?,
            Location::S3 { bucket, key } => self.s3()?.open_at(bucket, key, mark, from).await?,
        };
        let Some(mut opened) = opened else { return Ok(None) };
        // What the origin said once holds for the same content, even if it is silent now; what the job says is held to anyway.
        opened.length = opened.length.or(mark.length.filter(|_| source.size.is_none()));
        let stream = self.stream(source, opened, from)?;
        Ok(Some(without_first(stream, offset - from)))
    }

    fn http(&self) -> Result<&HttpSource, Failure> {
        self.http.as_ref().ok_or_else(|| off("source.schemes does not list https"))
    }

    fn s3(&self) -> Result<&S3Source, Failure> {
        self.s3.as_ref().ok_or_else(|| off("this worker has no identity to read s3 sources with"))
    }

    /// `http` needs `allow_http` alone; everything else is listed.
    fn allowed(&self, scheme: &str) -> Result<(), Failure> {
        let allowed = match scheme {
            "http" => self.config.allow_http,
            _ => self.config.schemes.iter().any(|allowed| allowed == scheme),
        };
        let setting = if scheme == "http" { "source.allow_http" } else { "source.schemes" };
        if allowed { Ok(()) } else { Err(off(&format!("{setting} does not allow {scheme} sources"))) }
    }

    async fn open_file(&self, source: &job::Source, path: &Path) -> Result<SourceStream, Failure> {
        let file = self.file(path).await?;
        let expected = self.expected_of_file(source, &file)?;
        if let Some(wanted) = &expected.sha256 {
            proof::same_digest(wanted, &FileSource::sha256(&file).await?)?;
        }
        Ok(stream_of(file))
    }

    /// The digest is not taken again: it was before anything of this very content was uploaded.
    async fn open_file_again(
        &self,
        source: &job::Source,
        path: &Path,
        mark: &SourceMark,
    ) -> Result<Option<SourceStream>, Failure> {
        let file = self.file(path).await?;
        if file.validator() != mark.validator || mark.length.is_some_and(|length| length != file.length()) {
            return Ok(None);
        }
        self.expected_of_file(source, &file)?;
        Ok(Some(stream_of(file)))
    }

    fn expected_of_file(&self, source: &job::Source, file: &FileSource) -> Result<Expected, Failure> {
        Expected::of(source, self.config.max_bytes, Some(file.length()), Some(&file.validator()))
    }

    async fn file(&self, path: &Path) -> Result<Arc<FileSource>, Failure> {
        let root = self.root.clone().ok_or_else(|| off("source.file_root is not set, so no file may be read"))?;
        Ok(Arc::new(match FileSource::open_cached(&root, path, &self.metrics) {
            Some(file) => file,
            None => self.open_waiting(root, path.to_owned()).await?,
        }))
    }

    async fn open_waiting(&self, root: Arc<Path>, path: std::path::PathBuf) -> Result<FileSource, Failure> {
        let metrics = Arc::clone(&self.metrics);
        let opened = tokio::task::spawn_blocking(move || FileSource::open(&root, &path, metrics));
        let stopped = |_| Failure::new(Reason::SourceUnavailable, "the worker stops; the file was not opened");
        opened.await.map_err(stopped)?
    }

    /// `from` is the source's first byte in the chunks.
    fn stream(&self, source: &job::Source, opened: Opened, from: u64) -> Result<SourceStream, Failure> {
        let expected = Expected::of(source, self.config.max_bytes, opened.length, opened.etag.as_deref())?;
        let length = expected.length();
        let validator = opened.strong_etag().map(ToOwned::to_owned);
        let (metrics, scheme) = (Arc::clone(&self.metrics), source.location.scheme());
        let counted = opened.chunks.inspect(move |item| {
            if let Ok(chunk) = item {
                metrics.source_read(scheme, chunk.len() as u64);
            }
        });
        let chunks = proof::proven(Box::pin(counted), expected, from);
        Ok(SourceStream { length, validator, resumable: opened.resumable, body: SourceBody::Chunks(chunks) })
    }
}

fn stream_of(file: Arc<FileSource>) -> SourceStream {
    let (length, validator) = (Some(file.length()), Some(file.validator()));
    SourceStream { length, validator, resumable: true, body: SourceBody::File(file) }
}

/// Where to read from to go on at `offset`: a digest needs everything, and where nothing may be left one byte more is asked
/// for, because a range must not be empty.
fn first_byte(source: &job::Source, mark: &SourceMark, offset: u64) -> u64 {
    if source.sha256.is_some() {
        0
    } else if mark.length.is_some_and(|length| offset < length) {
        offset
    } else {
        offset.saturating_sub(1)
    }
}

/// The same stream but for its first bytes, which were read only to be proven.
fn without_first(stream: SourceStream, mut bytes: u64) -> SourceStream {
    let body = match stream.body {
        SourceBody::Chunks(chunks) if bytes > 0 => {
            SourceBody::Chunks(Box::pin(chunks.try_filter_map(move |mut chunk| {
                let first = chunk.split_to(chunk.len().min(usize::try_from(bytes).unwrap_or(usize::MAX)));
                bytes -= first.len() as u64;
                ready(Ok((!chunk.is_empty()).then_some(chunk)))
            })))
        }
        body => body,
    };
    SourceStream { body, ..stream }
}

fn off(why: &str) -> Failure {
    Failure::new(Reason::SourceForbidden, why)
}

/// A refusal names the job's field, as every other refusal of a job does.
fn named(failure: Failure) -> Failure {
    match failure.reason {
        Reason::SourceForbidden => Failure { message: format!("source.url: {}", failure.message), ..failure },
        _ => failure,
    }
}

/// The same chunks, and a count of their bytes so far: for whoever changes them on the way and still has to say how many were
/// read.
pub fn counted(chunks: Chunks) -> (Chunks, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    let chunks = chunks.inspect(move |item| {
        if let Ok(chunk) = item {
            counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    });
    (Box::pin(chunks), count)
}

#[cfg(test)]
mod tests;
