//! Broken set-ups as data, and the checks of each.

use serde_json::Value;

use super::{TEST_OBJECT, check, codes, customer, step};
use crate::testbed::scripted::ScriptedS3;
use crate::testbed::site::Site;

/// The hands of the customer and of the operator.
pub struct Hands<'a> {
    pub site: &'a mut Site,
    pub s3: &'a ScriptedS3,
    /// The keys of the destination.
    pub to: &'a mut Value,
    /// The remedy of the step that failed; null while the set-up is being broken.
    pub remedy: Value,
}

impl Hands<'_> {
    /// Does what the remedy says of the destination's configuration.
    pub fn set_what_is_said(&mut self) {
        let (key, value) = (self.remedy["setting"]["key"].as_str(), &self.remedy["setting"]["value"]);
        self.to[key.expect("the remedy names a setting")] = value.clone();
    }
}

pub type Act = fn(&mut Hands<'_>);

/// One broken set-up.
pub struct Setup {
    pub code: &'static str,
    /// Failing step, as `step: result`.
    pub shows: &'static str,
    pub exit: i32,
    /// The destination in good order.
    pub to: fn() -> Value,
    pub broken: Act,
    /// Texts that cause, remedy and statement must contain between them.
    pub says: &'static [&'static str],
    /// The remedy, applied.
    pub mended: Act,
}

/// Breaks it, sees the code; fixes it, sees that it passes. The code must not be there any more,
/// and neither may anything else.
pub async fn shown(setup: &Setup) {
    let (mut site, s3) = customer().await;
    let mut to = (setup.to)();
    (setup.broken)(&mut Hands { site: &mut site, s3: &s3, to: &mut to, remedy: Value::Null });
    site.destination("acme", &to);
    let (answer, exit) = check(&site);
    let (name, result) = setup.shows.split_once(": ").unwrap();
    let found = step(&answer, name);
    assert_eq!((&found["code"], &found["result"]), (&setup.code.into(), &result.into()), "{}: {answer:#}", setup.code);
    let expected = if result == "failed" { "not ready" } else { "ready" };
    assert_eq!((answer["verdict"].as_str().unwrap(), exit), (expected, setup.exit), "{}: {answer:#}", setup.code);
    for words in setup.says {
        assert!(found.to_string().contains(words), "{}: {words:?} is not said: {found:#}", setup.code);
    }
    nothing_more_is_left(setup.code, &s3);

    let remedy = found["remedy"].clone();
    assert!(remedy["text"].as_str().is_some_and(|text| text.len() > 20), "{}: no remedy: {found:#}", setup.code);
    (setup.mended)(&mut Hands { site: &mut site, s3: &s3, to: &mut to, remedy });
    site.without_destination("acme").destination("acme", &to);
    let (answer, exit) = check(&site);
    assert_eq!((answer["verdict"].as_str(), exit), (Some("ready"), 0), "{} is not mended: {answer:#}", setup.code);
    assert_ne!(step(&answer, name)["code"], setup.code, "{answer:#}");
    assert_eq!(codes(&answer, "warning"), Vec::<String>::new(), "{}: {answer:#}", setup.code);
    assert_eq!(s3.keys(), Vec::<String>::new(), "{}: a test that may delete leaves nothing", setup.code);
    assert_eq!(s3.violations(), Vec::<String>::new());
}

/// At most the one object, and no open upload.
fn nothing_more_is_left(code: &str, s3: &ScriptedS3) {
    let keys = s3.keys();
    assert!(keys.is_empty() || keys == [TEST_OBJECT], "{code}: {keys:?}");
    assert_eq!(s3.open_uploads(), 0, "{code}");
}
