//! Serde's complaints in words that name the field and never repeat a value.

use serde_json::error::Category;

use crate::domain::job::{Invalid, Rejected};
use crate::domain::outcome::Reason;

/// An unknown version, named.
pub(super) fn unknown_version(version: i128) -> Rejected {
    let problem = format!(
        "{version} is not supported; write version {}, or upgrade consign and then requeue the job",
        super::VERSION
    );
    Rejected::new(Reason::SchemaVersion, Invalid::new("version", problem))
}

/// `problem` at `path` (`.` is the document itself), in a document that is whole JSON or is not.
///
/// `what` is the kind of document, `job` or `check`.
pub(super) fn refused(path: &str, problem: &serde_json::Error, is_whole: bool, what: &str) -> Rejected {
    let place = format!("line {}, column {}", problem.line(), problem.column());
    let text = problem.to_string();
    match problem.classify() {
        Category::Data => data(path, &text, &place, what),
        // An object where a word belongs is a syntax error to serde_json, though the document is well-formed.
        _ if is_whole && path != "." => Rejected::job(
            path,
            format!("has a value of the wrong type ({place}); `consign schema {what}` describes the fields"),
        ),
        Category::Eof => Rejected::job("body", format!("the JSON ends too early, at {place}; send the whole document")),
        Category::Syntax | Category::Io => {
            // serde_json's own syntax errors are constants: nothing of the document is in them.
            let what = text.split(" at line ").next().unwrap_or_default();
            Rejected::job("body", format!("is not JSON ({what} at {place}); send one object and nothing after it"))
        }
    }
}

fn data(path: &str, text: &str, place: &str, what: &str) -> Rejected {
    if let Some(name) = named(text, "missing field `") {
        return Rejected::job(below(path, name), "is required; add it");
    }
    if let Some(name) = named(text, "unknown field `") {
        let problem = format!("is not a field of a {what} ({place}); remove it, or correct its name");
        return Rejected::job(below(path, name), problem);
    }
    if let Some(name) = named(text, "duplicate field `") {
        return Rejected::job(below(path, name), format!("occurs twice ({place}); give it once"));
    }
    if text.starts_with("a name occurs twice") {
        return Rejected::job(path, format!("has a name that occurs twice ({place}); give it once"));
    }
    if path == "." && text.starts_with("invalid type: sequence") {
        return Rejected::job("body", format!("is an array; send one object per {what}"));
    }
    // After the last of these words come the words of this program; before them, a value of the message.
    let wanted = text.rsplit_once(", expected ").map_or("another kind of value", |(_, wanted)| wanted);
    let wanted = plain(wanted.split(" at line ").next().unwrap_or_default());
    let field = if path == "." { "body" } else { path };
    // The place of a value that serde_json has not read yet is the column before the first.
    let place = if place.ends_with("column 0") { String::new() } else { format!(" ({place})") };
    Rejected::job(field, format!("has the wrong type or value{place}; expected {wanted}"))
}

/// Replaces names of this program's types, which mean nothing to the author of a job.
fn plain(wanted: &str) -> &str {
    match wanted {
        "u64" => "a whole number",
        "a nonzero u32" | "a nonzero u64" => "a whole number of at least 1",
        words => words,
    }
}

fn named<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.split('`').next()
}

/// The field `name` in the object at `path`. The tracker may or may not have entered the field
/// already.
fn below(path: &str, name: &str) -> String {
    match path {
        "" | "." if name.is_empty() => r#""""#.to_owned(),
        _ if name.is_empty() => format!(r#"{}."""#, path.trim_end_matches('.')),
        "." => name.to_owned(),
        _ if path == name || path.strip_suffix(name).is_some_and(|parent| parent.ends_with('.')) => path.to_owned(),
        _ => format!("{path}.{name}"),
    }
}
