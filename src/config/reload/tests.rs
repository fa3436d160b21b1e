use super::*;
use crate::config::load_str;

fn differing(before: &str, after: &str) -> Vec<String> {
    RunningSettings::of(&load_str(before).unwrap()).differing(&load_str(after).unwrap())
}

#[test]
fn settings_that_need_a_restart_are_named_and_reloadable_ones_are_not() {
    let reloadable = "log.filter = \"debug\"\n[destinations.a]\nbucket = \"bucket-a\"\nregion = \"eu-west-1\"\n\
                 auth = {method = \"access_key\", access_key_id = \"AKIAEXAMPLE\", secret_access_key = \"s\"}\n";
    assert_eq!(differing("", reloadable), [""; 0]);
    let other = "[worker]\nslots = 3\nid = \"w\"\n[source]\nfile_root = \"/\"\nschemes = [\"file\"]\n";
    let keys = ["source.file_root", "source.schemes", "worker.id", "worker.slots"];
    assert_eq!(
        (differing("", other), differing(other, "")),
        (keys.map(String::from).to_vec(), keys.map(String::from).to_vec())
    );
    assert_eq!(differing(other, other), [""; 0]);
}

#[test]
fn a_changed_broker_password_is_detected() {
    let url = |password: &str| format!("broker.url = \"amqps://consign:{password}@mq.example/v\"\n");
    assert_eq!(differing(&url("one"), &url("two")), ["broker.url"]);
    assert_eq!(differing(&url("one"), &url("one")), [""; 0]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let by_file = format!("broker.url_file = {:?}\n", file.path().display().to_string());
    std::fs::write(file.path(), "amqps://consign:one@mq.example/v").unwrap();
    let before = RunningSettings::of(&load_str(&by_file).unwrap());
    std::fs::write(file.path(), "amqps://consign:two@mq.example/v").unwrap();
    assert_eq!(before.differing(&load_str(&by_file).unwrap()), ["broker.url"]);
}

/// A directory of customers beside a file of settings.
struct Customers {
    folder: tempfile::TempDir,
    reload: Reload,
}

fn customer(id: &str, bucket: &str) -> String {
    format!(
        "[destinations.{id}]\nbucket = \"{bucket}\"\nregion = \"eu-west-1\"\n\
         auth = {{ method = \"iam_role\", role_arn = \"arn:aws:iam::123456789012:role/r\" }}\n"
    )
}

impl Customers {
    fn start(ids: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("customers")).unwrap();
        std::fs::write(folder.path().join("consign.toml"), "[worker]\nslots = 3\n").unwrap();
        let arguments = ["consign.toml", "customers"].map(|name| folder.path().join(name));
        let this = Self { reload: Reload::new(arguments.to_vec(), Vec::new()), folder };
        ids.iter().for_each(|id| this.write(id, &customer(id, &format!("bucket-{id}"))));
        let mut this = this;
        assert_eq!(this.reload.start().unwrap().config.destinations.len(), ids.len());
        this
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.path().join("customers").join(format!("{id}.toml"))
    }

    fn write(&self, id: &str, text: &str) {
        std::fs::write(self.path(id), text).unwrap();
    }

    fn remove(&self, id: &str) {
        std::fs::remove_file(self.path(id)).unwrap();
    }

    /// Reloads; returns the buckets in force by destination, and the problems.
    fn again(&mut self) -> (String, String) {
        let Reloaded { loaded, refused } = self.reload.again_in(Vec::new).unwrap();
        let buckets = loaded.config.destinations.values().map(|one| format!("{}={}", one.id, one.bucket));
        let refused = refused.map(|problems| problems.to_string()).unwrap_or_default();
        (buckets.collect::<Vec<_>>().join(" "), refused.replace(&format!("{}/", self.folder.path().display()), ""))
    }
}

#[test]
fn a_broken_file_keeps_its_last_content_and_the_others_are_taken() {
    let mut customers = Customers::start(&["a", "b", "c"]);
    customers.write("a", &customer("a", "other-a"));
    customers.write("b", "[destinations.b]\nbucket = 5\n");
    customers.remove("c");
    customers.write("d", &customer("d", "bucket-d"));
    customers.write("e", "[destinations.e\n");
    let (buckets, refused) = customers.again();
    assert_eq!(buckets, "a=other-a b=bucket-b d=bucket-d");
    let lines: Vec<_> = refused.lines().collect();
    assert!(
        lines[0].starts_with("customers/b.toml:2: destinations.b.bucket: is a whole number; give text in quotes"),
        "{refused}"
    );
    assert!(lines.iter().any(|line| line.starts_with("customers/e.toml:1: not valid TOML")), "{refused}");
    assert!(!refused.contains("customers/a.toml") && !refused.contains("customers/d.toml"), "{refused}");

    customers.write("b", &customer("b", "other-b"));
    customers.remove("e");
    assert_eq!(customers.again(), ("a=other-a b=other-b d=bucket-d".into(), String::new()));
}

#[test]
fn a_broken_file_of_settings_keeps_nobody_out() {
    let mut customers = Customers::start(&["a"]);
    let settings = customers.folder.path().join("consign.toml");
    std::fs::write(&settings, "[worker]\nslots = \"many\"\n").unwrap();
    customers.write("b", &customer("b", "bucket-b"));
    let (buckets, refused) = customers.again();
    assert_eq!(buckets, "a=bucket-a b=bucket-b");
    assert!(refused.starts_with("consign.toml:2: worker.slots: "), "{refused}");
    std::fs::remove_file(&settings).unwrap();
    customers.remove("b");
    let (buckets, refused) = customers.again();
    assert_eq!(buckets, "a=bucket-a");
    assert!(refused.starts_with("consign.toml: can't be read: "), "{refused}");
}

