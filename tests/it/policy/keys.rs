//! The statements for KMS keys. No server at hand enforces them, so an evaluator by somebody else
//! answers question by question.

use consign::domain::policy::{bucket_policy_grant, document, session_policy};
use serde_json::{Value, json};

use super::documents::Desk;
use super::python;

const KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER: &str = "arn:aws:kms:eu-central-1:123456789012:key/99999999-12ab-34cd-56ef-1234567890ab";
const ROLE: &str = "arn:aws:iam::123456789012:role/team/data/export";
const VIA_S3: &str = "s3.eu-central-1.amazonaws.com";
/// An address of S3, which is none of ours.
const OF_S3: &str = "52.219.0.1";

/// Permissions of a destination's role for a key: its own policy, our session policy, and the key's
/// policy.
struct Documents {
    identity: Value,
    session: Value,
    key_policy: Value,
}

impl Documents {
    fn of(destination: &str) -> Self {
        let desk = Desk::new();
        let loaded = consign::config::load(&[desk.config()], &[]).unwrap().config;
        let found = loaded.destinations.values().find(|found| found.id.as_str() == destination).unwrap();
        Self {
            identity: desk.json(&["permissions", destination]),
            session: serde_json::from_str(&session_policy(found)).unwrap(),
            key_policy: document(&[desk.json(&["kms", destination])]),
        }
    }

    fn asks(&self, action: &str, resource: &str, context: &Value) -> Value {
        json!({
            "principal": ROLE, "action": action, "resource": resource, "context": context, "source_ip": OF_S3,
            "identity": self.identity, "session": self.session, "key_policy": self.key_policy,
        })
    }
}

/// True where both sides allow.
fn answers(questions: &[Value]) -> Vec<bool> {
    let answers = python("evaluate.py", &Value::from(questions));
    answers.as_array().unwrap().iter().map(|both| *both == json!(["Allow", "Allow"])).collect()
}

#[test]
fn the_key_serves_s3_in_its_region_and_nothing_else() {
    let documents = Documents::of("kms");
    let via = json!({"kms:ViaService": VIA_S3});
    let rows = [
        ("kms:GenerateDataKey", KEY, via.clone(), true),
        ("kms:Decrypt", KEY, via.clone(), true),
        ("kms:Encrypt", KEY, via.clone(), false),
        ("kms:Decrypt", OTHER, via, false),
        ("kms:Decrypt", KEY, json!({}), false),
        ("kms:Decrypt", KEY, json!({"kms:ViaService": "s3.us-east-1.amazonaws.com"}), false),
        ("kms:Decrypt", KEY, json!({"kms:ViaService": "ec2.eu-central-1.amazonaws.com"}), false),
    ];
    let questions: Vec<_> = rows.iter().map(|(action, key, context, _)| documents.asks(action, key, context)).collect();
    for (allowed, row) in answers(&questions).into_iter().zip(rows) {
        assert_eq!(allowed, row.3, "{row:?}");
    }
}

#[test]
fn each_action_on_the_key_is_needed_on_both_sides() {
    let via = json!({"kms:ViaService": VIA_S3});
    let (mut questions, mut what) = (Vec::new(), Vec::new());
    for missing in ["kms:GenerateDataKey", "kms:Decrypt"] {
        for side in ["identity", "key_policy"] {
            for action in ["kms:GenerateDataKey", "kms:Decrypt"] {
                let mut question = Documents::of("kms").asks(action, KEY, &via);
                for statement in question[side]["Statement"].as_array_mut().unwrap() {
                    if let Some(actions) = statement["Action"].as_array_mut() {
                        actions.retain(|listed| listed != missing);
                    }
                }
                questions.push(question);
                what.push((side, missing, action));
            }
        }
    }
    for (allowed, (side, missing, action)) in answers(&questions).into_iter().zip(what) {
        assert_eq!(allowed, action != missing, "{action} without {missing} in the {side}");
    }
}

#[test]
fn an_alias_stands_for_its_key_alone() {
    let documents = Documents::of("alias");
    let mut named = documents.asks(
        "kms:Decrypt",
        KEY,
        &json!({"kms:ViaService": VIA_S3, "kms:ResourceAliases": ["alias/exports"]}),
    );
    let mut other = documents.asks(
        "kms:Decrypt",
        OTHER,
        &json!({"kms:ViaService": VIA_S3, "kms:ResourceAliases": ["alias/a", "alias/b"]}),
    );
    let mut none = documents.asks("kms:Decrypt", OTHER, &json!({"kms:ViaService": VIA_S3}));
    for question in [&mut named, &mut other, &mut none] {
        question["principal"] = json!("arn:aws:iam::123456789012:role/export");
    }
    assert_eq!(answers(&[named, other, none]), [true, false, false]);
}

#[test]
fn the_key_policy_is_for_the_role_alone() {
    let documents = Documents::of("kms");
    let mut question = documents.asks("kms:GenerateDataKey", KEY, &json!({"kms:ViaService": VIA_S3}));
    question["principal"] = json!("arn:aws:iam::123456789012:role/team/data/other");
    assert_eq!(answers(&[question]), [false]);
}

#[test]
fn a_bucket_of_another_account_allows_the_same_to_the_role_alone() {
    let desk = Desk::new();
    let loaded = consign::config::load(&[desk.config()], &[]).unwrap().config;
    let kms = loaded.destinations.values().find(|found| found.id.as_str() == "kms").unwrap();
    let role = consign::domain::policy::Principal::parse(ROLE).unwrap();
    let policy = document(&bucket_policy_grant(
        kms,
        &role,
        &consign::domain::policy::Scope { optional: true, ..Default::default() },
    ));
    assert!(!policy.to_string().contains("kms:"), "a bucket's policy knows no keys");
    let ask = |principal: &str, key: &str| {
        let resource = format!("arn:aws:s3:::kms.bucket/{key}");
        let mut question = Documents::of("kms").asks("s3:PutObject", &resource, &json!({}));
        question["principal"] = json!(principal);
        question["key_policy"] = policy.clone();
        // The addresses of the configuration bind S3.
        question["source_ip"] = json!("192.0.2.7");
        question
    };
    let other = "arn:aws:iam::123456789012:role/other";
    assert_eq!(answers(&[ask(ROLE, "in/a"), ask(ROLE, "out/a"), ask(other, "in/a")]), [true, false, false]);
}
