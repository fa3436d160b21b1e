mod canaries;
mod urls;

use std::ffi::OsString;
use std::path::PathBuf;

use secrecy::ExposeSecret;
use serde_json::Value;

use super::*;
use crate::domain::destination::Auth;

const FULL: &str = include_str!("../../config/consign.full.toml");
const MINIMAL: &str = include_str!("../../config/consign.minimal.toml");

const POINT: &str = "arn:aws:s3:eu-central-1:123456789012:accesspoint/exports";

const SECRET: &str = "s3cr3t-marker";

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("consign.toml");
    std::fs::write(&file, text).unwrap();
    (folder, file)
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

/// Returns the problems of a text, without the name of the file.
fn problems(text: &str) -> Vec<String> {
    let problems = load_str(text).unwrap_err().to_string();
    problems.lines().map(|line| line.trim_start_matches("text.toml:").to_owned()).collect()
}

fn overrides(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn an_empty_configuration_has_the_defaults_of_the_contract() {
    let config = load_str("").unwrap().config;
    assert_eq!((config.worker.slots.get(), config.worker.backfill_slots), (16, 8));
    assert_eq!(config.worker.memory_budget, 256 << 20);
    assert_eq!(config.upload.part_size, 8 << 20);
    assert_eq!(config.upload.min_rate, 64 << 10);
    assert_eq!(config.session.refresh_before.as_secs(), 300);
    assert_eq!(config.broker.lease_after.as_secs(), 600);
    assert_eq!(config.broker.reply_to, ["amq.rabbitmq.reply-to.*", "consign.reply.*"]);
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9464");
    assert_eq!(config.log.filter, "info");
    assert!(config.worker.id.ends_with(&std::process::id().to_string()));
    assert!(config.broker.url.is_none() && config.destinations.is_empty());
}

#[test]
fn the_sample_files_are_valid() {
    let minimal = load_str(MINIMAL).unwrap().config;
    assert_eq!(minimal.destinations.len(), 1);
    let full = load_str(FULL).unwrap().config;
    assert_eq!(full.destinations.len(), 2);
    let legacy = full.destinations.values().find(|one| one.id.as_str() == "legacy").unwrap();
    assert!(matches!(legacy.auth, Auth::AccessKey { .. }));
}

#[test]
fn the_full_sample_shows_the_defaults() {
    let sections = FULL.split("# One section for each").next().unwrap();
    let shown: Value = serde_json::to_value(toml::from_str::<toml::Table>(sections).unwrap()).unwrap();
    let defaults = serde_json::to_value(raw::RawConfig::default()).unwrap();
    for (section, keys) in shown.as_object().unwrap() {
        for (key, value) in keys.as_object().unwrap() {
            // They have no fixed default, and are to be set.
            if ![("broker", "url"), ("aws", "region")].contains(&(section.as_str(), key.as_str())) {
                assert_eq!(*value, defaults[section][key], "{section}.{key}");
            }
        }
    }
}

#[test]
fn the_full_sample_mentions_every_key_of_the_schema() {
    fn names(schema: &Value, found: &mut Vec<String>) {
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            found.push(key.clone());
            names(inner, found);
        }
        if schema["additionalProperties"].is_object() {
            names(&schema["additionalProperties"], found);
        }
    }
    let mut keys = Vec::new();
    names(super::keys::schema_at(&[]).unwrap(), &mut keys);
    assert!(keys.len() > 60, "{keys:?}");
    for key in keys {
        let mentioned = [format!("{key} ="), format!("[{key}]"), format!("[{key}.")].iter().any(|m| FULL.contains(m));
        assert!(mentioned, "{key} is missing in config/consign.full.toml");
    }
}

