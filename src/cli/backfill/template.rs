//! The template of a backfill's jobs: a job in JSON whose texts have holes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::range::Step;
use crate::domain::control::BackfillId;
use crate::domain::job::wire::{self, RawJob};

/// What a template without an id gets.
const DEFAULT_ID: &str = "\"id\":\"{backfill}/{stamp}\",";

/// The holes that every template may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hole {
    Date,
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Offset,
    Stamp,
    Backfill,
}

impl Hole {
    const ALL: [(&'static str, Self); 9] = [
        ("date", Self::Date),
        ("year", Self::Year),
        ("month", Self::Month),
        ("day", Self::Day),
        ("hour", Self::Hour),
        ("minute", Self::Minute),
        ("offset", Self::Offset),
        ("stamp", Self::Stamp),
        ("backfill", Self::Backfill),
    ];

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, hole)| hole)
    }

    fn fill(self, step: &Step, backfill: &BackfillId) -> String {
        let at = step.at();
        match self {
            Self::Date => at.date().to_string(),
            Self::Year => format!("{:04}", at.year()),
            Self::Month => format!("{:02}", at.month()),
            Self::Day => format!("{:02}", at.day()),
            Self::Hour => format!("{:02}", at.hour()),
            Self::Minute => format!("{:02}", at.minute()),
            Self::Offset => step.offset().replace(':', ""),
            Self::Stamp => step.stamp(),
            Self::Backfill => backfill.to_string(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Hole(Hole),
}

#[derive(Debug, Clone)]
enum Node {
    Plain(Value),
    Text(Vec<Piece>),
    Object(Vec<(String, Node)>),
    List(Vec<Node>),
}

/// A template that was read: its shape is that of a job, and every hole is known.
#[derive(Debug, Clone)]
pub(super) struct Template {
    root: Node,
    canonical: String,
}

impl Template {
    /// Reads a template and puts the variables in.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its field.
    pub(super) fn parse(text: &str, variables: &BTreeMap<String, String>) -> Result<Self, Vec<String>> {
        let given: Value = serde_json::from_str(text).map_err(|problem| vec![format!("is no JSON: {problem}")])?;
        let has_id = match &given {
            Value::Object(fields) if !fields.is_empty() => fields.contains_key("id"),
            _ => return Err(vec!["is no job: write one JSON object, as `consign schema job` describes it".to_owned()]),
        };
        let text = if has_id { text.to_owned() } else { text.replacen('{', &format!("{{{DEFAULT_ID}"), 1) };
        let raw = wire::read(text.as_bytes()).map_err(|rejected| vec![rejected.to_string()])?;
        let whole = serde_json::to_value(&raw).map_err(|problem| vec![problem.to_string()])?;
        let canonical = whole.to_string();
        let mut reading = Reading { variables, used: BTreeSet::new(), problems: Vec::new() };
        let root = reading.node("", whole);
        reading.finish().map(|()| Self { root, canonical })
    }

    /// The same for templates that mean the same, however they are written.
    pub(super) fn canonical(&self) -> &str {
        &self.canonical
    }

    /// The job of one step, as it is written. Not yet checked.
    ///
    /// # Errors
    /// What came out has no longer the shape of a job.
    pub(super) fn fill(&self, step: &Step, backfill: &BackfillId) -> Result<RawJob, String> {
        serde_json::from_value(self.root.fill(step, backfill)).map_err(|problem| problem.to_string())
    }
}

impl Node {
    fn fill(&self, step: &Step, backfill: &BackfillId) -> Value {
        match self {
            Self::Plain(value) => value.clone(),
            Self::Text(pieces) => {
                let texts = pieces.iter().map(|piece| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Hole(hole) => hole.fill(step, backfill),
                });
                Value::String(texts.collect())
            }
            Self::Object(fields) => {
                Value::Object(fields.iter().map(|(name, node)| (name.clone(), node.fill(step, backfill))).collect())
            }
            Self::List(items) => Value::Array(items.iter().map(|node| node.fill(step, backfill)).collect()),
        }
    }
}

/// A template that is being read.
struct Reading<'a> {
    variables: &'a BTreeMap<String, String>,
    used: BTreeSet<String>,
    problems: Vec<String>,
}

