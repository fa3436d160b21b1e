//! Errors of the command line, word for word: what was wrong, where, what is expected, and the
//! remedy. No servers are needed.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

const CONFIG: &str = r#"[broker]
url = "sqlite:q.db"

[destinations.acme]
bucket = "acme-data"
region = "eu-central-1"
auth = { method = "access_key", access_key_id = "AKIAIOSFODNN7EXAMPLE", secret_access_key = "x" }
"#;

const WRONG_CONFIG: &str = r#"[broker]
ur = "sqlite:q.db"

[worker]
slots = 0
memory_budget = "lots"
drain_timeout = 30

[log]
format = "xml"

[destinations.Acme]
bucket = "acme"
region = "eu central"
auth = { method = "iam_role" }
"#;

const METHOD_CONFIG: &str = r#"[destinations.acme]
bucket = "acme-data"
region = "eu-central-1"
auth = { method = "access_key", access_key_id = "AKIAIOSFODNN7EXAMPLE", secret_access_key = "x", external_id = "1" }
"#;

const WRONG_CONFIG_ERRORS: &str = r#"wrong.toml:2: broker.ur: unknown key; did you mean "url"?
wrong.toml:5: worker.slots: is out of range; give a whole number of at least 1
wrong.toml:6: worker.memory_budget: is not valid; give a size such as "8MiB"
wrong.toml:7: worker.drain_timeout: is a whole number; give a duration such as "30s" or "5m"
wrong.toml:10: log.format: is not a valid value; give "json" or "text"
wrong.toml:12: destinations.Acme: is not a destination id; give 1-63 of a-z, 0-9 and "-" that begin with a letter or digit
"#;

const WRONG_JOBS: &str = r#"{"version": 2, "id": "a"}
{"version": 1, "id": "a", "source": {"url": "https://x/y"}, "destination": "acme", "key": "k", "colour": 1}
{"version": 1, "id": "a", "source": {"url": "x/y"}, "destination": "acme", "key": "k"}
{"version": 1, "id": "a", "source": {"url": "https://x/y"}, "destination": "acme", "key": "/k"}
{"version": 1, "id": "a b", "source": {"url": "https://x/y"}, "destination": "acme", "key": "k"}
{"version": 1, "id": "a", "source": {"url": "https://x/y"}, "destination": "acme"}
"#;

const WRONG_JOBS_ERRORS: &str = r#"consign: jobs.ndjson: nothing was published; fix these first:
  line 1: version: 2 is not supported; write version 1, or upgrade consign and then requeue the job
  line 2: colour: is not a field of a job (column 103); remove it, or correct its name
  line 3: source.url: is not a URL; give one such as https://host/path, file:///path or s3://bucket/key
  line 4: key: begins with "/"; remove it, as keys are below the destination's prefix
  line 5: id: is not a job id; give 1-200 of A-Z, a-z, 0-9 and ._:/=@+-
  line 6: key: is required; add it
"#;

/// A command line, its exit code, and all of its standard error.
struct Wrong {
    line: &'static str,
    exit: i32,
    says: &'static str,
}

const fn wrong(line: &'static str, exit: i32, says: &'static str) -> Wrong {
    Wrong { line, exit, says }
}

