//! Everything that is printed parses, and every form says the same.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{json, policy, python, text};

const CONFIG: &str = r#"
[aws]
identity_role_arn = "arn:aws:iam::999999999999:role/consign"
[check]
egress_addresses = ["192.0.2.0/24", "2001:db8::1"]
[destinations.plain]
bucket = "plain-bucket"
region = "eu-central-1"
auth = { method = "iam_role", role_arn = "arn:aws:iam::123456789012:role/export", external_id = "4711" }
[destinations.kms]
bucket = "kms.bucket"
region = "eu-central-1"
prefix = "in/"
kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
auth = { method = "iam_role", role_arn = "arn:aws:iam::123456789012:role/team/data/export", external_id = "a=b:c/d" }
[destinations.alias]
bucket = "alias-bucket"
region = "eu-central-1"
kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:alias/exports"
auth = { method = "iam_role", role_arn = "arn:aws:iam::123456789012:role/export" }
[destinations.keyed]
bucket = "keyed"
region = "eu-central-1"
prefix = "drop"
auth = { method = "access_key", access_key_id = "AKIA1234567890ABCDEF", secret_access_key = "marked-secret-key" }
[destinations.odd]
bucket = "odd-bucket"
region = "eu-central-1"
prefix = 'in *? ${x} %{y} "q" \b 日本 größe'
auth = { method = "iam_role", role_arn = "arn:aws:iam::123456789012:role/export", external_id = "4711" }
"#;
const DESTINATIONS: [&str; 5] = ["plain", "kms", "alias", "keyed", "odd"];

/// A directory with the configuration above.
pub(super) struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("consign.toml"), CONFIG).unwrap();
        Self { dir }
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.path().join("consign.toml")
    }

    fn print(&self, arguments: &[&str]) -> String {
        text(&policy(&self.config(), arguments))
    }

    pub(super) fn json(&self, arguments: &[&str]) -> Value {
        json(&policy(&self.config(), arguments))
    }

    /// A template for the judge, with parameters other than their defaults.
    fn case(&self, kind: &str, arguments: &[&str], told: &Value) -> Value {
        json!({"kind": kind, "text": self.print(&[&[kind], arguments].concat()), "told": told})
    }
}

/// Findings of third-party parsers in templates, all in one process: cfn-lint is slow to start.
fn judged(cases: &[Value]) -> Vec<Value> {
    python("judge.py", &Value::from(cases)).as_array().unwrap().clone()
}

/// All statements of some documents, in one order.
fn statements<'a>(documents: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
    let lists = documents.into_iter().map(|document| {
        assert_eq!(document["Version"], "2012-10-17", "{document:#}");
        document["Statement"].as_array().unwrap().clone()
    });
    let mut all: Vec<_> = lists.flatten().map(|statement| statement.to_string()).collect();
    all.sort();
    all
}

fn policies(judged: &Value) -> Vec<String> {
    statements(judged["policies"].as_array().unwrap())
}

#[test]
fn every_template_says_what_the_policies_say() {
    let desk = Desk::new();
    let (mut cases, mut expected) = (Vec::new(), Vec::new());
    for destination in DESTINATIONS {
        let all = [&[][..], &["--minimal"], &["--source-address", "any", "--tags"]];
        // A second for each template, so not everything with everything.
        let options = if ["plain", "keyed"].contains(&destination) { &all[..] } else { &all[..1] };
        for options in options {
            let arguments = [&[destination], *options].concat();
            let permissions = desk.json(&[&["permissions"][..], &arguments].concat());
            let trust = || desk.json(&[&["trust"][..], &arguments].concat());
            let trust = if destination == "keyed" { Value::Null } else { trust() };
            for kind in ["cloudformation", "terraform"] {
                cases.push(desk.case(kind, &arguments, &json!({})));
                expected.push((statements([&permissions]), trust.clone(), format!("{kind} {arguments:?}")));
            }
        }
    }
    for (judged, (permissions, trust, what)) in judged(&cases).iter().zip(expected) {
        assert_eq!(policies(judged), permissions, "{what}");
        assert_eq!(judged["trust"], trust, "{what}");
    }
}

#[test]
fn what_the_customer_may_change_changes_the_template() {
    let desk = Desk::new();
    let key = "arn:aws:kms:eu-central-1:123456789012:key/0e7e9fb9-6aa2-4a5b-8a0a-3a2d8d6b6a12";
    let cases = [
        ("cloudformation", json!({"DefaultKmsKeyArn": key, "OptionalPermissions": "false", "RoleName": "other"})),
        ("terraform", json!({"default_kms_key_arn": key, "optional_permissions": "false", "role_name": "other"})),
    ];
    let mut expected = statements([&desk.json(&["permissions", "plain", "--minimal"])]);
    let statement = json!({
        "Sid": "ConsignEncrypt", "Effect": "Allow", "Action": ["kms:GenerateDataKey", "kms:Decrypt"],
        "Resource": key, "Condition": {"StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}},
    });
    expected.push(statement.to_string());
    expected.sort();
    for judged in judged(&cases.map(|(kind, told)| desk.case(kind, &["plain"], &told))) {
        assert_eq!(policies(&judged), expected);
        assert_eq!(judged["name"], "other");
    }
}

#[test]
fn pasted_text_holds_only_what_iam_takes_and_no_secret() {
    let desk = Desk::new();
    for destination in DESTINATIONS {
        for kind in ["permissions", "cloudformation", "terraform"] {
            let printed = desk.print(&[kind, destination]);
            assert!(!printed.contains("marked-secret"), "{kind} {destination}");
            let policies = printed.lines().filter(|line| line.contains("arn:aws:s3"));
            assert!(policies.clone().count() > 0, "{printed}");
            for line in policies {
                assert!(line.chars().all(|c| (' '..='\u{ff}').contains(&c)), "{kind} {destination}: {line}");
            }
        }
    }
}

#[test]
fn notes_are_on_stderr_or_data_with_json() {
    let desk = Desk::new();
    let plain = policy(&desk.config(), &["permissions", "kms"]);
    let notes = String::from_utf8(plain.stderr.clone()).unwrap();
    assert!(notes.lines().any(|line| line.starts_with("s3:ListBucket") && line.contains("optional")), "{notes}");
    let data = desk.json(&["permissions", "kms", "--json"]);
    assert_eq!(data["document"], json(&plain));
    let lines: Vec<_> = data["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
    assert_eq!(lines, notes.lines().collect::<Vec<_>>());
    assert!(desk.json(&["terraform", "kms", "--json"])["document"].as_str().unwrap().contains("aws_iam_role"));
}

#[test]
fn the_exit_code_tells_a_wrong_flag_from_a_wrong_configuration() {
    let desk = Desk::new();
    for (arguments, code, word) in [
        (&["permissions", "nobody"][..], 2, "nobody"),
        (&["permissions"], 2, "--bucket"),
        (&["trust", "keyed"], 2, "belongs to a role"),
        (&["kms", "plain"], 78, "kms_key_arn"),
        (&["permissions", "--bucket", "UPPER", "--region", "eu-central-1"], 2, "--bucket"),
        (&["poem", "plain"], 2, "permissions"),
        (&["trust", "plain", "--principal", "me"], 2, "--principal"),
    ] {
        let output = policy(&desk.config(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word) && output.stdout.is_empty(), "{arguments:?}: {said}");
    }
    std::fs::write(desk.config(), CONFIG.replace("identity_role_arn", "# identity_role_arn")).unwrap();
    let output = policy(&desk.config(), &["trust", "plain"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("aws.identity_role_arn"));
}
