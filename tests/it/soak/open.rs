//! Uploads that are still open, and why nobody could have aborted them.

use std::collections::{BTreeMap, BTreeSet};

use super::World;
use super::record::{Notes, TransferResult};

/// `worker.slots` of the soak: what one killed worker can have had open at most.
const SLOTS: usize = 8;
/// The cause of those whose Create was answered with a lost reply: each try makes one more, and
/// nobody can know of it.
const UNKNOWN_ID: &str = "its id was never received";
/// The cause of those that nobody can be excused for.
const NONE: &str = "nobody's fault";

/// By cause; and a line for each that could have been aborted.
pub fn count(world: &World) -> (BTreeMap<&'static str, usize>, Vec<String>) {
    let s3 = &world.stage.s3;
    let open = s3.open_by();
    if open.is_empty() {
        return Default::default();
    }
    let mut excuses: BTreeMap<_, _> = s3.why_open().into_iter().collect();
    let parts: BTreeSet<_> = s3.calls("UploadPart").iter().map(|call| call.asked("uploadId").to_owned()).collect();
    let ends = world.record.note(|notes| ends(notes));
    let (mut causes, mut problems) = (BTreeMap::new(), Vec::new());
    for (id, key, by) in open {
        let excused = excuses.remove(&id).flatten().or_else(|| excuse(&by, &ends));
        let why = match excused {
            Some(why) => why,
            None if !parts.contains(&id) => UNKNOWN_ID,
            None => {
                problems.push(format!("the upload {id} of {key}, begun by {by}, is open and could be aborted"));
                NONE
            }
        };
        *causes.entry(why).or_default() += 1;
    }
    let unknown = causes.get(UNKNOWN_ID).copied().unwrap_or_default();
    let (gone, left) = (ends.len(), causes.values().sum::<usize>() - unknown);
    if left > (gone + 1) * SLOTS {
        problems.push(format!("{gone} workers that were killed or cut short left {left} uploads open"));
    }
    (causes, problems)
}

/// Workers that could not clean up after themselves, by identity.
fn ends(notes: &Notes) -> BTreeMap<String, TransferResult> {
    let ended = notes.lives.iter().filter_map(|life| Some((life.identity.clone(), life.ended?.1)));
    ended.filter(|(_, how)| *how != TransferResult::Drained(0)).collect()
}

fn excuse(by: &str, ends: &BTreeMap<String, TransferResult>) -> Option<&'static str> {
    // A key of the customer's own does not tell the workers apart.
    let how = ends.get(by).or_else(|| ends.values().next().filter(|_| by.starts_with("AKIAKEYED")))?;
    Some(if *how == TransferResult::Killed { "its worker was killed" } else { "the drain was cut short" })
}
