//! Template of a backfill's jobs: a job in JSON with placeholders in its strings.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::calendar::CalendarStep;
use crate::domain::control::BackfillId;
use crate::domain::job::wire::{self, RawJob};

/// Id field of a template that has none.
const DEFAULT_ID: &str = "\"id\":\"{backfill}/{stamp}\",";

/// Text of a predefined placeholder.
type FillFn = fn(&CalendarStep, &BackfillId) -> String;

/// Predefined placeholders.
const PLACEHOLDERS: [(&str, FillFn); 9] = [
    ("date", |step, _| step.at.date().to_string()),
    ("year", |step, _| format!("{:04}", step.at.year())),
    ("month", |step, _| format!("{:02}", step.at.month())),
    ("day", |step, _| format!("{:02}", step.at.day())),
    ("hour", |step, _| format!("{:02}", step.at.hour())),
    ("minute", |step, _| format!("{:02}", step.at.minute())),
    ("offset", |step, _| step.offset().replace(':', "")),
    ("stamp", |step, _| step.stamp()),
    ("backfill", |_, backfill| backfill.to_string()),
];

fn placeholder(name: &str) -> Option<FillFn> {
    PLACEHOLDERS.into_iter().find(|(known, _)| *known == name).map(|(_, fill)| fill)
}

#[derive(Debug, Clone)]
enum Segment {
    Text(String),
    Placeholder(FillFn),
}

#[derive(Debug, Clone)]
enum TemplateNode {
    Plain(Value),
    Text(Vec<Segment>),
    Object(Vec<(String, TemplateNode)>),
    List(Vec<TemplateNode>),
}

/// Parsed template: it has the shape of a job, and every placeholder is known.
#[derive(Debug, Clone)]
pub struct Template {
    root: TemplateNode,
    /// Template in canonical form, which does not depend on whitespace and field order.
    pub canonical: String,
    /// True if the jobs have a generation of their own.
    pub gives_generation: bool,
}

impl Template {
    /// Parses a template and substitutes the variables.
    ///
    /// # Errors
    /// All problems, each with its field.
    pub fn parse(text: &str, variables: &BTreeMap<String, String>) -> Result<Self, Vec<String>> {
        if text.trim().is_empty() {
            return Err(vec!["is empty; write one job, as `consign schema job` describes it".to_owned()]);
        }
        let given: Value = serde_json::from_str(text).map_err(|problem| {
            vec![format!("is not JSON ({problem}); write one job, as `consign schema job` describes it")]
        })?;
        let has_id = match &given {
            Value::Object(fields) if !fields.is_empty() => fields.contains_key("id"),
            _ => {
                return Err(vec![
                    "is not a job; write one JSON object, as `consign schema job` describes it".to_owned(),
                ]);
            }
        };
        let text = if has_id { text.to_owned() } else { text.replacen('{', &format!("{{{DEFAULT_ID}"), 1) };
        let raw = wire::read(text.as_bytes()).map_err(|rejected| vec![rejected.to_string()])?;
        let job = serde_json::to_value(&raw).map_err(|problem| vec![problem.to_string()])?;
        let canonical = job.to_string();
        let gives_generation = raw.generation.is_some();
        let mut parser = TemplateParser { variables, used: BTreeSet::new(), problems: Vec::new() };
        let root = parser.node("", job);
        parser.finish().map(|()| Self { root, canonical, gives_generation })
    }

    /// Returns the job of one step, not validated yet.
    ///
    /// # Errors
    /// The result does not have the shape of a job.
    pub fn fill(&self, step: &CalendarStep, backfill: &BackfillId) -> Result<RawJob, String> {
        serde_json::from_value(self.root.fill(step, backfill)).map_err(|problem| problem.to_string())
    }
}

impl TemplateNode {
    fn fill(&self, step: &CalendarStep, backfill: &BackfillId) -> Value {
        match self {
            Self::Plain(value) => value.clone(),
            Self::Text(segments) => {
                let texts = segments.iter().map(|segment| match segment {
                    Segment::Text(text) => text.clone(),
                    Segment::Placeholder(fill) => fill(step, backfill),
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

/// Parser of a template.
struct TemplateParser<'a> {
    variables: &'a BTreeMap<String, String>,
    used: BTreeSet<String>,
    problems: Vec<String>,
}

impl TemplateParser<'_> {
    fn node(&mut self, field: &str, value: Value) -> TemplateNode {
        let below = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
        match value {
            Value::String(text) => match self.segments(&text) {
                Ok(segments) => TemplateNode::Text(segments),
                Err(problem) => {
                    self.problems.push(format!("{field}: {problem}"));
                    TemplateNode::Plain(Value::Null)
                }
            },
            Value::Object(fields) => {
                let nodes = fields.into_iter().map(|(name, value)| {
                    let node = self.node(&below(&name), value);
                    (name, node)
                });
                TemplateNode::Object(nodes.collect())
            }
            Value::Array(items) => TemplateNode::List(items.into_iter().map(|item| self.node(field, item)).collect()),
            other => TemplateNode::Plain(other),
        }
    }

    fn segments(&mut self, text: &str) -> Result<Vec<Segment>, String> {
        let (mut segments, mut plain, mut rest) = (Vec::new(), String::new(), text);
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
                return Err(format!("a single `{brace}`; write `{brace}{brace}` for a literal `{brace}`"));
            };
            match (placeholder(name), self.variables.get(name)) {
                (Some(fill), _) => {
                    segments.extend([Segment::Text(std::mem::take(&mut plain)), Segment::Placeholder(fill)]);
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
        segments.push(Segment::Text(plain));
        Ok(segments)
    }

    fn unknown(&self, name: &str) -> String {
        let known: Vec<_> =
            PLACEHOLDERS.iter().map(|(name, _)| *name).chain(self.variables.keys().map(String::as_str)).collect();
        format!("{{{name}}} is not a placeholder; use {}, or define it with --var {name}=VALUE", known.join(", "))
    }

    fn finish(self) -> Result<(), Vec<String>> {
        let mut problems = self.problems;
        for name in self.variables.keys() {
            if placeholder(name).is_some() {
                problems.push(format!("--var {name}: this placeholder is predefined; choose another name"));
            } else if problems.is_empty() && !self.used.contains(name) {
                problems.push(format!("--var {name}: the template does not contain {{{name}}}"));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

#[cfg(test)]
mod tests;
