//! Text of a test: one line for each step as it ends, with the cause and the document to paste.

use crate::check::{CheckReport, CheckStep, CheckVerdict, StepResult};
use crate::cli::{self, Exit};
use crate::domain::diagnosis::Remedy;
use crate::domain::policy;
use crate::runtime::output::colours;

const MARK_WIDTH: usize = 9;
const NAME_WIDTH: usize = 24;

/// Printer of a test.
pub(super) struct TestPrinter {
    json: bool,
    colour: bool,
}

impl TestPrinter {
    pub(super) fn new(json: bool) -> Self {
        Self { json, colour: !json && colours(&std::io::stdout()) }
    }

    /// Prints a step: with `--json`, one line.
    pub(super) fn step(&self, step: &CheckStep) {
        self.print(&if self.json { self.line(step) } else { self.details(step) });
    }

    /// Prints the report: as JSON, or the verdict.
    pub(super) fn report(&self, report: &CheckReport) -> Exit {
        if self.json {
            return cli::print_json(report);
        }
        cli::print(&verdict(report))
    }

    /// Prints a text: to stdout, or to stderr with `--json`.
    pub(super) fn print(&self, text: &str) {
        cli::output::summarize(text, self.json);
    }

    fn line(&self, step: &CheckStep) -> String {
        let mark = self.coloured(step.result, &format!("{:MARK_WIDTH$}", format!("[{}]", step.result.as_str())));
        format!("{mark} {:NAME_WIDTH$} {}", step.step.as_str(), step.cause)
    }

    fn details(&self, step: &CheckStep) -> String {
        let mut lines = vec![self.line(step)];
        let mut add = |text: &str| lines.extend(text.lines().map(|line| format!("{:1$}{line}", "", MARK_WIDTH + 1)));
        if matches!(step.result, StepResult::Failed | StepResult::Warning) {
            add(&format!("code: {}", step.code));
            let remedy = step.remedy.as_ref().map(|remedy| format!("remedy: {}", remedy.text)).unwrap_or_default();
            match step.ranked.as_slice() {
                [] => add(&remedy),
                [other] => add(&format!("{remedy}\nor: {other}")),
                causes => {
                    add("possible causes and remedies, most likely first:");
                    causes.iter().zip(1..).for_each(|(cause, n)| add(&format!("{n}. {cause}")));
                }
            }
            add(&step.remedy.as_ref().map(paste).unwrap_or_default());
            add(&step.aws_request_id.as_ref().map(|id| format!("AWS request id: {id}")).unwrap_or_default());
        }
        lines.join("\n")
    }

    fn coloured(&self, mark: StepResult, text: &str) -> String {
        let colour = match mark {
            StepResult::Ok => "32",
            StepResult::Failed => "31",
            StepResult::Warning => "33",
            StepResult::Skipped => "2",
        };
        if self.colour { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Document to paste, and its place.
fn paste(remedy: &Remedy) -> String {
    let mut text = String::new();
    if let (Some(place), Some(statement)) = (&remedy.place, &remedy.statement) {
        // A complete document replaces the existing one; a single statement or rule is added.
        let how = if statement.get("Version").is_some() { "replace" } else { "add to" };
        text = format!("{how} {place}:\n{}", policy::pretty(statement));
    }
    if let Some(setting) = &remedy.setting {
        text = format!("{text}\nset in the destination: {} = \"{}\"", setting.key, setting.value);
    }
    text.trim().to_owned()
}

fn verdict(report: &CheckReport) -> String {
    let count = |mark| report.steps.iter().filter(|step| step.result == mark).count();
    let (failed, warnings) = (count(StepResult::Failed), count(StepResult::Warning));
    let details = match (report.verdict, warnings) {
        (CheckVerdict::Ready, 0) => String::new(),
        (CheckVerdict::Ready, _) => format!(" (warnings: {warnings}; files can be delivered)"),
        (CheckVerdict::NotReady, _) => format!(" (failed: {failed}, warnings: {warnings})"),
    };
    let left = match &report.test_object {
        Some(key) if report.left_behind => format!("\nnot deleted from the bucket: {key}"),
        _ => String::new(),
    };
    format!("\nverdict: {}{details}{left}", report.verdict.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::StepName;
    use crate::domain::diagnosis::{Code, Diagnosis};

    #[test]
    fn a_failed_step_shows_its_cause_and_what_to_paste() {
        let remedy = Remedy {
            text: "allow it".to_owned(),
            place: Some("the policy".to_owned()),
            statement: Some(serde_json::json!({ "Effect": "Allow" })),
            ..Remedy::default()
        };
        let diagnosis =
            Diagnosis { code: Code::PutDenied, cause: "not allowed".to_owned(), ranked: vec![], remedy: Some(remedy) };
        let step = CheckStep::diagnosed(StepName::Write, StepResult::Failed, diagnosis, None);
        let text = TestPrinter { json: false, colour: false }.details(&step);
        for part in ["[failed]  write a file", "not allowed", "code: put_denied", "add to the policy:", "\"Effect\""] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(
            TestPrinter { json: false, colour: true }.details(&step).contains("\u{1b}[31m[failed]"),
            "words and colour"
        );
    }

    #[test]
    fn several_causes_are_numbered_and_a_single_one_is_an_alternative() {
        let shown = |ranked: &[&str]| {
            let remedy = Some(Remedy { text: "allow it".to_owned(), ..Remedy::default() });
            let ranked = ranked.iter().map(|cause| (*cause).to_owned()).collect();
            let diagnosis = Diagnosis { code: Code::AbortDenied, cause: "no".to_owned(), ranked, remedy };
            TestPrinter { json: false, colour: false }.details(&CheckStep::diagnosed(
                StepName::Multipart,
                StepResult::Warning,
                diagnosis,
                None,
            ))
        };
        assert!(shown(&["a rule"]).contains("remedy: allow it") && shown(&["a rule"]).contains("or: a rule"));
        assert!(shown(&["one", "two"]).contains("1. one") && shown(&["one", "two"]).contains("2. two"));
    }
}
