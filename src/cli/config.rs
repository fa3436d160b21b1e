//! `consign config`: validates and shows the configuration.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Exit;
use crate::config::{ConfigProblems, EffectiveSetting, Loaded, Reload};

/// Actions on the configuration.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigArgs {
    /// Validate the configuration and report every problem
    Validate,
    /// Show every setting with its value and origin. Secrets are masked as ***
    Show,
}

/// Loads the configuration and reports. Needs no broker and no network.
pub fn execute(args: &ConfigArgs, source: &Reload, json: bool) -> Exit {
    match (args, source.load(), json) {
        (ConfigArgs::Validate, Ok(loaded), _) => validated(&loaded, source, json),
        (ConfigArgs::Show, Ok(loaded), true) => super::print_json(&shown(&loaded.settings())),
        (ConfigArgs::Show, Ok(loaded), false) => super::print(&lines(&loaded.settings())),
        (ConfigArgs::Validate, Err(problems), true) => {
            super::print_json(&refused(&problems));
            Exit::Config
        }
        (_, Err(problems), _) => super::fail_config(&problems),
    }
}

fn validated(loaded: &Loaded, source: &Reload, json: bool) -> Exit {
    let count = loaded.config.destinations.len();
    let printed = if json {
        super::print_json(&json!({"valid": true, "destinations": count, "problems": []}))
    } else {
        super::print(&format!("the configuration is valid; destinations: {count}"))
    };
    remarks(loaded, source).iter().for_each(|remark| super::notice(remark));
    printed
}

/// Warnings about a valid configuration that may not be intended: some commands need no broker.
fn remarks(loaded: &Loaded, source: &Reload) -> Vec<String> {
    let no_file = source.files.is_empty().then_some("warning: no file was read; name one with -c");
    let no_broker = loaded.config.broker.required_url().is_err();
    let no_broker = no_broker.then_some(
        "warning: broker.url is not set, and `consign run` needs it; set it, broker.url_file or CONSIGN__BROKER__URL",
    );
    let empty = source
        .empty_directories()
        .map(|path| format!("warning: {} has no *.toml file; add one, or name another directory", path.display()));
    empty.chain(no_file.into_iter().chain(no_broker).map(str::to_owned)).collect()
}

fn refused(problems: &ConfigProblems) -> Value {
    json!({"valid": false, "problems": problems.0})
}

fn shown(settings: &[EffectiveSetting]) -> Value {
    Value::Object(settings.iter().map(|setting| (setting.key.clone(), json!(setting))).collect())
}

/// `key = value  # origin`, the origins in one column as far as that is readable.
fn lines(settings: &[EffectiveSetting]) -> String {
    let text = |setting: &EffectiveSetting| format!("{} = {}", setting.key, setting.value);
    let width = settings.iter().map(|setting| text(setting).len()).filter(|width| *width <= 72).max().unwrap_or(0);
    let line = |setting| format!("{:width$}  # {}", text(setting), setting.origin);
    settings.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_str;

    const SECRET: &str = "s3cr3t-marker";

    #[test]
    fn values_are_shown_with_their_origins_and_without_secrets() {
        let loaded = load_str("[broker]\nurl = \"amqps://me:s3cr3t-marker@mq/v\"\n[worker]\nslots = 4\n").unwrap();
        let text = lines(&loaded.settings());
        assert!(text.contains("broker.url = \"amqps://me:***@mq/v\""), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with("worker.slots = 4 ") && line.ends_with("# text.toml:4")),
            "{text}"
        );
        assert!(text.lines().any(|line| line.starts_with("admin.listen = ") && line.ends_with("# default")), "{text}");
        assert!(!text.contains("null"), "a setting without a value is shown: {text}");
        let json = shown(&loaded.settings());
        assert_eq!(json["worker.slots"], json!({"value": 4, "origin": "file", "file": "text.toml", "line": 4}));
        assert!(!text.contains(SECRET) && !json.to_string().contains(SECRET));
    }

    #[test]
    fn a_missing_file_and_a_missing_broker_are_reported() {
        let reported = |text: &str, files: &[&str]| {
            let source = Reload::new(files.iter().map(Into::into).collect(), Vec::new());
            remarks(&load_str(text).unwrap(), &source).join("\n")
        };
        let nothing = reported("", &[]);
        assert!(nothing.contains("no file was read; name one with -c") && nothing.contains("broker.url"), "{nothing}");
        let file = reported("", &["consign.toml"]);
        assert!(!file.contains("no file") && file.contains("`consign run` needs it"), "{file}");
        assert_eq!(reported("[broker]\nurl = \"sqlite:q.db\"", &["consign.toml"]), "");
        let folder = tempfile::tempdir().unwrap();
        let empty = reported("[broker]\nurl = \"sqlite:q.db\"", &[&folder.path().display().to_string()]);
        assert!(empty.ends_with("has no *.toml file; add one, or name another directory"), "{empty}");
    }

    #[test]
    fn problems_have_a_json_form() {
        let problems = load_str("[worker]\nslot = 4\n").unwrap_err();
        let json = refused(&problems);
        assert_eq!(json["problems"][0]["line"], 2);
        assert_eq!(json["problems"][0]["key"], "worker.slot");
        assert_eq!(json["valid"], false);
    }
}
