//! The metrics, from the text that a worker exports.

use std::collections::{BTreeMap, BTreeSet};

use crate::docs::generated::{code, table};
use crate::docs::since::Since;

/// Name of a label, and its values.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// A metric of the exposition.
struct Family {
    name: String,
    kind: String,
    help: String,
    labels: Labels,
}

fn families() -> Vec<Family> {
    let (_, exposition) = consign::metrics::Metrics::new(500).render();
    let mut families: Vec<Family> = Vec::new();
    for line in exposition.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            let (name, help) = (name.to_owned(), help.to_owned());
            families.push(Family { name, help, kind: String::new(), labels: Labels::new() });
        } else if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kind.clone_into(&mut families.last_mut().unwrap().kind);
        } else {
            add_labels(&mut families.last_mut().unwrap().labels, line);
        }
    }
    families
}

/// Adds the labels of a sample. `le` is a part of the format.
fn add_labels(labels: &mut Labels, sample: &str) {
    let Some((_, rest)) = sample.split_once('{') else { return };
    let (inside, _) = rest.rsplit_once('}').unwrap();
    for pair in inside.split(',') {
        let (name, value) = pair.split_once('=').unwrap();
        if name != "le" {
            labels.entry(name.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
        }
    }
}

pub(super) fn all() -> String {
    let since = Since::read("metrics");
    let row = |Family { name, kind, help, labels }: Family| {
        [format!("`{name}`"), kind, code(labels.keys()), help, since.of(&name)]
    };
    let page = table(["metric", "type", "labels", "meaning", "since"], families().into_iter().map(row));
    since.assert_complete();
    page
}

/// Values of each label. Metrics that share label and values share a row.
pub(super) fn labels() -> String {
    let mut rows: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for family in families() {
        for (label, values) in family.labels {
            let values = match label.as_str() {
                "destination" => "the ids of configured destinations, and `_other`".to_owned(),
                "version" => "the version of the worker".to_owned(),
                "reason" if values.len() > 10 => "every [reason](outcomes.md#reasons)".to_owned(),
                _ => code(values),
            };
            rows.entry((label, values)).or_default().push(family.name.clone());
        }
    }
    let rows = rows.into_iter().map(|((label, values), names)| [format!("`{label}`"), values, code(names)]);
    table(["label", "values", "of"], rows)
}
