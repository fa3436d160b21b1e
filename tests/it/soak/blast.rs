//! What a worker whose identity is refused, and a region that does not know the workers' token, must
//! not cost: attempts, the health of other workers, the jobs of other customers.

use super::World;
use super::inbox::Reported;
use super::jobs;

// Jobs wait for these two uncharged: no outcome says that they are tried again.
const IDENTITY_DENIED: &str = "identity_denied";
const WRONG_REGION: &str = "wrong_region";

/// The faults, as far as workers noticed them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Noticed {
    /// Workers whose identity was refused.
    pub refused: usize,
    /// Those of them that paused. One that is frozen or killed just then does not.
    pub paused: usize,
    /// Log lines about the region that does not know our token.
    pub region_lines: usize,
}

/// Notes what is wrong, and counts what was noticed.
pub fn check(world: &World, reported: &[Reported], problems: &mut Vec<String>) -> Noticed {
    let retried = reported.iter().filter(|reported| !reported.is_end());
    for charged in retried.filter(|reported| [IDENTITY_DENIED, WRONG_REGION].contains(&reported.reason.as_str())) {
        problems.push(format!("{} was charged for {}", charged.job, charged.reason));
    }
    let (lives, sick) = world.record.note(|notes| (notes.lives.clone(), notes.sick.clone()));
    let mut noticed = Noticed { refused: sick.len(), ..Noticed::default() };
    for (number, life) in lives.iter().enumerate() {
        let log = world.stage.site.dir.path().join(format!("worker-{number}.log"));
        let log = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
        let paused = |line: &str| line.contains("worker_fault") && line.contains(IDENTITY_DENIED);
        if log.lines().any(paused) {
            noticed.paused += 1;
            if !sick.contains(&life.identity) {
                problems.push(format!("worker {number} paused for its identity, which was never refused"));
            }
        }
        let (theirs, others): (Vec<_>, Vec<_>) =
            log.lines().filter(|line| line.contains(WRONG_REGION)).partition(|line| line.contains(jobs::ABROAD));
        noticed.region_lines += theirs.len();
        if let Some(line) = others.first() {
            problems.push(format!("worker {number} blames the region of another customer: {line:.600}"));
        }
    }
    noticed
}
