//! What must hold for every input of a parser, whatever its bytes. Each function panics where it
//! does not.

use consign::config;
use consign::domain::control::Control;
use consign::domain::destination::Destination;
use consign::domain::job::lease::Lease;
use consign::domain::job::{self, DestinationRef, Job, compact};
use consign::domain::policy::{PolicyForm, SESSION_POLICY_LIMIT, session_policy_fits, session_policy_in};
use serde_json::Value;

pub use admin_head::admin_head;
pub use aws_errors::aws_errors;
#[cfg(feature = "dev")]
pub use dev_policy::dev_policy;
pub use frames::frames;
pub use guard::guard;
pub use source_head::source_head;

#[path = "oracles/admin_head.rs"]
mod admin_head;
#[path = "oracles/aws_errors.rs"]
mod aws_errors;
#[cfg(feature = "dev")]
#[path = "oracles/dev_policy.rs"]
mod dev_policy;
#[path = "oracles/frames.rs"]
mod frames;
#[path = "oracles/guard.rs"]
mod guard;
#[path = "oracles/source_head.rs"]
mod source_head;

/// Stands for a secret in a seed of [`config`].
pub const CANARY: &str = "cAnArY5ecret";

/// Forms of a session policy.
const FORMS: [PolicyForm; 3] = [
    PolicyForm { smaller: false, without_kms: false },
    PolicyForm { smaller: true, without_kms: false },
    PolicyForm { smaller: true, without_kms: true },
];

/// A job as JSON: what is accepted stays within its bucket and prefix.
pub fn job_json(bytes: &[u8]) {
    if let Ok(job) = job::parse(Some("application/json"), None, bytes) {
        accepted(&job);
    }
}

/// A compact job: what is accepted is encoded as it was decoded.
pub fn job_compact(bytes: &[u8]) {
    let (Ok(raw), Ok(job)) = (compact::decode(bytes), compact::parse(bytes)) else { return };
    let encoded = compact::encode(&raw).expect("a job that was accepted can be encoded");
    assert_eq!(compact::decode(&encoded).as_ref().map(compact::encode), Ok(Ok(encoded.clone())));
    accepted(&job);
}

/// A lease: it is encoded as it was decoded, and its job is checked as any other.
pub fn lease(bytes: &[u8]) {
    let Ok(lease) = Lease::decode(bytes) else { return };
    let encoded = lease.encode().expect("a lease that was decoded can be encoded");
    assert_eq!(Lease::decode(&encoded).as_ref(), Ok(&lease));
    if let Ok(job) = lease.job(None) {
        accepted(&job);
    }
}

/// A control message: it is rendered so that it parses to the same.
pub fn control(bytes: &[u8]) {
    let Ok(message) = Control::parse(bytes) else { return };
    assert_eq!(Control::parse(&message.render()).as_ref(), Ok(&message));
}

/// A configuration: errors never quote the text that stands for a secret.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(problems) = config::load_str(text) {
        let shown = problems.to_string();
        // The name of a key is not a secret, and is quoted.
        let is_key = text.lines().any(|line| line.split('=').next().is_some_and(|key| key.contains(CANARY)));
        assert!(is_key || !shown.contains(CANARY), "an error quotes a value: {shown}");
    }
}

fn accepted(job: &Job) {
    assert!(!job.id.as_str().is_empty() && job.id.as_str().len() <= 200);
    let DestinationRef::Inline(destination) = &job.destination else { return };
    if session_policy_fits(destination).is_ok() {
        for policy in FORMS.map(|form| session_policy_in(destination, form)) {
            within(destination, &policy);
        }
    }
}

/// No statement reaches beyond bucket and prefix, and no `*` stands anywhere but at an end.
fn within(destination: &Destination, policy: &str) {
    assert!(policy.len() <= SESSION_POLICY_LIMIT, "{policy}");
    let parsed: Value = serde_json::from_str(policy).expect("a policy is JSON");
    let bucket = format!(":s3:::{}", destination.bucket.as_str());
    for statement in parsed["Statement"].as_array().expect("statements") {
        let resources = match &statement["Resource"] {
            Value::String(one) => vec![one.as_str()],
            Value::Array(many) => many.iter().map(|one| one.as_str().expect("text")).collect(),
            other => panic!("{other} is no resource"),
        };
        for resource in resources {
            // `${*}`, `${?}` and `${$}` are the characters themselves.
            let plain =
                ["*", "?", "$"].iter().fold(resource.to_owned(), |text, c| text.replace(&format!("${{{c}}}"), "_"));
            let star = plain.find(['*', '?', '$']);
            assert!(star.is_none_or(|at| at + 1 == plain.len()), "{resource}");
            let of_key = statement["Action"].to_string().contains("kms:");
            let prefix = destination.prefix.as_str();
            let prefix = prefix.replace('$', "${$}").replace('*', "${*}").replace('?', "${?}");
            let objects = format!("{bucket}/{prefix}");
            let reaches = resource.split_once(":s3:::").map(|(_, rest)| format!(":s3:::{rest}"));
            match reaches {
                Some(inside) => assert!(inside == bucket || inside.starts_with(&objects), "{resource}"),
                None => assert!(of_key, "{resource}"),
            }
            assert!(resource != "*" || statement["Condition"].to_string().contains("kms:ViaService"), "{statement}");
        }
    }
}
