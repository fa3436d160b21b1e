//! `consign dead show ID`.

use clap::Args;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::open;
use super::redact::{redacted, redacted_text, summary};
use crate::cli::output::text::{UNKNOWN, duration, known};
use crate::cli::{CommandError, Exit, fail, print, print_json};
use crate::config::Config;
use crate::dead_letter::filter::age;
use crate::domain::job::compact;
use crate::domain::job::lease::Lease;
use crate::queue::DeadLetter;
use crate::runtime::output::printable;

/// Arguments of `consign dead show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// Letter id (first column of `dead list`) or its beginning, or a job id
    #[arg(value_name = "LETTER|JOB")]
    id: String,
}

/// Shows every letter with this id. A job may have more than one.
pub(super) async fn execute(args: ShowArgs, config: &Config, json: bool) -> Result<Exit, CommandError> {
    let mut letters = open(config).await?;
    let (now, mut found) = (Timestamp::now(), 0);
    while let Some(letter) = letters.next().await? {
        if letter.job_id() != Some(&args.id) && !letter.id().as_str().starts_with(&args.id) {
            continue;
        }
        let data = data(&letter, now);
        if json {
            print_json(&data);
        } else {
            let gap = if found > 0 { "\n" } else { "" };
            print(&format!("{gap}{}", text(&letter, &data, now)));
        }
        found += 1;
    }
    letters.close().await;
    if found == 0 {
        let problem = format!("there is no dead letter {}; `consign dead list` shows all", args.id);
        return Ok(fail(&problem, Exit::Failed));
    }
    Ok(Exit::Done)
}

fn data(letter: &DeadLetter, now: Timestamp) -> Value {
    let p = letter.properties();
    let headers = p.headers.iter().map(|(name, value)| (name.clone(), redacted_text(value).into()));
    let mut data = summary(letter, now);
    data.insert("routing_key".to_owned(), letter.routing_key().into());
    for (name, value) in [
        ("content_type", &p.content_type),
        ("message_id", &p.message_id),
        ("reply_to", &p.reply_to),
        ("correlation_id", &p.correlation_id),
        ("type", &p.kind),
    ] {
        data.insert(name.to_owned(), json!(value));
    }
    data.insert("headers".to_owned(), Value::Object(headers.collect::<Map<_, _>>()));
    let bytes = p.unread.or_else(|| u64::try_from(letter.body().len()).ok());
    data.insert("bytes".to_owned(), json!(bytes));
    data.insert("job".to_owned(), document(letter).map_or(Value::Null, redacted));
    data.insert("problem".to_owned(), json!(letter.job().err().map(|rejected| rejected.to_string())));
    Value::Object(data)
}

/// Decodes the job from its JSON or compact form; `None` where it is neither.
fn document(letter: &DeadLetter) -> Option<Value> {
    decode(letter.properties().content_type.as_deref(), letter.body())
}

fn decode(content_type: Option<&str>, body: &[u8]) -> Option<Value> {
    if Lease::is_type(content_type) {
        let lease = Lease::decode(body).ok()?;
        return decode(lease.content_type.as_deref(), &lease.body);
    }
    if content_type.is_some_and(|given| given.starts_with(compact::CONTENT_TYPE)) {
        return serde_json::to_value(compact::decode(body).ok()?).ok();
    }
    serde_json::from_slice(body).ok()
}

