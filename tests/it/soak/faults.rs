//! Plan of the faults: which one, when and for how long, drawn from the seed before the run.

use std::time::Duration;

use super::dice::{Deck, Dice};
use super::settings::Settings;
use crate::testbed::proxy::Condition;
use crate::testbed::{KIB, MIB};

/// A way to break something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    KillWorker,
    RollWorker,
    FreezeWorker,
    KillBroker,
    FreezeBroker,
    Alarm,
    CloseConnections,
    Reset,
    BlackHole,
    Cut,
    HalfClose,
    Latency,
    SlowDown,
    ServerErrors,
    LostPuts,
    LostParts,
    LostCompletes,
    LostCreates,
    ErrorIn200,
    ExpiredSessions,
    Throttled,
    StsDown,
    SickWorker,
    ForeignRegion,
    SilentReplies,
}

/// Count of each kind between two shufflings.
const DECK: [(Kind, usize); 25] = [
    (Kind::KillWorker, 4),
    (Kind::RollWorker, 3),
    (Kind::FreezeWorker, 2),
    (Kind::KillBroker, 2),
    (Kind::FreezeBroker, 1),
    (Kind::Alarm, 1),
    (Kind::CloseConnections, 1),
    (Kind::Reset, 3),
    (Kind::BlackHole, 3),
    (Kind::Cut, 2),
    (Kind::HalfClose, 1),
    (Kind::Latency, 1),
    (Kind::SlowDown, 2),
    (Kind::ServerErrors, 2),
    (Kind::LostPuts, 1),
    (Kind::LostParts, 1),
    (Kind::LostCompletes, 2),
    (Kind::LostCreates, 1),
    (Kind::ErrorIn200, 1),
    (Kind::ExpiredSessions, 1),
    (Kind::Throttled, 1),
    (Kind::StsDown, 1),
    (Kind::SickWorker, 2),
    (Kind::ForeignRegion, 2),
    (Kind::SilentReplies, 2),
];

/// Place of a fault. At most one fault is active in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    Worker,
    Broker,
    BrokerWire,
    S3Wire,
    SourceWire,
    S3,
    Sts,
    /// The identity of one worker.
    Identity,
    /// STS of the region where one customer is.
    Region,
}

pub const PLACES: [Place; 9] = [
    Place::Worker,
    Place::Broker,
    Place::BrokerWire,
    Place::S3Wire,
    Place::SourceWire,
    Place::S3,
    Place::Sts,
    Place::Identity,
    Place::Region,
];

