//! The reference pages, printed from the program's own schemas, registries and closed sets.

mod admin;
mod configuration;
mod environment;
mod exit_codes;
mod glossary;
mod messages;
mod metrics;
mod outcomes;
mod schema;
mod topology;

use super::generated::assert_parts;

#[test]
fn the_job_page_has_every_field() {
    assert_parts("deploy/docs/reference/job.md", &[("job", messages::job())]);
}

#[test]
fn the_outcome_page_has_every_field_class_and_reason() {
    let parts = [
        ("outcomes", outcomes::kinds()),
        ("fields", messages::outcome()),
        ("classes", outcomes::classes()),
        ("reasons", outcomes::reasons()),
        ("delays", outcomes::delays()),
    ];
    assert_parts("deploy/docs/reference/outcomes.md", &parts);
}

#[test]
fn the_metrics_page_has_every_metric_and_label() {
    assert_parts("deploy/docs/reference/metrics.md", &[("metrics", metrics::all()), ("labels", metrics::labels())]);
}

#[test]
fn the_exit_code_page_has_every_code() {
    assert_parts("deploy/docs/reference/exit-codes.md", &[("codes", exit_codes::all())]);
}

#[test]
fn the_topology_page_has_every_exchange_queue_and_table() {
    assert_parts("deploy/docs/reference/topology.md", &topology::parts());
}
