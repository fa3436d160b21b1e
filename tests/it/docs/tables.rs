//! The codes and reasons in the page for those who talk to customers. `CONSIGN_WRITE_GUIDE=1`
//! rewrites them.

use consign::domain::diagnosis::{Code, Side};
use consign::domain::outcome::{Class, Reason};

use super::{file, text};

const PAGE: &str = "deploy/docs/customer-engineer.md";
const END: &str = "<!-- end -->";

fn codes() -> String {
    let turn = |side| match side {
        Side::Nobody => "nobody's",
        Side::Customer => "the customer's",
        Side::Identity | Side::Operator => "ours",
        Side::Service => "a service's",
    };
    let row = |code: &Code| format!("| `{code}` | {} | {} |\n", code.meaning(), turn(code.side()));
    let rows: String = Code::ALL.iter().map(row).collect();
    format!("| code | what it means | whose turn it is |\n|---|---|---|\n{rows}")
}

fn reasons() -> String {
    let of = |class: Class| Reason::ALL.iter().filter(move |reason| reason.class() == class);
    let row =
        |reason: &Reason| format!("| {} | `{}` | {} |\n", reason.class().as_str(), reason.as_str(), reason.meaning());
    let order = [
        Class::Destination,
        Class::Job,
        Class::Transient,
        Class::Session,
        Class::Interrupted,
        Class::Defect,
        Class::Worker,
    ];
    let rows: String = order.into_iter().flat_map(of).map(row).collect();
    format!("| class | reason | what it means |\n|---|---|---|\n{rows}")
}

/// The page with the part of this name written again.
fn renewed(page: &str, name: &str, part: &str) -> String {
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{PAGE} has no part {name}"));
    let (_, after) = rest.split_once(END).unwrap();
    format!("{before}{begin}{part}{END}{after}")
}

#[test]
fn codes_and_reasons_are_those_of_the_program() {
    let page = text(PAGE);
    let renewed = renewed(&renewed(&page, "codes", &codes()), "reasons", &reasons());
    if std::env::var_os("CONSIGN_WRITE_GUIDE").is_some() {
        std::fs::write(file(PAGE), &renewed).unwrap();
    }
    let written = text(PAGE);
    for (number, (written, printed)) in written.lines().zip(renewed.lines()).enumerate() {
        assert_eq!(written, printed, "line {}; CONSIGN_WRITE_GUIDE=1 writes it anew", number + 1);
    }
    assert_eq!(written, renewed);
}
