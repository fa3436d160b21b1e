//! The oracles of the fuzz targets, on mutations of their seeds that are the same in every run.
//! `cargo fuzz` runs the same oracles with coverage (see CONTRIBUTING.md).

use std::fs;
use std::path::{Path, PathBuf};

use consign::domain::control::Control;
use consign::domain::job::lease::Lease;
use consign::domain::job::{self, compact};

use crate::soak::dice::Dice;
use oracles::CANARY;

#[path = "../fuzz/oracles.rs"]
mod oracles;

/// Mutations of each target.
const MUTATIONS: usize = 20_000;
/// Texts that mean something to a parser.
const WORDS: [&[u8]; 12] = [
    b"\0",
    b"\xff\xff\xff\xff",
    b"*",
    b"${x}",
    b"../",
    b"\"",
    b"{",
    b"[[",
    b"\n",
    b"\\u0000",
    b"-1",
    b"18446744073709551616",
];

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut seeds: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{target} has no seed");
    seeds
}

fn mutated(dice: &mut Dice, seeds: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = seeds[dice.below(seeds.len())].1.clone();
    for _ in 0..dice.between(1, 4) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + dice.between(1, 16)).min(bytes.len());
        match dice.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, WORDS[dice.below(WORDS.len())].iter().copied())),
            3 => {
                let copy = bytes[at..end].to_vec();
                let to = dice.below(bytes.len() + 1);
                drop(bytes.splice(to..to, copy));
            }
            _ => {
                let other = &seeds[dice.below(seeds.len())].1;
                let from = dice.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

fn play(target: &str, row: u64, oracle: fn(&[u8])) {
    play_some(MUTATIONS, target, row, oracle);
}

/// As [`play`], where one run of the oracle takes long.
fn play_some(mutations: usize, target: &str, row: u64, oracle: fn(&[u8])) {
    let seeds = seeds(target);
    seeds.iter().for_each(|(_, bytes)| oracle(bytes));
    let mut dice = Dice::new(17, row);
    for _ in 0..mutations {
        oracle(&mutated(&mut dice, &seeds));
    }
}

type Accepts = fn(&[u8]) -> bool;

#[test]
fn every_seed_is_accepted_by_its_parser() {
    let accepts: [(&str, Accepts); 4] = [
        ("job_json", |bytes| job::parse(Some("application/json"), None, bytes).is_ok()),
        ("job_compact", |bytes| compact::parse(bytes).is_ok()),
        ("lease", |bytes| Lease::decode(bytes).is_ok_and(|lease| lease.job(None).is_ok())),
        ("control", |bytes| Control::parse(bytes).is_ok()),
    ];
    for (target, accept) in accepts {
        for (path, bytes) in seeds(target) {
            assert!(accept(&bytes), "{}", path.display());
        }
    }
    let secrets = seeds("config").into_iter().filter(|(_, bytes)| String::from_utf8_lossy(bytes).contains(CANARY));
    assert!(secrets.count() > 0, "no configuration has a secret");
}

#[test]
fn accepted_jobs_stay_within_their_bucket_and_prefix() {
    play("job_json", 1, oracles::job_json);
}

#[test]
fn compact_jobs_are_encoded_as_they_were_decoded() {
    play("job_compact", 2, oracles::job_compact);
}

#[test]
fn leases_are_encoded_as_they_were_decoded() {
    play("lease", 3, oracles::lease);
}

#[test]
fn control_messages_are_rendered_as_they_were_parsed() {
    play("control", 4, oracles::control);
}

#[test]
fn configuration_errors_quote_no_secret() {
    play("config", 5, oracles::config);
}

#[test]
fn frames_of_a_broker_are_read_by_lapin() {
    play_some(10_000, "frames", 6, oracles::frames);
}

#[test]
fn urls_and_addresses_are_classified_as_by_the_oracle() {
    play("guard", 7, oracles::guard);
}

#[test]
fn errors_of_aws_are_readable_and_blame_nobody_else() {
    play_some(5_000, "aws_errors", 8, oracles::aws_errors);
}

#[test]
fn heads_of_sources_are_accepted_as_by_the_oracle() {
    play("source_head", 9, oracles::source_head);
}

#[test]
fn requests_need_a_known_name_and_the_token() {
    play_some(5_000, "admin_head", 10, oracles::admin_head);
}

#[cfg(feature = "dev")]
#[test]
fn policies_of_dev_allow_what_the_oracle_allows() {
    play("dev_policy", 11, oracles::dev_policy);
}
