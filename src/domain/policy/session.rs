//! The session policy: it narrows an assumed role to exactly this bucket, prefix and key. Whatever
//! else the customer's role may do, this session may not.

use serde_json::{Value, json};

use super::document::{allow, compact, document};
use super::permission::Permission;
use super::resource::{bucket_arn, keys_beside, list_condition, objects_arn, via_service};
use crate::domain::destination::{Auth, Destination, EncryptionAlgorithm, Invalid, SessionPolicyMode};

/// The most characters STS takes as an inline session policy
/// (<https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>).
pub const SESSION_POLICY_LIMIT: usize = 2048;

/// Permissions that are dropped, one after the other, from a policy that would be too long: those
/// that only serve to reconcile an upload whose reply was lost, what only the connection test asks
/// for, and at last cleaning up and tags. Writing, with the key, always stays, and no step reaches
/// beyond the prefix.
const STEPS: [&[Permission]; 4] = [
    &[],
    &[Permission::ListBucket],
    &[Permission::ListBucket, Permission::GetBucketLocation],
    &[
        Permission::ListBucket,
        Permission::GetBucketLocation,
        Permission::AbortMultipartUpload,
        Permission::PutObjectTagging,
        Permission::DeleteObject,
    ],
];

/// The compact inline session policy of a destination, within [`SESSION_POLICY_LIMIT`] for every
/// role destination that was validated. A long prefix costs permissions that deliveries work
/// without: listing first, then the region, then cleaning up, tags and deleting.
pub fn session_policy(destination: &Destination) -> String {
    session_policy_in(destination, PolicyForm::default())
}

/// Parts of the session policy that are left out because STS refuses them. Each one narrows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PolicyForm {
    /// Without the statement on KMS keys, for an STS that refuses actions it does not know.
    pub without_kms: bool,
    /// The next smaller one, for session tags that leave no room. The smallest of all where there
    /// is none.
    pub smaller: bool,
}

/// The session policy of a destination in this form.
pub fn session_policy_in(destination: &Destination, form: PolicyForm) -> String {
    let of = |left_out: &[Permission]| policy(destination, left_out, form.without_kms);
    let policies = STEPS.iter().map(|left_out| of(left_out));
    let mut fitting = policies.skip_while(|policy| !fits(policy)).skip(usize::from(form.smaller));
    fitting.next().unwrap_or_else(|| of(STEPS[STEPS.len() - 1]))
}

/// Refuses a role destination whose prefix is too long for any session policy: it is the escaping
/// of `$`, `*`, `?`, quotes and characters beyond Latin-1 that makes it so. The error's field is
/// `prefix`.
pub fn session_policy_fits(destination: &Destination) -> Result<(), Invalid> {
    if destination.session_policy == Some(SessionPolicyMode::None) {
        return Ok(());
    }
    let least = session_policy(destination);
    if fits(&least) || matches!(destination.auth, Auth::AccessKey { .. }) {
        return Ok(());
    }
    let (long, limit) = (least.chars().count(), SESSION_POLICY_LIMIT);
    let problem = format!(
        "is too long for the session policy that keeps the role below it: {long} characters where STS takes {limit}; shorten \
         it, or use fewer of $, *, ?, \", \\ and of letters beyond Latin-1, which all take 2 to 12 characters there"
    );
    Err(Invalid::new("prefix", problem))
}

fn fits(policy: &str) -> bool {
    policy.chars().count() <= SESSION_POLICY_LIMIT
}

fn policy(destination: &Destination, left_out: &[Permission], without_kms: bool) -> String {
    let kept = |permission: &Permission| !left_out.contains(permission);
    let on_bucket = |permission: Permission, condition: Value| {
        kept(&permission).then(|| allow(&permission.as_str().into(), &bucket_arn(destination), condition))
    };
    let mut statements = vec![objects(destination, kept)];
    statements.extend(on_bucket(Permission::GetBucketLocation, json!({})));
    statements.extend(kms(destination).filter(|_| !without_kms));
    statements.extend(on_bucket(Permission::ListBucket, list_condition(destination)));
    compact(&document(&statements))
}

/// Actions of an upload on objects below the prefix.
fn objects(destination: &Destination, kept: impl Fn(&Permission) -> bool) -> Value {
    let all = [
        Permission::PutObject,
        Permission::AbortMultipartUpload,
        Permission::PutObjectTagging,
        Permission::DeleteObject,
    ];
    let actions = all.iter().filter(|permission| kept(permission)).map(|permission| permission.as_str()).collect();
    allow(&actions, &objects_arn(destination), json!({}))
}

