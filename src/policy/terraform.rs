//! The customer's side as Terraform. Policies stand in it as the same JSON that is pasted by hand.

use std::fmt::Write as _;

use serde_json::Value;

use super::document::{Scope, pretty};
use super::party::{Party, Pieces};
use crate::destination::Destination;

/// A stand-in that no policy contains; the reference to the variable takes its place.
const KEY_MARK: &str = "consign-default-kms-key-arn";

/// Resources that create the role (or user) with its permissions; what the customer may change is a variable.
pub fn terraform(destination: &Destination, scope: &Scope, party: &Party) -> String {
    let pieces = Pieces::of(destination, scope, &KEY_MARK.into());
    let place = format!("{}/{}", destination.bucket, destination.prefix);
    let mut out = format!("# Lets consign write into s3://{place}\n\n");
    variables(&mut out, party, &pieces);
    match party {
        Party::Role { path, trust, .. } => role(&mut out, path, trust),
        Party::User { .. } => user(&mut out),
    }
    policy(&mut out, party, "consign", &pieces.required, None);
    if let Some(optional) = &pieces.optional {
        policy(&mut out, party, "consign_optional", optional, Some("var.optional_permissions"));
    }
    if let Some(key) = &pieces.default_key {
        policy(&mut out, party, "consign_default_key", key, Some("var.default_kms_key_arn != \"\""));
    }
    out.push_str(match party {
        Party::Role { .. } => {
            "output \"role_arn\" {\n  description = \"Give this to the platform\"\n  value       = aws_iam_role.consign.arn\n}\n"
        }
        Party::User { .. } => {
            "output \"user_name\" {\n  description = \"Create an access key for this user\"\n  value       = \
             aws_iam_user.consign.name\n}\n"
        }
    });
    out
}

fn variables(out: &mut String, party: &Party, pieces: &Pieces) {
    let (variable, name, what) = match party {
        Party::Role { name, .. } => ("role_name", name, "The role's name; tell the platform if you change it"),
        Party::User { name } => ("user_name", name, "The user's name"),
    };
    let text = |value: &str| Value::from(value).to_string();
    self::variable(out, variable, "string", &text(name), what);
    let what = "The ARN of a permissions boundary, if your organisation demands one; else null";
    self::variable(out, "permissions_boundary_arn", "string", "null", what);
    if pieces.optional.is_some() {
        let what = "Whether to grant what deliveries work without: listing, cleaning up, the bucket's region";
        self::variable(out, "optional_permissions", "bool", "true", what);
    }
    if pieces.default_key.is_some() {
        let what =
            "The ARN of the KMS key of your own that the bucket encrypts with by default; empty if there is none";
        self::variable(out, "default_kms_key_arn", "string", "\"\"", what);
    }
}

fn variable(out: &mut String, name: &str, kind: &str, default: &str, description: &str) {
    let _ = write!(
        out,
        "variable \"{name}\" {{\n  description = \"{description}\"\n  type        = {kind}\n  default     = {default}\n}}\n\n"
    );
}

fn role(out: &mut String, path: &str, trust: &Value) {
    let _ = write!(
        out,
        "resource \"aws_iam_role\" \"consign\" {{\n  name                 = var.role_name\n  path                 = \
         \"{path}\"\n  description          = \"consign writes files into one bucket with this role\"\n  \
         max_session_duration = 3600\n  permissions_boundary = var.permissions_boundary_arn\n  assume_role_policy   = \
         {}}}\n\n",
        heredoc(trust)
    );
}

fn user(out: &mut String) {
    out.push_str(
        "resource \"aws_iam_user\" \"consign\" {\n  name                 = var.user_name\n  permissions_boundary = \
         var.permissions_boundary_arn\n}\n\n",
    );
}

/// A policy of the role, or for a user a managed one: the inline policies of a user hold 2,048 characters together.
fn policy(out: &mut String, party: &Party, label: &str, document: &Value, only_if: Option<&str>) {
    let name = label.replace('_', "-");
    let count = only_if.map(|condition| format!("  count  = {condition} ? 1 : 0\n")).unwrap_or_default();
    let text = heredoc(document);
    let _ = match party {
        Party::Role { .. } => write!(
            out,
            "resource \"aws_iam_role_policy\" \"{label}\" {{\n{count}  name   = \"{name}\"\n  role   = \
             aws_iam_role.consign.id\n  policy = {text}}}\n\n"
        ),
        Party::User { .. } => write!(
            out,
            "resource \"aws_iam_policy\" \"{label}\" {{\n{count}  name   = \"${{var.user_name}}-{name}\"\n  policy = \
             {text}}}\n\nresource \"aws_iam_user_policy_attachment\" \"{label}\" {{\n{count}  user       = \
             aws_iam_user.consign.name\n  policy_arn = aws_iam_policy.{label}{}.arn\n}}\n\n",
            if only_if.is_some() { "[0]" } else { "" }
        ),
    };
}

/// JSON as Terraform's indented text block. There a backslash stands for itself, and only `${` and `%{` begin something.
fn heredoc(document: &Value) -> String {
    let text =
        pretty(document).replace("${", "$${").replace("%{", "%%{").replace(KEY_MARK, "${var.default_kms_key_arn}");
    let lines = text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!("<<-JSON\n{lines}  JSON\n")
}
