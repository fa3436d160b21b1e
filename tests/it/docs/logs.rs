//! The page of log events is made from the log macros of the source. `CONSIGN_WRITE_GUIDE=1`
//! rewrites it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::Range;

use super::file;
use crate::testbed::rust::{self, Module, closing, outside};

const PAGE: &str = "deploy/docs/reference/logs.md";
const BEGIN: &str = "<!-- generated: events -->\n";
const END: &str = "<!-- end -->\n";

/// Levels with their headings, most severe first.
const LEVELS: [(&str, &str); 4] =
    [("error", "Errors"), ("warn", "Warnings"), ("info", "Information"), ("debug", "Debug")];
/// Fields with a column of their own.
const COLUMNS: [&str; 3] = ["event", "next", "remedy"];
/// Longest message: one clause.
const MESSAGE_LENGTH: usize = 72;

/// A log macro.
#[derive(Debug, PartialEq)]
struct LogLine {
    level: &'static str,
    place: String,
    message: String,
    /// Names, with the value of those that are literals.
    fields: Vec<(String, Option<String>)>,
}

impl LogLine {
    /// The literal value of a field; empty if it is computed.
    fn literal(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_deref().unwrap_or_default())
    }

    fn row(&self) -> String {
        let shown = |text: &str| text.replace('|', "\\|");
        let fields = self.fields.iter().filter(|(name, _)| !COLUMNS.contains(&name.as_str()));
        let fields: Vec<_> = fields.map(|(name, _)| format!("`{name}`")).collect();
        let column = |name: &str| match self.literal(name) {
            Some("") => format!("see `{name}`"),
            Some(text) => shown(text),
            None => String::new(),
        };
        let event = self.literal("event").unwrap_or_default();
        let head = format!("| `{event}` | {} | {} |", shown(&self.message), fields.join(" "));
        match self.level {
            "debug" => format!("{head}\n"),
            _ => format!("{head} {} | {} |\n", column("next"), column("remedy")),
        }
    }
}

/// Log macros of a module.
fn log_lines(module: &Module) -> Vec<LogLine> {
    let mut found = Vec::new();
    for (level, _) in LEVELS {
        let own = format!("tracing::{level}!(");
        let openings = module.code.match_indices(&own);
        // The level of an attempt's line depends on its result.
        let either = ["warn", "info"].contains(&level).then(|| module.code.match_indices("tracing::$level!("));
        for (at, opening) in openings.chain(either.into_iter().flatten()) {
            let open = at + opening.len() - 1;
            let arguments = arguments(&module.code, open + 1..closing(&module.code, open) - 1);
            let (message, fields) = arguments.split_last().unwrap();
            found.push(LogLine {
                level,
                place: format!("{}:{}", module.source.path, module.source.line(at)),
                message: text(module, message).unwrap_or_default(),
                fields: fields.iter().map(|range| field(module, range)).collect(),
            });
        }
    }
    found
}

/// Arguments of a macro, in their order.
fn arguments(code: &str, mut rest: Range<usize>) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    while let Some(comma) = outside(&code[..rest.end], rest.start, &[',']) {
        found.push(rest.start..comma);
        rest.start = comma + 1;
    }
    found.push(rest);
    found.retain(|range| !code[range.clone()].trim().is_empty());
    found
}

/// `%error`, `name`, or `name = value`.
fn field(module: &Module, range: &Range<usize>) -> (String, Option<String>) {
    let code = &module.code[range.clone()];
    match code.split_once(" = ") {
        Some((name, value)) => {
            let literal = value.trim_start().starts_with('"').then(|| text(module, range)).flatten();
            (name.trim().to_owned(), literal)
        }
        None => (code.trim().trim_start_matches(['%', '?']).to_owned(), None),
    }
}

/// The string literal in a range.
fn text(module: &Module, range: &Range<usize>) -> Option<String> {
    let (_, text) = module.source.strings.iter().find(|(at, _)| range.contains(at))?;
    let mut lines = text.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let joined = lines.fold(first, |joined, line| joined + line.trim_start());
    Some(joined.replace("\\\"", "\""))
}