#[test]
fn all_problems_are_reported_at_once_with_their_lines() {
    let found = problems(
        "[broker]\nprefix = \"Not This\"\nlease_after = \"2h\"\nurl = 5\n[worker]\nslot = 4\nslots = 0\n\
         memory_budget = \"1MiB\"\n[destinations.acme]\nbucket = \"B\"\nregion = \"eu-central-1\"\n\
         [destinations.acme.auth]\nmethod = \"iam_role\"\nrole_arn = \"nonsense\"\n[destinations.Beta]\nbucket = \"beta-1\"\n",
    );
    let expected = [
        "6: worker.slot: unknown key; did you mean \"slots\"?",
        "15: destinations.Beta.region: is required; add it",
        "15: destinations.Beta.auth: is required; add it",
        "4: broker.url: is a whole number; give text in quotes",
        "7: worker.slots: is out of range; give a whole number of at least 1",
        "2: broker.prefix: ",
        "3: broker.lease_after: ",
        "8: worker.memory_budget: ",
        "10: destinations.acme.bucket: ",
        "14: destinations.acme.auth.role_arn: ",
        "15: destinations.Beta: ",
    ];
    for start in expected {
        assert!(found.iter().any(|line| line.starts_with(start)), "{start} is missing in {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn a_broken_file_is_reported_together_with_the_problems_of_others() {
    let (_one, broken) = written("[broker]\nurl = \"amqp://u:s3cr3t-marker@h\n[worker]\n");
    let (_two, wrong) = written("[worker]\nslots = \"many\"\n[destinations.acme]\nbucket = \"acme-1\"\n");
    let missing = PathBuf::from("/nonexistent/consign.toml");
    let text = load_from(&[broken.clone(), wrong.clone(), missing], [], &[]).unwrap_err().to_string();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with(&format!("{}:2: not valid TOML", broken.display()))), "{text}");
    assert!(lines.iter().any(|line| line.starts_with(&format!("{}:2: worker.slots: ", wrong.display()))), "{text}");
    assert!(lines.iter().any(|line| line.starts_with("/nonexistent/consign.toml: can't be read")), "{text}");
    assert!(!text.contains("is required") && !text.contains(SECRET), "{text}");
}

#[test]
fn flags_override_the_environment_which_overrides_files_which_override_defaults() {
    let (_one, first) =
        written("[worker]\nslots = 1\nbackfill_slots = 1\nmax_attempts = 2\n[upload]\nmin_rate = \"1KiB\"\n");
    let (_two, second) = written("[worker]\nslots = 3\nbackfill_slots = 1\n");
    let variables =
        environment(&[("CONSIGN__WORKER__SLOTS", "4"), ("CONSIGN__WORKER__BACKFILL_SLOTS", "2"), ("OTHER", "x")]);
    let loaded = load_from(&[first.clone(), second], variables, &overrides(&[("worker.slots", "5")])).unwrap();
    let worker = &loaded.config.worker;
    assert_eq!((worker.slots.get(), worker.backfill_slots, worker.max_attempts.get()), (5, 2, 2));
    let origin = |key: &str| loaded.settings().iter().find(|setting| setting.key == key).unwrap().origin.to_string();
    assert_eq!(origin("worker.slots"), "flag --set worker.slots");
    assert_eq!(origin("worker.backfill_slots"), "environment CONSIGN__WORKER__BACKFILL_SLOTS");
    assert_eq!(origin("worker.max_attempts"), format!("{}:4", first.display()));
    assert_eq!(origin("worker.destination_slots"), "default");
    assert!(loaded.is_given("upload.min_rate") && !loaded.is_given("upload.part_size"));
}

#[test]
fn the_environment_can_set_a_whole_destination_and_digits_stay_text() {
    let variables = environment(&[
        ("CONSIGN__DESTINATIONS__ACME-EU__BUCKET", "acme-1"),
        ("CONSIGN__DESTINATIONS__ACME-EU__REGION", "eu-central-1"),
        ("CONSIGN__DESTINATIONS__ACME-EU__TENANT", "0042"),
        ("CONSIGN__DESTINATIONS__ACME-EU__EXPECTED_BUCKET_OWNER", "012345678901"),
        ("CONSIGN__DESTINATIONS__ACME-EU__AUTH__METHOD", "access_key"),
        ("CONSIGN__DESTINATIONS__ACME-EU__AUTH__ACCESS_KEY_ID", "12345"),
        ("CONSIGN__DESTINATIONS__ACME-EU__AUTH__SECRET_ACCESS_KEY", "00123"),
    ]);
    let config = load_from(&[], variables, &[]).unwrap().config;
    let destination = config.destinations.values().next().unwrap();
    assert_eq!((destination.id.as_str(), destination.tenant.as_deref()), ("acme-eu", Some("0042")));
    assert_eq!(destination.expected_bucket_owner.as_ref().unwrap().as_str(), "012345678901");
    let Auth::AccessKey { secret: crate::domain::destination::SecretSource::Inline(secret), .. } = &destination.auth
    else {
        panic!("{:?}", destination.auth)
    };
    assert_eq!(secret.expose_secret(), "00123");
}

