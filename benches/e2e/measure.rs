//! CPU and memory of a process, from /proc.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::Fallible;

/// Clock ticks a second in /proc: `USER_HZ`, 100 on every Linux this runs on.
const TICKS: f64 = 100.0;

/// Resources of one client in one run of a scenario.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Spent {
    /// Wall-clock time.
    pub seconds: f64,
    /// User and system time of all its threads.
    pub cpu_seconds: f64,
    /// The most memory it held at once, since it started.
    pub peak_rss_kib: u64,
    /// Context switches of its threads.
    pub switches: u64,
}

/// Context switches by the name of the thread.
pub type Switches = BTreeMap<String, u64>;

/// Context switches so far, of the threads that still run.
pub fn context_switches(pid: u32) -> Fallible<Switches> {
    switches_below(&format!("/proc/{pid}/task"))
}

/// Context switches of all threads of this process so far.
pub fn own_context_switches() -> Fallible<u64> {
    Ok(switches_below("/proc/self/task")?.values().sum())
}

fn switches_below(tasks: &str) -> Fallible<Switches> {
    let mut switches = Switches::new();
    for task in fs::read_dir(tasks)? {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let name = status.lines().next().and_then(|line| line.strip_prefix("Name:")).unwrap_or_default().trim();
        *switches.entry(name.to_owned()).or_default() +=
            figure(&status, "voluntary_ctxt_switches:")? + figure(&status, "nonvoluntary_ctxt_switches:")?;
    }
    Ok(switches)
}

/// User and system time so far.
pub fn cpu_seconds(pid: u32) -> Fallible<f64> {
    cpu_of(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

/// The same of this process.
pub fn own_cpu_seconds() -> Fallible<f64> {
    cpu_of(&fs::read_to_string("/proc/self/stat")?)
}

/// The high-water mark of resident memory.
pub fn peak_rss_kib(pid: u32) -> Fallible<u64> {
    high_water(&fs::read_to_string(format!("/proc/{pid}/status"))?)
}

/// Resident memory now.
pub fn rss_kib(pid: u32) -> Fallible<u64> {
    figure(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:")
}

/// The same of this process.
pub fn own_peak_rss_kib() -> Fallible<u64> {
    high_water(&fs::read_to_string("/proc/self/status")?)
}

fn cpu_of(stat: &str) -> Fallible<f64> {
    // The second field is the program's name in brackets and may hold anything, so count from behind it.
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/PID/stat has no name")?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u32>);
    let mut next = || ticks.next().ok_or("/proc/PID/stat is too short");
    Ok(f64::from(next()?? + next()??) / TICKS)
}

fn high_water(status: &str) -> Fallible<u64> {
    figure(status, "VmHWM:")
}

fn figure(status: &str, name: &str) -> Fallible<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.ok_or_else(|| format!("/proc/PID/status has no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