/// The worker's own log lines; `sim` and `dev` are not part of the production worker.
fn all() -> Vec<LogLine> {
    let program = rust::program();
    let modules =
        program.iter().filter(|module| !["sim", "dev"].iter().any(|room| module.names.iter().any(|n| n == room)));
    modules.flat_map(log_lines).collect()
}

fn tables(lines: &[LogLine]) -> String {
    let mut page = String::new();
    for (level, heading) in LEVELS {
        let last = if level == "debug" { "" } else { " what consign does next | what you can do |" };
        let rule = if level == "debug" { "" } else { "---|---|" };
        // The same event may be logged in several places.
        let rows = lines.iter().filter(|line| line.level == level).map(LogLine::row);
        let rows: String = rows.collect::<BTreeSet<_>>().into_iter().collect();
        let _ = write!(page, "\n## {heading}\n\n| event | message | fields |{last}\n|---|---|---|{rule}\n{rows}");
    }
    page + "\n"
}

#[test]
fn the_page_of_log_events_is_that_of_the_source() {
    let page = std::fs::read_to_string(file(PAGE)).unwrap();
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let renewed = format!("{head}{BEGIN}{}{END}{tail}", tables(&all()));
    if std::env::var_os("CONSIGN_WRITE_GUIDE").is_some() {
        std::fs::write(file(PAGE), &renewed).unwrap();
    }
    let written = std::fs::read_to_string(file(PAGE)).unwrap();
    for (number, (written, made)) in written.lines().zip(renewed.lines()).enumerate() {
        assert_eq!(written, made, "{PAGE}:{}: CONSIGN_WRITE_GUIDE=1 writes it again", number + 1);
    }
    assert_eq!(written, renewed);
}

/// What is wrong with a log line.
fn flaw(line: &LogLine) -> Option<String> {
    let event = line.literal("event").unwrap_or_default();
    let is_name = !event.is_empty() && event.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let severe = ["error", "warn"].contains(&line.level);
    let missing = COLUMNS.iter().find(|name| severe && line.literal(name).is_none());
    match missing {
        _ if !is_name => Some("needs `event = \"snake_case\"`".to_owned()),
        Some(missing) => Some(format!("needs the field `{missing}`")),
        None if line.message.is_empty() || line.message.contains('{') => Some("needs a fixed message".to_owned()),
        None if line.message.len() > MESSAGE_LENGTH => Some("has a message of more than one clause".to_owned()),
        None if line.fields.iter().any(|(name, _)| name == "message") => {
            Some("has a field that hides its message".to_owned())
        }
        None => None,
    }
}

#[test]
fn each_log_line_has_an_event_and_each_warning_a_remedy() {
    let lines = all();
    assert!(lines.len() > 90, "only {} log lines were found", lines.len());
    let flaws = lines.iter().filter_map(|line| Some(format!("{}: {}", line.place, flaw(line)?)));
    let flaws: Vec<_> = flaws.collect();
    assert!(flaws.is_empty(), "{}", flaws.join("\n"));
}

#[test]
fn a_line_without_its_fields_is_found() {
    let parsed = |code: &str| {
        let source = rust::Source::parse("src/x.rs".into(), code.into());
        let module = Module { names: Vec::new(), code: source.code.clone(), source };
        log_lines(&module).remove(0)
    };
    let good = "tracing::warn!(\n event = \"x_failed\", %error, name = a.b(c, d), next = \"it \\\n  waits\", remedy = f.hint, \"a, b\");";
    let line = parsed(good);
    assert_eq!((line.message.as_str(), line.literal("next"), flaw(&line)), ("a, b", Some("it waits"), None));
    assert_eq!(line.row(), "| `x_failed` | a, b | `error` `name` | it waits | see `remedy` |\n");
    for (from, to) in [("event = \"x_failed\"", "c"), ("next =", "n ="), ("remedy =", "r ="), ("\"a, b\"", "\"{c}\"")] {
        assert!(flaw(&parsed(&good.replace(from, to))).is_some(), "{from}");
    }
    assert!(flaw(&parsed(&good.replace("%error", "message"))).is_some());
}
