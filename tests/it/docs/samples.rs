//! The samples in the README are complete: the configuration is valid, and the job can be read.

use super::text;

/// Content of the page's first block of a language.
fn block(page: &str, language: &str) -> String {
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_configuration_in_the_readme_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    let toml = block(&text("README.md"), "toml");
    assert!(toml.contains("file_root = \"/srv\""), "{toml}");
    // Not every machine has that folder.
    let toml = toml.replace("/srv", &folder.path().display().to_string());
    let loaded = consign::config::load_str(&toml).map_err(|problems| problems.to_string());
    assert_eq!(loaded.map(|loaded| loaded.config.destinations.len()), Ok(1));
}

#[test]
fn the_job_in_the_readme_is_one_for_that_destination() {
    let page = text("README.md");
    let job = consign::domain::job::parse(None, None, block(&page, "json").as_bytes()).unwrap();
    assert!(page.contains(&format!("[destinations.{}]", job.destination.id())));
    assert!(page.contains(&format!("`job.scheduled.{}`", job.destination.id())));
}
