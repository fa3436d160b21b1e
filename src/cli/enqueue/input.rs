//! Input of jobs: a file, standard input or flags. Each job is validated as the worker will do.

use std::path::Path;
use std::pin::Pin;

use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::cli::CommandError;
use crate::cli::output::text::problem_lines;
use crate::domain::job::wire::{self, RawDestinationRef, RawJob};
use crate::producer::job::{PreparedJob, PublishFormat};

/// Upper bound of the invalid lines of a file that are shown.
const MAX_SHOWN_PROBLEMS: usize = 20;

/// Problem of an input, with its line number where there is one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", .line.map_or_else(String::new, |line| format!("line {line}: ")))]
pub(super) struct InputError {
    pub(super) line: Option<usize>,
    problem: String,
}

impl InputError {
    fn whole(problem: impl Into<String>) -> Self {
        Self { line: None, problem: problem.into() }
    }
}

impl From<InputError> for CommandError {
    fn from(error: InputError) -> Self {
        Self::Failed(error.to_string())
    }
}

type JobStream = Pin<Box<dyn Stream<Item = Result<PreparedJob, InputError>> + Send>>;

/// Sequence of jobs.
pub(super) struct JobInput {
    /// Jobs up to the first invalid one.
    pub(super) jobs: JobStream,
    /// Number of jobs, where it is known.
    pub(super) length: Option<u64>,
}

impl JobInput {
    /// One job from flags.
    pub(super) fn one(
        format: PublishFormat,
        id: Option<String>,
        source: &str,
        to: String,
        key: String,
    ) -> Result<Self, InputError> {
        let id = id.unwrap_or_else(|| format!("cli/{}", uuid::Uuid::new_v4()));
        let raw = RawJob::new(id, source, RawDestinationRef::Id(to), key);
        let body = wire::render(&raw);
        let job = PreparedJob::new(format, &body).map_err(|problem| InputError::whole(with_flag(problem)))?;
        Ok(Self::complete(vec![job]))
    }

    /// All jobs of a file. If one of them is invalid, none is published.
    pub(super) async fn file(format: PublishFormat, path: &Path) -> Result<Self, InputError> {
        let text = tokio::fs::read(path).await.map_err(|problem| {
            InputError::whole(format!(
                "{} can't be read: {problem}; give the path of a readable file of jobs",
                path.display()
            ))
        })?;
        let jobs: Vec<_> = read(format, BufReader::new(std::io::Cursor::new(text))).await?.collect().await;
        let (valid, invalid): (Vec<_>, Vec<_>) = jobs.into_iter().partition(Result::is_ok);
        let problems: Vec<_> = invalid.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
        if problems.is_empty() {
            return Ok(Self::complete(valid.into_iter().filter_map(Result::ok).collect()));
        }
        let lines = problem_lines(&problems, MAX_SHOWN_PROBLEMS);
        Err(InputError::whole(format!("{}: nothing was published; fix these first:{lines}", path.display())))
    }

    /// Standard input, published as it arrives. It ends at the first invalid line.
    pub(super) async fn stdin(format: PublishFormat) -> Result<Self, InputError> {
        let jobs = read(format, BufReader::new(tokio::io::stdin())).await?;
        Ok(Self { jobs: Box::pin(until_first_error(jobs)), length: None })
    }

    fn complete(jobs: Vec<PreparedJob>) -> Self {
        let length = u64::try_from(jobs.len()).ok();
        Self { jobs: Box::pin(stream::iter(jobs.into_iter().map(Ok))), length }
    }
}

/// Ends a stream of results after its first error.
fn until_first_error(
    jobs: impl Stream<Item = Result<PreparedJob, InputError>>,
) -> impl Stream<Item = Result<PreparedJob, InputError>> {
    jobs.scan(false, |ended, job| {
        let next = (!*ended).then_some(job);
        *ended |= matches!(next, Some(Err(_)));
        std::future::ready(next)
    })
}

/// Reads one JSON document over several lines, or one document per line. The first line decides: it
/// is a complete document or not.
async fn read(
    format: PublishFormat,
    mut from: impl AsyncBufRead + Unpin + Send + 'static,
) -> Result<JobStream, InputError> {
    let (mut first, mut line) = (Vec::new(), 0);
    while first.trim_ascii().is_empty() {
        first.clear();
        line += 1;
        if from.read_until(b'\n', &mut first).await.map_err(|problem| unreadable(&problem))? == 0 {
            return Err(InputError::whole("the input has no job; give one JSON object, or one per line"));
        }
        first = wire::without_byte_order_mark(&first).to_vec();
    }
    if serde_json::from_slice::<serde::de::IgnoredAny>(&first).is_err() {
        from.read_to_end(&mut first).await.map_err(|problem| unreadable(&problem))?;
        let job = prepare(format, first.trim_ascii(), None);
        return Ok(Box::pin(stream::iter([job])));
    }
    let head = stream::iter([prepare(format, first.trim_ascii(), Some(line))]);
    Ok(Box::pin(head.chain(lines(format, from, line))))
}

fn lines(
    format: PublishFormat,
    from: impl AsyncBufRead + Unpin + Send + 'static,
    before: usize,
) -> impl Stream<Item = Result<PreparedJob, InputError>> + Send {
    stream::unfold((from, before), move |(mut from, mut line)| async move {
        loop {
            let mut text = Vec::new();
            line += 1;
            match from.read_until(b'\n', &mut text).await {
                Ok(0) => return None,
                Ok(_) if text.trim_ascii().is_empty() => {}
                Ok(_) => return Some((prepare(format, text.trim_ascii(), Some(line)), (from, line))),
                Err(problem) => return Some((Err(unreadable(&problem)), (from, line))),
            }
        }
    })
}

