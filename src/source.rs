//! Sources of bytes. [`Sources::open`] returns a [`SourceStream`] for every kind of origin.
//!
//! Retries: if a connection breaks, the stream reopens the source itself at the byte where it
//! broke, provided that the origin supports ranges and has a strong validator. A stream that ends
//! without an error is complete and unchanged.

mod chunks;
pub mod compress;
pub mod encoding;
pub mod file;
pub(crate) mod guard;
pub(crate) mod https;
mod resume;
mod s3;
mod stream;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;

use crate::config::SourceConfig;
use crate::domain::destination::BucketName;
use crate::domain::job::lease::SourceMark;
use crate::domain::job::{self, Location};
use crate::domain::outcome::{Failure, Reason};
use crate::domain::staging::{SourceReader, TenantFolder};
use crate::metrics::Metrics;
use file::FileSource;
use guard::UrlGuard;
use https::HttpSource;
use resume::{OpenedSource, ReadLimits};
use s3::S3Source;
use verify::{AnnouncedContent, ExpectedContent};

pub use chunks::{Chunks, counted};
pub use stream::{SourceBody, SourceStream};

/// Opens sources, within the limits of `[source]`. Built once and shared.
#[derive(Debug)]
pub struct Sources {
    config: SourceConfig,
    root: Option<FileRoot>,
    http: Option<HttpSource>,
    s3: Option<S3Source>,
    metrics: Arc<Metrics>,
}

impl Sources {
    /// Builds the clients. `min_rate` is in bytes per second; `staging` is a client with the
    /// worker's own identity, for `s3://` sources; `None` if `source.s3` is empty.
    ///
    /// # Errors
    /// The reason why https sources cannot be read at all (no root certificates).
    pub fn new(
        config: SourceConfig,
        min_rate: u64,
        metrics: Arc<Metrics>,
        staging: Option<s3::Client>,
    ) -> Result<Self, String> {
        let limits = ReadLimits::new(min_rate);
        let guard = UrlGuard::new(&config);
        let wants_http = config.allow_http || config.schemes.iter().any(|scheme| scheme == "https");
        let http = wants_http.then(|| HttpSource::new(guard, limits)).transpose()?;
        let s3 = staging.map(|client| S3Source::new(client, config.s3.clone(), limits, metrics.clone()));
        let root = config.file_root.clone().map(FileRoot::new);
        Ok(Self { config, root, http, s3, metrics })
    }

    /// Opens a source for `reader` and compares it with what the job declares.
    ///
    /// The stream ends without an error only if the whole source was read and matches the origin
    /// and the job: its length (against the job `source_mismatch`, against the origin
    /// `source_changed` or `source_unavailable`), its SHA-256 (`source_mismatch`) and
    /// `source.max_bytes` (`too_large`). A source whose end proves nothing is refused as
    /// `source_unavailable` unless it is accepted. The last chunk is only yielded after these
    /// checks. The digest of a file is computed before this returns; a caller that reads a file by
    /// ranges calls [`FileSource::verify_unchanged`] and [`FileSource::count_read`].
    pub async fn open(&self, source: &job::Source, reader: SourceReader<'_>) -> Result<SourceStream, Failure> {
        let opened = async {
            self.check_scheme(source.location.scheme())?;
            let opened = match &source.location {
                Location::File(path) => return self.open_file(source, path, reader).await,
                Location::Http(url) => self.http()?.open(url).await?,
                Location::S3 { bucket, key } => self.s3(bucket)?.open(bucket, key, reader).await?,
            };
            self.stream(source, opened, 0)
        };
        opened.await.map_err(name_job_field)
    }