fn text(letter: &DeadLetter, data: &Value, now: Timestamp) -> String {
    let at = |at: Option<Timestamp>| at.map_or_else(|| UNKNOWN.to_owned(), |at| format!("{at:.0}"));
    let ago = age(letter, now).map_or_else(String::new, |age| format!(" ({} ago)", duration(age)));
    let runs = match letter.run() {
        0 => String::new(),
        1 => ", requeued once before".to_owned(),
        runs => format!(", requeued {runs} times before"),
    };
    let mut lines = vec![
        format!("letter         {}", letter.id()),
        format!("job            {}", known(letter.job_id())),
        format!("destination    {}", known(letter.destination())),
        format!("reason         {} (class {})", known(Some(letter.reason())), known(Some(letter.class()))),
        format!("message        {}", known(Some(letter.message()))),
        format!("attempts       {}{runs}", letter.attempts()),
        format!("first failure  {}", at(letter.first_failure_at())),
        format!("dead-lettered  {}{ago}", at(letter.died_at())),
        format!("routing key    {}", printable(letter.routing_key())),
    ];
    let labels = [
        ("content_type", "content type   "),
        ("reply_to", "reply to       "),
        ("correlation_id", "correlation id "),
        ("type", "type           "),
    ];
    let given = labels.iter().filter_map(|(name, label)| Some(format!("{label}{}", printable(data[*name].as_str()?))));
    lines.extend(given);
    let headers = data["headers"].as_object().into_iter().flatten();
    let shown = ["x-error-", "x-attempts", "x-first-failure-at", "x-last-failure-at", "x-original-routing-key"];
    let others = headers.filter(|(name, _)| !shown.iter().any(|start| name.starts_with(start)));
    lines.extend(others.map(|(name, value)| {
        format!("header         {}: {}", printable(name), printable(value.as_str().unwrap_or_default()))
    }));
    if let Some(problem) = data["problem"].as_str() {
        lines.push(format!("not a job      {}", printable(problem)));
    }
    lines.push(match &data["job"] {
        _ if letter.properties().unread.is_some() => {
            format!("body           {} bytes, too large to be shown; the broker keeps it", data["bytes"])
        }
        Value::Null => format!("body           {} bytes, not a JSON document", letter.body().len()),
        job => format!("{job:#}").lines().map(printable).collect::<Vec<_>>().join("\n"),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::headers;
    use crate::queue::Properties;

    fn letter(content_type: Option<&str>, body: Vec<u8>) -> DeadLetter {
        let failed = ("x-first-failure-at", "2026-11-27T04:52:46.123456789Z");
        let headers = [("x-error-reason", "kms_denied"), ("hook", "https://h/?k=marked"), ("x-attempts", "3"), failed];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let content_type = content_type.map(str::to_owned);
        let properties = Properties { content_type, headers, ..Properties::default() };
        DeadLetter::new("job.scheduled.acme".to_owned(), Bytes::from(body), properties, None)
    }

    #[test]
    fn both_forms_of_a_job_are_shown_without_secrets() {
        let url = "https://host/f?X-Amz-Signature=marked";
        let job = format!(r#"{{"version":1,"id":"a","source":{{"url":"{url}"}},"destination":"acme","key":"k"}}"#);
        let raw = crate::domain::job::wire::read(job.as_bytes()).unwrap();
        for letter in
            [letter(None, job.into_bytes()), letter(Some(compact::CONTENT_TYPE), compact::encode(&raw).unwrap())]
        {
            let now = Timestamp::now();
            let data = data(&letter, now);
            let text = text(&letter, &data, now);
            assert!(text.contains("\"url\": \"https://host/f?***\"") && text.contains("kms_denied"), "{text}");
            assert!(text.contains("first failure  2026-11-27T04:52:46Z\n"), "{text}");
            assert!(data["first_failure_at"].to_string().contains(".123456789Z"), "JSON stays exact: {data}");
            assert!(text.contains("header         hook: https://h/?***"), "{text}");
            assert!(!text.contains("marked") && !data.to_string().contains("marked"), "{text}");
            assert_eq!(data["problem"], Value::Null);
        }
    }

    #[test]
    fn earlier_requeues_are_counted() {
        let now = Timestamp::now();
        let shown = |runs: &str| {
            let headers = [(headers::RUN.to_owned(), runs.to_owned())].into();
            let properties = Properties { headers, ..Properties::default() };
            let letter = DeadLetter::new("job.scheduled.acme".to_owned(), Bytes::new(), properties, None);
            text(&letter, &data(&letter, now), now)
        };
        assert!(shown("1").contains(", requeued once before\n"));
        assert!(shown("2").contains(", requeued 2 times before\n"));
    }

    #[test]
    fn an_invalid_job_is_shown_as_far_as_possible() {
        let now = Timestamp::now();
        let half = letter(None, br#"{"password": "marked", "version": 1}"#.to_vec());
        let shown = text(&half, &data(&half, now), now);
        assert!(shown.contains("not a job") && shown.contains("\"password\": \"***\""), "{shown}");
        let none = letter(None, vec![0, 1, 2]);
        assert!(text(&none, &data(&none, now), now).contains("3 bytes, not a JSON document"));
    }
}
