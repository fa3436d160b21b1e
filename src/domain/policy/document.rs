//! Permission documents: the statements of [`Permission`] put together, and the text to paste.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::permission::{Need, Permission};
use super::resource::key_resource;
use crate::domain::destination::{Destination, KmsKeyArn};

/// Scope of a permission document beyond the required permissions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Also what deliveries work without.
    pub optional: bool,
    /// Jobs for this destination carry tags.
    pub tags: bool,
    /// The only addresses or networks S3 may be called from; empty for any.
    pub source_addresses: Vec<String>,
}

impl Scope {
    /// Returns true if a document of this scope grants the permission.
    pub fn includes(&self, permission: Permission, destination: &Destination) -> bool {
        match permission.need(destination) {
            Need::Required => true,
            Need::ForTags => self.tags,
            Need::ForDefaultKey => false,
            Need::Optional => self.optional,
        }
    }
}

/// A policy document of these statements.
pub fn document(statements: &[Value]) -> Value {
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// The permissions of the role (or user) of a destination: least privilege, one statement for each
/// purpose.
///
/// The source addresses apply to the calls of S3 alone: those of KMS are made by S3 in our name,
/// from S3's addresses.
pub fn permissions(destination: &Destination, scope: &Scope) -> Value {
    document(&statements(destination, scope, |_| true))
}

/// The statements of [`permissions`] as far as they are asked for; what is required comes first.
pub(super) fn statements(
    destination: &Destination,
    scope: &Scope,
    asked_for: impl Fn(Permission) -> bool,
) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    let included = |permission: &Permission| scope.includes(*permission, destination) && asked_for(*permission);
    for permission in Permission::ALL.into_iter().filter(included) {
        let statement = statement(permission, permission.bounds(destination));
        match all.iter_mut().find(|earlier| earlier["Sid"] == statement["Sid"]) {
            Some(earlier) => join(earlier, permission),
            None if permission.is_kms() => all.push(statement),
            None => all.push(from_addresses(statement, &scope.source_addresses)),
        }
    }
    all
}

/// The exact statement that grants one permission, to paste.
pub fn single(permission: Permission, destination: &Destination) -> Value {
    statement(permission, permission.bounds(destination))
}

/// As [`single`] for a KMS permission on a key the destination doesn't name: that of the bucket's
/// default encryption, as an error of S3 names it.
pub fn single_on_key(permission: Permission, destination: &Destination, key: &KmsKeyArn) -> Value {
    statement(permission, key_resource(destination, Some(key)))
}

fn statement(permission: Permission, (resource, condition): (String, Value)) -> Value {
    let mut statement = allow(&permission.as_str().into(), &resource, condition);
    statement["Sid"] = permission.sid().into();
    statement
}

/// The statement without a `Sid` that allows `action` on `resource`, where `condition` holds.
pub(super) fn allow(action: &Value, resource: &str, condition: Value) -> Value {
    let mut statement = json!({ "Effect": "Allow", "Action": action, "Resource": resource });
    if condition.as_object().is_some_and(|condition| !condition.is_empty()) {
        statement["Condition"] = condition;
    }
    statement
}

fn join(statement: &mut Value, permission: Permission) {
    let action = statement["Action"].take();
    let mut actions = if let Value::Array(actions) = action { actions } else { vec![action] };
    actions.push(permission.as_str().into());
    statement["Action"] = actions.into();
}

/// Adds the source addresses to a statement's condition; none leave it as it is.
///
/// `aws:SourceIp` is the address of the caller. It is of use for calls the worker itself makes over
/// the public internet: AssumeRole, and everything of S3. It must not be asked of KMS: S3 calls KMS
/// in the worker's name, from an address of S3. And it is absent where a call comes through a VPC
/// endpoint, so a statement with it refuses those
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html#condition-keys-sourceip>).
pub(super) fn from_addresses(mut statement: Value, addresses: &[String]) -> Value {
    if !addresses.is_empty() {
        statement["Condition"]["IpAddress"] = json!({ "aws:SourceIp": addresses });
    }
    statement
}

/// JSON to paste: keys in the order people write policies, and characters that IAM takes only
/// escaped (beyond U+00FF) as `\u....`.
pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, 0);
    out
}

/// JSON on one line, with the same characters escaped.
pub(super) fn compact(value: &Value) -> String {
    escaped(&value.to_string())
}

/// The order of the keys, of policies and of templates; others follow as they come.
const ORDER: [&str; 16] = [
    "AWSTemplateFormatVersion",
    "ID",
    "Description",
    "Version",
    "Sid",
    "Type",
    "Effect",
    "Principal",
    "Action",
    "Resource",
    "Condition",
    "Parameters",
    "Conditions",
    "Resources",
    "Statement",
    "Properties",
];

/// An object's entries in the order people write them.
pub(super) fn ordered(object: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = object.iter().collect();
    entries.sort_by_key(|(key, _)| ORDER.iter().position(|name| name == key).unwrap_or(ORDER.len()));
    entries
}

fn write(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            let items = ordered(object).into_iter().map(|(key, value)| (Some(key.as_str()), value));
            write_items(out, ['{', '}'], items, depth);
        }
        Value::Array(items) if !items.is_empty() => {
            write_items(out, ['[', ']'], items.iter().map(|item| (None, item)), depth);
        }
        plain => out.push_str(&compact(plain)),
    }
}

fn write_items<'a>(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    depth: usize,
) {
    out.push(open);
    for (number, (key, value)) in items.enumerate() {
        out.push_str(if number == 0 { "\n" } else { ",\n" });
        out.push_str(&"  ".repeat(depth + 1));
        if let Some(key) = key {
            out.push_str(&compact(&Value::from(key)));
            out.push_str(": ");
        }
        write(out, value, depth + 1);
    }
    out.push('\n');
    out.push_str(&"  ".repeat(depth));
    out.push(close);
}

fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if character <= '\u{ff}' {
            out.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}
