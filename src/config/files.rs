//! The files of a configuration: those that the command line names, and every `*.toml` of the
//! directories that it names.

use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::SecretString;

use super::problems::{ConfigProblem, ValueOrigin};

/// Lengths of a token.
const TOKEN_LENGTHS: std::ops::RangeInclusive<usize> = 16..=1024;

/// A file and its text.
#[derive(Debug, Clone)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    /// Number of the argument that names the file, or its directory.
    pub(super) argument: usize,
    /// The text, or the reason why it cannot be read.
    pub(super) text: Result<Arc<str>, String>,
}

/// The files in the order in which they are merged, and the directories that cannot be read.
#[derive(Debug, Clone, Default)]
pub(super) struct ConfigFiles {
    pub(super) files: Vec<ConfigFile>,
    pub(super) problems: Vec<ConfigProblem>,
}

impl ConfigFiles {
    /// Reads all files. An argument that is a directory stands for its files, in the order of their
    /// names.
    pub(super) fn read(arguments: &[PathBuf]) -> Self {
        let mut found = Self::default();
        for (argument, path) in arguments.iter().enumerate() {
            let read = |path: PathBuf| ConfigFile { text: text(&path), path, argument };
            match members(path) {
                None => found.files.push(read(path.clone())),
                Some(Ok(members)) => found.files.extend(members.into_iter().map(read)),
                Some(Err(problem)) => found.problems.push(unreadable(path, &problem)),
            }
        }
        found
    }

    /// The text of a file, or the reason why it cannot be read; `None` if there is no such file.
    pub(super) fn text_of(&self, path: &Path) -> Option<&Result<Arc<str>, String>> {
        self.files.iter().find(|file| file.path == path).map(|file| &file.text)
    }

    /// Replaces the text of a file.
    pub(super) fn set_text(&mut self, path: &Path, text: &Result<Arc<str>, String>) {
        let named = self.files.iter_mut().filter(|file| file.path == path);
        named.for_each(|file| file.text.clone_from(text));
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.files.retain(|file| file.path != path);
    }

    /// The files of the directory that is this argument; none if the argument is a file.
    pub(super) fn members(&self, argument: usize, path: &Path) -> Vec<ConfigFile> {
        let of = |file: &&ConfigFile| file.argument == argument && file.path != path;
        self.files.iter().filter(of).cloned().collect()
    }

    /// Adds files that are gone, each at its place.
    pub(super) fn restore(&mut self, files: impl IntoIterator<Item = ConfigFile>) {
        self.files.extend(files);
        self.files.sort_by(|one, two| (one.argument, &one.path).cmp(&(two.argument, &two.path)));
    }

    /// Replaces all files of an argument.
    pub(super) fn replace_argument(&mut self, argument: usize, files: Vec<ConfigFile>) {
        self.files.retain(|file| file.argument != argument);
        self.files.extend(files);
        self.files.sort_by_key(|file| file.argument);
    }
}

/// Returns the `*.toml` of a directory in the order of their names, without hidden ones; `None` for
/// a path that is no directory.
fn members(path: &Path) -> Option<std::io::Result<Vec<PathBuf>>> {
    let entries = match std::fs::read_dir(path) {
        Err(problem) if path.is_dir() => return Some(Err(problem)),
        Err(_) => return None,
        Ok(entries) => entries,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>();
    Some(names.map(|mut names| {
        names.retain(|name| is_member(name));
        names.sort();
        names.into_iter().map(|name| path.join(name)).collect()
    }))
}

/// Returns true for a directory without `*.toml` files.
pub(super) fn is_empty_directory(path: &Path) -> bool {
    members(path).is_some_and(|members| members.is_ok_and(|members| members.is_empty()))
}

/// Editors and Kubernetes keep hidden files beside those that count.
fn is_member(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.ends_with(b".toml") && !name.starts_with(b".")
}

fn text(path: &Path) -> Result<Arc<str>, String> {
    std::fs::read_to_string(path)
        .map(Arc::from)
        .map_err(|problem| format!("can't be read: {}; give the path of a readable TOML file", reason(&problem)))
}

/// The reason in the words of the operating system.
pub(super) fn reason(problem: &std::io::Error) -> String {
    match problem.kind() {
        std::io::ErrorKind::InvalidData => "it is not UTF-8".to_owned(),
        _ => problem.to_string(),
    }
}

/// Reads the bearer token of the admin endpoint, without the white space around it.
///
/// # Errors
/// The reason and the remedy, without the content of the file and its name.
pub fn read_token(file: &Path) -> Result<SecretString, String> {
    let text = std::fs::read_to_string(file).map_err(|problem| {
        format!("names a file that can't be read: {}; give the path of a readable file", reason(&problem))
    })?;
    let token = text.trim();
    if !TOKEN_LENGTHS.contains(&token.len()) || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(
            "names a file without a token; write 16 to 1024 visible ASCII characters into it, such as the output of \
                    `openssl rand -hex 32`"
                .to_owned(),
        );
    }
    Ok(SecretString::from(token))
}

