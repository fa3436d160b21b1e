use super::*;
use crate::domain::destination::DestinationId;
use crate::domain::destination::raw::{RawAuth, RawDestination, RawMethod};

const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const EXTERNAL_ID: &str = "the-external-id";

fn destination(method: RawMethod, key: Option<&str>) -> Destination {
    let auth = match method {
        RawMethod::IamRole => RawAuth {
            role_arn: Some("arn:aws:iam::123456789012:role/r".into()),
            external_id: Some(EXTERNAL_ID.into()),
            ..RawAuth::default()
        },
        RawMethod::AccessKey => RawAuth {
            method,
            access_key_id: Some("AKIA1234567890ABCDEF".into()),
            secret_access_key: Some("secret".to_owned().into()),
            ..RawAuth::default()
        },
    };
    let raw = RawDestination {
        bucket: "bucket".into(),
        region: "eu-west-1".into(),
        prefix: "in/".into(),
        auth,
        kms_key_arn: key.map(str::to_owned),
        ..RawDestination::default()
    };
    raw.validate(DestinationId::parse("acme").unwrap()).unwrap()
}

fn failure(operation: &'static str, reason: Reason, status: u16, code: &str, said: &str) -> Failure {
    let code = Some(code).filter(|code| !code.is_empty());
    let answer = AwsError::new(operation, status, code, Some(said));
    Failure { answer: Some(Box::new(answer)), ..Failure::new(reason, "what happened") }
}

fn role() -> Destination {
    destination(RawMethod::IamRole, None)
}

/// Message of IAM for a denied action.
fn denied(action: &str, why: &str) -> String {
    format!(
        "User: arn:aws:sts::123456789012:assumed-role/r/s is not authorized to perform: {action} on resource: x {why}"
    )
}

/// Status, code and message of an answer, what a transfer makes of it, and the problem behind it.
type Row = (u16, &'static str, &'static str, Reason, Code);

fn rows_hold(rows: &[Row]) {
    let role = role();
    for (status, code, said, reason, expected) in rows {
        let evidence = diagnose(&failure("PutObject", *reason, *status, code, said), &DiagnosisContext::of(&role));
        assert_eq!(evidence.code, *expected, "{status} {code} {said}");
        assert!(!evidence.cause.is_empty(), "{expected}");
    }
}

#[test]
fn answers_of_s3_row_by_row() {
    rows_hold(&[
        (403, "AccessDenied", "Access Denied", Reason::AccessDenied, Code::AccessDeniedUnspecified),
        (403, "", "", Reason::AccessDenied, Code::AccessDeniedUnspecified),
        (401, "", "", Reason::AccessDenied, Code::AccessDeniedUnspecified),
        (400, "InvalidRequest", "... with Object Lock parameters", Reason::Unclassified, Code::ObjectLockNeedsChecksum),
        (400, "InvalidRequest", "something else", Reason::Unclassified, Code::Unexpected),
        (501, "NotImplemented", "", Reason::AccessDenied, Code::StoreLacksFeature),
        (501, "", "", Reason::AccessDenied, Code::StoreLacksFeature),
        (400, "BadDigest", "", Reason::AccessDenied, Code::StoreLacksFeature),
        (403, "QuotaExceeded", "", Reason::AccessDenied, Code::QuotaExceeded),
        (403, "", "", Reason::Connection, Code::NotS3),
        (503, "SlowDown", "", Reason::SlowDown, Code::S3Unavailable),
        (301, "PermanentRedirect", "", Reason::WrongRegion, Code::WrongRegion),
        (404, "NoSuchBucket", "", Reason::BucketNotFound, Code::BucketNotFound),
        (403, "RequestTimeTooSkewed", "", Reason::ClockSkew, Code::ClockSkew),
        (400, "ExpiredToken", "", Reason::SessionExpired, Code::SessionRefused),
        (403, "AllAccessDisabled", "", Reason::AccessDenied, Code::AccountDisabled),
    ]);
}

#[test]
fn states_of_a_key_row_by_row() {
    rows_hold(&[
        (400, "KMS.DisabledException", "", Reason::KmsUnavailable, Code::KmsKeyDisabled),
        (400, "KMS.NotFoundException", "Invalid arn us-east-1", Reason::KmsUnavailable, Code::KmsKeyOtherRegion),
        (400, "KMS.NotFoundException", "Invalid keyId", Reason::KmsUnavailable, Code::KmsKeyNotFound),
        (400, "KMS.KMSInvalidStateException", "pending deletion.", Reason::KmsUnavailable, Code::KmsKeyPendingDeletion),
        (400, "KMS.KMSInvalidStateException", "Creating", Reason::KmsUnavailable, Code::KmsKeyUnusable),
        (400, "KMS.InvalidKeyUsageException", "", Reason::KmsUnavailable, Code::KmsKeyUnusable),
        (400, "KMS.ThrottlingException", "", Reason::Throttled, Code::S3Unavailable),
        (403, "KMS.AccessDeniedException", "", Reason::KmsDenied, Code::KmsEncryptDenied),
    ]);
}

