//! The model, statement by statement.

use serde_json::{Value, json};

use super::*;
use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::destination::{Destination, DestinationId, ExternalId, KmsKeyArn};

const ROLE: &str = "arn:aws:iam::123456789012:role/platform-export";
const KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const ALIAS: &str = "arn:aws:kms:eu-central-1:123456789012:alias/exports";

fn destination(prefix: &str, key: Option<&str>) -> Destination {
    let auth = RawAuth { role_arn: Some(ROLE.into()), ..RawAuth::default() };
    let raw = RawDestination {
        bucket: "acme-exports".into(),
        region: "eu-central-1".into(),
        prefix: prefix.into(),
        auth,
        kms_key_arn: key.map(str::to_owned),
        ..RawDestination::default()
    };
    raw.validate(DestinationId::parse("acme").unwrap()).unwrap()
}

/// Sid and actions of each statement.
fn outline(document: &Value) -> Vec<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let actions =
        |action: &Value| action.as_array().map_or_else(|| vec![text(action)], |a| a.iter().map(text).collect());
    let statements = document["Statement"].as_array().unwrap().iter();
    statements.map(|statement| (text(&statement["Sid"]), actions(&statement["Action"]))).collect()
}

#[test]
fn writing_is_all_that_is_required() {
    let minimal = permissions(&destination("in/", None), &Scope::default());
    assert_eq!(outline(&minimal), [("ConsignWrite".to_owned(), vec!["s3:PutObject".to_owned()])]);
    assert_eq!(minimal["Statement"][0]["Resource"], "arn:aws:s3:::acme-exports/in/*");
    assert!(minimal["Statement"][0].get("Condition").is_none());
}