/// The statement on the key; `None` where S3 encrypts without KMS.
fn kms(destination: &Destination) -> Option<Value> {
    let actions = json!([Permission::KmsGenerateDataKey.as_str(), Permission::KmsDecrypt.as_str()]);
    let via = json!({ "StringLike": { "kms:ViaService": via_service(destination, "*") } });
    Some(match destination.encryption.as_ref().map(|encryption| &encryption.key_arn) {
        _ if destination.algorithm == Some(EncryptionAlgorithm::Aes256) => return None,
        Some(key) if !key.is_alias() => allow(&actions, key.as_str(), json!({})),
        // A policy can't name a key by its alias, so the alias' own account and region bound it.
        Some(alias) => allow(&actions, &keys_beside(alias), via),
        // The bucket's default may be a customer's key that is not configured here.
        None => allow(&actions, "*", via),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::destination::DestinationId;
    use crate::domain::destination::raw::{RawAuth, RawDestination};

    fn raw(prefix: &str, key: Option<&str>) -> RawDestination {
        let auth = RawAuth { role_arn: Some("arn:aws-cn:iam::123456789012:role/r".into()), ..RawAuth::default() };
        RawDestination {
            bucket: "acme-exports".into(),
            region: "cn-north-1".into(),
            prefix: prefix.into(),
            auth,
            kms_key_arn: key.map(str::to_owned),
            ..RawDestination::default()
        }
    }

    fn destination(prefix: &str, key: Option<&str>) -> Destination {
        raw(prefix, key).validate(DestinationId::parse("acme").unwrap()).unwrap()
    }

    fn parsed(destination: &Destination) -> Value {
        serde_json::from_str(&session_policy(destination)).unwrap()
    }

    #[test]
    fn the_session_may_write_below_the_prefix_alone() {
        let policy = parsed(&destination("exports", None));
        assert_eq!(policy["Statement"][0]["Resource"], "arn:aws-cn:s3:::acme-exports/exports/*");
        assert_eq!(policy["Statement"][3]["Condition"]["StringLike"]["s3:prefix"], "exports/*");
    }

    #[test]
    fn an_empty_prefix_does_not_reach_beyond_the_bucket() {
        let policy = parsed(&destination("", None));
        assert_eq!(policy["Statement"][0]["Resource"], "arn:aws-cn:s3:::acme-exports/*");
        assert_eq!(policy["Statement"][3]["Resource"], "arn:aws-cn:s3:::acme-exports");
        assert!(policy["Statement"][3].get("Condition").is_none(), "there is no prefix to compare");
    }

    #[test]
    fn wildcards_of_a_folders_name_stand_for_themselves() {
        let policy = parsed(&destination("a*b?c$d/", None));
        assert_eq!(policy["Statement"][0]["Resource"], "arn:aws-cn:s3:::acme-exports/a${*}b${?}c${$}d/*");
    }

    #[test]
    fn the_key_is_named_or_bounded_by_the_service() {
        let key = "arn:aws-cn:kms:cn-north-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        assert_eq!(parsed(&destination("", Some(key)))["Statement"][2]["Resource"], key);
        let alias = parsed(&destination("", Some("arn:aws-cn:kms:cn-north-1:123456789012:alias/x")));
        assert_eq!(alias["Statement"][2]["Resource"], "arn:aws-cn:kms:cn-north-1:123456789012:key/*");
        let unnamed = parsed(&destination("", None));
        assert_eq!(unnamed["Statement"][2]["Resource"], "*");
        let via = &unnamed["Statement"][2]["Condition"]["StringLike"]["kms:ViaService"];
        assert_eq!(via, "s3.*.amazonaws.com.cn");
    }

    #[test]
    fn through_an_access_point_its_arn_is_the_bucket() {
        let arn = "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/exports";
        let raw = RawDestination { bucket: arn.into(), ..raw("in", None) };
        let policy = parsed(&raw.validate(DestinationId::parse("acme").unwrap()).unwrap());
        assert_eq!(policy["Statement"][0]["Resource"], format!("{arn}/object/in/*"));
        assert_eq!(policy["Statement"][3]["Resource"], arn);
    }

    #[test]
    fn without_kms_no_key_may_be_used() {
        let encryption = Some(EncryptionAlgorithm::Aes256);
        let raw = RawDestination { encryption, ..raw("exports", None) };
        let policy = session_policy(&raw.validate(DestinationId::parse("acme").unwrap()).unwrap());
        assert!(policy.contains("s3:PutObject") && !policy.contains("kms:"), "{policy}");
    }

    #[test]
    fn it_stays_within_the_limit_of_sts_and_below_the_prefix() {
        let actions = |prefix: &str| {
            let destination = destination(prefix, None);
            let text = session_policy(&destination);
            assert!(text.chars().count() <= SESSION_POLICY_LIMIT, "{prefix}: {}", text.len());
            let policy: Value = serde_json::from_str(&text).unwrap();
            let resource = policy["Statement"][0]["Resource"].as_str().unwrap().to_owned();
            assert_eq!(resource, objects_arn(&destination));
            let found = Permission::ALL.into_iter().filter(|permission| text.contains(permission.as_str()));
            found.map(Permission::as_str).collect::<Vec<_>>()
        };
        assert_eq!(actions("exports").len(), 8);
        assert_eq!(actions(&"p".repeat(990)).len(), 7, "listing goes first");
        assert!(!actions(&"p".repeat(990)).contains(&"s3:ListBucket"));
        let region = actions(&"$".repeat(415));
        assert!(region.len() == 6 && !region.contains(&"s3:GetBucketLocation"), "{region:?}");
        let least = actions(&"$".repeat(435));
        assert_eq!(least, ["s3:PutObject", "kms:GenerateDataKey", "kms:Decrypt"]);
    }

    fn smaller_session_policy(destination: &Destination) -> String {
        session_policy_in(destination, PolicyForm { smaller: true, ..PolicyForm::default() })
    }

    #[test]
    fn without_kms_the_rest_stays() {
        let usual = destination(
            "exports",
            Some("arn:aws-cn:kms:cn-north-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"),
        );
        let policy = session_policy_in(&usual, PolicyForm { without_kms: true, ..PolicyForm::default() });
        assert!(!policy.contains("kms:") && policy.contains("s3:PutObject") && policy.contains("s3:ListBucket"));
    }

    #[test]
    fn the_smaller_policy_is_one_size_below_and_never_reaches_further() {
        let listing = |policy: &str| policy.contains("s3:ListBucket");
        let usual = destination("exports", None);
        let (policy, smaller) = (session_policy(&usual), smaller_session_policy(&usual));
        assert!(listing(&policy) && !listing(&smaller) && smaller.contains("s3:GetBucketLocation"), "{smaller}");
        assert!(smaller.len() < policy.len() && smaller.contains("acme-exports/exports/*"));
        let long = destination(&"p".repeat(990), None);
        let smaller = smaller_session_policy(&long);
        assert!(!smaller.contains("s3:GetBucketLocation") && smaller.contains("s3:AbortMultipartUpload"), "{smaller}");
        let least = destination(&"$".repeat(435), None);
        assert_eq!(smaller_session_policy(&least), session_policy(&least), "there is none below");
    }

    #[test]
    fn a_prefix_that_fits_no_session_policy_is_refused_at_once() {
        let problems = raw(&"*?$".repeat(150), None).validate(DestinationId::parse("acme").unwrap()).unwrap_err();
        assert_eq!(problems[0].field, "prefix");
        assert!(problems[0].problem.contains("shorten it"), "{}", problems[0].problem);
        let mut keyed = raw(&"*?$".repeat(150), None);
        keyed.auth = RawAuth {
            method: crate::domain::destination::raw::RawMethod::AccessKey,
            access_key_id: Some("AKIA1234567890ABCDEF".into()),
            secret_access_key: Some("secret".to_owned().into()),
            ..RawAuth::default()
        };
        keyed.validate(DestinationId::parse("acme").unwrap()).unwrap();
    }

    #[test]
    fn only_characters_that_sts_takes_are_sent() {
        let text = session_policy(&destination("日本/größe-🗂", None));
        assert!(text.chars().all(|c| c <= '\u{ff}'), "{text}");
        let policy: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(policy["Statement"][0]["Resource"], "arn:aws-cn:s3:::acme-exports/日本/größe-🗂/*");
    }
}