#[test]
fn words_of_a_refusal_row_by_row() {
    let role = role();
    for (action, why, expected) in [
        ("s3:PutObject", "", Code::PutDenied),
        ("s3:PutObject", "because no identity-based policy allows the s3:PutObject action", Code::PutDenied),
        ("s3:PutObjectTagging", "", Code::PermissionDenied),
        ("s3:PutObject", "with an explicit deny in a service control policy", Code::ExplicitDenyOrganization),
        ("s3:PutObject", "with an explicit deny in a resource control policy", Code::ExplicitDenyOrganization),
        ("s3:PutObject", "with an explicit deny in a VPC endpoint policy", Code::ExplicitDenyEndpoint),
        ("s3:PutObject", "with an explicit deny in a permissions boundary", Code::ExplicitDenyIdentity),
        ("s3:PutObject", "with an explicit deny in an identity-based policy", Code::ExplicitDenyIdentity),
        ("s3:PutObject", "with an explicit deny in a resource-based policy", Code::ExplicitDenyUnencrypted),
        ("s3:PutObject", "with an explicit deny", Code::ExplicitDenyUnencrypted),
        ("kms:Decrypt", "", Code::KmsDecryptDenied),
        (
            "kms:Decrypt",
            "because no identity-based policy allows the kms:Decrypt action",
            Code::KmsDecryptDeniedIdentity,
        ),
        ("kms:Decrypt", "because no resource-based policy allows it", Code::KmsDecryptDeniedKeyPolicy),
        ("kms:GenerateDataKey", "", Code::KmsEncryptDenied),
        ("kms:GenerateDataKey", "because no identity-based policy allows it", Code::KmsEncryptDeniedIdentity),
        ("kms:GenerateDataKey", "with an explicit deny in a resource-based policy", Code::KmsEncryptDeniedKeyPolicy),
    ] {
        let refused = failure("PutObject", Reason::AccessDenied, 403, "AccessDenied", &denied(action, why));
        assert_eq!(diagnose(&refused, &DiagnosisContext::of(&role)).code, expected, "{action} {why}");
    }
}

#[test]
fn sts_row_by_row() {
    let assume = |why: &str| denied("sts:AssumeRole", why);
    let rows = [
        ("AccessDenied", Reason::AssumeRoleDenied, assume(""), Code::RoleDenied),
        (
            "AccessDenied",
            Reason::AssumeRoleDenied,
            assume("because no resource-based policy allows it"),
            Code::RoleDenied,
        ),
        (
            "AccessDenied",
            Reason::AssumeRoleDenied,
            assume("because no identity-based policy allows it"),
            Code::IdentityMayNotAssume,
        ),
        (
            "AccessDenied",
            Reason::AssumeRoleDenied,
            assume("with an explicit deny in a service control policy"),
            Code::RoleExplicitDeny,
        ),
        ("AccessDenied", Reason::IdentityDenied, denied("sts:TagSession", ""), Code::IdentityMayNotTag),
        (
            "AccessDenied",
            Reason::IdentityDenied,
            denied("sts:TagSession", "with an explicit deny in a resource-based policy"),
            Code::IdentityMayNotTag,
        ),
        ("InvalidClientTokenId", Reason::WrongRegion, String::new(), Code::IdentityUnknownInRegion),
        ("NoSuchEntity", Reason::AssumeRoleDenied, String::new(), Code::RoleNotFound),
        ("RegionDisabledException", Reason::AssumeRoleDenied, String::new(), Code::StsRegionDisabled),
        ("ValidationError", Reason::AssumeRoleDenied, String::new(), Code::RoleRequestRefused),
        ("ExpiredToken", Reason::IdentityDenied, String::new(), Code::IdentityRefused),
        ("SignatureDoesNotMatch", Reason::ClockSkew, String::new(), Code::ClockSkew),
        ("Throttling", Reason::Throttled, String::new(), Code::StsUnavailable),
    ];
    let role = role();
    for (code, reason, said, expected) in rows {
        let evidence = diagnose(&failure("AssumeRole", reason, 403, code, &said), &DiagnosisContext::of(&role));
        assert_eq!(evidence.code, expected, "{code} {said}");
    }
    let key = destination(RawMethod::AccessKey, None);
    for (code, reason, expected) in [
        ("InvalidClientTokenId", Reason::IdentityDenied, Code::AccessKeyUnknown),
        ("SignatureDoesNotMatch", Reason::IdentityDenied, Code::AccessKeySecretWrong),
        ("SignatureDoesNotMatch", Reason::ClockSkew, Code::ClockSkew),
    ] {
        let evidence = diagnose(&failure("GetCallerIdentity", reason, 403, code, ""), &DiagnosisContext::of(&key));
        assert_eq!(evidence.code, expected, "{code}");
    }
}

