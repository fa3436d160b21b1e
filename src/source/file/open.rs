//! Opening a path in such a way that only regular files below the root can be reached.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::domain::outcome::{Failure, Reason};

/// Flags for the file itself. `NONBLOCK` keeps a FIFO without a writer from blocking the thread; it
/// has no effect on regular files.
const FILE_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Rules for path resolution: nothing above the starting directory, and no links.
#[cfg(target_os = "linux")]
const RESOLVE_FLAGS: rustix::fs::ResolveFlags = rustix::fs::ResolveFlags::BENEATH
    .union(rustix::fs::ResolveFlags::NO_SYMLINKS)
    .union(rustix::fs::ResolveFlags::NO_MAGICLINKS);

/// Size and modification time of a file, which change when it is written to. The ctime is left out:
/// it also changes when the name is replaced by a rename, which leaves the open file unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    pub(super) size: u64,
    pub(super) modified_ns: i128,
}

impl FileStamp {
    #[expect(clippy::allow_attributes, reason = "the types of these fields differ between platforms")]
    #[allow(clippy::cast_lossless, clippy::useless_conversion, reason = "see above")]
    fn of(stat: &rustix::fs::Stat) -> Self {
        let modified_ns = i128::from(stat.st_mtime) * 1_000_000_000 + stat.st_mtime_nsec as i128;
        Self { size: u64::try_from(stat.st_size).unwrap_or(0), modified_ns }
    }
}

/// Opens `path`, which must be below `root`. The file may be of any type.
pub(super) fn open_beneath(root: &Path, path: &Path) -> Result<File, Failure> {
    let inside = relative(root, path)?;
    let directory = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| root_failure(root, error))?;
    match resolve_beneath(&directory, inside) {
        // A kernel before 5.6, or a container's seccomp filter (some return EPERM).
        Err(Errno::NOSYS | Errno::PERM) => open_by_component(directory, inside),
        opened => opened,
    }
    .map(File::from)
    .map_err(|error| failure(path, error))
}

/// Opens `path` from the kernel's caches, without waiting for a disk: safe on a runtime worker.
///
/// Returns `None` if it would have to wait, and on any error: then call [`open_beneath`] on
/// a blocking thread, which reports the error.
#[cfg(target_os = "linux")]
pub(super) fn open_beneath_cached(root: &Path, path: &Path) -> Option<File> {
    use rustix::fs::{CWD, ResolveFlags, openat2};
    let inside = relative(root, path).ok()?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(CWD, root, directory, Mode::empty(), ResolveFlags::CACHED).ok()?;
    openat2(directory, inside, FILE_FLAGS, Mode::empty(), RESOLVE_FLAGS | ResolveFlags::CACHED).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn open_beneath_cached(_: &Path, _: &Path) -> Option<File> {
    None
}

/// Returns the stamp of a regular file. Any other type of file is forbidden.
pub(super) fn regular_file_stamp(file: &File, path: &Path) -> Result<FileStamp, Failure> {
    let stat = rustix::fs::fstat(file).map_err(|error| failure(path, error))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(FileStamp::of(&stat)),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::Symlink => "a symbolic link",
        _ => "a device",
    };
    Err(forbidden(path, kind))
}

/// Returns the current stamp of the file.
pub(super) fn current_stamp(file: &File) -> std::io::Result<FileStamp> {
    Ok(FileStamp::of(&rustix::fs::fstat(file)?))
}

/// Returns the part of `path` below `root`. The kernel refuses a path that leaves the root; `..` is
/// refused here even if it stays inside.
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
    rustix::fs::openat2(directory, inside, FILE_FLAGS, Mode::empty(), RESOLVE_FLAGS)
}

#[cfg(not(target_os = "linux"))]
fn resolve_beneath(_: &OwnedFd, _: &Path) -> rustix::io::Result<OwnedFd> {
    Err(Errno::NOSYS)
}

