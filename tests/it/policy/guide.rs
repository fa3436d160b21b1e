//! The customer's guide shows what the model prints. `CONSIGN_WRITE_GUIDE=1` rewrites it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use consign::domain::destination::raw::{RawAuth, RawDestination};
use consign::domain::destination::{Destination, DestinationId, ExternalId};
use consign::domain::policy::{self, Need, Permission, Principal, Scope, document, pretty};
use serde_json::Value;

const BEGIN: &str = "<!-- generated: ";
const END: &str = "<!-- end -->";
const KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const ALIAS: &str = "arn:aws:kms:eu-central-1:123456789012:alias/exports";
const ROLE: &str = "arn:aws:iam::123456789012:role/consign";
/// Documents that the guide shows, each at least once.
const PARTS: [&str; 12] = [
    "permissions",
    "trust",
    "table",
    "tags",
    "kms",
    "kms-alias",
    "kms-key-policy",
    "bucket-policy",
    "trust-from",
    "permissions-from",
    "fence",
    "lifecycle",
];

fn destination(key: Option<&str>) -> Destination {
    let auth = RawAuth { role_arn: Some(ROLE.into()), external_id: Some("4711-acme".into()), ..RawAuth::default() };
    let raw = RawDestination {
        bucket: "acme-exports".into(),
        region: "eu-central-1".into(),
        prefix: "platform/".into(),
        auth,
        kms_key_arn: key.map(str::to_owned),
        ..RawDestination::default()
    };
    raw.validate(DestinationId::parse("acme").unwrap()).unwrap()
}

fn trust(addresses: &[String]) -> Value {
    let principal = Principal::parse("arn:aws:iam::111122223333:role/consign").unwrap();
    policy::trust(&principal, Some(&ExternalId::parse("4711-acme").unwrap()), addresses)
}

fn part(name: &str) -> String {
    let (plain, role) = (destination(None), Principal::parse(ROLE).unwrap());
    let addresses = ["192.0.2.0/24".to_owned()];
    let minimal_from = Scope { source_addresses: addresses.to_vec(), ..Scope::default() };
    let shown = match name {
        "table" => return table(&destination(Some(KEY))),
        "permissions" => policy::permissions(&plain, &Scope { optional: true, ..Default::default() }),
        "trust" => trust(&[]),
        "tags" => policy::single(Permission::PutObjectTagging, &plain),
        "kms" => policy::kms_statement(&destination(Some(KEY))).unwrap(),
        "kms-alias" => policy::kms_statement(&destination(Some(ALIAS))).unwrap(),
        "kms-key-policy" => policy::kms_key_policy_statement(&destination(Some(KEY)), &role).unwrap(),
        "bucket-policy" => {
            document(&policy::bucket_policy_grant(&plain, &role, &Scope { optional: true, ..Default::default() }))
        }
        "trust-from" => trust(&addresses),
        "permissions-from" => policy::permissions(&plain, &minimal_from),
        "fence" => policy::bucket_policy_fence(&plain, &role, &addresses),
        "lifecycle" => policy::lifecycle(&plain),
        other => panic!("the guide asks for {other}, which nobody prints"),
    };
    format!("```json\n{}\n```\n", pretty(&shown))
}

/// Every permission, what it is for and what is weaker without it.
fn table(destination: &Destination) -> String {
    let row = |permission: Permission| {
        let need = match permission.need(destination) {
            Need::Required if permission.is_kms() => "with a KMS key",
            Need::Required => "always",
            Need::ForTags => "for tags",
            Need::ForDefaultKey => "for the bucket's default key",
            Need::Optional => "no",
        };
        format!(
            "| `{}` | {need} | It {}. | {}. |\n",
            permission.as_str(),
            permission.purpose(),
            capital(permission.without())
        )
    };
    let rows: String = Permission::ALL.into_iter().map(row).collect();
    format!("| permission | required | what for | without it |\n|---|---|---|---|\n{rows}")
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

fn file() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/docs/customer-guide.md"))
}

/// The guide with every generated part written again, and the names of those parts.
fn renewed(guide: &str) -> (String, BTreeSet<String>) {
    let (mut out, mut names, mut inside) = (String::new(), BTreeSet::new(), false);
    for line in guide.lines() {
        if let Some(name) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(" -->")) {
            out.extend([line, "\n", &part(name), END, "\n"]);
            names.insert(name.to_owned());
            inside = true;
        } else if line == END {
            inside = false;
        } else if !inside {
            out.push_str(line);
            out.push('\n');
        }
    }
    assert!(!inside, "the last generated part has no {END:?}");
    (out, names)
}

#[test]
fn the_guide_shows_what_the_model_prints() {
    let guide = std::fs::read_to_string(file()).unwrap();
    let (renewed, names) = renewed(&guide);
    if std::env::var_os("CONSIGN_WRITE_GUIDE").is_some() {
        std::fs::write(file(), &renewed).unwrap();
    }
    let guide = std::fs::read_to_string(file()).unwrap();
    for (number, (written, printed)) in guide.lines().zip(renewed.lines()).enumerate() {
        assert_eq!(written, printed, "line {}; CONSIGN_WRITE_GUIDE=1 rewrites it", number + 1);
    }
    assert_eq!(guide, renewed);
    assert_eq!(names, PARTS.map(str::to_owned).into());
}

#[test]
fn nothing_in_the_guide_was_written_by_hand_that_the_model_prints() {
    let guide = std::fs::read_to_string(file()).unwrap();
    let json = guide.matches("```json").count();
    assert_eq!(json, PARTS.len() - 1, "every document comes from the model");
    let known: Vec<_> = Permission::ALL.iter().map(|permission| permission.as_str()).collect();
    let words = guide.split(|c: char| !(c.is_ascii_alphanumeric() || c == ':'));
    for word in words.filter(|word| word.starts_with("s3:") || word.starts_with("kms:")) {
        let condition = ["s3:prefix", "s3:", "kms:", "kms:ViaService", "kms:ResourceAliases"].contains(&word);
        assert!(condition || known.contains(&word), "{word} is no permission of ours");
    }
}
