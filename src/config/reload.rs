//! Reloading: the sources of the configuration, and the settings that a reload does not apply.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::files::{ConfigFiles, fingerprint, is_empty_directory};
use super::load::{Loaded, load, load_files};
use super::problems::{ConfigProblem, ConfigProblems, ValueOrigin};
use super::watch::FileWatch;

/// Variables of the environment.
type Variables = Vec<(OsString, OsString)>;

/// Sources of the configuration from the command line, and what was read from them last.
#[derive(Debug, Clone, Default)]
pub struct Reload {
    /// TOML files and directories of them; a later one wins.
    pub files: Vec<PathBuf>,
    /// Dotted keys and their values.
    pub overrides: Vec<(String, String)>,
    /// Settings in use, once the program runs.
    pub running: RunningSettings,
    /// The texts in force.
    in_force: ConfigFiles,
    /// True if they define destinations.
    has_destinations: bool,
    watch: FileWatch,
}

/// A configuration of which some files may be older than those on the disk.
#[derive(Debug)]
pub struct Reloaded {
    /// The configuration in force from now on.
    pub loaded: Loaded,
    /// The problems of the files whose last valid content stays in force; `None` if every file is
    /// as it is on the disk.
    pub refused: Option<ConfigProblems>,
}

impl Reload {
    /// Names the sources of the configuration. Nothing is read yet.
    pub fn new(files: Vec<PathBuf>, overrides: Vec<(String, String)>) -> Self {
        Self { files, overrides, ..Self::default() }
    }

    /// Returns the directories without `*.toml` files.
    pub fn empty_directories(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(PathBuf::as_path).filter(|path| is_empty_directory(path))
    }

    /// Loads and validates as [`load`].
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(&self) -> Result<Loaded, ConfigProblems> {
        load(&self.files, &self.overrides)
    }

    /// Loads and validates as [`load`], and remembers what is in force: at a start, every file must
    /// be valid.
    ///
    /// # Errors
    /// As [`load`].
    pub fn start(&mut self) -> Result<Loaded, ConfigProblems> {
        self.watch.took(fingerprint(&self.files));
        let found = ConfigFiles::read(&self.files);
        let loaded = load_files(&found, std::env::vars_os(), &self.overrides)?;
        self.running = RunningSettings::of(&loaded);
        self.has_destinations = !loaded.config.destinations.is_empty();
        self.in_force = found;
        Ok(loaded)
    }

    /// Loads again if it is `requested`, or once files have changed and have stayed the same since
    /// the last call, and a minute after a reload with problems. `None` if there was nothing to do.
    /// Call it every [`super::WATCH_INTERVAL`].
    ///
    /// A broken file keeps its last valid content in force, or is left out if it has none; the
    /// other files are taken as they are now. Only destinations and `log.filter` of the result
    /// apply without a restart.
    ///
    /// # Errors
    /// Problems of no single file, or a defect of the program. Everything stays as it is.
    pub fn look(&mut self, requested: bool) -> Option<Result<Reloaded, ConfigProblems>> {
        self.look_in(requested, || std::env::vars_os().collect())
    }

    fn look_in(
        &mut self,
        requested: bool,
        environment: impl Fn() -> Variables,
    ) -> Option<Result<Reloaded, ConfigProblems>> {
        if !requested && !self.watch.poll(fingerprint(&self.files)) {
            return None;
        }
        // A panic must not end the reloads of all others. What is in force changes only at the end.
        let reloaded = std::panic::catch_unwind(AssertUnwindSafe(|| self.again_in(environment)));
        let reloaded = reloaded.unwrap_or_else(|_| Err(defect()));
        if reloaded.as_ref().map_or(true, |reloaded| reloaded.refused.is_some()) {
            self.watch.had_problems();
        }
        Some(reloaded)
    }

    fn again_in(&mut self, environment: impl Fn() -> Variables) -> Result<Reloaded, ConfigProblems> {
        self.watch.took(fingerprint(&self.files));
        let mut found = ConfigFiles::read(&self.files);
        let mut refused = self.keep_lost_directories(&mut found);
        refused.extend(self.keep_emptied_files(&mut found));
        loop {
            let problems = match load_files(&found, environment(), &self.overrides) {
                Ok(loaded) => {
                    if loaded.config.destinations.is_empty()
                        && let Some(problem) = self.restore_last_destinations(&mut found)
                    {
                        refused.push(problem);
                        continue;
                    }
                    self.has_destinations = !loaded.config.destinations.is_empty();
                    self.in_force = found;
                    let refused = (!refused.is_empty()).then(|| ConfigProblems::sorted(refused));
                    return Ok(Reloaded { loaded, refused });
                }
                Err(problems) => problems.0,
            };
            let broken: HashSet<_> = problems.iter().filter_map(|problem| self.broken_file(problem, &found)).collect();
            if broken.is_empty() {
                refused.extend(problems);
                return Err(ConfigProblems::sorted(refused));
            }
            // A problem without a file of its own may have gone with those files, else it is found again.
            refused.extend(problems.into_iter().filter(|problem| self.broken_file(problem, &found).is_some()));
            broken.iter().for_each(|path| self.take_back(path, &mut found));
        }
    }

