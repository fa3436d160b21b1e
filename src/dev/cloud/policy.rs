//! IAM policies as far as this cloud needs them: Allow statements with actions, resources and a
//! condition on the listed prefix.
//!
//! Everything that is not understood allows nothing.

use regex_lite::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Request that a policy is evaluated for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// `s3:PutObject` and its like.
    pub(crate) action: &'a str,
    /// The ARN of the bucket or the object.
    pub(crate) resource: &'a str,
    /// The prefix of a listing.
    pub(crate) prefix: Option<&'a str>,
}

/// A policy document: of a customer's role or user, or of a session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy(Vec<Statement>);

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ParsedPolicy {
    #[serde(rename = "Version")]
    _version: String,
    statement: Vec<Statement>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Statement {
    #[serde(default)]
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    effect: Effect,
    action: StringOrList,
    resource: StringOrList,
    #[serde(default)]
    condition: Map<String, Value>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Effect {
    Allow,
}

/// IAM takes one string where it takes a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum StringOrList {
    One(String),
    Many(Vec<String>),
}

impl StringOrList {
    fn any_like(&self, text: &str) -> bool {
        match self {
            Self::One(pattern) => like(pattern, text),
            Self::Many(patterns) => patterns.iter().any(|pattern| like(pattern, text)),
        }
    }
}

impl Policy {
    /// Reads a document.
    ///
    /// # Errors
    /// It is no policy, or one with something this cloud does not know.
    pub(crate) fn parse(document: &str) -> Result<Self, String> {
        serde_json::from_str(document).map(|ParsedPolicy { statement, .. }| Self(statement)).map_err(|e| e.to_string())
    }

    /// Returns true if a statement allows it.
    pub(crate) fn allows(&self, asked: &Asked<'_>) -> bool {
        self.0.iter().any(|statement| statement.allows(asked))
    }
}

impl Statement {
    fn allows(&self, asked: &Asked<'_>) -> bool {
        let Effect::Allow = self.effect;
        self.action.any_like(asked.action) && self.resource.any_like(asked.resource) && self.conditions_hold(asked)
    }

    /// Returns true if every condition holds; only `StringLike` on `s3:prefix` can.
    fn conditions_hold(&self, asked: &Asked<'_>) -> bool {
        self.condition.iter().all(|(operator, keys)| {
            let keys = keys.as_object().filter(|_| operator == "StringLike");
            keys.is_some_and(|keys| {
                keys.iter().all(|(key, patterns)| key == "s3:prefix" && prefix_fits(patterns, asked))
            })
        })
    }
}

fn prefix_fits(patterns: &Value, asked: &Asked<'_>) -> bool {
    let patterns = StringOrList::deserialize(patterns).ok();
    patterns.is_some_and(|patterns| patterns.any_like(asked.prefix.unwrap_or_default()))
}

/// IAM's wildcards: `*` and `?`, and `${*}`, `${?}`, `${$}` for the characters themselves.
fn like(pattern: &str, text: &str) -> bool {
    let literal = [(r"\$\{\*\}", "[*]"), (r"\$\{\?\}", "[?]"), (r"\$\{\$\}", "[$]")];
    let wild = [(r"\*", ".*"), (r"\?", ".")];
    let replaced = |pattern: String, (from, to): (&str, &str)| pattern.replace(from, to);
    let pattern = literal.into_iter().chain(wild).fold(regex_lite::escape(pattern), replaced);
    Regex::new(&format!("(?s)^{pattern}$")).is_ok_and(|pattern| pattern.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_are_those_of_iam() {
        for (pattern, text) in
            [("a/*", "a/b/c"), ("*", ""), ("a?c*", "abc"), ("*b*d", "abcbd"), ("a${*}${$}b*", "a*$bc")]
        {
            assert!(like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a/*", "a"), ("a?c", "ac"), ("a${*}b", "axb"), ("*b*d", "abdc"), ("", "a")] {
            assert!(!like(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_listing_is_bound_to_its_prefix() {
        let policy = Policy::parse(
            r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:ListBucket",
                "Resource": "arn:aws:s3:::b", "Condition": {"StringLike": {"s3:prefix": "in/*"}}}]}"#,
        )
        .unwrap();
        let asked = |prefix| Asked { action: "s3:ListBucket", resource: "arn:aws:s3:::b", prefix };
        assert!(policy.allows(&asked(Some("in/a"))));
        assert!(!policy.allows(&asked(Some("out/"))) && !policy.allows(&asked(None)));
    }

    #[test]
    fn what_is_not_understood_allows_nothing() {
        assert!(
            Policy::parse(
                r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]}"#
            )
            .is_err()
        );
        let odd = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*",
            "Condition": {"Bool": {"aws:SecureTransport": "true"}}}]}"#;
        assert!(!Policy::parse(odd).unwrap().allows(&Asked { action: "s3:GetObject", resource: "x", prefix: None }));
    }
}