fn unreadable(problem: &std::io::Error) -> InputError {
    InputError::whole(format!("the input can't be read: {problem}"))
}

fn prepare(format: PublishFormat, body: &[u8], line: Option<usize>) -> Result<PreparedJob, InputError> {
    PreparedJob::new(format, body).map_err(|problem| InputError { line, problem: in_line(&problem, line) })
}

/// Names the flag of a job's field that came from a flag.
fn with_flag(problem: String) -> String {
    const FLAGS: [(&str, &str); 4] =
        [("source.url: ", "--source: "), ("destination: ", "--to: "), ("key: ", "--key: "), ("id: ", "--id: ")];
    let named = FLAGS.iter().find_map(|(field, flag)| Some(format!("{flag}{}", problem.strip_prefix(field)?)));
    named.unwrap_or(problem)
}

/// A document of one line among others has columns only: its line is that of the input.
fn in_line(problem: &str, line: Option<usize>) -> String {
    const ONE_MESSAGE: [&str; 2] = ["send one object and nothing after it", "send one object per job"];
    let (problem, form) = match line {
        Some(_) => (problem.replace("line 1, column ", "column "), "each line must be one JSON object"),
        None => (problem.to_owned(), "the input must be one JSON object, or one per line"),
    };
    ONE_MESSAGE.iter().fold(problem, |problem, of_message| problem.replace(of_message, form))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::lane::Lane;

    const FORMAT: PublishFormat = PublishFormat { lane: Lane::Scheduled, compact: false, created_at: None };

    fn job(id: &str) -> String {
        format!(r#"{{"version":1,"id":"{id}","source":{{"url":"file:///a"}},"destination":"acme","key":"k"}}"#)
    }

    async fn all(text: String) -> Result<Vec<Result<PreparedJob, InputError>>, InputError> {
        Ok(read(FORMAT, BufReader::new(std::io::Cursor::new(text.into_bytes()))).await?.collect().await)
    }

    #[tokio::test]
    async fn one_job_may_take_many_lines() {
        let text = job("a").replace(',', ",\n  ");
        let jobs = all(text).await.unwrap();
        let [Ok(job)] = jobs.as_slice() else { panic!("{jobs:?}") };
        let publication = &job.publication;
        assert_eq!(publication.routing_key, "job.scheduled.acme");
        assert_eq!(publication.properties.message_id.as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn a_byte_order_mark_is_skipped_and_not_published() {
        for text in
            [job("a"), job("a").replace(',', ",\n"), format!("{}\n{}", job("a"), job("b")), format!("\n{}", job("a"))]
        {
            let jobs = all(format!("\u{feff}{text}")).await.unwrap();
            assert!(
                jobs.iter().all(|job| job.as_ref().is_ok_and(|job| job.publication.body.starts_with(b"{"))),
                "{jobs:?}"
            );
        }
    }

    #[tokio::test]
    async fn lines_are_jobs_and_empty_ones_are_skipped() {
        let jobs = all(format!("\n{}\r\n\n{}\n", job("a"), job("b"))).await.unwrap();
        let ids: Vec<_> = jobs.into_iter().map(|job| job.unwrap().id).collect();
        assert_eq!(ids, ["a", "b"]);
    }

    #[tokio::test]
    async fn an_invalid_line_is_named_and_nothing_after_it_is_read() {
        let text = format!("{}\n\n{{\"version\":1}}\n{}\n", job("a"), job("b"));
        let read = read(FORMAT, BufReader::new(std::io::Cursor::new(text.into_bytes()))).await.unwrap();
        let jobs: Vec<_> = until_first_error(read).collect().await;
        assert_eq!(jobs.len(), 2);
        let error = jobs[1].as_ref().unwrap_err().to_string();
        assert!(error.starts_with("line 3: "), "{error}");
    }

    #[tokio::test]
    async fn text_that_is_no_json_is_refused_with_the_form_of_the_input() {
        for (text, remedy) in [
            ("hello".to_owned(), "; the input must be one JSON object, or one per line"),
            (format!("{}\nhello", job("a")), "; each line must be one JSON object"),
            (format!("{}\n[{}]", job("a"), job("b")), "; each line must be one JSON object"),
            (format!("{} {}", job("a"), job("b")), "; the input must be one JSON object, or one per line"),
        ] {
            let last = all(text).await.unwrap().pop().unwrap().unwrap_err().to_string();
            assert!(last.contains("body: is ") && last.ends_with(remedy), "{last}");
        }
    }

    #[tokio::test]
    async fn an_empty_input_is_an_error() {
        assert!(all("\n \n".to_owned()).await.is_err());
    }

    #[tokio::test]
    async fn a_file_with_invalid_jobs_publishes_none_and_names_them_all() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{}\nnonsense\n{{\"version\":1}}\n", job("a"))).unwrap();
        let error = JobInput::file(FORMAT, file.path()).await.err().unwrap().to_string();
        assert!(error.starts_with(&file.path().display().to_string()), "{error}");
        assert!(error.contains("\n  line 2: body") && error.contains("\n  line 3: "), "{error}");
    }

    #[test]
    fn flags_make_a_job_with_a_generated_id() {
        let id = || {
            let mut input = JobInput::one(FORMAT, None, "file:///a", "acme".to_owned(), "k".to_owned()).unwrap();
            futures_util::FutureExt::now_or_never(input.jobs.next()).unwrap().unwrap().unwrap().id
        };
        assert!(id().starts_with("cli/"));
        assert_ne!(id(), id());
        assert!(JobInput::one(FORMAT, Some("a b".to_owned()), "file:///a", "acme".to_owned(), "k".to_owned()).is_err());
    }
}