#[test]
fn a_destination_in_two_files_names_both_and_stays_as_it_was() {
    let mut customers = Customers::start(&["m"]);
    for newer in ["a", "z"] {
        customers.write(newer, &customer("m", "stolen"));
        let (buckets, refused) = customers.again();
        assert_eq!(buckets, "m=bucket-m", "{newer}");
        for file in ["m.toml", &format!("{newer}.toml")] {
            assert!(refused.contains(&format!("customers/{file}:1")), "{file}: {refused}");
        }
        assert!(refused.contains("destinations.m: is also defined in"), "{refused}");
        customers.remove(newer);
    }
    customers.write("a", &customer("m", "moved"));
    customers.remove("m");
    assert_eq!(customers.again(), ("m=moved".into(), String::new()));
    customers.write("m", &customer("m", "again"));
    let refused = customers.reload.load().unwrap_err().to_string();
    assert!(refused.contains("a.toml:1") && refused.contains("m.toml:1"), "at a start it is an error: {refused}");
}

/// A writer that finds the disk full leaves an empty file.
#[test]
fn a_file_that_is_emptied_keeps_its_content_until_it_is_removed() {
    let mut customers = Customers::start(&["a", "b"]);
    customers.write("a", "\n");
    for _ in 0..2 {
        let (buckets, refused) = customers.again();
        assert_eq!(buckets, "a=bucket-a b=bucket-b");
        assert!(refused.starts_with("customers/a.toml: is empty"), "{refused}");
    }
    customers.write("c", "");
    customers.remove("a");
    assert_eq!(customers.again(), ("b=bucket-b".into(), String::new()));
    customers.write("b", "# none any more\n");
    assert_eq!(customers.again(), (String::new(), String::new()));
}

/// A volume that is not mounted is an empty directory.
#[test]
fn a_directory_that_is_lost_keeps_its_files_in_force() {
    let mut customers = Customers::start(&["a", "b"]);
    customers.remove("a");
    customers.remove("b");
    let (buckets, refused) = customers.again();
    assert_eq!(buckets, "a=bucket-a b=bucket-b");
    assert!(refused.starts_with("customers: has no *.toml files left"), "{refused}");
    std::fs::remove_dir(customers.folder.path().join("customers")).unwrap();
    let (buckets, refused) = customers.again();
    assert_eq!(buckets, "a=bucket-a b=bucket-b");
    assert!(refused.starts_with("customers: has no *.toml files left"), "{refused}");
    std::fs::create_dir(customers.folder.path().join("customers")).unwrap();
    customers.write("c", &customer("c", "bucket-c"));
    assert_eq!(customers.again(), ("c=bucket-c".into(), String::new()));
}

/// Settings in the same directory do not tell that the customers are lost.
#[test]
fn the_last_destinations_are_not_lost_with_their_files() {
    let mut customers = Customers::start(&["a", "b"]);
    customers.write("consign", "[worker]\nslots = 3\n");
    customers.write("other", "[worker]\nbackfill_slots = 1\n");
    customers.again();
    for id in ["a", "b"] {
        customers.remove(id);
    }
    for _ in 0..2 {
        let (buckets, refused) = customers.again();
        assert_eq!(buckets, "a=bucket-a b=bucket-b");
        assert!(refused.starts_with("customers/a.toml: was removed, and with it the last destination"), "{refused}");
    }
    customers.write("c", &customer("c", "bucket-c"));
    assert_eq!(customers.again(), ("c=bucket-c".into(), String::new()));
    customers.write("c", "# none any more\n");
    assert_eq!(customers.again(), (String::new(), String::new()), "as the file says");
    customers.remove("other");
    assert_eq!(customers.again(), (String::new(), String::new()), "no destination was lost with it");
}

#[test]
fn a_problem_of_no_file_refuses_the_whole_reload() {
    let mut customers = Customers::start(&["a"]);
    customers.write("b", &customer("b", "bucket-b"));
    customers.write("c", "broken");
    let environment = || vec![(OsString::from("CONSIGN__WORKER__SLOTS"), OsString::from("s3cr3t"))];
    let refused = customers.reload.again_in(environment).unwrap_err().to_string();
    assert!(refused.contains("CONSIGN__WORKER__SLOTS") && refused.contains("c.toml"), "{refused}");
    assert!(!refused.contains("s3cr3t"), "{refused}");
    customers.remove("c");
    assert_eq!(customers.again(), ("a=bucket-a b=bucket-b".into(), String::new()));
}

#[test]
fn a_reload_takes_note_of_what_it_read() {
    let mut customers = Customers::start(&["a"]);
    let mut look = || customers.reload.look_in(false, Vec::new).map(|reloaded| reloaded.unwrap().loaded);
    assert!(look().is_none());
    std::fs::write(customers.folder.path().join("customers/b.toml"), customer("b", "bucket-b")).unwrap();
    assert!(look().is_none(), "just now");
    assert_eq!(look().unwrap().config.destinations.len(), 2);
    assert!(look().is_none() && look().is_none());
}

#[test]
fn a_panic_refuses_one_reload_and_not_the_next() {
    let mut customers = Customers::start(&["a"]);
    customers.write("b", &customer("b", "bucket-b"));
    let broken = || -> Vec<(OsString, OsString)> { std::panic::resume_unwind(Box::new("a scripted panic")) };
    let refused = customers.reload.look_in(true, broken).unwrap().unwrap_err();
    assert!(refused.to_string().contains("tried again"), "{refused}");
    let tried = (0..100).find_map(|_| customers.reload.look_in(false, Vec::new));
    assert_eq!(tried.unwrap().unwrap().loaded.config.destinations.len(), 2);
    assert!(customers.reload.look_in(false, Vec::new).is_none());
}
