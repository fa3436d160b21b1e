//! What a story has in store for one job.

use std::time::Duration;

use bytes::Bytes;

use super::clock;
use super::dice::Dice;
use super::story::body;
use crate::domain::lane::Lane;
use crate::domain::outcome::Reason;

/// Failures that time heals; each is charged.
const PASSING: [Reason; 7] = [
    Reason::S3Unavailable,
    Reason::SlowDown,
    Reason::Connection,
    Reason::Timeout,
    Reason::StsUnavailable,
    Reason::SourceUnavailable,
    Reason::SessionExpired,
];
/// Failures of the job itself.
const FINAL: [Reason; 4] = [Reason::SourceNotFound, Reason::SourceMismatch, Reason::TooLarge, Reason::SourceForbidden];

/// The names of the destinations.
pub(super) const DESTINATIONS: [&str; 3] = ["acme", "globex", "initech"];

/// A job of a story.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) id: String,
    pub(super) destination: usize,
    pub(super) lane: Lane,
    pub(super) body: Bytes,
    /// When it is published: twice now and then.
    pub(super) published: Vec<Duration>,
    pub(super) shape: Shape,
    /// What happens in its first attempts, whoever makes them.
    pub(super) acts: Vec<Act>,
    /// What happens in all others.
    pub(super) fate: Fate,
    pub(super) taken: Taken,
    pub(super) expires: Option<Duration>,
}

/// How the object is sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// In one request.
    Single(Duration),
    /// In parts.
    Parts {
        count: u32,
        each: Duration,
        part_size: u64,
        /// Whether another attempt can go on where one has ended.
        resumable: bool,
    },
}

/// What happens in one attempt.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// Nothing special.
    Go,
    /// It fails after so long, unless it is done before.
    Fail(Duration, Reason),
    /// The program breaks one of its own rules.
    Panic(Duration),
    /// Nothing moves until the calm.
    Hang,
    /// The object is there, and nobody is told.
    LostReply,
}

/// How a job must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Delivered, sooner or later.
    Delivered,
    /// Every attempt fails like this.
    Fails(Reason),
    /// Every attempt panics.
    Panics,
    /// The message is no job, or one for nobody.
    Refused,
    /// Its message has ended workers.
    Poison,
}

/// Whether somebody else's object is there already, and what the job wants then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The job replaces what it finds.
    Replace,
    /// It wants to keep what is there; the flag says whether there is something.
    Keep(bool),
    /// It wants to fail then.
    Fail(bool),
}

impl Taken {
    pub(super) fn is_taken(self) -> bool {
        matches!(self, Self::Keep(true) | Self::Fail(true))
    }
}

impl Plan {
    /// The content type that the producer gives: half of them leave it out.
    pub(super) fn content_type(&self) -> Option<&'static str> {
        self.body.len().is_multiple_of(2).then_some("application/json")
    }
}

/// Draws one job.
pub(super) fn draw(dice: &mut Dice, number: usize, destinations: usize, faulty: bool) -> Plan {
    let id = format!("job-{number}");
    let destination = dice.index(destinations);
    let fate = if faulty { fate(dice) } else { Fate::Delivered };
    let taken = taken(dice);
    let expires = (faulty && dice.percent(12)).then(|| dice.seconds(10, 3000));
    let first = dice.seconds(0, 120);
    let mut published = vec![first];
    if faulty && dice.percent(10) {
        published.push(first + dice.seconds(0, 90));
    }
    let acts = if faulty { (0..dice.count(0, 4)).map(|_| act(dice)).collect() } else { Vec::new() };
    let lane = if dice.percent(30) { Lane::Backfill } else { Lane::Scheduled };
    let body = text(dice, &id, DESTINATIONS[destination], fate, taken, expires);
    Plan { id, destination, lane, body, published, shape: shape(dice), acts, fate, taken, expires }
}

fn fate(dice: &mut Dice) -> Fate {
    match dice.below(100) {
        0..80 => Fate::Delivered,
        80..86 => Fate::Fails(*dice.pick(&PASSING)),
        86..92 => Fate::Fails(*dice.pick(&FINAL)),
        92..96 => Fate::Panics,
        96 => Fate::Poison,
        _ => Fate::Refused,
    }
}

fn taken(dice: &mut Dice) -> Taken {
    match dice.below(100) {
        0..80 => Taken::Replace,
        80..90 => Taken::Keep(dice.percent(50)),
        _ => Taken::Fail(dice.percent(50)),
    }
}

fn act(dice: &mut Dice) -> Act {
    let after = dice.millis(0, 200_000);
    match dice.below(100) {
        0..25 => Act::Go,
        25..70 => Act::Fail(after, *dice.pick(&PASSING)),
        70..80 => Act::LostReply,
        80..88 => Act::Panic(after),
        _ => Act::Hang,
    }
}

fn shape(dice: &mut Dice) -> Shape {
    if dice.percent(50) {
        return Shape::Single(dice.millis(20, 60_000));
    }
    let large = dice.percent(40);
    Shape::Parts {
        count: dice.count(2, 12),
        each: dice.millis(500, 60_000),
        // Of more than 1 GiB together, or not.
        part_size: if large { 600 << 20 } else { 8 << 20 },
        resumable: dice.percent(75),
    }
}

fn text(dice: &mut Dice, id: &str, destination: &str, fate: Fate, taken: Taken, expires: Option<Duration>) -> Bytes {
    let key = format!("{id}.csv");
    if fate == Fate::Refused {
        return match dice.below(3) {
            0 => "no job at all".into(),
            1 => body(id, "nobody", &key, ""),
            _ => body(id, destination, "../up", ""),
        };
    }
    let mut more = String::new();
    match taken {
        Taken::Replace => {}
        Taken::Keep(_) => more.push_str(r#","if_exists":"keep""#),
        Taken::Fail(_) => more.push_str(r#","if_exists":"fail""#),
    }
    if let Some(expires) = expires {
        let at = clock::at(expires).to_string();
        more.extend([r#","expires_at":""#, &at, "\""]);
    }
    body(id, destination, &key, &more)
}
