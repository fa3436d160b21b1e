//! The faults at work: each is begun and undone again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::World;
use super::faults::{Kind, PLACES, Place, Strike};
use super::record::Struck;
use super::replies::ReplyTo;
use super::stage::{ABROAD_ACCOUNT, ABROAD_REGION};
use crate::testbed::node::Node;
use crate::testbed::proxy::{Condition, Proxy};
use crate::testbed::scripted::{Effect, ScriptedS3};

const SLOW_DOWN: Effect = Effect::Error(503, "SlowDown", "Please reduce your request rate.");
const INTERNAL: Effect = Effect::Error(500, "InternalError", "We encountered an internal error. Please try again.");
const THROTTLED: Effect = Effect::Error(400, "Throttling", "Rate exceeded");
const DOWN: Effect = Effect::Error(503, "ServiceUnavailable", "Please try again.");
const WRITES: [&str; 5] =
    ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"];
const UNKNOWN_TOKEN: Effect =
    Effect::Error(403, "InvalidClientTokenId", "The security token included in the request is invalid.");
/// Names of the rules of a fault, by place.
const S3_RULES: &str = "fault of S3";
const STS_RULES: &str = "fault of STS";
const IDENTITY_RULES: &str = "fault of an identity";
const REGION_RULES: &str = "fault of a region";

/// Injects all faults at their time; returns when the last is undone.
pub async fn run(world: &Arc<World>, strikes: Vec<Strike>) {
    let places: BTreeMap<Place, Arc<Mutex<()>>> = PLACES.map(|place| (place, Arc::default())).into();
    let mut running = JoinSet::new();
    for strike in strikes {
        tokio::time::sleep(strike.at.saturating_sub(world.elapsed())).await;
        let (world, place) = (world.clone(), places[&strike.place].clone());
        running.spawn(happen(world, place, strike));
    }
    while let Some(happened) = running.join_next().await {
        happened.unwrap();
    }
}

async fn happen(world: Arc<World>, place: Arc<Mutex<()>>, strike: Strike) {
    let world = &*world;
    // The machine may be slower than the plan.
    let _mine = place.lock().await;
    let at = world.record.now();
    let what = match (strike.slot, strike.condition) {
        (slot, Condition::Normal) => format!("{} (slot {slot:?}) for {:.1?}", strike.kind.name(), strike.lasts),
        (slot, condition) => format!("{condition:?} at {:?} (slot {slot:?}) for {:.1?}", strike.place, strike.lasts),
    };
    world.record.say(&what);
    match strike.place {
        Place::Worker => worker(world, strike).await,
        Place::Broker => broker(world, strike).await,
        Place::BrokerWire => wire(&pick(&world.workers.to_broker, strike.slot), strike).await,
        Place::S3Wire => wire(&pick(&world.workers.to_s3, strike.slot), strike).await,
        Place::SourceWire => wire(&world.stage.sources, strike).await,
        Place::S3 | Place::Sts => s3(world, strike).await,
        Place::Identity => identity(world, strike).await,
        Place::Region => region(world, strike).await,
    }
    let lasted = world.record.now().saturating_sub(at);
    world.record.note(|notes| notes.struck.push(Struck { kind: strike.kind.name(), what, at, lasted }));
}

async fn worker(world: &World, strike: Strike) {
    let (stage, record, slot) = (&world.stage, &world.record, strike.slot.unwrap());
    match strike.kind {
        Kind::KillWorker => world.workers.kill(stage, record, slot).await,
        Kind::RollWorker => world.workers.roll(stage, record, slot).await,
        _ => world.workers.freeze(slot, strike.lasts).await,
    }
}

async fn broker(world: &World, strike: Strike) {
    control(world, strike.kind, begin).await;
    tokio::time::sleep(strike.lasts).await;
    control(world, strike.kind, end).await;
    if strike.kind == Kind::KillBroker {
        world.record.note(|notes| notes.returns.push(Timestamp::now()));
    }
}

