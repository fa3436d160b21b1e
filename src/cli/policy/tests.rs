//! Documents, notes and errors.

use clap::Parser;

use super::*;
use crate::config::load_str;

const CONFIG: &str = r#"
[aws]
identity_role_arn = "arn:aws:iam::999999999999:role/consign"
[destinations.acme]
bucket = "acme-exports"
region = "eu-central-1"
prefix = "in/"
kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
auth = { method = "iam_role", role_arn = "arn:aws:iam::123456789012:role/team/export", external_id = "4711" }
[destinations.keyed]
bucket = "keyed"
region = "eu-central-1"
auth = { method = "access_key", access_key_id = "AKIA1234567890ABCDEF", secret_access_key = "secret" }
[destinations.china]
bucket = "china"
region = "cn-north-1"
kms_key_arn = "arn:aws-cn:kms:cn-north-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
auth = { method = "iam_role", role_arn = "arn:aws-cn:iam::123456789012:role/export" }
"#;

#[derive(Debug, Parser)]
struct PolicyLine {
    #[command(flatten)]
    args: PolicyArgs,
}

fn printed(config: &str, line: &str) -> Result<PrintedPolicy, CommandError> {
    let args = PolicyLine::try_parse_from(format!("policy {line}").split(' ')).unwrap().args;
    print(&args, &load_str(config).unwrap().config)
}

fn json_of(line: &str) -> (Value, Vec<String>) {
    let PrintedPolicy { document, notes } = printed(CONFIG, line).unwrap();
    assert!(!document.is_string(), "{document}");
    (document, notes)
}

fn usage(line: &str) -> String {
    match printed(CONFIG, line).err() {
        Some(CommandError::Usage(problem)) => problem,
        other => panic!("{line}: {other:?}"),
    }
}