#[test]
fn problems_name_the_variable_or_the_flag() {
    let variables = environment(&[("CONSIGN__WORKER__SLOTS", "lots"), ("CONSIGN__WOKRER__SLOTS", "1")]);
    let text = load_from(&[], variables, &overrides(&[("admin.listen", "here")])).unwrap_err().to_string();
    assert!(text.contains("environment CONSIGN__WORKER__SLOTS: worker.slots: is text; give a whole number"), "{text}");
    assert!(
        text.contains("environment CONSIGN__WOKRER__SLOTS: wokrer: unknown key; did you mean \"worker\"?"),
        "{text}"
    );
    assert!(text.contains("flag --set admin.listen: admin.listen: is not an address with a port"), "{text}");
}

#[test]
fn invalid_and_conflicting_values_are_refused() {
    let role = "[destinations.a]\nbucket = \"abc\"\nregion = \"eu-central-1\"\nauth = { method = \"iam_role\", ";
    let arn = "role_arn = \"arn:aws:iam::123456789012:role/r\"";
    for (text, line) in [
        ("[worker]\nslots = 2\nbackfill_slots = 4".to_owned(), "3: worker.backfill_slots: 4 is more than"),
        ("[worker]\nslots = 20000".to_owned(), "2: worker.slots: is more than"),
        ("[worker]\ndrain_timeout = \"2h\"".to_owned(), "2: worker.drain_timeout: "),
        ("[worker]\nid = \"a b\"".to_owned(), "2: worker.id: "),
        ("[upload]\npart_size = \"1MiB\"".to_owned(), "2: upload.part_size: 1MiB is outside"),
        ("[upload]\nmultipart_threshold = \"6GiB\"".to_owned(), "2: upload.multipart_threshold: 6GiB is outside"),
        ("[upload]\npart_size = \"200MiB\"".to_owned(), "worker.memory_budget: 256MiB is too small"),
        ("[upload]\nmin_rate = 0".to_owned(), "2: upload.min_rate: "),
        ("[upload]\npart_concurrency = 5000".to_owned(), "2: upload.part_concurrency: "),
        ("[session]\nrefresh_before = \"1h\"".to_owned(), "2: session.refresh_before: "),
        ("[session]\ndenied_for = \"2h\"".to_owned(), "2: session.denied_for: "),
        ("[session]\ncapacity = 0".to_owned(), "2: session.capacity: "),
        ("[broker]\nlease_after = \"31m\"".to_owned(), "2: broker.lease_after: "),
        (
            "[broker]\nreply_to = [\"a.*\", \"<prefix>.answers\"]".to_owned(),
            "2: broker.reply_to: has a pattern that permits nothing",
        ),
        (
            "[broker]\nurl = \"amqp://mq.example.com\"".to_owned(),
            "2: broker.url: would send the password in plain text",
        ),
        ("[broker]\nurl = \"http://h\"".to_owned(), "2: broker.url: is not a broker URL"),
        ("[broker]\nurl = \"sqlite:\"".to_owned(), "2: broker.url: has no file"),
        ("[broker]\nurl = \"sqlite::memory:\"".to_owned(), "2: broker.url: would keep the jobs in memory"),
        ("[broker]\nurl = \"sqlite://jobs.db\"".to_owned(), "2: broker.url: has a host"),
        ("[broker]\nurl = \"sqlite:a\"\nurl_file = \"b\"".to_owned(), "3: broker.url_file: conflicts"),
        ("[broker]\nurl_file = \"/nonexistent\"".to_owned(), "2: broker.url_file: names a file that can't be read"),
        ("[broker]\nclient_cert_file = \"/dev/null\"".to_owned(), "2: broker.client_cert_file: is only one of a pair"),
        ("[broker]\nclient_key_file = \"/dev/null\"".to_owned(), "2: broker.client_key_file: is only one of a pair"),
        ("[broker]\nurl = \"amqp://[::1]\"\nca_file = \"/dev/null\"".to_owned(), "3: broker.ca_file: has no effect"),
        ("[broker]\nca_file = \"/nonexistent\"".to_owned(), "2: broker.ca_file: names a file that can't be read"),
        ("[aws]\nregion = \"x@host\"".to_owned(), "2: aws.region: "),
        ("[aws]\ns3_endpoint_url = \"ftp://h\"".to_owned(), "2: aws.s3_endpoint_url: is not an endpoint"),
        ("[aws]\nsts_endpoint_url = \"https://u:p@h\"".to_owned(), "2: aws.sts_endpoint_url: is not an endpoint"),
        ("[aws]\nidentity_role_arn = \"arn\"".to_owned(), "2: aws.identity_role_arn: "),
        ("[metrics]\nmax_destinations = 0".to_owned(), "2: metrics.max_destinations: "),
        ("[check]\negress_addresses = [\"192.0.2.0/33\"]".to_owned(), "2: check.egress_addresses: "),
        ("[log]\nfilter = \"consign=loud\"".to_owned(), "2: log.filter: is not a filter"),
        (
            "[log]\nfilter = \"loud\"".to_owned(),
            "2: log.filter: is not a level; write error, warn, info, debug or trace",
        ),
        ("[log]\nformat = \"xml\"".to_owned(), "2: log.format: is not a valid value; give \"json\" or \"text\""),
        (format!("{role}{arn}, access_key_id = \"AKIA\" }}"), "4: destinations.a.auth.access_key_id: does not belong"),
        (format!("{role}{arn} }}\nid = \"b\""), "5: destinations.a.id: differs"),
        (format!("{role}{arn} }}\nbucket_key_enabled = true"), "5: destinations.a.bucket_key_enabled: has no effect"),
        (format!("{role}{arn} }}\npublishers = []"), "5: destinations.a.publishers: is an empty list"),
        (
            format!("[aws]\nforce_path_style = true\n{}{arn} }}", role.replace("abc", POINT)),
            "4: destinations.a.bucket: is the ARN of an access point",
        ),
        (
            format!("{role}{arn} }}\npublishers = [\"x\"]\n[broker]\nurl = \"sqlite:a\""),
            "5: destinations.a.publishers: needs RabbitMQ",
        ),
    ] {
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].starts_with(line), "{text}\ngave {found:#?}\ninstead of {line}");
    }
}

