//! Marked secrets in every wrong shape and at every wrong place: no problem quotes them.

use super::*;

const WORD: &str = "s3cr3tCanary";
const NUMBER: &str = "918273645546";

/// Keys that hold a secret, or that a secret is easily written to by mistake. Of each a whole file.
fn keys() -> Vec<(&'static str, &'static str)> {
    let role = "auth.method = \"iam_role\"\nauth.";
    let key = "auth.method = \"access_key\"\nauth.";
    let destination = "";
    [
        ("broker", ["", "url url_file client_key_file prefix reply_to lease_after declare"]),
        ("admin", ["", "token_file listen hosts"]),
        ("aws", ["", "s3_endpoint_url sts_endpoint_url identity_role_arn region"]),
        ("log", ["", "otlp_endpoint filter format"]),
        ("source", ["", "schemes file_root s3 allow_networks max_bytes"]),
        ("check", ["", "egress_addresses"]),
        ("worker", ["", "id slots memory_budget"]),
        ("destinations.a", [role, "external_id role_arn"]),
        ("destinations.a", [key, "secret_access_key secret_access_key_file access_key_id"]),
        (
            "destinations.a",
            [destination, "auth bucket region prefix kms_key_arn expected_bucket_owner checksum max_concurrency"],
        ),
    ]
    .into_iter()
    .flat_map(|(section, [before, keys])| keys.split(' ').map(move |key| (section, before, key)))
    .map(|(section, before, key)| {
        let head: &'static str = Box::leak(format!("[{section}]\n{before}").into_boxed_str());
        (head, key)
    })
    .collect()
}

/// Values of every shape, with a canary in each.
const VALUES: [&str; 26] = [
    "\"s3cr3tCanary\"",
    "\"s3cr3tCanary with blanks\"",
    "\"s3cr3tCanary!\"",
    "\"amqp://user:s3cr3tCanary@mq.example.com\"",
    "\"amqps://user:s3cr3tCanary@\"",
    "\"amqps://user:s3cr3tCanary@h:99999/v\"",
    "\"https://user:s3cr3tCanary@h/?s3cr3tCanary\"",
    "\"sqlit:s3cr3tCanary\"",
    "'s3cr3tCanary\\'",
    "\"\"\"s3cr3tCanary\n\"\"\"",
    "918273645546",
    "-918273645546",
    "918273645546.25",
    "918273645546918273645546918273645546",
    "0x918273645546zz",
    "1918-27-36",
    "true # s3cr3tCanary",
    "[\"s3cr3tCanary\"]",
    "[[\"s3cr3tCanary\"], 918273645546]",
    "{ value = \"s3cr3tCanary\" }",
    "{ \"s3cr3tCanary!\" = 918273645546 }",
    "[{ bucket = \"s3cr3tCanary\", \"s3cr3tCanary!\" = 1 }]",
    "s3cr3tCanary",
    "\"s3cr3tCanary",
    "'s3cr3tCanary",
    "\"s3cr3tCanary\" 918273645546",
];

fn check(what: &str, loaded: &Result<Loaded, ConfigProblems>) -> bool {
    let shown = match loaded {
        Err(problems) => format!("{problems}\n{problems:?}\n{}", serde_json::to_string(&problems.0).unwrap()),
        // What is valid is shown as it is, but for secrets.
        Ok(loaded) => format!("{loaded:?}"),
    };
    if loaded.is_err() {
        assert!(!shown.contains(WORD) && !shown.contains(NUMBER), "{what}\nis quoted in\n{shown}");
    }
    loaded.is_err()
}

#[test]
fn in_a_file() {
    let (mut refused, keys) = (0, keys());
    for (head, key) in &keys {
        for value in VALUES {
            let text = format!("{head}{key} = {value}\n");
            refused += usize::from(check(&text, &load_str(&text)));
            // The mistakes of a hurried hand.
            for text in [format!("{head}{key} {value}\n"), format!("{head}{key} = {value}\n{key} = {value}\n")] {
                assert!(check(&text, &load_str(&text)), "{text}");
            }
        }
    }
    assert!(refused > keys.len() * VALUES.len() * 3 / 4, "{refused} of {}", keys.len() * VALUES.len());
}

#[test]
fn in_the_environment() {
    for (head, key) in keys() {
        let section = head.lines().next().unwrap().trim_matches(['[', ']']).to_uppercase().replace('.', "__");
        let between = if head.contains("auth.") { "AUTH__" } else { "" };
        let variable = format!("CONSIGN__{section}__{between}{}", key.to_uppercase());
        for value in VALUES {
            for value in [value, value.trim_matches('"')] {
                check(&format!("{variable}={value}"), &load_from(&[], environment(&[(&variable, value)]), &[]));
            }
        }
    }
}

#[test]
fn in_a_file_that_a_key_names() {
    let (_folder, named) = written("");
    for key in ["[broker]\nurl_file", "[admin]\ntoken_file"] {
        let text = format!("{key} = {:?}\n", named.display().to_string());
        for content in ["s3cr3tCanary", "s3cr3tCanary with blanks 918273645546", "\"s3cr3tCanary\""] {
            std::fs::write(&named, content).unwrap();
            assert!(check(&text, &load_str(&text)), "{text}: {content}");
        }
        std::fs::write(&named, b"s3cr3tCanary\xff").unwrap();
        assert!(check(&text, &load_str(&text)), "{text}: not UTF-8");
    }
}

#[test]
fn on_the_command_line_and_in_file_names() {
    for (key, value) in
        [("broker.url", "amqps://u:s3cr3tCanary@h"), ("broker.url", "s3cr3tCanary"), ("worker.slots", "s3cr3tCanary")]
    {
        assert!(check(key, &load_from(&[], [], &overrides(&[(key, value)]))));
    }
}

/// Secrets of a valid configuration are masked wherever it is shown.
#[test]
fn in_a_valid_configuration() {
    let text = "[broker]\nurl = \"amqps://me:s3cr3tCanary@h/v\"\n[destinations.a]\nbucket = \"abc\"\nregion = \"eu-central-1\"\n\
                auth = { method = \"access_key\", access_key_id = \"AKIA\", secret_access_key = \"s3cr3tCanary\" }\n";
    let loaded = load_str(text).unwrap();
    let shown = serde_json::to_string(&loaded.settings()).unwrap();
    assert!(!shown.contains(WORD) && !format!("{loaded:?}").contains(WORD), "{shown}");
}
