//! Where the jobs come from, each checked as the worker will check it.

use std::fmt;
use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use super::until_refused;
use crate::domain::job::wire::{self, RawDestinationRef, RawJob};
use crate::domain::job::{Invalid, compact};
use crate::domain::lane::Lane;
use crate::queue::{Properties, Publication};

/// Which queue the jobs go to, and in which form.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Form {
    pub(in crate::cli) lane: Lane,
    pub(in crate::cli) compact: bool,
}

/// A job that is fit to be published.
#[derive(Debug)]
pub(in crate::cli) struct Prepared {
    pub(in crate::cli) id: String,
    pub(in crate::cli) destination: String,
    /// Taken when it is published.
    pub(in crate::cli) publication: Option<Publication>,
}

/// Why an input can't be published, with its line where there is one.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct Refusal {
    line: Option<usize>,
    what: String,
}

impl Refusal {
    /// A refusal of the input as a whole.
    pub(in crate::cli) fn whole(what: impl Into<String>) -> Self {
        Self { line: None, what: what.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// So many bad lines of a file are shown.
pub(in crate::cli) const SHOWN: usize = 20;

type Jobs = Pin<Box<dyn Stream<Item = Result<Prepared, Refusal>> + Send>>;

/// A row of jobs.
pub(in crate::cli) struct Input {
    jobs: Jobs,
    length: Option<u64>,
}

impl Input {
    /// One job from flags.
    pub(in crate::cli) fn one(
        form: Form,
        id: Option<String>,
        source: &str,
        to: String,
        key: String,
    ) -> Result<Self, Refusal> {
        let id = id.unwrap_or_else(|| format!("cli/{}", uuid::Uuid::new_v4()));
        let raw = RawJob::new(id, source, RawDestinationRef::Id(to), key);
        let body = wire::render(&raw);
        Ok(Self::whole(vec![prepare(form, &body, None)?]))
    }

    /// All jobs of a file; nothing of it is published when one of them is bad.
    pub(in crate::cli) async fn file(form: Form, path: &Path) -> Result<Self, Refusal> {
        let text = tokio::fs::read(path)
            .await
            .map_err(|problem| Refusal::whole(format!("{} can't be read: {problem}", path.display())))?;
        let jobs: Vec<_> = read(form, BufReader::new(std::io::Cursor::new(text))).await?.collect().await;
        let (good, bad): (Vec<_>, Vec<_>) = jobs.into_iter().partition(Result::is_ok);
        let refused: Vec<_> = bad.into_iter().filter_map(Result::err).map(|refusal| refusal.to_string()).collect();
        if !refused.is_empty() {
            return Err(Refusal::whole(summary(path, &refused)));
        }
        Ok(Self::whole(good.into_iter().filter_map(Result::ok).collect()))
    }

    /// Standard input, published as it comes. It ends at the first bad line.
    pub(in crate::cli) async fn stdin(form: Form) -> Result<Self, Refusal> {
        let jobs = read(form, BufReader::new(tokio::io::stdin())).await?;
        Ok(Self { jobs: Box::pin(until_refused(jobs)), length: None })
    }

    fn whole(jobs: Vec<Prepared>) -> Self {
        let length = u64::try_from(jobs.len()).ok();
        Self { jobs: Box::pin(stream::iter(jobs.into_iter().map(Ok))), length }
    }

    /// How many jobs there are, where that is known.
    pub(in crate::cli) fn known_length(&self) -> Option<u64> {
        self.length
    }

    /// The jobs, up to the first bad one.
    pub(in crate::cli) fn jobs(self) -> Jobs {
        self.jobs
    }
}

/// What is wrong with a file, one line each, the first of many.
fn summary(path: &Path, refused: &[String]) -> String {
    let shown = refused.iter().take(SHOWN).map(|refusal| format!("\n  {refusal}"));
    let more = refused.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!("\n  ... and {more} more") } else { String::new() };
    format!("{}: nothing was published; mend these first:{}{rest}", path.display(), shown.collect::<String>())
}

/// One JSON document over many lines, or one per line: told apart by the first line, which is a whole document or is not.
async fn read(form: Form, mut from: impl AsyncBufRead + Unpin + Send + 'static) -> Result<Jobs, Refusal> {
    let (mut first, mut line) = (Vec::new(), 0);
    while first.trim_ascii().is_empty() {
        first.clear();
        line += 1;
        if from.read_until(b'\n', &mut first).await.map_err(|problem| unreadable(&problem))? == 0 {
            return Err(Refusal::whole("there is no job in it"));
        }
    }
    if serde_json::from_slice::<serde::de::IgnoredAny>(&first).is_err() {
        from.read_to_end(&mut first).await.map_err(|problem| unreadable(&problem))?;
        let whole = prepare(form, first.trim_ascii(), None);
        return Ok(Box::pin(stream::iter([whole])));
    }
    let head = stream::iter([prepare(form, first.trim_ascii(), Some(line))]);
    Ok(Box::pin(head.chain(lines(form, from, line))))
}

fn lines(
    form: Form,
    from: impl AsyncBufRead + Unpin + Send + 'static,
    before: usize,
) -> impl Stream<Item = Result<Prepared, Refusal>> + Send {
    stream::unfold((from, before), move |(mut from, mut line)| async move {
        loop {
            let mut text = Vec::new();
            line += 1;
            match from.read_until(b'\n', &mut text).await {
                Ok(0) => return None,
                Ok(_) if text.trim_ascii().is_empty() => {}
                Ok(_) => return Some((prepare(form, text.trim_ascii(), Some(line)), (from, line))),
                Err(problem) => return Some((Err(unreadable(&problem)), (from, line))),
            }
        }
    })
}

fn unreadable(problem: &std::io::Error) -> Refusal {
    Refusal::whole(format!("the input can't be read: {problem}"))
}

/// A job as it is written, checked as the worker will check it.
pub(in crate::cli) fn prepare(form: Form, body: &[u8], line: Option<usize>) -> Result<Prepared, Refusal> {
    let refusal = |what: String| Refusal { line, what };
    let raw = wire::read(body).map_err(|rejected| refusal(rejected.to_string()))?;
    let compact = if form.compact {
        Some(compact::encode(&raw).map_err(|Invalid { field, problem }| refusal(format!("{field}: {problem}")))?)
    } else {
        None
    };
    let job = raw.validate().map_err(|rejected| refusal(rejected.to_string()))?;
    let (id, destination) = (job.id.to_string(), job.destination.id().to_string());
    let content_type = if compact.is_some() { compact::CONTENT_TYPE } else { "application/json" };
    let publication = Publication {
        routing_key: format!("job.{}.{destination}", form.lane.as_str()),
        body: compact.map_or_else(|| Bytes::copy_from_slice(body), Bytes::from),
        properties: Properties {
            content_type: Some(content_type.to_owned()),
            message_id: Some(id.clone()),
            ..Properties::default()
        },
    };
    Ok(Prepared { id, destination, publication: Some(publication) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Form = Form { lane: Lane::Scheduled, compact: false };

    fn job(id: &str) -> String {
        format!(r#"{{"version":1,"id":"{id}","source":{{"url":"file:///a"}},"destination":"acme","key":"k"}}"#)
    }

    async fn all(text: String) -> Result<Vec<Result<Prepared, Refusal>>, Refusal> {
        Ok(read(FORM, BufReader::new(std::io::Cursor::new(text.into_bytes()))).await?.collect().await)
    }

    #[tokio::test]
    async fn one_job_may_take_many_lines() {
        let text = job("a").replace(',', ",\n  ");
        let jobs = all(text).await.unwrap();
        let [Ok(job)] = jobs.as_slice() else { panic!("{jobs:?}") };
        let publication = job.publication.as_ref().unwrap();
        assert_eq!(publication.routing_key, "job.scheduled.acme");
        assert_eq!(publication.properties.message_id.as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn lines_are_jobs_and_empty_ones_are_skipped() {
        let jobs = all(format!("\n{}\r\n\n{}\n", job("a"), job("b"))).await.unwrap();
        let ids: Vec<_> = jobs.into_iter().map(|job| job.unwrap().id).collect();
        assert_eq!(ids, ["a", "b"]);
    }

    #[tokio::test]
    async fn a_bad_line_is_named_and_nothing_after_it_is_taken() {
        let text = format!("{}\n\n{{\"version\":1}}\n{}\n", job("a"), job("b"));
        let read = read(FORM, BufReader::new(std::io::Cursor::new(text.into_bytes()))).await.unwrap();
        let jobs: Vec<_> = until_refused(read).collect().await;
        assert_eq!(jobs.len(), 2);
        let refusal = jobs[1].as_ref().unwrap_err().to_string();
        assert!(refusal.starts_with("line 3: "), "{refusal}");
    }

    #[tokio::test]
    async fn an_empty_input_is_an_error() {
        assert!(all("\n \n".to_owned()).await.is_err());
    }

    #[tokio::test]
    async fn a_file_with_bad_jobs_publishes_none_and_names_them_all() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{}\nnonsense\n{{\"version\":1}}\n", job("a"))).unwrap();
        let refusal = Input::file(FORM, file.path()).await.err().unwrap().to_string();
        assert!(refusal.starts_with(&file.path().display().to_string()), "{refusal}");
        assert!(refusal.contains("\n  line 2: body") && refusal.contains("\n  line 3: "), "{refusal}");
    }

    #[test]
    fn flags_make_a_job_with_an_id_of_its_own() {
        let id = || {
            let input = Input::one(FORM, None, "file:///a", "acme".to_owned(), "k".to_owned()).unwrap();
            futures_util::FutureExt::now_or_never(input.jobs().next()).unwrap().unwrap().unwrap().id
        };
        assert!(id().starts_with("cli/"));
        assert_ne!(id(), id());
        assert!(Input::one(FORM, Some("a b".to_owned()), "file:///a", "acme".to_owned(), "k".to_owned()).is_err());
    }

    #[test]
    fn the_compact_form_says_so() {
        let form = Form { lane: Lane::Backfill, compact: true };
        let publication = prepare(form, job("a").as_bytes(), None).unwrap().publication.unwrap();
        assert_eq!(publication.routing_key, "job.backfill.acme");
        assert_eq!(publication.properties.content_type.as_deref(), Some(compact::CONTENT_TYPE));
        assert_eq!(compact::parse(&publication.body).unwrap().id.as_str(), "a");
    }
}
