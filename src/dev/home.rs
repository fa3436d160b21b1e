//! The directory of a `consign dev`: a temporary one that goes with it, or the user's own, which is
//! kept.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Marks a directory as ours, and is locked while it is in use.
const MARK: &str = ".consign-dev";
/// Tries of removing a temporary directory.
const REMOVALS: u32 = 20;

/// A directory with buckets, files, queue and configuration. A temporary one is removed on drop.
#[derive(Debug)]
pub(super) struct Home {
    /// The directory itself; absolute, without symbolic links.
    pub(super) path: PathBuf,
    /// True if it outlives the process.
    pub(super) kept: bool,
    _lock: File,
}

/// Error of a directory that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// It can't be made, read or written.
    #[error("{path} can't be used: {problem}; choose another directory with --data-dir")]
    Unusable {
        /// The directory.
        path: String,
        /// Error of the system.
        problem: io::Error,
    },
    /// It is a file.
    #[error("--data-dir: {0} is a file; give a directory")]
    NotADirectory(String),
    /// Another process is at work in it.
    #[error("--data-dir: {0} is in use by another consign dev; end that one, or choose another directory")]
    InUse(String),
    /// There are other things in it.
    #[error("--data-dir: {0} is not empty and was not made by consign dev; choose an empty or a new directory")]
    Foreign(String),
    /// Its name can't be written into a configuration.
    #[error("--data-dir: {0} is not UTF-8; choose a directory whose name is")]
    Name(String),
}

impl Home {
    /// Opens `data_dir`, which is made where it is missing and kept, or else makes a temporary
    /// directory.
    pub(super) fn open(data_dir: Option<&Path>) -> Result<Self, HomeError> {
        let name = format!("consign-dev-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let asked = data_dir.map_or_else(|| std::env::temp_dir().join(name), Path::to_owned);
        let shown = asked.display().to_string();
        if asked.is_file() {
            return Err(HomeError::NotADirectory(shown));
        }
        let unusable = |problem| HomeError::Unusable { path: shown.clone(), problem };
        // A place for temporary files that is not there is a mistake, not a wish.
        let mut make = DirBuilder::new();
        make.recursive(data_dir.is_some()).mode(0o700).create(&asked).map_err(unusable)?;
        let path = asked.canonicalize().map_err(unusable)?;
        if path.to_str().is_none() {
            return Err(HomeError::Name(shown));
        }
        let lock = match marked(&path) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Err(HomeError::Foreign(shown)),
            Err(problem) => return Err(unusable(problem)),
        };
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| HomeError::InUse(shown.clone()))?;
        let home = Self { path, kept: data_dir.is_some(), _lock: lock };
        for folder in [home.buckets(), home.files()] {
            std::fs::create_dir_all(folder).map_err(unusable)?;
        }
        Ok(home)
    }

    /// One folder for each bucket.
    pub(super) fn buckets(&self) -> PathBuf {
        self.path.join("buckets")
    }

    /// The sample files.
    pub(super) fn files(&self) -> PathBuf {
        self.path.join("files")
    }

    /// The queue's file.
    pub(super) fn queue(&self) -> PathBuf {
        self.path.join("queue.db")
    }

    /// The configuration's file.
    pub(super) fn config(&self) -> PathBuf {
        self.path.join("consign.toml")
    }

    /// Writes the configuration, which holds (worthless) secrets: for the user alone.
    pub(super) fn write_config(&self, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.config())?;
        file.write_all(text.as_bytes())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Whatever was cut off by a signal may still be writing for a moment.
        let mut tries = (0..REMOVALS).map(|_| std::fs::remove_dir_all(&self.path));
        let _ = tries.find(|removed| removed.is_ok() || !self.path.exists());
    }
}

/// The mark of a directory, made in an empty one; `None` where there are other things instead.
fn marked(path: &Path) -> io::Result<Option<File>> {
    let mark = path.join(MARK);
    let ours = mark.exists() || std::fs::read_dir(path)?.next().is_none();
    if !ours {
        return Ok(None);
    }
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(mark).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_directory_goes_and_a_chosen_one_stays() {
        let temporary = Home::open(None).unwrap();
        let path = temporary.path.clone();
        assert!(path.join("buckets").is_dir());
        drop(temporary);
        assert!(!path.exists());

        let folder = tempfile::tempdir().unwrap();
        let chosen = folder.path().join("new/one");
        drop(Home::open(Some(&chosen)).unwrap());
        assert!(chosen.join("files").is_dir());
        assert!(Home::open(Some(&chosen)).unwrap().kept, "it can be opened again");
    }

    #[test]
    fn a_directory_has_one_user_and_no_other_things() {
        let folder = tempfile::tempdir().unwrap();
        let chosen = folder.path().join("d");
        let _first = Home::open(Some(&chosen)).unwrap();
        assert!(matches!(Home::open(Some(&chosen)), Err(HomeError::InUse(_))));
        std::fs::write(folder.path().join("thesis.txt"), "x").unwrap();
        assert!(matches!(Home::open(Some(folder.path())), Err(HomeError::Foreign(_))));
        let file = folder.path().join("thesis.txt");
        let Err(refused) = Home::open(Some(&file)) else { panic!("it is a file") };
        assert_eq!(refused.to_string(), format!("--data-dir: {} is a file; give a directory", file.display()));
    }
}