impl Reading<'_> {
    fn node(&mut self, field: &str, value: Value) -> Node {
        let below = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
        match value {
            Value::String(text) => match self.pieces(&text) {
                Ok(pieces) => Node::Text(pieces),
                Err(problem) => {
                    self.problems.push(format!("{field}: {problem}"));
                    Node::Plain(Value::Null)
                }
            },
            Value::Object(fields) => {
                let nodes = fields.into_iter().map(|(name, value)| {
                    let node = self.node(&below(&name), value);
                    (name, node)
                });
                Node::Object(nodes.collect())
            }
            Value::Array(items) => Node::List(items.into_iter().map(|item| self.node(field, item)).collect()),
            other => Node::Plain(other),
        }
    }

    fn pieces(&mut self, text: &str) -> Result<Vec<Piece>, String> {
        let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            let Some((name, after)) = rest.split_once('}').filter(|_| brace == "{") else {
                return Err(format!("a single `{brace}`; write `{brace}{brace}` for the sign itself"));
            };
            match (Hole::of(name), self.variables.get(name)) {
                (Some(hole), _) => {
                    pieces.extend([Piece::Text(std::mem::take(&mut plain)), Piece::Hole(hole)]);
                }
                (None, Some(value)) => {
                    self.used.insert(name.to_owned());
                    plain.push_str(value);
                }
                (None, None) => return Err(self.unknown(name)),
            }
            rest = after;
        }
        plain.push_str(rest);
        pieces.push(Piece::Text(plain));
        Ok(pieces)
    }

    fn unknown(&self, name: &str) -> String {
        let known: Vec<_> =
            Hole::ALL.iter().map(|(name, _)| *name).chain(self.variables.keys().map(String::as_str)).collect();
        format!("{{{name}}} is no placeholder; there are {}; give others with --var {name}=VALUE", known.join(", "))
    }

    fn finish(self) -> Result<(), Vec<String>> {
        let mut problems = self.problems;
        for name in self.variables.keys() {
            if Hole::of(name).is_some() {
                problems.push(format!("--var {name}: every template has a placeholder of this name; choose another"));
            } else if problems.is_empty() && !self.used.contains(name) {
                problems.push(format!("--var {name}: the template has no {{{name}}}"));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::range::tests::steps;
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn filled(template: &str, pairs: &[(&str, &str)]) -> Value {
        let template = Template::parse(template, &variables(pairs)).unwrap();
        let step = &steps("2026-03-07", "2026-03-07", "1h", "Europe/Berlin")[15];
        serde_json::to_value(template.fill(step, &BackfillId::parse("b").unwrap()).unwrap()).unwrap()
    }

    fn problems(template: &str, pairs: &[(&str, &str)]) -> String {
        Template::parse(template, &variables(pairs)).unwrap_err().join("\n")
    }

    fn job(field: &str, value: &str) -> String {
        let job = serde_json::json!({
            "version": 1, "id": "x/{date}", "source": {"url": "file:///a"}, "destination": "acme", "key": "k",
        });
        let mut job = job;
        job[field] = value.into();
        job.to_string()
    }

    #[test]
    fn every_text_of_a_job_may_have_holes() {
        let template = r#"{"version": 1, "id": "acme/{date}T{hour}", "destination": "{dest}",
            "source": {"url": "https://e.example/{year}/{month}/{day}/{hour}{minute}{offset}.csv?r={region}", "size": 7},
            "key": "{{{date}}}", "metadata": {"day": "{date}"}, "labels": {"of": "{backfill} {stamp}"}}"#;
        let job = filled(template, &[("region", "eu"), ("dest", "acme")]);
        assert_eq!(job["id"], "acme/2026-03-07T15");
        assert_eq!(job["destination"], "acme");
        assert_eq!(job["source"]["url"], "https://e.example/2026/03/07/1500+0100.csv?r=eu");
        assert_eq!((&job["key"], &job["source"]["size"]), (&"{2026-03-07}".into(), &7.into()));
        assert_eq!(job["metadata"]["day"], "2026-03-07");
        assert_eq!(job["labels"]["of"], "b 2026-03-07T15:00+01:00");
    }

    #[test]
    fn without_an_id_each_step_gets_one() {
        let text = r#"{"version": 1, "source": {"url": "file:///a"}, "destination": "acme", "key": "{date}"}"#;
        assert_eq!(filled(text, &[])["id"], "b/2026-03-07T15:00+01:00");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (template, pairs, expected) in [
            (job("key", "{dat}"), &[][..], "key: {dat} is no placeholder; there are date, year"),
            (job("key", "a}b"), &[], "key: a single `}`"),
            (job("key", "{date"), &[], "key: a single `{`"),
            (job("id", "x"), &[("region", "eu")], "--var region: the template has no {region}"),
            (job("id", "x"), &[("date", "eu")], "--var date: every template has a placeholder of this name"),
            (job("kay", "x"), &[], "kay"),
            (job("id", "x").replace("\"version\":1", "\"version\":2"), &[], "version"),
            (job("id", "x").replacen('{', "{\"key\":\"twice\",", 1), &[], "key"),
            ("[]".to_owned(), &[], "is no job"),
            ("{}".to_owned(), &[], "is no job"),
            ("{".to_owned(), &[], "is no JSON"),
        ] {
            let said = problems(&template, pairs);
            assert!(said.contains(expected), "{template}: {said}");
        }
        let both = problems(&job("key", "{x}").replace("x/{date}", "{y}"), &[]);
        assert!(both.contains("id: {y}") && both.contains("key: {x}"), "all at once: {both}");
    }

    #[test]
    fn the_way_it_is_written_does_not_matter() {
        let canonical = |text: &str| Template::parse(text, &BTreeMap::new()).unwrap().canonical().to_owned();
        let (a, b) = (job("key", "{date}"), serde_json::from_str::<Value>(&job("key", "{date}")).unwrap());
        assert_eq!(canonical(&a), canonical(&format!("\n{b:#}\n")));
        assert_ne!(canonical(&a), canonical(&job("key", "{day}")));
    }
}
