//! Scenarios: the number of files and their length.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Fallible;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// One row pair of the table.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Which target of the performance page it shows.
    pub target: &'static str,
    /// Number of files.
    pub files: u64,
    /// Bytes of each.
    pub size: u64,
    /// Requests in flight at once in the reference.
    pub in_flight: usize,
    /// Milliseconds before each response of the server. A scenario with latency runs over http only.
    pub latency: u64,
    /// Bytes per second of each connection (0: no limit).
    pub rate: u64,
}

/// Figures that the targets limit.
pub const FULL: [Scenario; 5] = [
    Scenario { target: "P1", files: 1, size: 2 * GIB, in_flight: 8, latency: 0, rate: 0 },
    Scenario { target: "P2", files: 200, size: 16 * MIB, in_flight: 8, latency: 0, rate: 0 },
    Scenario { target: "P3", files: 5_000, size: 64 * KIB, in_flight: 16, latency: 0, rate: 0 },
    Scenario { target: "P3b", files: 5_000, size: 64 * KIB, in_flight: 16, latency: 30, rate: 0 },
    Scenario { target: "P7", files: 1, size: 2 * GIB, in_flight: 8, latency: 30, rate: 90_000_000 },
];

/// Only shows that the bench runs: the figures mean nothing.
pub const SHORT: [Scenario; 5] = [
    Scenario { target: "P1", files: 1, size: 24 * MIB + 1, in_flight: 8, latency: 0, rate: 0 },
    Scenario { target: "P2", files: 4, size: 16 * MIB, in_flight: 8, latency: 0, rate: 0 },
    Scenario { target: "P3", files: 50, size: 64 * KIB, in_flight: 16, latency: 0, rate: 0 },
    Scenario { target: "P3b", files: 50, size: 64 * KIB, in_flight: 16, latency: 30, rate: 0 },
    Scenario { target: "P7", files: 1, size: 24 * MIB + 1, in_flight: 8, latency: 30, rate: 90_000_000 },
];

impl Scenario {
    /// All bytes together.
    pub fn bytes(&self) -> u64 {
        self.files * self.size
    }

    /// For the table.
    pub fn title(&self) -> String {
        let size = match self.size {
            size if size >= GIB => format!("{} GiB", size / GIB),
            size if size >= MIB => format!("{} MiB", size / MIB),
            size => format!("{} KiB", size / KIB),
        };
        let latency = if self.latency > 0 { format!(", {} ms", self.latency) } else { String::new() };
        let rate = if self.rate > 0 { format!(", {} MB/s a connection", self.rate / 1_000_000) } else { String::new() };
        format!("{} x {size}{latency}{rate}", self.files)
    }

    /// True if the number of objects matters more than their bytes.
    pub fn is_small(&self) -> bool {
        self.size < MIB
    }

    /// Writes the files below `root`, into a folder of their own.
    pub fn write_files(&self, root: &Path) -> Fallible<PathBuf> {
        let folder = root.join(self.target);
        fs::create_dir_all(&folder)?;
        for index in 0..self.files {
            fill(&folder.join(file_name(index)), self.size, index)?;
        }
        // Else the write-back of these files competes with the broker's own syncs while the clock runs.
        rustix::fs::syncfs(File::open(&folder)?)?;
        Ok(folder)
    }
}

/// The file's name, and the last segment of its key.
pub fn file_name(index: u64) -> String {
    format!("{index:05}.bin")
}

/// Bytes that differ everywhere: equal pages could be shared by a file system, and zeros by the
/// kernel.
fn fill(path: &Path, size: u64, seed: u64) -> Fallible<()> {
    let mut file = BufWriter::with_capacity(usize::try_from(MIB)?, File::create(path)?);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..size / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    file.write_all(&[0; 8][..usize::try_from(size % 8)?])?;
    Ok(file.flush()?)
}
