//! Both forms of a job together: golden vectors, properties, and the corpus of bad messages.

use std::collections::BTreeMap;

use base64::Engine as _;
use proptest::prelude::*;
use serde::Deserialize;

use super::wire::{RawDestinationRef, RawJob, RawJobSource};
use super::*;
use crate::domain::destination::Checksum;
use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::outcome::Reason;

const COMPACT: Option<&str> = Some(compact::CONTENT_TYPE);
const GOLDEN: [(&str, &str, &str); 4] = [
    (
        "minimal",
        include_str!("../../../tests/golden/jobs/minimal.json"),
        include_str!("../../../tests/golden/jobs/minimal.hex"),
    ),
    ("full", include_str!("../../../tests/golden/jobs/full.json"), include_str!("../../../tests/golden/jobs/full.hex")),
    (
        "inline",
        include_str!("../../../tests/golden/jobs/inline.json"),
        include_str!("../../../tests/golden/jobs/inline.hex"),
    ),
    (
        "generation",
        include_str!("../../../tests/golden/jobs/generation.json"),
        include_str!("../../../tests/golden/jobs/generation.hex"),
    ),
];

#[test]
fn golden_vectors_hold_in_both_directions() {
    for (name, json, bytes) in GOLDEN {
        let raw = wire::read(json.as_bytes()).expect(name);
        assert_eq!(hex::encode(compact::encode(&raw).expect(name)), bytes.trim(), "{name}");
        let back = compact::decode(&hex::decode(bytes.trim()).expect(name)).expect(name);
        assert_eq!(String::from_utf8(wire::render(&back)).expect(name), json.trim(), "{name}");
        assert_eq!(String::from_utf8(wire::render(&raw)).expect(name), json.trim(), "{name}");
    }
}

#[test]
fn a_generation_is_given_or_follows_from_a_time() {
    let job = |generation, created_at: Option<&str>| {
        let nowhere = RawDestinationRef::Id("acme".to_owned());
        let raw = RawJob::new("a", "https://example.com/a", nowhere, "k");
        RawJob { generation, created_at: created_at.map(str::to_owned), ..raw }.validate()
    };
    let of = |generation, created_at| job(generation, created_at).expect("valid").generation_or(Some(3));
    assert_eq!(of(Some(7), Some("2026-11-22T04:00:00Z")), Some(7));
    assert_eq!(of(None, Some("1970-01-01T00:00:01.000002Z")), Some(1_000_002));
    assert_eq!(of(None, None), Some(3_000_000), "the time of the message");
    assert_eq!(of(None, Some("1969-01-01T00:00:00Z")), Some(3_000_000));
    assert_eq!(job(None, None).expect("valid").generation_or(None), None, "no fence");
    assert_eq!(job(Some(i64::MAX as u64), None).expect("valid").generation, Some(i64::MAX as u64));
    assert_eq!(job(Some(u64::MAX), None).unwrap_err().field, "generation");
}

