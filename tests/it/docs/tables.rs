//! The codes and reasons in the page for those who talk to customers.

use consign::domain::diagnosis::{Code, Side};
use consign::domain::outcome::{Class, Reason};

use super::generated::{assert_parts, table};

/// Classes in the order in which people meet them.
pub(super) const CLASSES: [Class; 7] = [
    Class::Destination,
    Class::Job,
    Class::Transient,
    Class::Session,
    Class::Interrupted,
    Class::Defect,
    Class::Worker,
];

fn codes() -> String {
    let turn = |side| match side {
        Side::Nobody => "nobody",
        Side::Customer => "the customer",
        Side::Identity | Side::Operator => "the operator",
        Side::Service => "nobody (a service does not answer); the operator, if it lasts",
    };
    let row = |code: &Code| [format!("`{code}`"), code.meaning().to_owned(), turn(code.side()).to_owned()];
    table(["code", "what it means", "who acts"], Code::ALL.iter().map(row))
}

/// Reasons of a class.
pub(super) fn of(class: Class) -> impl Iterator<Item = Reason> {
    Reason::ALL.iter().copied().filter(move |reason| reason.class() == class)
}

fn reasons() -> String {
    let row = |reason: Reason| {
        [reason.class().as_str().to_owned(), format!("`{}`", reason.as_str()), reason.meaning().to_owned()]
    };
    table(["class", "reason", "what it means"], CLASSES.into_iter().flat_map(of).map(row))
}

#[test]
fn codes_and_reasons_are_those_of_the_program() {
    assert_parts("deploy/docs/customer-engineer.md", &[("codes", codes()), ("reasons", reasons())]);
}
