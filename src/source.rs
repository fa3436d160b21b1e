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
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use crate::config::SourceConfig;
use crate::job::lease::SourceMark;
use crate::job::{self, Location};
use crate::metrics::Metrics;
use crate::outcome::{Failure, Reason};
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
        let s3 = staging.map(|client| S3Source::new(client, config.s3_buckets.clone(), limits));
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
    /// file, whatever the offset), `length` is still that of the whole. `None` when it is not that content any more.
    pub async fn open_at(
        &self,
        source: &job::Source,
        mark: &SourceMark,
        offset: u64,
    ) -> Result<Option<SourceStream>, Failure> {
        let stream = self.open(source).await?;
        let same = stream.validator.as_ref() == Some(&mark.validator) && stream.length == mark.length;
        let whole = matches!(stream.body, SourceBody::File(_)) || offset == 0;
        Ok((same && whole).then_some(stream))
    }

    async fn open_from(&self, source: &job::Source) -> Result<SourceStream, Failure> {
        self.allowed(source.location.scheme())?;
        match &source.location {
            Location::File(path) => self.open_file(source, path).await,
            Location::Http(url) => match &self.http {
                Some(http) => self.stream(source, http.open(url).await?),
                None => Err(off("source.schemes does not list https")),
            },
            Location::S3 { bucket, key } => match &self.s3 {
                Some(s3) => self.stream(source, s3.open(bucket, key).await?),
                None => Err(off("this worker has no identity to read s3 sources with")),
            },
        }
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
        let root = self.root.clone().ok_or_else(|| off("source.file_root is not set, so no file may be read"))?;
        let file = Arc::new(match FileSource::open_cached(&root, path, &self.metrics) {
            Some(file) => file,
            None => self.open_waiting(root, path.to_owned()).await?,
        });
        let validator = file.validator();
        let expected = Expected::of(source, self.config.max_bytes, Some(file.length()), Some(&validator))?;
        if let Some(wanted) = &expected.sha256 {
            proof::same_digest(wanted, &FileSource::sha256(&file).await?)?;
        }
        let length = Some(file.length());
        Ok(SourceStream { length, validator: Some(validator), resumable: true, body: SourceBody::File(file) })
    }

    async fn open_waiting(&self, root: Arc<Path>, path: std::path::PathBuf) -> Result<FileSource, Failure> {
        let metrics = Arc::clone(&self.metrics);
        let opened = tokio::task::spawn_blocking(move || FileSource::open(&root, &path, metrics));
        let stopped = |_| Failure::new(Reason::SourceUnavailable, "the worker stops; the file was not opened");
        opened.await.map_err(stopped)?
    }

    fn stream(&self, source: &job::Source, opened: Opened) -> Result<SourceStream, Failure> {
        let expected = Expected::of(source, self.config.max_bytes, opened.length, opened.etag.as_deref())?;
        let length = expected.length();
        let validator = opened.strong_etag().map(ToOwned::to_owned);
        let (metrics, scheme) = (Arc::clone(&self.metrics), source.location.scheme());
        let counted = opened.chunks.inspect(move |item| {
            if let Ok(chunk) = item {
                metrics.source_read(scheme, chunk.len() as u64);
            }
        });
        let chunks = proof::proven(Box::pin(counted), expected);
        Ok(SourceStream { length, validator, resumable: false, body: SourceBody::Chunks(chunks) })
    }
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