fn misconfigured(config: &str, line: &str) -> String {
    match printed(config, line).err() {
        Some(CommandError::Config(problem)) => problem,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn a_configured_destination_and_the_same_by_flags_give_the_same_documents() {
    let flags = "--bucket acme-exports --region eu-central-1 --prefix in/ --external-id 4711 --kms-key-arn \
                 arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab --role-arn arn:aws:iam::123456789012:role/team/export";
    for kind in ["permissions", "trust", "kms", "cloudformation", "permissions --minimal --tags"] {
        assert_eq!(json_of(&format!("{kind} acme")), json_of(&format!("{kind} {flags}")), "{kind}");
    }
}

#[test]
fn notes_explain_optional_permissions() {
    let (_, notes) = json_of("permissions acme");
    let note = |action: &str| notes.iter().find(|note| note.starts_with(action)).unwrap();
    assert!(note("s3:PutObject ").contains("required"), "{notes:?}");
    assert!(note("kms:Decrypt").contains("required"), "{notes:?}");
    assert!(note("s3:ListBucket").contains("optional") && note("s3:ListBucket").contains("sent again"), "{notes:?}");
    assert!(note("s3:PutObjectTagging").contains("--tags"), "{notes:?}");
    let (document, notes) = json_of("permissions acme --minimal");
    assert_eq!(document["Statement"].as_array().unwrap().len(), 2);
    let note = notes.iter().find(|note| note.starts_with("s3:AbortMultipartUpload")).unwrap();
    assert!(note.contains("left out") && note.contains("lifecycle rule"), "{note}");
}

#[test]
fn the_principal_is_given_or_configured_and_never_guessed() {
    let (configured, _) = json_of("trust acme");
    assert_eq!(configured["Statement"][0]["Principal"]["AWS"], "arn:aws:iam::999999999999:role/consign");
    let (given, _) = json_of("trust acme --principal arn:aws:sts::888888888888:assumed-role/w/session");
    assert_eq!(given["Statement"][0]["Principal"]["AWS"], "arn:aws:iam::888888888888:role/w");
    let without = CONFIG.replace("identity_role_arn", "# identity_role_arn");
    let problem = misconfigured(&without, "trust acme");
    assert!(problem.contains("--principal") && problem.contains("aws.identity_role_arn"), "{problem}");
    assert!(usage("trust acme --principal everybody").starts_with("--principal: is not a principal"));
    assert!(usage("trust china --principal arn:aws:iam::999999999999:role/consign").contains("aws-cn"));
    assert!(misconfigured(CONFIG, "trust china").contains("across partitions"));
}

#[test]
fn a_trust_policy_needs_no_bucket_and_warns_without_an_external_id() {
    let (policy, notes) = json_of("trust --external-id 4711");
    assert_eq!(policy["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"], "4711");
    assert!(notes.is_empty(), "{notes:?}");
    let (_, notes) = json_of("trust");
    assert!(notes[0].starts_with("warning: there is no external id"), "{notes:?}");
}

#[test]
fn an_access_key_has_permissions_and_a_user_and_no_trust() {
    let (document, _) = json_of("permissions keyed --minimal");
    assert_eq!(document["Statement"][0]["Resource"], "arn:aws:s3:::keyed/*");
    assert!(usage("trust keyed").contains("belongs to a role"));
    let (template, notes) = json_of("cloudformation keyed");
    assert_eq!(template["Resources"]["User"]["Type"], "AWS::IAM::User");
    assert!(notes.iter().any(|note| note.contains("by hand")), "{notes:?}");
    assert!(!template.to_string().contains("secret"));
}

#[test]
fn the_key_policy_names_the_writing_principal() {
    let (statement, _) = json_of("kms acme");
    assert_eq!(statement["Principal"]["AWS"], "arn:aws:iam::123456789012:role/team/export");
    let (statement, _) = json_of("kms acme --identity");
    assert!(statement.get("Principal").is_none());
    assert!(misconfigured(CONFIG, "kms keyed").contains("kms_key_arn"));
    let key = "--bucket b-b --region eu-central-1 --kms-key-arn arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    assert!(usage(&format!("kms {key}")).contains("--role-arn"));
    let (statement, _) = json_of(&format!("kms {key} --account 123456789012"));
    assert_eq!(statement["Principal"]["AWS"], "arn:aws:iam::123456789012:role/consign-b-b");
    let (statement, _) = json_of(&format!("kms {key} --user-arn arn:aws:iam::123456789012:user/u"));
    assert_eq!(statement["Principal"]["AWS"], "arn:aws:iam::123456789012:user/u");
}

#[test]
fn addresses_come_from_flags_or_the_configuration() {
    let config = format!("{CONFIG}[check]\negress_addresses = [\"192.0.2.1\"]\n");
    let address = |line: &str| {
        let PrintedPolicy { document, .. } = printed(&config, line).unwrap();
        document["Statement"][0]["Condition"]["IpAddress"]["aws:SourceIp"].clone()
    };
    assert_eq!(address("permissions acme"), json!(["192.0.2.1"]));
    assert_eq!(address("trust acme --source-address 198.51.100.0/24"), json!(["198.51.100.0/24"]));
    assert_eq!(address("permissions acme --source-address any"), Value::Null);
    assert!(usage("permissions acme --source-address home").contains("192.0.2.0/24"));
}

#[test]
fn problems_name_their_flag() {
    let problem = usage("permissions --bucket B --region eu-central-1 --prefix /x");
    assert!(problem.contains("--bucket: ") && problem.contains("--prefix: "), "{problem}");
    assert!(usage("permissions --bucket b-b --region eu --external-id 4711 --account 12").contains("--account"));
    assert!(usage("permissions").contains("--bucket and --region"));
    assert!(usage("permissions nobody").contains("acme, china, keyed"));
}

#[test]
fn every_document_has_the_partition_of_the_destination() {
    let (document, _) = json_of("permissions china");
    assert_eq!(document["Statement"][0]["Resource"], "arn:aws-cn:s3:::china/*");
    let (document, _) = json_of("permissions --bucket gov-bucket --region us-gov-west-1");
    assert_eq!(document["Statement"][0]["Resource"], "arn:aws-us-gov:s3:::gov-bucket/*");
    for kind in ["permissions --tags", "trust", "kms", "kms --identity", "cloudformation", "terraform"] {
        let line = format!("{kind} china --principal arn:aws-cn:iam::999999999999:role/consign");
        let document = printed(CONFIG, &line).unwrap().document.to_string();
        assert!(document.contains("arn:aws-cn:") && !document.contains("arn:aws:"), "{kind}: {document}");
    }
}
