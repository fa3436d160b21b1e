//! The page of the stores says what the program presets and what the tests run.

use consign::config::Flavor;

const PAGE: &str = include_str!("../../../deploy/docs/stores.md");

/// Cells of the rows of the table below a heading, without its head.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let (_, below) = PAGE.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let table = below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    table.skip(2).map(cells).collect()
}

/// A preset as a file of configuration has it.
fn setting((key, value): &(&str, &str)) -> String {
    let bare = value.parse::<bool>().is_ok();
    let value = if bare { (*value).to_owned() } else { format!("\"{value}\"") };
    format!("`{} = {value}`", key.replace("destinations.*.", ""))
}

#[test]
fn settings_are_the_presets_of_the_program() {
    let written: Vec<_> =
        rows("Settings").into_iter().map(|row| (row[1].trim_matches('`').to_owned(), row[2].clone())).collect();
    let presets = |flavor: &Flavor| match flavor.presets() {
        [] => "none".to_owned(),
        some => some.iter().map(setting).collect::<Vec<_>>().join(", "),
    };
    let known: Vec<_> = Flavor::ALL.iter().map(|flavor| (flavor.as_str().to_owned(), presets(flavor))).collect();
    assert_eq!(written, known);
}

#[test]
fn every_store_has_its_line_of_support_with_a_source() {
    let names = |heading: &str| -> Vec<String> { rows(heading).iter().map(|row| row[0].clone()).collect() };
    assert_eq!(names("Support"), names("Settings"));
    assert_eq!(names("Sources"), names("Settings"));
    for row in rows("Support").iter().chain(&rows("Sources")) {
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}: what is not known says so");
    }
    for row in rows("Sources") {
        assert!(row[1].contains("https://"), "{row:?}");
    }
}

#[test]
fn marked_tests_are_those_that_run() {
    #[cfg(feature = "dev")]
    let s3s = Some(super::s3s::TESTS);
    #[cfg(not(feature = "dev"))]
    let s3s = None;
    let stores = [
        ("moto", Some(super::moto::TESTS)),
        ("ministack", Some(super::ministack::TESTS)),
        ("s3s", s3s),
        ("ceph", Some(super::ceph::TESTS)),
        ("garage", Some(super::garage::TESTS)),
        ("localstack", Some(super::localstack::TESTS)),
        ("account", Some(super::account::TESTS)),
    ];
    let rows = rows("Tests");
    for (column, (store, tests)) in stores.iter().enumerate() {
        let marked: Vec<_> =
            rows.iter().filter(|row| row[column + 1] == "yes").map(|row| row[0].trim_matches('`').to_owned()).collect();
        assert!(tests.is_none_or(|tests| marked == tests), "{store}: {marked:?}");
    }
}