/// One fault to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    pub at: Duration,
    pub kind: Kind,
    pub place: Place,
    /// Which worker, or whose wire; `None` is everybody's.
    pub slot: Option<usize>,
    /// Condition of a connection.
    pub condition: Condition,
    pub lasts: Duration,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "worker killed",
            Self::RollWorker => "worker replaced",
            Self::FreezeWorker => "worker frozen",
            Self::KillBroker => "broker killed",
            Self::FreezeBroker => "broker frozen",
            Self::Alarm => "broker out of memory",
            Self::CloseConnections => "connections closed",
            Self::Reset => "connections reset",
            Self::BlackHole => "black hole",
            Self::Cut => "connections cut",
            Self::HalfClose => "half close",
            Self::Latency => "latency",
            Self::SlowDown => "S3 slow down",
            Self::ServerErrors => "S3 errors",
            Self::LostPuts => "lost replies to PutObject",
            Self::LostParts => "lost replies to UploadPart",
            Self::LostCompletes => "lost replies to Complete",
            Self::LostCreates => "lost replies to Create",
            Self::ErrorIn200 => "error in 200",
            Self::ExpiredSessions => "sessions expired",
            Self::Throttled => "STS throttles",
            Self::StsDown => "STS down",
            Self::SickWorker => "worker's identity refused",
            Self::ForeignRegion => "region without our token",
            Self::SilentReplies => "reply queue silent",
        }
    }

    fn place(self, dice: &mut Dice) -> Place {
        match self {
            Self::KillWorker | Self::RollWorker | Self::FreezeWorker => Place::Worker,
            Self::KillBroker | Self::FreezeBroker | Self::Alarm | Self::CloseConnections | Self::SilentReplies => {
                Place::Broker
            }
            Self::SickWorker => Place::Identity,
            Self::ForeignRegion => Place::Region,
            Self::Reset | Self::BlackHole | Self::Cut | Self::HalfClose | Self::Latency => {
                dice.pick(&[Place::BrokerWire, Place::S3Wire, Place::SourceWire])
            }
            Self::Throttled | Self::StsDown => Place::Sts,
            _ => Place::S3,
        }
    }

    fn condition(self, place: Place, dice: &mut Dice) -> Condition {
        let broker = place == Place::BrokerWire;
        match self {
            Self::Reset => Condition::Reset,
            Self::BlackHole => Condition::BlackHole,
            Self::HalfClose => Condition::HalfClose,
            Self::Latency if broker => Condition::Latency(dice.millis(50, 300)),
            Self::Latency => Condition::Latency(dice.millis(2, 12)),
            Self::Cut => {
                let bytes = if broker { dice.between(KIB, 40 * KIB) } else { dice.between(16 * KIB, 4 * MIB) };
                let towards_client = place == Place::SourceWire || dice.percent(30);
                if towards_client { Condition::CutReplyAfter(bytes) } else { Condition::CutAfter(bytes) }
            }
            _ => Condition::Normal,
        }
    }

    /// Duration; some are over at once.
    fn lasts(self, long: bool, dice: &mut Dice) -> Duration {
        match self {
            Self::KillWorker | Self::RollWorker | Self::CloseConnections | Self::ExpiredSessions => Duration::ZERO,
            Self::KillBroker => dice.millis(200, 3000),
            // Beyond the first pause of a worker, so that its probe fails, too.
            Self::SickWorker if long && dice.percent(50) => dice.millis(16_000, 24_000),
            // Jobs for that region are few.
            Self::ForeignRegion => dice.millis(4000, 12_000),
            // Beyond two heartbeats, so that silence is noticed.
            Self::BlackHole | Self::FreezeBroker | Self::FreezeWorker if long && dice.percent(25) => {
                dice.millis(33_000, 45_000)
            }
            _ => dice.millis(1500, 6000),
        }
    }

    /// Time it takes beside that: processes start and stop, and so does the operator's tool.
    fn overhead(self) -> Duration {
        Duration::from_secs(match self {
            Self::KillBroker => 14,
            Self::Alarm | Self::SilentReplies => 6,
            Self::CloseConnections => 4,
            Self::RollWorker => 9,
            _ => 1,
        })
    }
}

/// All faults of a soak in their order, every few seconds one. In one place they don't overlap.
pub fn strikes(settings: &Settings) -> Vec<Strike> {
    let mut dice = Dice::new(settings.seed, 4);
    let mut deck = Deck::new(&DECK);
    let long = settings.is_long();
    let gap = if long { (2000, 5000) } else { (900, 2200) };
    let mut free = std::collections::BTreeMap::new();
    let (mut at, mut strikes) = (Duration::from_secs(1), Vec::new());
    while at < settings.faults_for {
        let kind = deck.deal(&mut dice);
        let place = kind.place(&mut dice);
        let strike = Strike {
            at,
            kind,
            place,
            slot: slot(place, settings, &mut dice),
            condition: kind.condition(place, &mut dice),
            lasts: kind.lasts(long, &mut dice),
        };
        let there = !settings.is_embedded() || !matches!(place, Place::Broker | Place::BrokerWire);
        if there && free.get(&place).is_none_or(|free| *free <= at) {
            free.insert(place, at + strike.lasts + kind.overhead());
            strikes.push(strike);
            at += dice.millis(gap.0, gap.1);
        } else {
            at += Duration::from_millis(100);
        }
    }
    strikes
}

/// In long soaks the worker of the last slot is neither killed nor replaced: somebody must grow
/// old, to be measured.
fn slot(place: Place, settings: &Settings, dice: &mut Dice) -> Option<usize> {
    let all = settings.workers;
    let mortal = if settings.is_long() { all.saturating_sub(1).max(1) } else { all };
    match place {
        Place::Worker => Some(dice.below(mortal)),
        Place::Identity => Some(dice.below(all)),
        Place::BrokerWire | Place::S3Wire if dice.percent(60) => Some(dice.below(all)),
        _ => None,
    }
}