/// Opens `inside` without `openat2`: opens every component below its parent and refuses symbolic
/// links.
fn open_by_component(directory: OwnedFd, inside: &Path) -> rustix::io::Result<OwnedFd> {
    let mut parts = inside.components().map(Component::as_os_str).peekable();
    let mut at = directory;
    while let Some(part) = parts.next() {
        let flags =
            if parts.peek().is_some() { OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC } else { FILE_FLAGS };
        at = match rustix::fs::openat(&at, part, flags | OFlags::NOFOLLOW, Mode::empty()) {
            // A symbolic link in the middle fails as ENOTDIR. Report it as a link, as openat2 does.
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
                .hint("correct source.url in the job, or publish the job once the file exists")
        }
        Errno::ACCESS | Errno::PERM => Failure::new(Reason::SourceDenied, format!("{shown} may not be read: {error}"))
            .hint("give the worker's user read permission on the file and its directories"),
        Errno::LOOP => forbidden(path, "behind a symbolic link"),
        Errno::XDEV => forbidden(path, "outside source.file_root"),
        // A socket, or a device without a driver.
        Errno::NXIO | Errno::NODEV => forbidden(path, "not a regular file"),
        _ => Failure::new(Reason::SourceUnavailable, format!("{shown} can't be opened: {error}")),
    }
}

/// Returns the failure for a missing root: a problem of the worker (not mounted yet), not of the
/// job.
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
    use std::io::Read as _;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// Swaps of names while files are opened.
    #[cfg(target_os = "linux")]
    const SWAPS: usize = 12_000;

    /// Both implementations must refuse the same paths.
    #[test]
    fn open_by_component_refuses_what_openat2_refuses() {
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
            assert_eq!(open_by_component(directory(), Path::new(path)).err(), expected, "{path}");
            #[cfg(target_os = "linux")]
            assert_eq!(resolve_beneath(&directory(), Path::new(path)).err(), expected, "{path}");
        }
    }
    /// Opens that read `inside`, opens that fail, and opens that read anything else.
    #[cfg(target_os = "linux")]
    fn count(opened: Option<File>, seen: &mut [usize; 3]) {
        let mut text = String::new();
        let read = opened.map(|mut file| file.read_to_string(&mut text));
        seen[match (read, text.as_str()) {
            (None, _) => 1,
            (Some(Ok(_)), "inside") => 0,
            _ => 2,
        }] += 1;
    }

    /// A process that may write below the root swaps a file and a directory for links while they
    /// are opened.
    #[cfg(target_os = "linux")]
    #[test]
    fn links_that_are_swapped_in_lead_nowhere() {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = |name: &str| root.path().join(name);
        std::fs::write(outside.path().join("file"), b"outside").unwrap();
        std::fs::create_dir(name("dir")).unwrap();
        std::fs::write(name("dir/file"), b"inside").unwrap();
        std::fs::write(name("file"), b"inside").unwrap();
        symlink(outside.path(), name("dir-link")).unwrap();
        symlink(outside.path().join("file"), name("file-link")).unwrap();
        let (stop, swaps, mut seen) = (AtomicBool::new(false), AtomicUsize::new(0), [0; 3]);
        let swap = |one: &str, other: &str| {
            renameat_with(CWD, name(one), CWD, name(other), RenameFlags::EXCHANGE).unwrap();
            swaps.fetch_add(1, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    swap("dir", "dir-link");
                    swap("file", "file-link");
                }
            });
            while swaps.load(Ordering::Relaxed) < SWAPS && seen[2] == 0 {
                let directory = rustix::fs::open(root.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
                for path in ["dir/file", "file"] {
                    count(open_beneath(root.path(), &name(path)).ok(), &mut seen);
                    count(open_beneath_cached(root.path(), &name(path)), &mut seen);
                    let directory = directory.as_ref().unwrap().try_clone().unwrap();
                    count(open_by_component(directory, Path::new(path)).ok().map(File::from), &mut seen);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let [inside, refused, outside] = seen;
        assert!(inside > 0 && refused > 0 && outside == 0, "inside {inside}, refused {refused}, outside {outside}");
    }
}