#[test]
fn invalid_sources_and_admin_settings_are_refused() {
    for (text, line) in [
        ("[source]\nschemes = [\"http\"]".to_owned(), "2: source.schemes: \"http\" is not listed here"),
        ("[source]\nschemes = [\"ftp\"]".to_owned(), "2: source.schemes: has an unknown scheme"),
        ("[source]\nfile_root = \"/dev/null\"".to_owned(), "2: source.file_root: is not a directory"),
        (
            "[source]\ns3_buckets = [\"staging\"]".to_owned(),
            "2: source.s3_buckets: was renamed to s3; write s3 = [{ bucket",
        ),
        ("[source]\ns3 = [{ bucket = \"X\" }]".to_owned(), "2: source.s3: place 1: bucket: is not a bucket name"),
        ("[source]\ns3 = [{ bucket = \"abc\", prefix = \"/x\" }]".to_owned(), "2: source.s3: place 1: prefix: "),
        (
            "[source]\ns3 = [{ bucket = \"abc\", owner = \"any\" }]".to_owned(),
            "2: source.s3: place 1: owner: is not an account",
        ),
        (
            "[source]\ns3 = [{ bucket = \"abc\", folder = \"x\" }]".to_owned(),
            "2: source.s3: has an unknown key; valid keys: bucket",
        ),
        ("[source]\ns3 = [{ prefix = \"x\" }]".to_owned(), "2: source.s3: the required key bucket is missing; add it"),
        (
            "[source]\ns3 = [{ bucket = \"abc\" }, { bucket = \"abc\", prefix = \"{tenant}\" }]".to_owned(),
            "2: source.s3: place 2 overlaps with place 1",
        ),
        ("[source]\nfile_root = \"/{tennant}\"".to_owned(), "2: source.file_root: has braces; {tenant} is the only"),
        ("[source]\nfile_root = \"/nonexistent/{tenant}\"".to_owned(), "2: source.file_root: is not below a directory"),
        ("[source]\nfile_root = \"/{tenant}/../x\"".to_owned(), "2: source.file_root: has \".\" or \"..\" segments"),
        (
            "[source]\nallow_networks = [\"10.0.0.0/33\"]".to_owned(),
            "2: source.allow_networks: has an entry that is not an address",
        ),
        ("[admin]\nhosts = [\"consign:9464\"]".to_owned(), "2: admin.hosts: has an entry that is not a host name"),
        ("[admin]\ntoken_file = \"/nonexistent\"".to_owned(), "2: admin.token_file: names a file that can't be read"),
        ("[admin]\ntoken_file = \"/dev/null\"".to_owned(), "2: admin.token_file: names a file without a token"),
        ("[source]\nmax_bytes = 0".to_owned(), "2: source.max_bytes: "),
        ("[inline]\nexternal_id = \"never\"".to_owned(), "2: inline.external_id: is not a valid value"),
        ("[inline]\nrole_arns = [\"{team}\"]".to_owned(), "2: inline.role_arns: has braces; only {tenant}"),
        ("[inline]\nprefix_pattern = \"\"".to_owned(), "2: inline.prefix_pattern: has a pattern that is empty"),
        (
            "[inline]\naccounts = [\"1\"]".to_owned(),
            "2: inline.accounts: has an entry that is not an account of 12 digits",
        ),
    ] {
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].starts_with(line), "{text}\ngave {found:#?}\ninstead of {line}");
    }
}

