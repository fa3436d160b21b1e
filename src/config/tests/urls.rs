//! URLs of the broker, and endpoints of AWS.

use super::*;

#[test]
fn a_mistyped_scheme_on_the_command_line_lists_the_schemes() {
    for mistyped in ["sqlit:s3cr3t-marker", "s3cr3t-marker", ""] {
        let refused = load_from(&[], [], &overrides(&[("broker.url", mistyped)])).unwrap_err().to_string();
        let expected =
            "flag --set broker.url: broker.url: is not a broker URL; it begins with sqlite:, amqps: or amqp:";
        assert!(refused.contains(expected) && !refused.contains(SECRET), "{refused}");
    }
    let in_a_file = problems("[broker]\nurl = \"sqlit:q.db\"").concat();
    assert!(in_a_file.contains("it begins with amqps:, amqp: or sqlite:"), "{in_a_file}");
}

#[test]
fn the_broker_url_can_be_read_from_a_file() {
    let (_folder, file) = written("amqps://me:pw@h/v\n");
    let loaded = load_str(&format!("[broker]\nurl_file = {:?}", file.display().to_string())).unwrap();
    assert_eq!(loaded.config.broker.required_url().unwrap().expose_secret(), "amqps://me:pw@h/v");
}

#[test]
fn a_command_that_needs_a_broker_requires_its_url() {
    let required = load_str("").unwrap().config.broker.required_url().map(|_| ()).unwrap_err().to_string();
    assert!(required.contains("broker.url: is required by this command"), "{required}");
}

#[test]
fn a_sqlite_url_names_the_file_of_the_embedded_queue() {
    let file = |text: &str| load_str(text).unwrap().config.broker.embedded_file();
    assert_eq!(file("[broker]\nurl = \"sqlite:jobs.db\""), Some("jobs.db".into()));
    assert_eq!(file("[broker]\nurl = \"sqlite:///var/lib/jobs.db\""), Some("/var/lib/jobs.db".into()));
    assert_eq!(file("[broker]\nurl = \"amqp://localhost\""), None);
}

#[test]
fn fips_and_dual_stack_conflict_with_an_endpoint_of_ones_own() {
    for key in ["use_fips_endpoint", "use_dualstack_endpoint"] {
        for endpoint in ["s3_endpoint_url", "sts_endpoint_url"] {
            let text = format!("[aws]\n{endpoint} = \"https://store.example\"\n{key} = ");
            let found = problems(&format!("{text}true"));
            let expected = format!("3: aws.{key}: has no effect on aws.{endpoint}; remove one of the two");
            assert!(found.len() == 1 && found[0].starts_with(&expected), "{found:#?}");
            assert!(load_str(&format!("{text}false")).is_ok(), "{key} = false turns off what the environment says");
        }
    }
    let both = "[aws]\nuse_fips_endpoint = true\nuse_dualstack_endpoint = true\n";
    let endpoints = "s3_endpoint_url = \"https://store.example\"\nsts_endpoint_url = \"https://store.example\"\n";
    let found = problems(&format!("{both}{endpoints}"));
    assert!(found.len() == 2 && found.iter().all(|one| one.contains("no effect on aws.s3_endpoint_url")), "{found:#?}");
    let aws = load_str(both).unwrap().config.aws;
    assert_eq!((aws.use_fips_endpoint, aws.use_dualstack_endpoint), (Some(true), Some(true)));
}