    /// Opens a source to resume at byte `offset` of the content that `checkpoint` identifies. The
    /// chunks begin at that byte (a file is returned as a file for every offset), `length` is the
    /// length of the whole content, and the stream ends as one of [`Sources::open`] does.
    ///
    /// Returns `None` if the content is a different one now or cannot be resumed. Then the job
    /// starts from the beginning with [`Sources::open`], which compares the new content with the
    /// job. Fails as `open` does.
    ///
    /// If nothing remains, the stream is empty, but the caller must still read it to its end:
    /// a SHA-256 is only verified there, by reading everything once more.
    pub async fn open_at(
        &self,
        source: &job::Source,
        reader: SourceReader<'_>,
        checkpoint: &SourceMark,
        offset: u64,
    ) -> Result<Option<SourceStream>, Failure> {
        if checkpoint.length.is_some_and(|length| offset > length) {
            return Ok(None);
        }
        let opened = async {
            self.check_scheme(source.location.scheme())?;
            let from = first_byte(source, checkpoint, offset);
            let opened = match &source.location {
                Location::File(path) => return self.reopen_file(source, path, reader, checkpoint).await,
                Location::Http(url) => self.http()?.open_at(url, checkpoint, from).await?,
                Location::S3 { bucket, key } => self.s3(bucket)?.open_at(bucket, key, reader, checkpoint, from).await?,
            };
            let Some(mut opened) = opened else { return Ok(None) };
            // The length that the origin reported first holds for the same content, even if it reports
            // none now. A size in the job is enforced anyway.
            opened.length = opened.length.or(checkpoint.length.filter(|_| source.size.is_none()));
            let stream = self.stream(source, opened, from)?;
            Ok(Some(stream.skip(offset - from)))
        };
        opened.await.map_err(name_job_field)
    }

    fn http(&self) -> Result<&HttpSource, Failure> {
        self.http.as_ref().ok_or_else(|| forbidden("source.schemes does not list https"))
    }

    fn s3(&self, bucket: &BucketName) -> Result<&S3Source, Failure> {
        let none = || forbidden("source.s3 lists no bucket").hint(format!("add {bucket} to [[source.s3]]"));
        self.s3.as_ref().ok_or_else(none)
    }

    /// Allows `http` by `source.allow_http` alone, every other scheme by `source.schemes`.
    fn check_scheme(&self, scheme: &str) -> Result<(), Failure> {
        let (allowed, setting) = match scheme {
            "http" => (self.config.allow_http, "source.allow_http"),
            _ => (self.config.schemes.iter().any(|allowed| allowed == scheme), "source.schemes"),
        };
        if allowed { Ok(()) } else { Err(forbidden(&format!("{setting} does not allow {scheme} sources"))) }
    }

    async fn open_file(
        &self,
        source: &job::Source,
        path: &Path,
        reader: SourceReader<'_>,
    ) -> Result<SourceStream, Failure> {
        let file = self.file(path, reader).await?;
        let expected = self.expected_of_file(source, &file)?;
        if let Some(declared) = &expected.sha256 {
            verify::check_digest(declared, &FileSource::sha256(&file).await?)?;
        }
        Ok(SourceStream::of_file(file))
    }

    /// Does not compute the digest again: it was verified before any of this content was uploaded.
    async fn reopen_file(
        &self,
        source: &job::Source,
        path: &Path,
        reader: SourceReader<'_>,
        checkpoint: &SourceMark,
    ) -> Result<Option<SourceStream>, Failure> {
        let file = self.file(path, reader).await?;
        let same_length = checkpoint.length.is_none_or(|length| length == file.length());
        if file.validator() != checkpoint.validator || !same_length {
            return Ok(None);
        }
        self.expected_of_file(source, &file)?;
        Ok(Some(SourceStream::of_file(file)))
    }

    fn expected_of_file(&self, source: &job::Source, file: &FileSource) -> Result<ExpectedContent, Failure> {
        let validator = file.validator();
        let content = AnnouncedContent { length: Some(file.length()), etag: Some(&validator), end_marked: true };
        ExpectedContent::new(source, self.config.max_bytes, &content)
    }

