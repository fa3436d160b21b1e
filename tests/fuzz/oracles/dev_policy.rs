//! Policies of `consign dev`, against an evaluation of its own.

use consign::fuzzing::{self, DevPolicyRequest};
use serde_json::Value;

/// Longest pattern whose refusal is compared as well: beyond it, the program may give up.
const MAX_PATTERN: usize = 200;

/// Three lines are action, resource and prefix; the rest is a policy.
pub fn dev_policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.splitn(4, '\n');
    let (Some(action), Some(resource), Some(prefix), Some(document)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return;
    };
    let request = DevPolicyRequest { action, resource, prefix: (!prefix.is_empty()).then_some(prefix) };
    let Ok(allowed) = fuzzing::dev_policy_allows(document, request) else { return };
    let parsed: Value = serde_json::from_str(document).expect("a policy is JSON");
    let statements = parsed["Statement"].as_array().expect("a policy has statements");
    let expected = statements.iter().any(|statement| statement_allows(statement, request));
    assert!(!allowed || expected, "{request:?} is allowed by {document}");
    if document.len() < MAX_PATTERN {
        assert_eq!(allowed, expected, "{request:?} {document}");
    }
}

fn statement_allows(statement: &Value, request: DevPolicyRequest<'_>) -> bool {
    let conditions = statement.get("Condition").and_then(Value::as_object);
    statement["Effect"] == "Allow"
        && any_like(&statement["Action"], request.action)
        && any_like(&statement["Resource"], request.resource)
        && conditions.into_iter().flatten().all(|(operator, keys)| {
            let keys = keys.as_object().filter(|_| operator == "StringLike");
            let prefix = request.prefix.unwrap_or_default();
            keys.is_some_and(|keys| keys.iter().all(|(key, like)| key == "s3:prefix" && any_like(like, prefix)))
        })
}

fn any_like(patterns: &Value, text: &str) -> bool {
    match patterns {
        Value::String(pattern) => like(pattern, text),
        Value::Array(patterns) => {
            patterns.iter().all(Value::is_string) && patterns.iter().any(|one| any_like(one, text))
        }
        _ => false,
    }
}

#[derive(Clone, Copy)]
enum Token {
    Any,
    One,
    Char(char),
}

fn tokens(mut pattern: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    while let Some(first) = pattern.chars().next() {
        let escaped = ['*', '?', '$'].into_iter().find(|c| pattern.starts_with(&format!("${{{c}}}")));
        let (token, length) = match (escaped, first) {
            (Some(c), _) => (Token::Char(c), 4),
            (None, '*') => (Token::Any, 1),
            (None, '?') => (Token::One, 1),
            (None, c) => (Token::Char(c), c.len_utf8()),
        };
        tokens.push(token);
        pattern = &pattern[length..];
    }
    tokens
}

/// One row of the table for each token: which prefixes of the text it can end at.
fn like(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    for token in tokens(pattern) {
        let before = ends;
        ends = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            ends[at] = match token {
                Token::Any => before[..=at].contains(&true),
                Token::One => at > 0 && before[at - 1],
                Token::Char(c) => at > 0 && before[at - 1] && text[at - 1] == c,
            };
        }
    }
    ends[text.len()]
}