fn unreadable(directory: &Path, problem: &std::io::Error) -> ConfigProblem {
    let text = format!("the directory can't be read: {problem}; give the worker's user read permission");
    ConfigProblem::new(ValueOrigin::file(directory, None), "", text)
}

/// A number that changes with the names, sizes, times and inodes of the files: one `stat` for each.
/// Links are followed, so it also changes when a link in the path is replaced.
pub(super) fn fingerprint(arguments: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in arguments {
        let mut stat = |path: &Path| {
            let stat = std::fs::metadata(path).ok();
            let stat =
                stat.map(|s| (s.dev(), s.ino(), s.size(), (s.mtime(), s.mtime_nsec(), s.ctime(), s.ctime_nsec())));
            (path, stat).hash(&mut hasher);
        };
        match members(path) {
            Some(Ok(members)) => members.iter().for_each(|member| stat(member)),
            _ => stat(path),
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(found: &ConfigFiles) -> Vec<String> {
        found.files.iter().map(|file| file.path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn of_a_directory_every_toml_file_is_read_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.toml", "a.toml", "10.toml", "9.toml", ".hidden.toml", "a.toml~", "notes.txt", "B.TOML"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("..data")).unwrap();
        let found = ConfigFiles::read(&[folder.path().to_owned(), "/nonexistent.toml".into()]);
        assert_eq!(names(&found), ["10.toml", "9.toml", "a.toml", "b.toml", "nonexistent.toml"]);
        assert_eq!(found.files.iter().map(|file| file.argument).collect::<Vec<_>>(), [0, 0, 0, 0, 1]);
        assert!(found.files[4].text.as_ref().unwrap_err().starts_with("can't be read: "), "{found:?}");
        std::fs::write(folder.path().join("a.toml"), b"\xff").unwrap();
        let found = ConfigFiles::read(&[folder.path().to_owned()]);
        assert!(found.files[2].text.as_ref().unwrap_err().contains("not UTF-8"), "{found:?}");
    }

    /// As the kubelet updates a volume: the files are links through a link that is replaced.
    #[test]
    fn the_fingerprint_changes_with_every_way_to_change_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for version in ["v1", "v2"] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("a.toml"), "same").unwrap();
        }
        let watched = at("watched");
        std::fs::create_dir(&watched).unwrap();
        symlink("../v1", watched.join("..data")).unwrap();
        symlink("..data/a.toml", watched.join("a.toml")).unwrap();
        let arguments = [watched.clone()];
        let mut last = fingerprint(&arguments);
        assert_eq!(last, fingerprint(&arguments));
        let mut changes = |what: &str, change: &dyn Fn()| {
            change();
            let now = fingerprint(&arguments);
            assert_ne!(std::mem::replace(&mut last, now), now, "{what}");
        };
        changes("a link replaced", &|| {
            symlink("../v2", watched.join("..tmp")).unwrap();
            std::fs::rename(watched.join("..tmp"), watched.join("..data")).unwrap();
        });
        changes("a new file", &|| std::fs::write(watched.join("b.toml"), "one").unwrap());
        changes("a longer file", &|| std::fs::write(watched.join("b.toml"), "three").unwrap());
        changes("another file of that name", &|| {
            std::fs::write(watched.join("b.toml.tmp"), "seven").unwrap();
            std::fs::rename(watched.join("b.toml.tmp"), watched.join("b.toml")).unwrap();
        });
        changes("a removed file", &|| std::fs::remove_file(watched.join("b.toml")).unwrap());
        changes("no directory", &|| std::fs::remove_dir_all(&watched).unwrap());
    }
}