    /// Returns the file that a problem is about, if its content is not the one in force.
    fn broken_file(&self, problem: &ConfigProblem, found: &ConfigFiles) -> Option<PathBuf> {
        let is_new = |path: &&Path| found.text_of(path).is_some_and(|text| self.in_force.text_of(path) != Some(text));
        problem.file().into_iter().chain(problem.other_file.as_deref()).find(is_new).map(Path::to_owned)
    }

    /// Replaces a broken file by its content in force, or leaves it out if there is none.
    fn take_back(&self, path: &Path, found: &mut ConfigFiles) {
        match self.in_force.text_of(path) {
            Some(text) => found.set_text(path, text),
            None => found.remove(path),
        }
    }

    /// Keeps all files that are gone if no destination is left: the files of customers may be a
    /// volume that is not mounted, beside settings that are.
    fn restore_last_destinations(&self, found: &mut ConfigFiles) -> Option<ConfigProblem> {
        let lost: Vec<_> = self.in_force.files.iter().filter(|file| found.text_of(&file.path).is_none()).collect();
        let first = lost.first().filter(|_| self.has_destinations)?;
        let problem = "was removed, and with it the last destination; removed files stay in effect until a \
            destination is added, or until a restart";
        let problem = ConfigProblem::new(ValueOrigin::file(&first.path, None), "", problem);
        found.restore(lost.into_iter().cloned());
        Some(problem)
    }

    /// Keeps the content of a file that has none any more, such as one that was to be written when
    /// the disk was full. Who removes customers removes their file or their section.
    fn keep_emptied_files(&self, found: &mut ConfigFiles) -> Vec<ConfigProblem> {
        let is_blank = |text: &Result<Arc<str>, String>| text.as_ref().is_ok_and(|text| text.trim().is_empty());
        let emptied = found.files.iter_mut().filter(|file| is_blank(&file.text)).filter_map(|file| {
            let kept = self.in_force.text_of(&file.path).filter(|kept| !is_blank(kept))?;
            file.text.clone_from(kept);
            let problem = "is empty; its previous content stays in effect until the file has content or is removed";
            Some(ConfigProblem::new(ValueOrigin::file(&file.path, None), "", problem))
        });
        emptied.collect()
    }

    /// Keeps the files of a directory that is gone or empty, such as a volume that is not mounted.
    fn keep_lost_directories(&self, found: &mut ConfigFiles) -> Vec<ConfigProblem> {
        let mut refused = std::mem::take(&mut found.problems);
        for (argument, path) in self.files.iter().enumerate() {
            let kept = self.in_force.members(argument, path);
            if kept.is_empty() || !found.members(argument, path).is_empty() {
                continue;
            }
            found.replace_argument(argument, kept);
            if !refused.iter().any(|problem| problem.file() == Some(path)) {
                let problem =
                    "has no *.toml files left; the previous ones stay in effect until one is added, or until a restart";
                refused.push(ConfigProblem::new(ValueOrigin::file(path, None), "", problem));
            }
        }
        refused
    }
}

fn defect() -> ConfigProblems {
    let problem =
        "the reload failed because of a defect of consign; it is tried again in a minute, and the log has the details";
    ConfigProblems(vec![ConfigProblem::new(ValueOrigin::Default, "", problem)])
}

/// Settings in use that only a restart changes: all but `destinations` and `log.filter`.
#[derive(Debug, Clone, Default)]
pub struct RunningSettings {
    values: BTreeMap<String, Value>,
    /// The only secret among them. Its setting is masked, and may come from a file whose name is
    /// unchanged.
    broker_url: Option<SecretString>,
}

impl RunningSettings {
    /// Returns the settings of the configuration that the program starts with.
    pub fn of(loaded: &Loaded) -> Self {
        let needs_restart = |key: &str| key != "log.filter";
        let settings = loaded.settings_of_sections().into_iter();
        Self {
            values: settings.filter(|one| needs_restart(&one.key)).map(|one| (one.key, one.value)).collect(),
            broker_url: loaded.config.broker.url.clone(),
        }
    }

    /// Returns the dotted keys that differ in `newer`, sorted.
    pub fn differing(&self, newer: &Loaded) -> Vec<String> {
        let newer = Self::of(newer);
        let keys: BTreeSet<_> = self.values.keys().chain(newer.values.keys()).collect();
        let other = keys.into_iter().filter(|key| self.values.get(*key) != newer.values.get(*key));
        let mut keys: BTreeSet<_> = other.cloned().collect();
        let url = |of: &Self| of.broker_url.as_ref().map(|url| url.expose_secret().to_owned());
        if url(self) != url(&newer) && !keys.contains("broker.url_file") {
            keys.insert("broker.url".to_owned());
        }
        keys.into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