    async fn file(&self, path: &Path, reader: SourceReader<'_>) -> Result<Arc<FileSource>, Failure> {
        let root =
            self.root.as_ref().ok_or_else(|| forbidden("source.file_root is not set, so no file may be read"))?;
        root.check(path, reader)?;
        let root = Arc::clone(&root.opened);
        Ok(Arc::new(match FileSource::open_cached(&root, path, &self.metrics) {
            Some(file) => file,
            None => self.open_blocking(root, path.to_owned()).await?,
        }))
    }

    async fn open_blocking(&self, root: Arc<Path>, path: PathBuf) -> Result<FileSource, Failure> {
        let metrics = Arc::clone(&self.metrics);
        let opened = tokio::task::spawn_blocking(move || FileSource::open(&root, &path, metrics));
        let stopped = |_| Failure::new(Reason::SourceUnavailable, "the worker is stopping; the file was not opened");
        opened.await.map_err(stopped)?
    }

    /// Adds the counter and the checks to what an origin returned, whose chunks begin at byte
    /// `from` of the source.
    fn stream(&self, source: &job::Source, opened: OpenedSource, from: u64) -> Result<SourceStream, Failure> {
        let OpenedSource { length, end_marked, .. } = opened;
        let content = AnnouncedContent { length, etag: opened.etag.as_deref(), end_marked };
        let expected = ExpectedContent::new(source, self.config.max_bytes, &content)?;
        let length_unproven = expected.is_unproven();
        if length_unproven && !(self.config.allow_unproven_length || source.allow_unproven_length) {
            return Err(verify::unproven_length());
        }
        let length = expected.length();
        let validator = opened.strong_etag().map(ToOwned::to_owned);
        let (metrics, scheme) = (Arc::clone(&self.metrics), source.location.scheme());
        let counted = opened.chunks.inspect(move |item| {
            if let Ok(chunk) = item {
                metrics.source_read(scheme, chunk.len() as u64);
            }
        });
        let chunks = verify::verified(Box::pin(counted), expected, from);
        Ok(SourceStream {
            length,
            length_unproven,
            validator,
            content_encoding: opened.content_encoding.as_deref().and_then(encoding::listed),
            resumable: opened.resumable,
            body: SourceBody::Chunks(chunks),
        })
    }
}

/// The root of file sources: one folder for all, or one for each tenant.
#[derive(Debug)]
struct FileRoot {
    folder: TenantFolder,
    /// The folder that is opened. Below it no link is followed, so a tenant's link leads nowhere.
    opened: Arc<Path>,
}

impl FileRoot {
    fn new(folder: TenantFolder) -> Self {
        Self { opened: Arc::from(Path::new(folder.shared())), folder }
    }

    /// Refuses a path outside of the reader's own folder.
    fn check(&self, path: &Path, reader: SourceReader<'_>) -> Result<(), Failure> {
        let own = self.folder.filled(reader).map_err(|why| forbidden(&format!("source.file_root {why}")))?;
        if self.folder.is_bound() && !path.starts_with(own) {
            let message = format!("{} is outside of the folder of the destination's tenant", path.display());
            return Err(forbidden(&format!("{message} (source.file_root)")));
        }
        Ok(())
    }
}

/// Returns the byte to read from in order to resume at `offset`. A digest needs every byte. If
/// nothing may remain, one byte more is requested, because a range must not be empty.
fn first_byte(source: &job::Source, checkpoint: &SourceMark, offset: u64) -> u64 {
    if source.sha256.is_some() {
        0
    } else if checkpoint.length.is_some_and(|length| offset < length) {
        offset
    } else {
        offset.saturating_sub(1)
    }
}

fn forbidden(message: &str) -> Failure {
    Failure::new(Reason::SourceForbidden, message)
}

/// Prefixes a refusal with the job's field, as every other refusal of a job has it.
fn name_job_field(failure: Failure) -> Failure {
    match failure.reason {
        Reason::SourceForbidden => {
            let hint = match &*failure.hint {
                "" => "use a source that [source] of the worker's configuration permits".to_owned(),
                own => own.to_owned(),
            };
            Failure { message: format!("source.url: {}", failure.message), hint, ..failure }
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests;