#[test]
fn who_we_are_is_never_for_the_customer_to_fix() {
    let role = role();
    let tags = failure("AssumeRole", Reason::IdentityDenied, 403, "AccessDenied", &denied("sts:TagSession", ""));
    let evidence = diagnose(&tags, &DiagnosisContext::of(&role));
    let remedy = evidence.remedy.unwrap().text;
    assert!(remedy.contains("--disable-session-tags") && remedy.contains("sts:TagSession"), "{remedy}");
    assert!(remedy.contains("no action is needed from the customer"), "{remedy}");
    assert_eq!(evidence.code.side(), Side::Identity);
    let region = failure("AssumeRole", Reason::WrongRegion, 403, "InvalidClientTokenId", "");
    let evidence = diagnose(&region, &DiagnosisContext::of(&role));
    let remedy = evidence.remedy.unwrap().text;
    assert!(
        remedy.contains("opt-in region") && remedy.contains("aws.region") && remedy.contains("eu-west-1"),
        "{remedy}"
    );
    assert_eq!(evidence.code.side(), Side::Operator);
    let partition = diagnose(&Failure::new(Reason::WrongRegion, "what happened"), &DiagnosisContext::of(&role));
    assert_eq!((partition.code, partition.cause.as_str()), (Code::OtherPartition, "what happened"));
    assert!(partition.remedy.unwrap().text.contains("access key"));
}

#[test]
fn what_reads_have_shown_decides_between_address_and_encryption() {
    let said = denied("s3:PutObject", "with an explicit deny in a resource-based policy");
    let refused = failure("PutObject", Reason::AccessDenied, 403, "AccessDenied", &said);
    let (plain, keyed) = (role(), destination(RawMethod::IamRole, Some(KEY)));
    let code =
        |destination, reads| diagnose(&refused, &DiagnosisContext { reads, ..DiagnosisContext::of(destination) }).code;
    assert_eq!(code(&plain, Reads::ExplicitlyDenied), Code::ExplicitDenySourceAddress);
    assert_eq!(code(&plain, Reads::Answered), Code::ExplicitDenyUnencrypted);
    assert_eq!(code(&keyed, Reads::Answered), Code::ExplicitDenyEncryption);
    let hidden = failure("PutObject", Reason::AccessDenied, 403, "AccessDenied", "Access Denied");
    let ranked = |reads| diagnose(&hidden, &DiagnosisContext { reads, ..DiagnosisContext::of(&keyed) }).ranked;
    assert!(ranked(Reads::Unknown)[0].contains("s3:PutObject") && ranked(Reads::Unknown)[1].contains("kms:Decrypt"));
    assert!(ranked(Reads::Unknown).iter().any(|cause| cause.contains("belong to account")));
    assert!(!ranked(Reads::Answered).iter().any(|cause| cause.contains("belong to account")), "the owner was right");
}

#[test]
fn hints_name_the_permission_and_hold_no_external_id() {
    let (role, key) = (role(), destination(RawMethod::AccessKey, None));
    let hint = |reason, operation, code: &str, said: &str, to| {
        super::hint(reason, &AwsError::new(operation, 403, Some(code), Some(said)), to)
    };
    let put = hint(Reason::AccessDenied, "PutObject", "AccessDenied", "Access Denied", &role);
    assert!(put.contains("allow s3:PutObject on arn:aws:s3:::bucket/in/*"), "{put}");
    let list = hint(Reason::AccessDenied, "ListObjectsV2", "AccessDenied", "", &key);
    assert!(list.contains("s3:ListBucket"), "{list}");
    let said = denied("kms:Decrypt", "");
    assert!(hint(Reason::KmsDenied, "UploadPart", "AccessDenied", &said, &role).contains("kms:Decrypt"));
    let trust = hint(Reason::AssumeRoleDenied, "AssumeRole", "AccessDenied", "", &role);
    assert!(trust.contains("trust policy") && !trust.contains(EXTERNAL_ID), "{trust}");
    assert_eq!(hint(Reason::SlowDown, "PutObject", "SlowDown", "", &role), "", "nothing to do for the customer");
    assert_eq!(hint(Reason::SessionExpired, "PutObject", "ExpiredToken", "", &role), "");
    assert!(hint(Reason::ObjectExists, "PutObject", "PreconditionFailed", "", &role).contains("if_exists"));
}