#[test]
fn values_that_only_seem_to_conflict_are_accepted() {
    for text in [
        "[worker]\nslots = 4",
        "[broker]\nurl = \"amqp://localhost/%2f\"",
        "[broker]\nurl = \"amqp://mq.example.com\"\nallow_plaintext = true",
        "[aws]\nforce_path_style = true",
        "[check]\negress_addresses = [\"192.0.2.0/24\", \"2001:db8::1\"]",
        "[source]\nschemes = [\"file\"]",
        "[log]\nfilter = \"off\"",
        "[log]\nfilter = \"consign\"",
        "[log]\nfilter = \"lapin=off\"",
        "[log]\nfilter = \"consign=debug,warn\"",
        "[inline]\nenabled = true\nexternal_id_pattern = \"ours:{tenant}:*\"\naccounts = [\"123456789012\"]",
    ] {
        assert!(load_str(text).is_ok(), "{text}: {}", load_str(text).unwrap_err());
    }
    assert_eq!(load_str("[worker]\nslots = 4").unwrap().config.worker.backfill_slots, 4);
}

#[test]
fn a_secret_is_never_shown() {
    let (_folder, file) = written(
        "[broker]\nurl = \"amqps://me:s3cr3t-marker@h/v?x=s3cr3t-marker\"\n[destinations.a]\nbucket = \"abc\"\n\
         region = \"eu-central-1\"\nauth = { method = \"access_key\", access_key_id = \"AKIA\", \
         secret_access_key = \"s3cr3t-marker\" }\n[destinations.b]\nbucket = \"abc\"\nregion = \"eu-central-1\"\n\
         auth = { method = \"iam_role\", role_arn = \"arn:aws:iam::123456789012:role/r\", external_id = \"s3cr3t-marker\" }",
    );
    let loaded = load_from(&[file], [], &[]).unwrap();
    assert_eq!(loaded.config.broker.url.as_ref().unwrap().expose_secret().matches(SECRET).count(), 2);
    let shown: String = loaded
        .settings()
        .iter()
        .map(|setting| format!("{} = {}  # {}\n", setting.key, setting.value, setting.origin))
        .collect();
    assert!(shown.contains("broker.url = \"amqps://me:***@h/v\""), "{shown}");
    assert!(!shown.contains(SECRET) && !format!("{loaded:?}").contains(SECRET), "{shown}");
}

#[test]
fn a_problem_never_quotes_a_secret() {
    for text in [
        "[broker]\nurl = \"amqp://me:s3cr3t-marker@mq.example.com\"",
        "[broker]\nurl = [\"s3cr3t-marker\"]",
        "[broker]\nurl = \"s3cr3t-marker\"",
        "[broker]\nurl = \"s3cr3t-marker",
        "[destinations.a]\nauth = { method = \"access_key\", access_key_id = \"\", secret_access_key = { x = \"s3cr3t-marker\" } }",
        "[destinations.a]\nauth = { method = \"iam_role\", external_id = \"s3cr3t-marker!\" }",
    ] {
        let found = problems(text);
        assert!(!found.is_empty() && !found.concat().contains(SECRET), "{found:?}");
    }
    let on_the_command_line = overrides(&[("broker.url", "amqps://u:s3cr3t-marker@h")]);
    let refused = load_from(&[], [], &on_the_command_line).unwrap_err().to_string();
    assert!(
        refused.contains("broker.url: an amqp URL can contain a password, so") && !refused.contains(SECRET),
        "{refused}"
    );
    assert!(refused.contains("is not accepted on the command line"), "{refused}");
    let secret = overrides(&[("destinations.a.auth.secret_access_key", SECRET)]);
    let refused = load_from(&[], [], &secret).unwrap_err().to_string();
    assert!(
        refused.contains("a secret may not be given on the command line") && !refused.contains(SECRET),
        "{refused}"
    );
}

#[test]
fn a_hostile_file_is_refused_with_a_bounded_list() {
    let many: String = (0..5000).map(|n| format!("[destinations.d{n}]\nbucket = {n}\n")).collect();
    assert!(load_str(&many).is_err());
    let deep = format!("a = {}{}", "[".repeat(5000), "]".repeat(5000));
    assert!(load_str(&deep).is_err());
}
