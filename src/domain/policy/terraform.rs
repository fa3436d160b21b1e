//! The customer's side as Terraform. Policies stand in it as the same JSON that is pasted by hand.

use serde_json::Value;

use super::document::{Scope, pretty};
use super::party::{Party, TemplateDocuments};
use crate::domain::destination::Destination;

/// A stand-in that no policy contains; the reference to the variable takes its place.
const KEY_MARK: &str = "consign-default-kms-key-arn";

/// Resources that create the role (or user) with its permissions; what the customer may change is a
/// variable.
pub fn terraform(destination: &Destination, scope: &Scope, party: &Party) -> String {
    let documents = TemplateDocuments::of(destination, scope, &KEY_MARK.into());
    let mut out = format!("# Lets consign write into s3://{}/{}\n", destination.bucket, destination.prefix);
    variables(&mut out, party, &documents);
    holder(&mut out, party);
    policy(&mut out, party, "consign", &documents.required, None);
    if let Some(optional) = &documents.optional {
        policy(&mut out, party, "consign_optional", optional, Some("var.optional_permissions ? 1 : 0"));
    }
    if let Some(key) = &documents.default_key {
        let given = "var.default_kms_key_arn != \"\" ? 1 : 0";
        policy(&mut out, party, "consign_default_key", key, Some(given));
    }
    output(&mut out, party);
    out
}

fn variables(out: &mut String, party: &Party, documents: &TemplateDocuments) {
    let (name, default, what) = match party {
        Party::Role { name, .. } => ("role_name", name, "The role's name; tell the platform if you change it"),
        Party::User { name } => ("user_name", name, "The user's name"),
    };
    variable(out, name, "string", quoted(default), what);
    let what = "The ARN of a permissions boundary, if your organization requires one; else null";
    variable(out, "permissions_boundary_arn", "string", "null".to_owned(), what);
    if documents.optional.is_some() {
        let what = "Whether to grant what deliveries work without: listing, cleaning up, the bucket's region";
        variable(out, "optional_permissions", "bool", "true".to_owned(), what);
    }
    if documents.default_key.is_some() {
        let what =
            "The ARN of the KMS key of your own that the bucket encrypts with by default; empty if there is none";
        variable(out, "default_kms_key_arn", "string", quoted(""), what);
    }
}

fn variable(out: &mut String, name: &str, kind: &str, default: String, description: &str) {
    let attributes = [("description", quoted(description)), ("type", kind.to_owned()), ("default", default)];
    block(out, &format!("variable \"{name}\""), &attributes);
}

/// The role or the user.
fn holder(out: &mut String, party: &Party) {
    let boundary = "var.permissions_boundary_arn".to_owned();
    let Party::Role { path, trust, .. } = party else {
        let attributes = [("name", "var.user_name".to_owned()), ("permissions_boundary", boundary)];
        block(out, "resource \"aws_iam_user\" \"consign\"", &attributes);
        return;
    };
    let attributes = [
        ("name", "var.role_name".to_owned()),
        ("path", quoted(path)),
        ("description", quoted("consign writes files into one bucket with this role")),
        ("max_session_duration", "3600".to_owned()),
        ("permissions_boundary", boundary),
        ("assume_role_policy", heredoc(trust)),
    ];
    block(out, "resource \"aws_iam_role\" \"consign\"", &attributes);
}

/// A policy of the role, or for a user a managed one: the inline policies of a user hold 2,048
/// characters together.
fn policy(out: &mut String, party: &Party, label: &str, document: &Value, count: Option<&str>) {
    let name = label.replace('_', "-");
    let counted = || count.map(|count| ("count", count.to_owned())).into_iter();
    let block = |out: &mut String, kind: &str, attributes: [(&str, String); 2], last: Option<(&str, String)>| {
        let attributes: Vec<_> = counted().chain(attributes).chain(last).collect();
        self::block(out, &format!("resource \"{kind}\" \"{label}\""), &attributes);
    };
    let text = ("policy", heredoc(document));
    if let Party::Role { .. } = party {
        let role = ("role", "aws_iam_role.consign.id".to_owned());
        block(out, "aws_iam_role_policy", [("name", quoted(&name)), role], Some(text));
        return;
    }
    block(out, "aws_iam_policy", [("name", format!("\"${{var.user_name}}-{name}\"")), text], None);
    let index = if count.is_some() { "[0]" } else { "" };
    let user = ("user", "aws_iam_user.consign.name".to_owned());
    let attached = ("policy_arn", format!("aws_iam_policy.{label}{index}.arn"));
    block(out, "aws_iam_user_policy_attachment", [user, attached], None);
}

fn output(out: &mut String, party: &Party) {
    let (name, value, what) = match party {
        Party::Role { .. } => ("role_arn", "aws_iam_role.consign.arn", "Give this to the platform"),
        Party::User { .. } => ("user_name", "aws_iam_user.consign.name", "Create an access key for this user"),
    };
    let attributes = [("description", quoted(what)), ("value", value.to_owned())];
    block(out, &format!("output \"{name}\""), &attributes);
}

/// One block, its attributes aligned as `terraform fmt` does.
fn block(out: &mut String, head: &str, attributes: &[(&str, String)]) {
    let width = attributes.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = attributes.iter().map(|(name, value)| format!("  {name:<width$} = {value}\n"));
    out.push_str(&["\n", head, " {\n", &lines.collect::<String>(), "}\n"].concat());
}

/// A text in quotes; `${` and `%{` begin nothing in it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace("${", "$${").replace("%{", "%%{")
}

/// JSON as Terraform's indented text block. There a backslash stands for itself, and only `${` and
/// `%{` begin something.
fn heredoc(document: &Value) -> String {
    let text = pretty(document).replace("${", "$${").replace("%{", "%%{");
    let text = text.replace(KEY_MARK, "${var.default_kms_key_arn}");
    let lines = text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!("<<-JSON\n{lines}  JSON")
}