#[test]
fn a_refused_part_may_be_one_of_another_length() {
    let role = role();
    let answer = AwsError::new("CompleteMultipartUpload", 400, Some("InvalidPart"), Some("A part is invalid."));
    let said = super::hint(Reason::S3Unavailable, &answer, &role);
    assert!(said.contains("equal_parts = true"), "{said}");
    let equal = Destination { equal_parts: true, ..role };
    assert_eq!(super::hint(Reason::S3Unavailable, &answer, &equal), "", "that can't be the cause");
}

#[test]
fn the_trust_policy_to_paste_names_us_and_the_external_id_and_no_text_does() {
    let role = role();
    let context = DiagnosisContext {
        principal: Some("arn:aws:sts::999999999999:assumed-role/worker/i-1"),
        ..DiagnosisContext::of(&role)
    };
    let evidence = diagnose(&failure("AssumeRole", Reason::AssumeRoleDenied, 403, "AccessDenied", ""), &context);
    let remedy = evidence.remedy.unwrap();
    let statement = remedy.statement.unwrap().to_string();
    assert!(
        statement.contains("arn:aws:iam::999999999999:role/worker") && statement.contains(EXTERNAL_ID),
        "{statement}"
    );
    assert!(!format!("{} {}", evidence.cause, remedy.text).contains(EXTERNAL_ID));
}

#[test]
fn every_problem_has_words_and_a_remedy() {
    let (role, key) = (destination(RawMethod::IamRole, Some(KEY)), destination(RawMethod::AccessKey, Some(KEY)));
    let without = [Code::Ok, Code::NotNeeded, Code::NotTried, Code::Unexpected];
    let elsewhere = [Code::BrokerNotConfigured, Code::BrokerUnavailable, Code::TopologyMissing];
    for code in Code::ALL.iter().filter(|code| !without.contains(code) && !elsewhere.contains(code)) {
        let evidence = [&role, &key].map(|to| finding(*code, &DiagnosisContext::of(to)));
        let said = evidence
            .iter()
            .find(|evidence| evidence.remedy.is_some())
            .unwrap_or_else(|| panic!("{code} has no remedy"));
        let remedy = said.remedy.as_ref().unwrap();
        assert!(said.cause.len() > 10 && remedy.text.len() > 10, "{code}: {said:?}");
        assert!(!remedy.text.contains(EXTERNAL_ID) && !said.cause.contains(EXTERNAL_ID), "{code}");
    }
}

#[test]
fn a_command_does_not_attribute_its_own_identity_to_the_worker() {
    let role = role();
    for code in [Code::IdentityAbsent, Code::IdentityRefused, Code::IdentityMayNotAssume] {
        let said = |who| {
            let evidence = finding(code, &DiagnosisContext { who, ..DiagnosisContext::of(&role) });
            (evidence.cause, evidence.remedy.unwrap().text)
        };
        let (cause, remedy) = said(Who::Command);
        assert!(cause.contains("this command") && cause.contains("shell"), "{cause}");
        assert!(!cause.contains("this worker") && said(Who::Worker).0.contains("this worker"), "{cause}");
        assert_ne!(remedy, said(Who::Worker).1);
    }
    let ours = diagnose_ours(&Failure::new(Reason::IdentityDenied, "no"));
    assert!(ours.cause.contains("this command found no AWS credentials"), "{}", ours.cause);
}

#[test]
fn the_key_of_a_buckets_default_encryption_is_taken_from_the_refusal() {
    let said = format!(
        "User: u is not authorized to perform: kms:GenerateDataKey on resource: {KEY} because no identity-based policy allows \
         the kms:GenerateDataKey action"
    );
    let refused = failure("PutObject", Reason::KmsDenied, 403, "AccessDenied", &said);
    let evidence = diagnose(&refused, &DiagnosisContext::of(&role()));
    assert_eq!(evidence.code, Code::KmsEncryptDeniedIdentity);
    let remedy = evidence.remedy.unwrap();
    assert!(evidence.cause.contains(KEY) && remedy.text.contains(KEY), "{remedy:?}");
    let statement = remedy.statement.unwrap();
    assert_eq!(statement["Resource"], KEY);
    assert_eq!(
        statement["Action"].as_array().map(Vec::len),
        Some(2),
        "both that are needed, so that one paste is enough"
    );
}