#[test]
fn a_key_and_tags_are_required_where_they_are_used() {
    let scope = Scope { tags: true, ..Scope::default() };
    let document = permissions(&destination("in/", Some(KEY)), &scope);
    let sids: Vec<_> = outline(&document).into_iter().map(|(sid, _)| sid).collect();
    assert_eq!(sids, ["ConsignWrite", "ConsignEncrypt", "ConsignTag"]);
    let kms = &document["Statement"][1];
    assert_eq!(kms["Action"], json!(["kms:GenerateDataKey", "kms:Decrypt"]));
    assert_eq!(kms["Resource"], KEY);
    assert_eq!(kms["Condition"], json!({"StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}}));
    assert_eq!(kms, &kms_statement(&destination("in/", Some(KEY))).unwrap());
}

#[test]
fn every_optional_permission_is_as_narrow_as_its_use() {
    let document = permissions(&destination("in/", None), &Scope { optional: true, ..Default::default() });
    let find = |sid: &str| document["Statement"].as_array().unwrap().iter().find(|s| s["Sid"] == sid).unwrap().clone();
    assert_eq!(find("ConsignDeleteTestFile")["Resource"], "arn:aws:s3:::acme-exports/in/consign-connection-test");
    assert_eq!(find("ConsignAbort")["Resource"], "arn:aws:s3:::acme-exports/in/*");
    assert_eq!(find("ConsignFindRegion")["Resource"], "arn:aws:s3:::acme-exports");
    assert_eq!(find("ConsignList")["Condition"], json!({"StringLike": {"s3:prefix": "in/*"}}));
    assert_eq!(document["Statement"].as_array().unwrap().len(), 5, "{document:#}");
}

#[test]
fn through_an_access_point_its_arn_is_the_bucket_of_every_permission() {
    let point = "arn:aws:s3:eu-central-1:123456789012:accesspoint/exports";
    let auth = RawAuth { role_arn: Some(ROLE.into()), ..RawAuth::default() };
    let raw = RawDestination {
        bucket: point.into(),
        region: "eu-central-1".into(),
        prefix: "in/".into(),
        auth,
        ..RawDestination::default()
    };
    let destination = raw.validate(DestinationId::parse("acme").unwrap()).unwrap();
    let document = permissions(&destination, &Scope { optional: true, tags: true, ..Scope::default() });
    let statements = document["Statement"].as_array().unwrap().iter();
    let resources: Vec<_> =
        statements.map(|one| (one["Sid"].as_str().unwrap(), one["Resource"].as_str().unwrap())).collect();
    let (objects, test) = (format!("{point}/object/in/*"), format!("{point}/object/in/consign-connection-test"));
    let (objects, test) = (objects.as_str(), test.as_str());
    let expected = [
        ("ConsignWrite", objects),
        ("ConsignTag", objects),
        ("ConsignAbort", objects),
        ("ConsignList", point),
        ("ConsignFindRegion", point),
        ("ConsignDeleteTestFile", test),
    ];
    assert_eq!(resources, expected);
}

#[test]
fn a_single_statement_is_the_one_of_the_whole_document() {
    let destination = destination("a*b/", Some(KEY));
    let whole = permissions(&destination, &Scope { optional: true, tags: true, ..Scope::default() });
    for permission in Permission::ALL {
        let single = super::single(permission, &destination);
        let found = whole["Statement"].as_array().unwrap().iter().find(|s| s["Sid"] == single["Sid"]).unwrap();
        assert_eq!(single["Resource"], found["Resource"], "{permission:?}");
        assert_eq!(single["Condition"], found["Condition"], "{permission:?}");
        assert_eq!(single["Action"], permission.as_str());
        assert_eq!(Permission::of_action(permission.as_str()), Some(permission));
        assert!(!permission.purpose().is_empty() && !permission.without().is_empty());
    }
    assert_eq!(Permission::of_action("s3:GetObject"), None);
}

#[test]
fn an_alias_is_a_condition_and_an_unknown_key_is_bounded_by_region_and_service() {
    let alias = single(Permission::KmsDecrypt, &destination("", Some(ALIAS)));
    assert_eq!(alias["Resource"], "arn:aws:kms:eu-central-1:123456789012:key/*");
    let aliases = &alias["Condition"]["ForAnyValue:StringEquals"]["kms:ResourceAliases"];
    assert_eq!(aliases, "alias/exports");
    let unknown = destination("", None);
    let statement = single(Permission::KmsDecrypt, &unknown);
    assert_eq!(statement["Resource"], "arn:aws:kms:eu-central-1:*:key/*");
    assert_eq!(statement["Condition"]["StringEquals"]["kms:ViaService"], "s3.eu-central-1.amazonaws.com");
    let statement = single_on_key(Permission::KmsDecrypt, &unknown, &KmsKeyArn::parse(KEY).unwrap());
    assert_eq!(statement["Resource"], KEY);
    assert_eq!(kms_statement(&unknown), None);
}

#[test]
fn services_are_called_as_in_the_partition_of_the_role() {
    for (region, partition, via) in [
        ("eu-west-1", "aws", "s3.eu-west-1.amazonaws.com"),
        ("cn-north-1", "aws-cn", "s3.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "aws-us-gov", "s3.us-gov-west-1.amazonaws.com"),
        ("eusc-de-east-1", "aws-eusc", "s3.eusc-de-east-1.amazonaws.eu"),
        ("us-isob-east-1", "aws-iso-b", "s3.us-isob-east-1.sc2s.sgov.gov"),
    ] {
        assert_eq!(crate::domain::destination::partition_of(region), partition);
        let auth =
            RawAuth { role_arn: Some(ROLE.replace("arn:aws:", &format!("arn:{partition}:"))), ..RawAuth::default() };
        let raw =
            RawDestination { bucket: "acme-exports".into(), region: region.into(), auth, ..RawDestination::default() };
        let there = raw.validate(DestinationId::parse("acme").unwrap()).unwrap();
        let statement = single(Permission::KmsDecrypt, &there);
        assert_eq!(statement["Condition"]["StringEquals"]["kms:ViaService"], via);
    }
}

#[test]
fn the_keys_own_policy_names_the_role() {
    let role = Principal::parse(ROLE).unwrap();
    for key in [KEY, ALIAS] {
        let statement = kms_key_policy_statement(&destination("", Some(key)), &role).unwrap();
        assert_eq!(statement["Principal"], json!({"AWS": ROLE}));
        assert_eq!(statement["Resource"], "*");
        let condition = json!({"StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}});
        assert_eq!(statement["Condition"], condition);
    }
    assert_eq!(kms_key_policy_statement(&destination("", None), &role), None);
}

#[test]
fn the_trust_policy_demands_principal_external_id_and_address() {
    let platform = Principal::parse("arn:aws:iam::999999999999:role/consign").unwrap();
    let id = ExternalId::parse("4711").unwrap();
    let policy = trust(&platform, Some(&id), &["192.0.2.0/24".to_owned()]);
    let statement = &policy["Statement"][0];
    assert_eq!(statement["Principal"], json!({"AWS": platform.as_str()}));
    assert_eq!(statement["Action"], "sts:AssumeRole");
    let condition =
        json!({"StringEquals": {"sts:ExternalId": "4711"}, "IpAddress": {"aws:SourceIp": ["192.0.2.0/24"]}});
    assert_eq!(statement["Condition"], condition);
    assert!(trust(&platform, None, &[])["Statement"][0].get("Condition").is_none());
}

#[test]
fn addresses_bind_the_calls_of_s3_and_never_those_of_kms() {
    let scope = Scope { optional: true, source_addresses: vec!["192.0.2.1".to_owned()], ..Scope::default() };
    let document = permissions(&destination("in/", Some(KEY)), &scope);
    for statement in document["Statement"].as_array().unwrap() {
        let bound = statement["Condition"]["IpAddress"]["aws:SourceIp"] == json!(["192.0.2.1"]);
        assert_eq!(bound, statement["Sid"] != "ConsignEncrypt", "{statement:#}");
    }
    let list = document["Statement"].as_array().unwrap().iter().find(|s| s["Sid"] == "ConsignList").unwrap();
    assert_eq!(list["Condition"]["StringLike"]["s3:prefix"], "in/*", "the other condition stays");
}

#[test]
fn pasted_json_reads_in_the_usual_order_and_holds_only_what_iam_takes() {
    let document = permissions(&destination("日本/", None), &Scope::default());
    let text = pretty(&document);
    assert_eq!(
        text,
        r#"{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "ConsignWrite",
      "Effect": "Allow",
      "Action": "s3:PutObject",
      "Resource": "arn:aws:s3:::acme-exports/\u65e5\u672c/*"
    }
  ]
}"#
    );
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
}

/// Evaluates a resource as IAM does: `${*}` and its like are characters, everything else stands for
/// itself but the last `*`.
fn meant(resource: &str) -> String {
    let folder = resource.strip_suffix('*').unwrap();
    let spared = folder.replace("${*}", "").replace("${?}", "").replace("${$}", "");
    assert!(!spared.contains(['*', '?', '$']), "{resource} matches more than its folder");
    let mut out = String::new();
    let mut rest = folder;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let (character, after) = after.split_once('}').unwrap();
        out.push_str(character);
        rest = after;
    }
    out + rest
}

proptest::proptest! {
    #[test]
    fn no_folder_widens_a_policy_or_outgrows_sts(prefix in "[^\\p{Cc}/.][^\\p{Cc}.]{0,400}") {
        let auth = RawAuth { role_arn: Some(ROLE.into()), ..RawAuth::default() };
        let raw = RawDestination {
            bucket: "acme-exports".into(), region: "eu-central-1".into(), prefix, auth, ..RawDestination::default()
        };
        // A folder that would need too long a policy is refused, which is as well.
        if let Ok(destination) = raw.validate(DestinationId::parse("acme").unwrap()) {
            let text = session_policy(&destination);
            proptest::prop_assert!(text.chars().count() <= SESSION_POLICY_LIMIT);
            let whole = format!("arn:aws:s3:::acme-exports/{}", destination.prefix);
            let session: Value = serde_json::from_str(&text).unwrap();
            for document in [session, permissions(&destination, &Scope::default())] {
                proptest::prop_assert_eq!(&meant(document["Statement"][0]["Resource"].as_str().unwrap()), &whole);
            }
        }
    }

    /// Arbitrary ARNs, of which some are valid: what is accepted reaches no further than the
    /// bucket, the prefix and the one key.
    #[test]
    fn whatever_is_accepted_narrows_every_policy(
        role in "(arn:(aws|aws-cn|a[a-z*-]{0,3}):iam::([0-9]{12}|[0-9*]{11,12}):role/)[a-zA-Z0-9+=,.@_/$*?{}:-]{1,12}",
        key in proptest::option::of(
            "arn:(aws|aws-cn|aws-.):kms:(eu-central-1|[a-z*?-]{1,6}):[0-9]{11}[0-9*]:(key/([0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}\
             |mrk-[0-9a-f]{32}|[a-f0-9*?$-]{1,40})|alias/[a-zA-Z0-9_/*?$.-]{1,12})"
        ),
        prefix in "[a-z*?$/{}\"\\\\]{0,40}",
        bucket in "[a-z0-9.*?$-]{3,12}",
    ) {
        let auth = RawAuth { role_arn: Some(role), ..RawAuth::default() };
        let raw = RawDestination {
            bucket, region: "eu-central-1".into(), prefix, auth, kms_key_arn: key, ..RawDestination::default()
        };
        let Ok(destination) = raw.validate(DestinationId::parse("acme").unwrap()) else { return Ok(()) };
        let objects = format!("{}/{}", super::resource::bucket_arn(&destination), destination.prefix);
        let text = session_policy(&destination);
        proptest::prop_assert!(text.chars().count() <= SESSION_POLICY_LIMIT);
        for document in [serde_json::from_str(&text).unwrap(), permissions(&destination, &Scope::default())] {
            for statement in document["Statement"].as_array().unwrap() {
                let resource = statement["Resource"].as_str().unwrap();
                let spared = resource.replace("${*}", "").replace("${?}", "").replace("${$}", "");
                let beneath = spared.strip_suffix('*').unwrap_or(&spared);
                proptest::prop_assert!(!beneath.contains(['*', '?', '$']), "{}", resource);
                let is_key = statement["Action"].to_string().contains("kms:");
                let via_s3 = statement["Condition"].to_string().contains("kms:ViaService");
                let inside = if is_key {
                    !resource.contains('*') || via_s3
                } else {
                    resource == super::resource::bucket_arn(&destination) || meant(resource) == objects
                };
                proptest::prop_assert!(inside, "{}", resource);
            }
        }
    }
}
