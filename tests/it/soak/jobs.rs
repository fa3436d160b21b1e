//! The jobs of a soak: drawn from the seed, each with the ends that it may have.

use std::time::Duration;

use super::dice::{Deck, Dice};
use super::replies::{self, ReplyTo};
use super::settings::Settings;
use crate::testbed::{KIB, MIB};

/// Files that many jobs deliver; they are long enough for several parts.
pub const POOL: usize = 8;
const SMALL: usize = 24 * KIB;

/// Kind of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Small,
    Large,
    /// Its source takes seconds.
    Slow,
    Gzip,
    Zstd,
    /// Brings its destination along.
    Inline,
    Twice,
    /// For the customer whose role refuses until the faults are over.
    Sick,
    /// For the customer whose region does not always know the workers' token.
    Abroad,
    KeepFree,
    FailFree,
    KeepTaken,
    FailTaken,
    WrongSize,
    WrongDigest,
    Missing,
    Unknown,
    Expired,
    ExpiresSoon,
    SickExpires,
}

/// Share of each kind in a hundred.
const DECK: [(Kind, usize); 20] = [
    (Kind::Small, 32),
    (Kind::Large, 14),
    (Kind::Slow, 5),
    (Kind::Gzip, 5),
    (Kind::Zstd, 5),
    (Kind::Inline, 3),
    (Kind::Twice, 5),
    (Kind::Sick, 5),
    (Kind::Abroad, 4),
    (Kind::KeepFree, 2),
    (Kind::FailFree, 2),
    (Kind::KeepTaken, 2),
    (Kind::FailTaken, 2),
    (Kind::WrongSize, 2),
    (Kind::WrongDigest, 2),
    (Kind::Missing, 3),
    (Kind::Unknown, 2),
    (Kind::Expired, 2),
    (Kind::ExpiresSoon, 2),
    (Kind::SickExpires, 1),
];

/// An end: the word of the outcome, and the reason where it failed.
pub type End = (&'static str, &'static str);

const DELIVERED: End = ("delivered", "");
const EXPIRED: End = ("expired", "");
const SKIPPED: End = ("skipped", "");

impl Kind {
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Outcomes that it may have. The first is the usual one.
    pub fn ends(self) -> &'static [End] {
        match self {
            Self::KeepTaken => &[SKIPPED],
            Self::FailTaken => &[("failed", "object_exists")],
            Self::WrongSize | Self::WrongDigest => &[("failed", "source_mismatch")],
            Self::Missing => &[("failed", "source_not_found")],
            Self::Unknown => &[("failed", "unknown_destination")],
            Self::Expired => &[EXPIRED],
            Self::ExpiresSoon => &[DELIVERED, EXPIRED],
            Self::SickExpires => &[EXPIRED, DELIVERED],
            _ => &[DELIVERED],
        }
    }

    /// Outcomes of a second delivery of the message, if no worker remembers the first: after a
    /// crash, or when it was published twice. The contract says that `delivered` beats these.
    pub fn echoes(self) -> &'static [End] {
        match self {
            Self::KeepFree => &[SKIPPED],
            Self::FailFree => &[("failed", "object_exists")],
            _ => &[],
        }
    }
}

/// Source of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    File,
    Http,
    /// Without ranges.
    HttpWhole,
    /// Without ranges and length.
    HttpEndless,
    Https,
    S3,
}

const ORIGINS: [(Origin, usize); 6] = [
    (Origin::File, 6),
    (Origin::Http, 3),
    (Origin::HttpWhole, 2),
    (Origin::HttpEndless, 2),
    (Origin::Https, 4),
    (Origin::S3, 3),
];

/// Which bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// This job's alone, so many.
    Own(usize),
    /// A file of the pool.
    Pool(usize),
}

/// A job before it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub number: usize,
    /// Time of publication, from the first fault.
    pub at: Duration,
    pub kind: Kind,
    pub origin: Origin,
    pub body: Body,
    pub tenant: &'static str,
    pub backfill: bool,
    /// True if the job states its size.
    pub sized: bool,
    /// Queue for a copy of its outcome.
    pub reply_to: Option<ReplyTo>,
}

/// The customers that are well.
pub const TENANTS: [&str; 4] = ["plain", "kms", "bare", "keyed"];
pub const SICK: &str = "sick";
pub const ABROAD: &str = "abroad";

/// All jobs in the order in which they are published; one that comes twice is there twice.
pub fn drafts(settings: &Settings) -> Vec<Draft> {
    let mut dice = Dice::new(settings.seed, 1);
    let (mut kinds, mut origins) = (Deck::new(&DECK), Deck::new(&ORIGINS));
    let (mut replies, mut reply_dice) = (Deck::new(&replies::DECK), Dice::new(settings.seed, 5));
    let step = settings.faults_for.mul_f64(0.95) / u32::try_from(settings.jobs.max(1)).unwrap();
    let mut drafts = Vec::new();
    for number in 0..settings.jobs {
        let kind = kinds.deal(&mut dice);
        let at = step * u32::try_from(number).unwrap();
        let reply_to = replies.deal(&mut reply_dice).filter(|_| !settings.is_embedded());
        let draft = Draft { number, at, reply_to, ..draft(kind, origins.deal(&mut dice), &mut dice) };
        if kind == Kind::Twice {
            drafts.push(Draft { at: at + dice.millis(0, 6000), ..draft.clone() });
        }
        drafts.push(draft);
    }
    drafts.sort_by_key(|draft| (draft.at, draft.number));
    drafts
}

fn draft(kind: Kind, origin: Origin, dice: &mut Dice) -> Draft {
    let pooled = match kind {
        Kind::Large | Kind::Slow => true,
        Kind::Gzip | Kind::Zstd | Kind::Twice | Kind::Inline | Kind::WrongDigest | Kind::FailFree => dice.percent(40),
        _ => false,
    };
    let origin = match kind {
        Kind::Slow => dice.pick(&[Origin::Http, Origin::HttpWhole]),
        Kind::WrongSize | Kind::WrongDigest | Kind::Missing => dice.pick(&[Origin::File, Origin::Http, Origin::S3]),
        _ => origin,
    };
    let tenant = match kind {
        Kind::Sick | Kind::SickExpires => SICK,
        Kind::Abroad => ABROAD,
        Kind::Unknown => "nobody",
        Kind::Inline => "inline",
        _ => dice.pick(&TENANTS),
    };
    let size = if dice.percent(6) { 0 } else { dice.between(1, SMALL) };
    let body = if pooled { Body::Pool(dice.below(POOL)) } else { Body::Own(size) };
    let (backfill, sized) = (dice.percent(20), dice.percent(50));
    Draft { number: 0, at: Duration::ZERO, kind, origin, body, tenant, backfill, sized, reply_to: None }
}

/// The lengths of the pool's files: around the borders of parts, and some in between.
pub fn pool(seed: u64) -> [usize; POOL] {
    let mut dice = Dice::new(seed, 2);
    let mut lengths = [5 * MIB, 5 * MIB + 1, 10 * MIB, 10 * MIB - 1, 0, 0, 0, 0];
    for length in &mut lengths[4..] {
        *length = dice.between(5 * MIB, 17 * MIB);
    }
    lengths
}
