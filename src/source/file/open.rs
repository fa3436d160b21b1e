//! Opening a path so that nothing outside the root, and nothing but a regular file, can be reached.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Stamp;
use crate::domain::outcome::{Failure, Reason};

/// `NONBLOCK`, so that a FIFO without a writer can't hold the thread; it means nothing for regular files.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Nothing above the directory that is opened from, and no link at all.
#[cfg(target_os = "linux")]
const RESOLVE: rustix::fs::ResolveFlags = rustix::fs::ResolveFlags::BENEATH
    .union(rustix::fs::ResolveFlags::NO_SYMLINKS)
    .union(rustix::fs::ResolveFlags::NO_MAGICLINKS);

/// Opens `path`, which names a place below `root`, whatever the file turns out to be.
pub(super) fn beneath(root: &Path, path: &Path) -> Result<File, Failure> {
    let inside = relative(root, path)?;
    let directory = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| root_failure(root, error))?;
    match resolve_beneath(&directory, inside) {
        // A kernel before 5.6, or a container's filter that does not know the call (some answer EPERM).
        Err(Errno::NOSYS | Errno::PERM) => step_by_step(directory, inside),
        opened => opened,
    }
    .map(File::from)
    .map_err(|error| failure(path, error))
}

/// The same from what the kernel has in memory, without waiting for a disk: safe on a runtime worker.
///
/// `None` when it can't tell without waiting, or at any trouble: then [`beneath`] on a blocking thread is the way, and says
/// what the trouble is.
#[cfg(target_os = "linux")]
pub(super) fn beneath_cached(root: &Path, path: &Path) -> Option<File> {
    use rustix::fs::{CWD, ResolveFlags, openat2};
    let inside = relative(root, path).ok()?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(CWD, root, directory, Mode::empty(), ResolveFlags::CACHED).ok()?;
    openat2(directory, inside, FLAGS, Mode::empty(), RESOLVE | ResolveFlags::CACHED).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn beneath_cached(_: &Path, _: &Path) -> Option<File> {
    None
}

/// The file's stamp, if it is a regular file.
pub(super) fn regular(file: &File, path: &Path) -> Result<Stamp, Failure> {
    let stat = rustix::fs::fstat(file).map_err(|error| failure(path, error))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(Stamp::of(&stat)),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::Symlink => "a symbolic link",
        _ => "a device",
    };
    Err(forbidden(path, kind))
}

/// The file's stamp now.
pub(super) fn stamp(file: &File) -> std::io::Result<Stamp> {
    Ok(Stamp::of(&rustix::fs::fstat(file)?))
}

impl Stamp {
    #[expect(clippy::allow_attributes, reason = "the types of these fields differ between platforms")]
    #[allow(clippy::cast_lossless, clippy::useless_conversion, reason = "see above")]
    fn of(stat: &rustix::fs::Stat) -> Self {
        let modified_ns = i128::from(stat.st_mtime) * 1_000_000_000 + stat.st_mtime_nsec as i128;
        Self { size: u64::try_from(stat.st_size).unwrap_or(0), modified_ns }
    }
}

/// The part of `path` below `root`. The kernel refuses what leaves the root; `..` is refused even where it would not.
fn relative<'a>(root: &Path, path: &'a Path) -> Result<&'a Path, Failure> {
    let inside = path.strip_prefix(root).map_err(|_| forbidden(path, "outside source.file_root"))?;
    if inside.as_os_str().is_empty() {
        return Err(forbidden(path, "source.file_root itself, a directory"));
    }
    if !inside.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(forbidden(path, "a path with \"..\" in it"));
    }
    Ok(inside)
}

#[cfg(target_os = "linux")]
fn resolve_beneath(directory: &OwnedFd, inside: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(directory, inside, FLAGS, Mode::empty(), RESOLVE)
}

#[cfg(not(target_os = "linux"))]
fn resolve_beneath(_: &OwnedFd, _: &Path) -> rustix::io::Result<OwnedFd> {
    Err(Errno::NOSYS)
}

/// The same without `openat2`: every component is opened below its parent, and none may be a symbolic link.
fn step_by_step(directory: OwnedFd, inside: &Path) -> rustix::io::Result<OwnedFd> {
    let mut parts = inside.components().map(Component::as_os_str).peekable();
    let mut at = directory;
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_some() { OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC } else { FLAGS };
        at = match rustix::fs::openat(&at, part, flags | OFlags::NOFOLLOW, Mode::empty()) {
            // A symbolic link in the middle fails as "no directory": it must read as a link, as with openat2.
            Err(Errno::NOTDIR) if is_symlink(&at, part) => return Err(Errno::LOOP),
            opened => opened?,
        };
    }
    Ok(at)
}

fn is_symlink(directory: &OwnedFd, name: &std::ffi::OsStr) -> bool {
    rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

fn failure(path: &Path, error: Errno) -> Failure {
    let shown = path.display();
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => {
            Failure::new(Reason::SourceNotFound, format!("there is no file {shown}"))
        }
        Errno::ACCESS | Errno::PERM => Failure::new(Reason::SourceDenied, format!("{shown} may not be read: {error}"))
            .hint("Give the worker's user read permission on the file and its directories."),
        Errno::LOOP => forbidden(path, "behind a symbolic link"),
        Errno::XDEV => forbidden(path, "outside source.file_root"),
        // A socket, or a device without a driver.
        Errno::NXIO | Errno::NODEV => forbidden(path, "no regular file"),
        _ => Failure::new(Reason::SourceUnavailable, format!("{shown} can't be opened: {error}")),
    }
}

/// A missing root is the worker's trouble (not mounted yet), not the job's.
fn root_failure(root: &Path, error: Errno) -> Failure {
    let message = format!("source.file_root {} can't be opened: {error}", root.display());
    Failure::new(Reason::SourceUnavailable, message)
}

fn forbidden(path: &Path, what: &str) -> Failure {
    let message = format!("{} is {what}; only regular files below source.file_root are read", path.display());
    Failure::new(Reason::SourceForbidden, message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Both ways of opening must refuse the same.
    #[test]
    fn step_by_step_refuses_what_openat2_refuses() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::fs::write(root.path().join("a/b/file"), b"x").unwrap();
        symlink("b/file", root.path().join("a/link")).unwrap();
        symlink("b", root.path().join("a/dirlink")).unwrap();
        let directory = || rustix::fs::open(root.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for (path, expected) in [
            ("a/b/file", None),
            ("a/link", Some(Errno::LOOP)),
            ("a/dirlink/file", Some(Errno::LOOP)),
            ("a/none", Some(Errno::NOENT)),
            ("a/b/file/x", Some(Errno::NOTDIR)),
        ] {
            assert_eq!(step_by_step(directory(), Path::new(path)).err(), expected, "{path}");
            #[cfg(target_os = "linux")]
            assert_eq!(resolve_beneath(&directory(), Path::new(path)).err(), expected, "{path}");
        }
    }
}