fn begin(node: &Node, kind: Kind, silent: &str) {
    match kind {
        Kind::KillBroker => node.kill(),
        Kind::FreezeBroker => node.freeze(),
        Kind::Alarm => node.out_of_memory(),
        Kind::SilentReplies => node.silence(silent),
        _ => node.close_connections(),
    }
}

fn end(node: &Node, kind: Kind, silent: &str) {
    match kind {
        Kind::KillBroker => node.start_again(),
        Kind::FreezeBroker => node.thaw(),
        Kind::Alarm => node.enough_memory(),
        Kind::SilentReplies => node.give_voice(silent),
        _ => {}
    }
}

/// The node's tools block; S3 and the wires must keep running meanwhile.
async fn control(world: &World, kind: Kind, what: impl Fn(&Node, Kind, &str) + Send + 'static) {
    let node = world.stage.node.clone().unwrap();
    let silent = ReplyTo::Silent.queue(&world.stage.site.broker.prefix);
    tokio::task::spawn_blocking(move || what(&node, kind, &silent)).await.unwrap();
}

fn pick(wires: &[Proxy], slot: Option<usize>) -> Vec<Proxy> {
    slot.map_or_else(|| wires.to_vec(), |slot| vec![wires[slot].clone()])
}

async fn wire(wires: &[Proxy], strike: Strike) {
    wires.iter().for_each(|wire| wire.set(strike.condition));
    tokio::time::sleep(strike.lasts).await;
    wires.iter().for_each(|wire| wire.set(Condition::Normal));
}

/// One worker's own identity is refused, by S3 as well: the sessions that it asked for are over.
async fn identity(world: &World, strike: Strike) {
    let (s3, identity) = (&world.stage.s3, world.workers.identity(&world.record, strike.slot.unwrap()).await);
    world.record.note(|notes| notes.sick.insert(identity.clone()));
    for operation in ["AssumeRole", "GetCallerIdentity"] {
        s3.on(operation).by(&identity).named(IDENTITY_RULES).before(UNKNOWN_TOKEN);
    }
    s3.expire_sessions_of(&identity);
    tokio::time::sleep(strike.lasts).await;
    s3.lift(IDENTITY_RULES);
}

/// STS of a region knows nobody who is at home elsewhere.
async fn region(world: &World, strike: Strike) {
    let s3 = &world.stage.s3;
    for operation in ["AssumeRole", "GetCallerIdentity"] {
        s3.on(operation).region(ABROAD_REGION).named(REGION_RULES).before(UNKNOWN_TOKEN);
    }
    s3.expire_sessions_of(ABROAD_ACCOUNT);
    tokio::time::sleep(strike.lasts).await;
    s3.lift(REGION_RULES);
}

async fn s3(world: &World, strike: Strike) {
    let s3 = &world.stage.s3;
    sicken(s3, strike.kind);
    tokio::time::sleep(strike.lasts.max(Duration::from_millis(1))).await;
    s3.lift(if strike.place == Place::Sts { STS_RULES } else { S3_RULES });
}

fn sicken(s3: &ScriptedS3, kind: Kind) {
    let lost = |operation| s3.on(operation).named(S3_RULES).after(Effect::LostReply);
    let every = |operations: &[&'static str], effect: &Effect| {
        operations.iter().for_each(|operation| s3.on(operation).named(S3_RULES).before(effect.clone()));
    };
    let sts = |effect| s3.on("AssumeRole").named(STS_RULES).before(effect);
    match kind {
        Kind::SlowDown => every(&WRITES, &SLOW_DOWN),
        Kind::ServerErrors => every(&WRITES, &INTERNAL),
        Kind::LostPuts => lost("PutObject"),
        Kind::LostParts => lost("UploadPart"),
        Kind::LostCompletes => lost("CompleteMultipartUpload"),
        Kind::LostCreates => lost("CreateMultipartUpload"),
        Kind::ErrorIn200 => every(&["CompleteMultipartUpload"], &Effect::ErrorIn200("InternalError")),
        Kind::Throttled => sts(THROTTLED),
        Kind::StsDown => sts(DOWN),
        _ => {}
    }
    if matches!(kind, Kind::ExpiredSessions | Kind::Throttled | Kind::StsDown) {
        s3.expire_sessions();
    }
}
