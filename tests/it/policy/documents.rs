//! Everything that is printed parses, and every form says the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{json, policy, text};
use crate::testbed::exported;

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

struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("consign.toml"), CONFIG).unwrap();
        Self { dir }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("consign.toml")
    }

    fn print(&self, arguments: &[&str]) -> String {
        text(&policy(&self.config(), arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        json(&policy(&self.config(), arguments))
    }

    /// What somebody else's parser finds in a template.
    fn judged(&self, kind: &str, arguments: &[&str], told: &[&str]) -> Value {
        let template = self.print(&[&[kind], arguments].concat());
        let file = self.dir.path().join(if kind == "terraform" { "main.tf" } else { "template.json" });
        std::fs::write(&file, template).unwrap();
        judge(&file, told)
    }
}

fn judge(file: &Path, told: &[&str]) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/policy/judge.py");
    let output = Command::new(exported("CONSIGN_TEST_PYTHON")).arg(script).arg(file).args(told).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", std::fs::read_to_string(file).unwrap());
    serde_json::from_slice(&output.stdout).unwrap()
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

fn both_templates_agree(destination: &str) {
    let desk = Desk::new();
    for options in [&[][..], &["--minimal"], &["--tags", "--source-address", "any"]] {
        let arguments = [&[destination], options].concat();
        let permissions = statements([&desk.json(&[&["permissions"][..], &arguments].concat())]);
        for kind in ["cloudformation", "terraform"] {
            let judged = desk.judged(kind, &arguments, &[]);
            assert_eq!(policies(&judged), permissions, "{kind} {arguments:?}");
            let trust = policy(&desk.config(), &[&["trust"][..], &[destination], options_of_trust(options)].concat());
            let trust = if destination == "keyed" { Value::Null } else { json(&trust) };
            assert_eq!(judged["trust"], trust, "{kind} {arguments:?}");
        }
    }
}

/// Addresses are also in the trust policy.
fn options_of_trust<'a>(options: &'a [&'a str]) -> &'a [&'a str] {
    if options.contains(&"any") { &options[1..] } else { &[] }
}

#[test]
fn templates_of_a_plain_role_say_what_the_policies_say() {
    both_templates_agree("plain");
}

#[test]
fn templates_with_a_key_say_what_the_policies_say() {
    both_templates_agree("kms");
}

#[test]
fn templates_with_an_alias_say_what_the_policies_say() {
    both_templates_agree("alias");
}

#[test]
fn templates_of_a_user_say_what_the_policies_say() {
    both_templates_agree("keyed");
}

#[test]
fn templates_with_an_odd_folder_say_what_the_policies_say() {
    both_templates_agree("odd");
}

#[test]
fn what_the_customer_may_change_changes_the_template() {
    let desk = Desk::new();
    let key = "arn:aws:kms:eu-central-1:123456789012:key/of-the-bucket";
    for (kind, key_name, optional) in [
        ("cloudformation", "DefaultKmsKeyArn", "OptionalPermissions"),
        ("terraform", "default_kms_key_arn", "optional_permissions"),
    ] {
        let told = [format!("{key_name}={key}"), format!("{optional}=false")];
        let judged = desk.judged(kind, &["plain"], &told.each_ref().map(String::as_str));
        let mut expected = statements([&desk.json(&["permissions", "plain", "--minimal"])]);
        expected.push(
            json!({
                "Sid": "ConsignEncrypt", "Effect": "Allow", "Action": ["kms:GenerateDataKey", "kms:Decrypt"],
                "Resource": key, "Condition": {"StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}},
            })
            .to_string(),
        );
        expected.sort();
        assert_eq!(policies(&judged), expected, "{kind}");
        assert_eq!(judged["name"], "export", "{kind}");
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
        (&["permissions", "nobody"][..], 78, "nobody"),
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