const WRONGS: [Wrong; 23] = [
    wrong("config validate -c wrong.toml", 78, WRONG_CONFIG_ERRORS),
    wrong(
        "config validate -c none.toml",
        78,
        "none.toml: can't be read: No such file or directory (os error 2); give the path of a readable TOML file\n",
    ),
    wrong(
        "config validate -c ok.toml --set worker.slotz=4",
        78,
        "flag --set worker.slotz: worker.slotz: unknown key; did you mean \"slots\"?\n",
    ),
    wrong(
        "dead list -c away.toml",
        69,
        "consign: the broker is unavailable: connecting to 127.0.0.1:1: Connection refused (os error 111); check the broker, \
         the network and broker.url\n",
    ),
    wrong(
        "dead list",
        78,
        "consign: broker.url: is required by this command, and no configuration file was read; name one with -c or \
         CONSIGN_CONFIG (a directory needs a *.toml file), or set broker.url, broker.url_file or CONSIGN__BROKER__URL\n",
    ),
    wrong(
        "dead list -c negative.toml --set upload.min_rate=1MiB",
        78,
        "consign: broker.url: is required by this command; set it, broker.url_file or CONSIGN__BROKER__URL\n",
    ),
    wrong(
        "check globex -c ok.toml",
        2,
        "consign: there is no destination globex in the configuration (configured: acme); correct the id, or give its configuration with -c\n",
    ),
    wrong(
        "check ACME -c ok.toml",
        2,
        "consign: ACME is not a destination id; give 1-63 of a-z, 0-9 and \"-\" that begin with a letter or digit\n",
    ),
    wrong(
        "config validate -c negative.toml",
        78,
        "negative.toml:2: upload.min_rate: is negative; give a size such as \"8MiB\"\n",
    ),
    wrong(
        "config validate -c method.toml",
        78,
        "method.toml:4: destinations.acme.auth.external_id: does not belong to method = \"access_key\"; remove it, or \
         correct the method\n",
    ),
    wrong(
        "config validate",
        0,
        "warning: no file was read; name one with -c\nwarning: broker.url is not set, and `consign run` needs it; set it, \
         broker.url_file or CONSIGN__BROKER__URL\n",
    ),
    wrong(
        "enqueue --source a.csv --to acme --key k -c ok.toml",
        1,
        "consign: --source: is not a URL; give one such as https://host/path, file:///path or s3://bucket/key\n",
    ),
    wrong(
        "enqueue --source file:///a --to ACME --key k -c ok.toml",
        1,
        "consign: --to: is not a destination id; give 1-63 of a-z, 0-9 and \"-\" that begin with a letter or digit\n",
    ),
    wrong(
        "backfill --template fixed.json --from 1900-01-01 --to 2026-01-02 --every 1h -c ok.toml",
        1,
        "consign: fixed.json: nothing was published; fix these first:\n  1900-01-01 to 2026-01-02 in steps of 1h are more \
         than 1,000,000 jobs; give a shorter range, or a longer step with --every\n",
    ),
    wrong(
        "backfill --template fixed.json --from 2026-13-01 --to 2026-01-02 -c ok.toml",
        2,
        "error: invalid value '2026-13-01' for '--from <DATE>': is not a valid date; write 2026-01-31, or \
         2026-01-31T06:00 in the time zone of --time-zone\n\nFor more information, try '--help'.\n",
    ),
    wrong(
        "dead export missing/letters -c ok.toml",
        1,
        "consign: missing/letters can't be written: No such file or directory (os error 2); name a file in a directory \
         that you may write to\n",
    ),
    wrong("enqueue jobs.ndjson -c ok.toml", 1, WRONG_JOBS_ERRORS),
    wrong(
        "enqueue empty.ndjson -c ok.toml",
        1,
        "consign: the input has no job; give one JSON object, or one per line\n",
    ),
    wrong(
        "backfill --template fixed.json --from 2026-01-01 --to 2026-01-02 -c ok.toml",
        1,
        "consign: fixed.json: nothing was published; fix these first:\n  key: the steps 2026-01-02 and 2026-01-01 have the \
         same key, k.csv; one object would replace the other, so add {date} or {stamp} to it\n",
    ),
    wrong(
        "dead discard --all -c ok.toml",
        2,
        "consign: this removes dead letters permanently; confirm with --yes (`consign dead export` keeps a copy)\n",
    ),
    wrong(
        "dead list --limit few -c ok.toml",
        2,
        "error: invalid value 'few' for '--limit <N>': write a whole number\n\nFor more information, try '--help'.\n",
    ),
    wrong(
        "dead show nothing -c ok.toml",
        1,
        "consign: there is no dead letter nothing; `consign dead list` shows all\n",
    ),
    wrong(
        "dead list --older-than yesterday -c ok.toml",
        2,
        "error: invalid value 'yesterday' for '--older-than <DURATION>': write a duration such as 30s, 10m, 2h or 7d\n\n\
         For more information, try '--help'.\n",
    ),
];

fn consign(folder: &Path, line: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
    let output = command.args(line.split(' ')).current_dir(folder).env_clear().output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn errors_state_what_was_wrong_what_is_expected_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let job = r#"{"version": 1, "source": {"url": "https://x/{date}"}, "destination": "acme", "key": "k.csv"}"#;
    let files = [
        ("ok.toml", CONFIG),
        ("wrong.toml", WRONG_CONFIG),
        ("method.toml", METHOD_CONFIG),
        ("negative.toml", "[upload]\nmin_rate = -1\n"),
        ("away.toml", "[broker]\nurl = \"amqp://127.0.0.1:1\"\n"),
        ("jobs.ndjson", WRONG_JOBS),
        ("empty.ndjson", ""),
        ("fixed.json", job),
    ];
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let (created, _) = consign(folder.path(), "topology apply -c ok.toml");
    assert_eq!(created, Some(0));
    for Wrong { line, exit, says } in WRONGS {
        assert_eq!(consign(folder.path(), line), (Some(exit), says.to_owned()), "consign {line}");
    }
}

#[test]
fn an_admin_address_that_cannot_be_used_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ok.toml"), CONFIG).unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let free = taken.port().wrapping_add(1).max(1024);
    let in_use = format!(
        "consign: admin.listen: {taken} can't be used: Address already in use (os error 98); another process uses this address, \
         perhaps another worker; stop it, or choose another port, for example --set admin.listen=127.0.0.1:{free}\n"
    );
    let foreign = "consign: admin.listen: 192.0.2.1:9464 can't be used: Cannot assign requested address (os error 99); 192.0.2.1 is \
                   not an address of this machine; use an address of this machine, or 0.0.0.0 for all interfaces\n";
    for (address, says) in [(taken.to_string(), &*in_use), ("192.0.2.1:9464".to_owned(), foreign)] {
        let (exit, stderr) = consign(folder.path(), &format!("run -c ok.toml --set admin.listen={address}"));
        assert_eq!(exit, Some(1), "{stderr}");
        assert!(stderr.ends_with(says), "{stderr}");
    }
}
