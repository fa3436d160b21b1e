use super::super::calendar::tests::steps;
use super::*;

fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn filled(template: &str, pairs: &[(&str, &str)]) -> Value {
    let template = Template::parse(template, &variables(pairs)).unwrap();
    let step = &steps("2026-03-07", "2026-03-07", "1h", "Europe/Berlin")[15];
    serde_json::to_value(template.fill(step, &BackfillId::parse("b").unwrap()).unwrap()).unwrap()
}

fn problems(template: &str, pairs: &[(&str, &str)]) -> String {
    Template::parse(template, &variables(pairs)).unwrap_err().join("\n")
}

fn job(field: &str, value: &str) -> String {
    let job = serde_json::json!({
        "version": 1, "id": "x/{date}", "source": {"url": "file:///a"}, "destination": "acme", "key": "k",
    });
    let mut job = job;
    job[field] = value.into();
    job.to_string()
}

#[test]
fn every_string_of_a_job_may_have_placeholders() {
    let template = r#"{"version": 1, "id": "acme/{date}T{hour}", "destination": "{dest}",
        "source": {"url": "https://e.example/{year}/{month}/{day}/{hour}{minute}{offset}.csv?r={region}", "size": 7},
        "key": "{{{date}}}", "metadata": {"day": "{date}"}, "labels": {"of": "{backfill} {stamp}"}}"#;
    let job = filled(template, &[("region", "eu"), ("dest", "acme")]);
    assert_eq!(job["id"], "acme/2026-03-07T15");
    assert_eq!(job["destination"], "acme");
    assert_eq!(job["source"]["url"], "https://e.example/2026/03/07/1500+0100.csv?r=eu");
    assert_eq!((&job["key"], &job["source"]["size"]), (&"{2026-03-07}".into(), &7.into()));
    assert_eq!(job["metadata"]["day"], "2026-03-07");
    assert_eq!(job["labels"]["of"], "b 2026-03-07T15:00+01:00");
}

#[test]
fn without_an_id_each_step_gets_one() {
    let text = r#"{"version": 1, "source": {"url": "file:///a"}, "destination": "acme", "key": "{date}"}"#;
    assert_eq!(filled(text, &[])["id"], "b/2026-03-07T15:00+01:00");
}

#[test]
fn problems_name_their_field() {
    for (template, pairs, expected) in [
        (job("key", "{dat}"), &[][..], "key: {dat} is not a placeholder; use date, year"),
        (job("key", "a}b"), &[], "key: a single `}`"),
        (job("key", "{date"), &[], "key: a single `{`"),
        (job("id", "x"), &[("region", "eu")], "--var region: the template does not contain {region}"),
        (job("id", "x"), &[("date", "eu")], "--var date: this placeholder is predefined"),
        (job("kay", "x"), &[], "kay"),
        (job("id", "x").replace("\"version\":1", "\"version\":2"), &[], "version"),
        (job("id", "x").replacen('{', "{\"key\":\"twice\",", 1), &[], "key"),
        ("[]".to_owned(), &[], "is not a job"),
        ("{}".to_owned(), &[], "is not a job"),
        ("{".to_owned(), &[], "is not JSON"),
        ("\n".to_owned(), &[], "is empty; write one job"),
    ] {
        let found = problems(&template, pairs);
        assert!(found.contains(expected), "{template}: {found}");
    }
    let both = problems(&job("key", "{x}").replace("x/{date}", "{y}"), &[]);
    assert!(both.contains("id: {y}") && both.contains("key: {x}"), "all at once: {both}");
}

#[test]
fn formatting_does_not_change_the_canonical_form() {
    let canonical = |text: &str| Template::parse(text, &BTreeMap::new()).unwrap().canonical;
    let (a, b) = (job("key", "{date}"), serde_json::from_str::<Value>(&job("key", "{date}")).unwrap());
    assert_eq!(canonical(&a), canonical(&format!("\n{b:#}\n")));
    assert_ne!(canonical(&a), canonical(&job("key", "{day}")));
}
