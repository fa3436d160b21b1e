//! The samples in the README are complete: the configuration is valid, and the job can be read.
//! Those of workers set the worker's own region.

use std::path::{Path, PathBuf};

use super::{file, text};

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

/// The files with this extension in a folder and the folders below it.
fn below(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            below(&path, extension, found);
        } else if path.extension().is_some_and(|own| own == extension) {
            found.push(path);
        }
    }
}

/// Without it, STS is called in a region that depends on the machine or on the customer.
#[test]
fn every_sample_of_a_worker_sets_the_workers_own_region() {
    let mut files = Vec::new();
    below(&file("config"), "toml", &mut files);
    below(&file("deploy"), "toml", &mut files);
    let names = files.iter().map(|path| path.strip_prefix(file("")).unwrap().display().to_string());
    let mut samples: Vec<_> = names.map(|name| (text(&name), name)).collect();
    samples.push((block(&text("README.md"), "toml"), "README.md".to_owned()));
    let mut workers = Vec::new();
    for (sample, name) in samples {
        let sample: toml::Table = toml::from_str(&sample).unwrap();
        // A file that is read beside another one has the destination of one customer.
        if sample.keys().all(|section| section == "destinations") {
            continue;
        }
        let region = sample.get("aws").and_then(|aws| aws.get("region"));
        assert!(region.and_then(toml::Value::as_str).is_some(), "{name} does not set aws.region");
        workers.push(name);
    }
    for known in [
        "README.md",
        "config/consign.full.toml",
        "config/consign.minimal.toml",
        "deploy/compose/consign.toml",
        "deploy/kubernetes/base/consign.toml",
    ] {
        assert!(workers.iter().any(|name| name == known), "{known} is not among {workers:?}");
    }
}
