//! The jobs of `consign dev`: samples that show each way of delivering, or the files it was given.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::home::Home;
use super::settings::{ACME, GLOBEX};
use crate::domain::job::Compression;
use crate::domain::job::wire::{RawDestinationRef, RawJob};

/// The key of the large sample below the prefix of its destination, and the part of it that S3
/// refuses once.
pub(super) const INJECTED_FAULT: (&str, i32) = ("samples/telemetry.bin", 3);
/// The length of a slash and the longest name of a sample.
pub(super) const LONGEST_NAME: usize = 14;
const LARGE: u64 = 64 << 20;
const COMPRESSIBLE: u64 = 8 << 20;

/// A job that is to be published, and how it is to end.
#[derive(Debug)]
pub(super) struct SampleJob {
    pub(super) job: RawJob,
    /// True if the delivery is expected to succeed, false if it is expected to fail.
    pub(super) delivered: bool,
    /// The sample file to make first.
    sample: Option<(Sample, PathBuf)>,
}

impl SampleJob {
    pub(super) fn destination(&self) -> &str {
        self.job.destination.id().unwrap_or_default()
    }

    /// Makes the source, unless it is there. Blocks.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let Some((sample, path)) = &self.sample else { return Ok(()) };
        if path.metadata().is_ok_and(|found| found.is_file() && found.len() == sample.length()) {
            return Ok(());
        }
        // Renamed when it is whole: a job of an earlier start may be reading the old one.
        let growing = path.with_extension("growing");
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&growing)?);
        sample.write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        std::fs::rename(growing, path)
    }
}

#[derive(Debug, Clone, Copy)]
enum Sample {
    Orders,
    Contacts,
    Invoices,
    Events,
    Telemetry,
}

impl Sample {
    fn name(self) -> &'static str {
        match self {
            Self::Orders => "orders.csv",
            Self::Contacts => "contacts.csv",
            Self::Invoices => "invoices.csv",
            Self::Events => "events.ndjson",
            Self::Telemetry => "telemetry.bin",
        }
    }

    fn length(self) -> u64 {
        match self {
            Self::Telemetry => LARGE,
            Self::Events => COMPRESSIBLE,
            Self::Orders | Self::Contacts | Self::Invoices => {
                self.rows(20).iter().map(|row| row.len() as u64 + 1).sum()
            }
        }
    }

    fn rows(self, count: u32) -> Vec<String> {
        let row = |n: u32| match self {
            Self::Contacts => format!("{n},contact-{n}@example.com,Springfield"),
            Self::Invoices => format!("{n},2026-11-{:02},{}.00,EUR", n % 28 + 1, n * 17),
            _ => format!("{n},2026-11-22T10:{:02}:00Z,{}.90,EUR", n % 60, n * 3),
        };
        (0..count).map(row).collect()
    }

    fn write(self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Telemetry => write_noise(to, LARGE),
            Self::Events => write_events(to, COMPRESSIBLE),
            Self::Orders | Self::Contacts | Self::Invoices => {
                self.rows(20).iter().try_for_each(|row| writeln!(to, "{row}"))
            }
        }
    }

    fn planned(self, home: &Home, run: &str, to: &str, key: &str) -> SampleJob {
        let path = home.files().join(self.name());
        let job = job(format!("{run}/{}", self.name()), &path, to, key.to_owned());
        SampleJob { job, delivered: true, sample: Some((self, path)) }
    }
}

/// Bytes that can't be compressed, always the same ones.
fn write_noise(to: &mut impl Write, length: u64) -> io::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..length / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        to.write_all(&state.to_le_bytes())?;
    }
    Ok(())
}

/// Lines that can be compressed, of 128 bytes each.
fn write_events(to: &mut impl Write, length: u64) -> io::Result<()> {
    (0..length / 128).try_for_each(|n| {
        let line = format!(r#"{{"event":"page_view","sequence":{n:010},"campaign":"autumn","source":"newsletter"}}"#);
        writeln!(to, "{line:<127}")
    })
}

fn job(id: String, source: &Path, to: &str, key: String) -> RawJob {
    // The path is absolute, and a URL can hold any byte of it.
    let url = url::Url::from_file_path(source).map(String::from).unwrap_or_default();
    RawJob::new(id, url, RawDestinationRef::Id(to.to_owned()), key)
}

/// The samples, the fastest first. `run` distinguishes the ids of one start from those of another.
pub(super) fn samples(home: &Home, run: &str) -> Vec<SampleJob> {
    let small = Sample::Orders.planned(home, run, ACME, "samples/orders.csv");
    let by_key = Sample::Contacts.planned(home, run, GLOBEX, "samples/contacts.csv");
    let mut cut_short = Sample::Invoices.planned(home, run, ACME, "samples/invoices.csv");
    cut_short.delivered = false;
    // As if the export had ended in the middle: what is there is not what was announced.
    cut_short.job.source.size = Some(Sample::Invoices.length() * 2);
    let mut compressed = Sample::Events.planned(home, run, ACME, "samples/events.ndjson.gz");
    compressed.job.compression = Compression::Gzip;
    compressed.job.content_type = Some("application/x-ndjson".to_owned());
    let large = Sample::Telemetry.planned(home, run, ACME, INJECTED_FAULT.0);
    vec![small, by_key, cut_short, compressed, large]
}

/// One job for each file. The key is the file's name; a repeated name gets a number.
pub(super) fn files(paths: &[PathBuf], run: &str) -> Vec<SampleJob> {
    let mut taken = BTreeSet::new();
    let numbered = paths.iter().zip(1..);
    let planned = numbered.map(|(path, number): (_, u32)| {
        let key = free(&name(path), &taken);
        taken.insert(key.clone());
        SampleJob { job: job(format!("{run}/{number}"), path, ACME, key), delivered: true, sample: None }
    });
    planned.collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// `name`, or `name-2` and so on (before the extension) while that is taken.
fn free(name: &str, taken: &BTreeSet<String>) -> String {
    let (stem, dot, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, ".", extension),
        _ => (name, "", ""),
    };
    let candidates = (2_u32..).map(|n| format!("{stem}-{n}{dot}{extension}"));
    let mut candidates = std::iter::once(name.to_owned()).chain(candidates);
    candidates.find(|candidate| !taken.contains(candidate)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_get_distinct_keys() {
        let paths = ["/a/x.csv", "/b/x.csv", "/c/x-2.csv", "/d/x.csv", "/e/.env", "/f/.env"].map(PathBuf::from);
        let keys: Vec<_> = files(&paths, "dev").into_iter().map(|planned| planned.job.key).collect();
        assert_eq!(keys, ["x.csv", "x-2.csv", "x-2-2.csv", "x-3.csv", ".env", ".env-2"]);
    }

    #[test]
    fn every_sample_is_a_valid_job_over_a_file_of_the_announced_length() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(Some(&folder.path().join("d"))).unwrap();
        for planned in samples(&home, "dev-1") {
            planned.job.clone().validate().unwrap_or_else(|refused| panic!("{refused}"));
            planned.prepare().unwrap();
            let (sample, path) = planned.sample.as_ref().unwrap();
            assert_eq!(path.metadata().unwrap().len(), sample.length(), "{}", path.display());
        }
    }

    #[test]
    fn a_file_with_an_odd_name_is_a_valid_job() {
        let odd = [PathBuf::from("/srv/a b%20ü#?.csv")];
        let job = files(&odd, "dev").remove(0).job;
        let valid = job.validate().unwrap_or_else(|refused| panic!("{refused}"));
        assert_eq!(valid.key.as_str(), "a b%20ü#?.csv");
    }
}