#[test]
fn the_compact_form_has_a_version_of_its_own_for_a_generation() {
    let (json, bytes) = (GOLDEN[3].1, hex::decode(GOLDEN[3].2.trim()).expect("hex"));
    assert_eq!(bytes[0], 2);
    let without = RawJob { generation: None, ..wire::read(json.as_bytes()).expect("valid") };
    assert_eq!(compact::encode(&without).expect("valid")[0], 1, "every worker reads it");
    assert!(compact::decode(&bytes[..bytes.len() - 1]).is_err());
    assert!(compact::decode(&[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn every_field_reaches_the_job() {
    let job = wire::parse(GOLDEN[1].1.as_bytes()).expect("valid");
    assert_eq!(job.id.as_str(), "acme/google_ads/2026-11-22+refresh=2");
    assert_eq!((job.source.size, job.source.location.scheme()), (Some(123_456_789_012), "s3"));
    assert_eq!(job.source.sha256.map(|digest| digest[0]), Some(0xe3));
    assert_eq!(job.source.etag.as_deref(), Some("\"9b2cf535f27731c974343645a3985328\""));
    assert_eq!((job.destination.id().as_str(), job.key.as_str()), ("acme", "google_ads/Übersicht 2026-11-22.csv.gz"));
    assert_eq!(job.object.content_type.as_deref(), Some("text/csv; charset=utf-8"));
    assert_eq!(job.object.content_encoding.as_deref(), Some("gzip"));
    assert_eq!(job.object.metadata["export-run"], "a b");
    assert_eq!(job.object.tags["team"], "data@acme");
    assert_eq!(job.object.storage_class.as_deref(), Some("STANDARD_IA"));
    assert_eq!((job.compression, job.if_exists), (Compression::Gzip, IfExists::Fail));
    assert_eq!(job.created_at.map(|at| at.to_string()).as_deref(), Some("2026-11-22T04:00:00Z"));
    assert_eq!(job.expires_at.map(|at| at.to_string()).as_deref(), Some("2026-11-23T03:00:00.5Z"));
    assert_eq!(job.labels["note"], "größer");
}

#[test]
fn an_inline_destination_reaches_the_job() {
    let job = wire::parse(GOLDEN[2].1.as_bytes()).expect("valid");
    let DestinationRef::Inline(to) = &job.destination else { panic!("{:?}", job.destination) };
    assert_eq!(
        (to.id.as_str(), to.prefix.as_str(), to.tenant.as_deref()),
        ("acme-once", "incoming/", Some("acme-ltd"))
    );
    assert_eq!((to.checksum, to.max_concurrency.map(std::num::NonZero::get)), (Checksum::None, Some(4)));
    assert!(!format!("{job:?}").contains("f3a1-acme"), "the external id is masked");
}

#[test]
fn defaults_are_those_of_the_contract() {
    let job = wire::parse(GOLDEN[0].1.as_bytes()).expect("valid");
    assert_eq!((job.compression, job.if_exists), (Compression::None, IfExists::Replace));
    assert!(job.expires_at.is_none() && job.labels.is_empty() && job.object.content_type.is_none());
}

#[test]
fn content_types_choose_the_form() {
    let json = GOLDEN[0].1.as_bytes();
    let bytes = hex::decode(GOLDEN[0].2.trim()).expect("hex");
    for given in [None, Some("application/json"), Some("Application/JSON ; charset=utf-8")] {
        assert!(parse(given, None, json).is_ok(), "{given:?}");
        assert_eq!(parse(given, None, &bytes).expect_err("compact as JSON").field, "body", "{given:?}");
    }
    assert!(parse(COMPACT, Some("acme/google_ads/2026-11-22"), &bytes).is_ok());
    assert_eq!(parse(COMPACT, None, json).expect_err("JSON as compact").field, "version");
}

#[test]
fn rejections_carry_what_identity_there_is() {
    let identity = |rejected: &Rejected| {
        (rejected.job_id.as_ref().map(ToString::to_string), rejected.destination.as_ref().map(ToString::to_string))
    };
    let found = |text: &str| identity(&wire::parse(text.as_bytes()).expect_err(text));
    let both = (Some("a".to_owned()), Some("acme".to_owned()));
    assert_eq!(found(r#"{"version":2,"id":"a","destination":"acme","new":[{}]}"#), both);
    assert_eq!(found(r#"{"version":1,"id":"a","destination":{"id":"acme","bucket":7}}"#), both);
    assert_eq!(found(r#"{"id":"a","destination":"acme","key":"x"#), both);
    assert_eq!(found(r#"{"id":"not an id","destination":["acme"],"key":1}"#), (None, None));
    let by_message_id = parse(None, Some("a"), b"{").expect_err("no job");
    assert_eq!(identity(&by_message_id), (Some("a".to_owned()), None));
    let mut trailing = hex::decode(GOLDEN[0].2.trim()).expect("hex");
    trailing.push(0);
    let trailing = compact::parse(&trailing).expect_err("trailing");
    assert_eq!(identity(&trailing), (Some("acme/google_ads/2026-11-22".to_owned()), both.1));
}

#[test]
fn an_array_is_named_and_column_0_is_left_out() {
    let said = |text: &str| wire::parse(text.as_bytes()).expect_err(text).to_string();
    assert_eq!(said("[]"), "body: is an array; send one object per job");
    let nested = "{\"version\":1,\"id\":\"a\",\"source\":\n[]}";
    assert_eq!(said(nested), "source: has the wrong type or value; expected an object");
}

#[test]
fn rejections_repeat_no_value() {
    let mark = "MARKED-external-id-or-signature";
    for text in [
        format!(r#"{{"version":1,"id":"a","source":"{mark}"}}"#),
        format!(r#"{{"version":"{mark}"}}"#),
        format!(r#"{{"version":1,"compression":"{mark}"}}"#),
        format!(r#"{{"version":1,"if_exists":"x, expected {mark}"}}"#),
        format!(
            r#"{{"version":1,"id":"a","source":{{"url":"https://h/a?X-Amz-Signature={mark}#f"}},"destination":"a","key":"k"}}"#
        ),
        format!(r#"{{"version":1,"destination":{{"auth":{{"method":"{mark}"}}}}}}"#),
        format!(r#"{{"version":1,"destination":{{"auth":{{"method":"iam_role","external_id":["{mark}"]}}}}}}"#),
        format!(
            r#"{{"version":1,"id":"a","source":{{"url":"https://h/a"}},"key":"k","destination":{{"id":"a","bucket":"bucket",
                "region":"eu-west-1","auth":{{"method":"iam_role","role_arn":"arn:aws:iam::123456789012:role/r","external_id":"{mark} x"}}}}}}"#
        ),
        format!(r#"{{"version":1 {mark}"#),
    ] {
        let rejected = wire::parse(text.as_bytes()).expect_err(&text);
        assert!(!format!("{rejected} {rejected:?}").contains(mark), "{rejected:?}");
    }
}

#[test]
fn a_small_message_can_not_ask_for_much_memory() {
    // A version byte, then the length of `id` as u64: 2^40. Refused by the limit and not by the end of the body.
    let mut bomb = vec![1, 253];
    bomb.extend((1_u64 << 40).to_le_bytes());
    let rejected = compact::parse(&bomb[..9]).expect_err("cut");
    assert!(rejected.message.contains("ends before"), "{rejected}");
    let rejected = compact::parse(&bomb).expect_err("bomb");
    assert!(rejected.message.contains("asks for more"), "{rejected}");
}

#[test]
fn jobs_that_would_be_refused_are_not_encoded() {
    let mut raw = wire::read(GOLDEN[0].1.as_bytes()).expect("valid");
    raw.key = "../x".into();
    assert_eq!(compact::encode(&raw).expect_err("key").field, "key");
    raw.key = "x".into();
    raw.version = 2;
    assert_eq!(compact::encode(&raw).expect_err("version").field, "version");
    let mut raw = wire::read(GOLDEN[2].1.as_bytes()).expect("valid");
    let RawDestinationRef::Inline(to) = &mut raw.destination else { panic!() };
    to.auth.secret_access_key_file = Some("/secret".into());
    assert_eq!(compact::encode(&raw).expect_err("secret").field, "destination.auth");
}

#[test]
fn doubled_names_are_refused_in_the_compact_form_too() {
    let mut raw = wire::read(GOLDEN[0].1.as_bytes()).expect("valid");
    raw.labels = [("aa".into(), "1".into()), ("ab".into(), "2".into())].into();
    let mut bytes = compact::encode(&raw).expect("valid");
    let last = bytes.iter().rposition(|b| *b == b'b').expect("the second name");
    bytes[last] = b'a';
    let rejected = compact::parse(&bytes).expect_err("doubled");
    assert_eq!((&*rejected.field, rejected.job_id.is_some()), ("labels", true));
}

#[test]
fn the_schema_invites_no_secret() {
    let schema = serde_json::to_string(&wire::schema()).expect("a schema");
    assert!(schema.contains("external_id") && !schema.contains("secret_access_key"), "{schema}");
}

// ---- the corpus ----

/// One bad message. Exactly one of `body`, `body_base64` and `generator` is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bad {
    name: String,
    content_type: Option<String>,
    message_id: Option<String>,
    body: Option<String>,
    body_base64: Option<String>,
    generator: Option<String>,
    /// `worker`: refused only where the configuration is known.
    stage: Option<String>,
    expect_reason: String,
    expect_field: String,
}

impl Bad {
    fn bytes(&self) -> Vec<u8> {
        match (&self.body, &self.body_base64, self.generator.as_deref()) {
            (Some(text), None, None) => text.as_bytes().to_vec(),
            (None, Some(text), None) => base64::engine::general_purpose::STANDARD.decode(text).expect(&self.name),
            (None, None, Some(name)) => generated(name),
            _ => panic!("{}: give one body", self.name),
        }
    }
}

fn generated(name: &str) -> Vec<u8> {
    let with = |field: &str| {
        let start = r#"{"version":1,"id":"a","source":{"url":"https://h.example/a"},"destination":"acme","key":"k","#;
        format!("{start}{field}}}").into_bytes()
    };
    match name {
        "300_kib" => with(&format!(r#""labels":{{"a":"{}"}}"#, "x".repeat(300 * 1024))),
        "300_kib_binary" => std::iter::once(1).chain(std::iter::repeat_n(b'a', 300 * 1024)).collect(),
        "deep_labels" => with(&format!(r#""labels":{}1{}"#, "[".repeat(100_000), "]".repeat(100_000))),
        "deep_unknown" => with(&format!(r#""x":{}1{}"#, r#"{"a":"#.repeat(20_000), "}".repeat(20_000))),
        "deep_everything" => "[".repeat(200_000).into_bytes(),
        "65_labels" => {
            let labels: Vec<_> = (0..65).map(|n| format!(r#""l{n}":"x""#)).collect();
            with(&format!(r#""labels":{{{}}}"#, labels.join(",")))
        }
        "11_tags" => {
            let tags: Vec<_> = (0..11).map(|n| format!(r#""t{n}":"x""#)).collect();
            with(&format!(r#""tags":{{{}}}"#, tags.join(",")))
        }
        "3_kib_metadata" => with(&format!(r#""metadata":{{"a":"{}"}}"#, "x".repeat(3 * 1024))),
        _ => panic!("unknown generator {name}"),
    }
}

#[test]
fn a_byte_order_mark_before_the_json_is_skipped() {
    for (name, json, _) in GOLDEN {
        let marked = format!("\u{feff}{json}");
        let job = parse(None, None, marked.as_bytes()).expect(name);
        assert_eq!(job.id, wire::parse(json.as_bytes()).expect(name).id);
        assert!(parse(None, None, format!("\u{feff}{marked}").as_bytes()).is_err(), "{name}: only one");
    }
}

#[test]
fn every_bad_message_is_refused_by_its_field() {
    let corpus = include_str!("../../../tests/corpus/bad_jobs/bad_jobs.ndjson");
    let mut names = std::collections::BTreeSet::new();
    let mut wrong = Vec::new();
    for line in corpus.lines() {
        let bad: Bad = serde_json::from_str(line).expect(line);
        assert!(names.insert(bad.name.clone()), "{} occurs twice", bad.name);
        let parsed = parse(bad.content_type.as_deref(), bad.message_id.as_deref(), &bad.bytes());
        if bad.stage.as_deref() == Some("worker") {
            assert!(parsed.is_ok(), "{}: {parsed:?}", bad.name);
            continue;
        }
        let Err(rejected) = parsed else {
            wrong.push(format!("{}: accepted", bad.name));
            continue;
        };
        if (rejected.reason.as_str(), &*rejected.field) != (&*bad.expect_reason, &*bad.expect_field) {
            wrong.push(format!("{}: {} {rejected}", bad.name, rejected.reason.as_str()));
        }
        assert!(!rejected.message.is_empty() && rejected.to_string().len() < 400, "{}: {rejected}", bad.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(names.len() >= 60, "{} bad messages", names.len());
}

// ---- properties ----

fn pairs(name: &'static str, value: &'static str, most: usize) -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(name, value, 0..most)
}

prop_compose! {
    fn sources()(
        url in prop_oneof![
            "https://[a-z]{1,9}\\.example/[a-z0-9/]{0,20}(\\?[a-z]=[a-z0-9]{1,9})?",
            "file:///([a-z0-9]{1,5}/){0,3}[a-z0-9]{1,8}\\.csv",
            "s3://[a-z]{3,20}/[a-z0-9äß]{1,20}",
        ],
        size: Option<u64>,
        sha256 in prop::option::of("[0-9a-f]{64}"),
        etag in prop::option::of("(W/)?\"[a-z0-9-]{1,40}\""),
    ) -> RawJobSource {
        RawJobSource { url, size, sha256, etag, allow_unproven_length: false }
    }
}

prop_compose! {
    fn inlines()(
        id in "[a-z0-9][a-z0-9-]{0,62}",
        prefix in "([a-zä ]{1,9}/){0,3}",
        external_id in prop::option::of("[A-Za-z0-9_+=,.@:/-]{2,60}"),
        kms in prop::option::of("arn:aws:kms:eu-west-1:123456789012:key/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
        bucket_key: Option<bool>,
        context in pairs("[a-z]{1,8}", "\\PC{0,8}", 3),
        owner in prop::option::of(prop_oneof!["[0-9]{12}", Just("any".to_owned())]),
        max_concurrency: Option<std::num::NonZeroU32>,
        max_bytes_per_second: Option<std::num::NonZeroU64>,
        plain: bool,
        tenant in prop::option::of("\\PC{1,30}"),
    ) -> RawDestination {
        let role_arn = Some("arn:aws:iam::123456789012:role/consign".to_owned());
        RawDestination {
            publishers: None,
            id: Some(id),
            bucket: "acme-analytics".into(),
            region: "eu-west-1".into(),
            prefix,
            auth: RawAuth { role_arn, external_id, ..RawAuth::default() },
            bucket_key_enabled: bucket_key.filter(|_| kms.is_some()),
            encryption_context: if kms.is_some() { context } else { BTreeMap::new() },
            encryption: None,
            kms_key_arn: kms,
            expected_bucket_owner: owner,
            max_concurrency,
            max_bytes_per_second,
            checksum: if plain { Checksum::None } else { Checksum::default() },
            equal_parts: false,
            session_policy: None,
            tenant,
        }
    }
}

prop_compose! {
    fn objects()(
        content_type in prop::option::of("[a-z]{1,9}/[a-z]{1,9}(; charset=utf-8)?"),
        content_encoding in prop::option::of("gzip|br|zstd"),
        metadata in pairs("[a-z0-9-]{1,20}", "([!-~][ -~]{0,20}[!-~])?", 6),
        tags in pairs("[A-Za-z0-9 ]{1,20}", "[\\p{L}\\p{N} .:/=+@_-]{0,20}", 10),
        storage_class in prop::option::of("[A-Z_]{1,32}"),
    ) -> RawJob {
        let nowhere = RawDestinationRef::Id(String::new());
        RawJob { content_type, content_encoding, metadata, tags, storage_class, ..RawJob::new("", "", nowhere, "") }
    }
}

prop_compose! {
    fn jobs()(
        id in "[A-Za-z0-9._:/=@+-]{1,200}",
        source in sources(),
        to in prop_oneof![
            "[a-z0-9][a-z0-9-]{0,62}".prop_map(RawDestinationRef::Id),
            inlines().prop_map(|to| RawDestinationRef::Inline(Box::new(to))),
        ],
        key in "([a-z0-9ä ]{1,9}/){0,3}[^/.\\p{C}]{1,20}",
        object in objects(),
        compression in prop::sample::select(vec![Compression::None, Compression::Gzip, Compression::Zstd]),
        if_exists in prop::sample::select(vec![IfExists::Replace, IfExists::Keep, IfExists::Fail]),
        generation in prop::option::of(0..=i64::MAX as u64),
        created_at in prop::option::of("20[0-9]{2}-1[0-2]-[0-2][1-8]T[0-1][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|\\+0[0-9]:30)"),
        expires_at in prop::option::of("20[0-9]{2}-0[1-9]-[0-2][1-8]T2[0-3]:[0-5][0-9]:[0-5][0-9]Z"),
        labels in pairs("\\PC{1,20}", "\\PC{0,60}", 9),
    ) -> RawJob {
        RawJob { id, source, destination: to, key, compression, if_exists, generation, created_at, expires_at, labels, ..object }
    }
}

fn names_a_field(parsed: Result<Job, Rejected>) {
    if let Err(rejected) = parsed {
        assert!(!rejected.field.is_empty() && !rejected.message.is_empty(), "{rejected:?}");
        assert!(rejected.reason.class() == crate::domain::outcome::Class::Job, "{rejected:?}");
        assert!(rejected.reason != Reason::Unclassified, "{rejected:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_valid_job_survives_both_forms(raw in jobs()) {
        let json = wire::render(&raw);
        let job = parse(None, Some(&raw.id), &json).map_err(|r| TestCaseError::fail(r.to_string()))?;
        prop_assert_eq!(wire::render(&wire::read(&json).expect("valid")), json.clone());
        let bytes = compact::encode(&raw).map_err(|p| TestCaseError::fail(p.to_string()))?;
        let again = compact::decode(&bytes).map_err(|r| TestCaseError::fail(r.to_string()))?;
        prop_assert_eq!(wire::render(&again), json);
        let compact = parse(COMPACT, None, &bytes).map_err(|r| TestCaseError::fail(r.to_string()))?;
        prop_assert_eq!(format!("{job:?}"), format!("{compact:?}"));
    }

    #[test]
    fn any_bytes_are_a_job_or_named(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        names_a_field(parse(None, None, &bytes));
        names_a_field(parse(COMPACT, None, &bytes));
        let versioned: Vec<u8> = std::iter::once(1).chain(bytes).collect();
        names_a_field(parse(COMPACT, None, &versioned));
    }

    #[test]
    fn damaged_jobs_are_jobs_or_named(raw in jobs(), at: prop::sample::Index, byte: u8, cut: bool) {
        for (form, mut bytes) in [(None, wire::render(&raw)), (COMPACT, compact::encode(&raw).expect("valid"))] {
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
                prop_assert!(parse(form, None, &bytes).is_err());
            } else {
                bytes[at] = byte;
            }
            names_a_field(parse(form, None, &bytes));
        }
    }

    #[test]
    fn any_json_object_is_a_job_or_named(fields in prop::collection::btree_map(
        "version|id|source|destination|key|tags|labels|size|[a-z]{1,4}",
        prop_oneof![Just("1"), Just("\"a\""), Just("null"), Just("[1]"), Just("{\"url\":\"https://h\"}"), Just("{\"id\":{}}"), Just("1e999")],
        0..9,
    )) {
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        names_a_field(parse(None, None, format!("{{{}}}", fields.join(",")).as_bytes()));
    }
}

#[test]
fn what_was_expected_is_said_in_plain_words() {
    let sized = |size: &str| {
        let start = r#"{"version":1,"id":"a","source":{"url":"file:///a","size":"#;
        wire::parse(format!(r#"{start}{size}}},"destination":"acme","key":"k"}}"#).as_bytes()).unwrap_err().message
    };
    for wrong in ["1000.5", r#""1""#, "-1"] {
        assert!(sized(wrong).ends_with("expected a whole number"), "{}", sized(wrong));
    }
}

#[test]
fn a_field_with_an_empty_name_is_named_by_its_quotes() {
    let field = |json: &str| wire::parse(json.as_bytes()).unwrap_err().field;
    assert_eq!(
        field(r#"{"version":1,"":1,"id":"a","source":{"url":"file:///a"},"destination":"acme","key":"k"}"#),
        r#""""#
    );
    assert_eq!(
        field(r#"{"version":1,"id":"a","source":{"url":"file:///a","":1},"destination":"acme","key":"k"}"#),
        r#"source."""#
    );
    assert_eq!(
        field(r#"{"version":1,"id":"a","source":{"url":"file:///a"},"destination":{"":1},"key":"k"}"#),
        r#"destination."""#
    );
}
