//! The composition root: builds every long-lived part once, and owns the order of start and stop.
//!
//! Start: admin endpoint, identity, sessions, sources, uploader, queue, worker. Stop: worker (drain), queue, admin endpoint.

mod refused;
mod signals;
mod status;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::config::{Config, Reload};
use crate::domain::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::{self, QueueError};
use crate::runtime::shutdown::{Shutdown, Signal};
use crate::runtime::systemd::Supervisor;
use crate::session::{Identity, Sessions};
use crate::source::Sources;
use crate::telemetry::Log;
use crate::transfer::Transfers;
use crate::upload::Uploader;
use crate::worker::{Worker, WorkerParts};
use refused::LastReload;
use signals::{Reloading, announce};

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything was settled or given back in time.
    Drained,
    /// The drain time was over first; what was left comes again from the queue.
    CutShort,
    /// A second signal ended it at once.
    Forced(Signal),
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The admin endpoint's address is taken or not ours.
    #[error("admin.listen: {address} can't be used: {error}; choose another address")]
    Admin {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The signals of the process can't be taken over.
    #[error("the system refuses signal handlers: {0}")]
    Signals(std::io::Error),
    /// The https client for sources can't be built.
    #[error("https sources can't be read: {0}")]
    Sources(String),
    /// The queue can't be used as configured.
    #[error("broker: {0}")]
    Queue(QueueError),
}

/// What a worker stands on that is not in its configuration.
#[derive(Debug)]
pub struct Ground {
    /// Who it is for AWS.
    pub identity: Identity,
    /// The admin endpoint's listener; `admin.listen` is not looked at.
    pub listener: TcpListener,
    /// What ends it.
    pub shutdown: Shutdown,
}

/// Runs a worker until a signal ends it.
///
/// A broker that is away at the start is waited for; `/readyz` says so.
pub async fn run(config: Config, log: Log, reload: Reload) -> Result<Ending, StartError> {
    let shutdown = Shutdown::listen().map_err(StartError::Signals)?;
    let address = config.admin.listen;
    let listener = TcpListener::bind(address).await.map_err(|error| StartError::Admin { address, error })?;
    let identity = Identity::load(&config.aws).await;
    run_on(Ground { identity, listener, shutdown }, config, Some((log, reload))).await
}

/// As [`run`] on ground that is prepared already. Without `reload`, SIGHUP is left to whoever holds the [`Shutdown`].
pub async fn run_on(ground: Ground, config: Config, reload: Option<(Log, Reload)>) -> Result<Ending, StartError> {
    let Ground { identity, listener, shutdown } = ground;
    let metrics = Arc::new(Metrics::new(config.metrics.max_destinations));
    let (destinations, current) = watch::channel(config.destinations.clone());
    announce(&metrics, &config.destinations);
    let staging = (!config.source.s3_buckets.is_empty()).then(|| identity.staging_client(&config.aws));
    let sessions = Arc::new(Sessions::new(config.session.clone(), config.aws.clone(), identity, metrics.clone()));
    let sources = Sources::new(config.source.clone(), config.upload.min_rate, metrics.clone(), staging);
    let sources = sources.map_err(StartError::Sources)?;
    let budget = config.worker.memory_budget;
    let uploader = Uploader::new(config.upload.clone(), budget, sessions.clone(), metrics.clone());
    let queue = queue::start(&config.broker, &config.worker.id, lanes(&config), metrics.clone());
    let queue = queue.map_err(StartError::Queue)?;
    let worker = Worker::new(WorkerParts {
        config: config.worker.clone(),
        prefix: config.broker.prefix.clone(),
        lease_after: config.broker.lease_after,
        denied_for: config.session.denied_for,
        egress_addresses: config.check.egress_addresses.clone(),
        queue,
        transport: Arc::new(Transfers { sessions: sessions.clone(), sources, uploader, metrics: metrics.clone() }),
        clock: jiff::Timestamp::now,
        destinations: current.clone(),
        metrics: metrics.clone(),
    });
    let stop_admin = CancellationToken::new();
    let last_reload = LastReload::default();
    let state = status::admin_state(&worker, &sessions, &metrics, &config, (current, last_reload.clone()));
    let address = listener.local_addr().unwrap_or(config.admin.listen);
    let admin = tokio::spawn(admin::serve(listener, state.clone(), stop_admin.clone()));
    tracing::info!(
        worker = config.worker.id, admin = %address, slots = config.worker.slots, destinations = config.destinations.len(),
        version = env!("CARGO_PKG_VERSION"), "consign has started"
    );
    let supervisor = Supervisor::of_process();
    supervisor.ready();
    let reloading = Reloading {
        destinations: &destinations,
        sessions: &sessions,
        metrics: &metrics,
        worker: &worker,
        supervisor,
        last: last_reload,
    };
    let (end, drain) = (shutdown.end(), shutdown.drain());
    let ending = tokio::select! {
        () = end.cancelled() => None,
        () = reloading.follow(shutdown.clone(), reload) => None,
        () = signals::answer_questions(shutdown.clone(), state.clone()) => None,
        () = supervisor.follow(|| worker.alive(), || worker.ready()) => None,
        () = supervisor.stop_with(shutdown.drain()) => None,
        drained = worker.run(drain) => Some(drained),
    };
    stop_admin.cancel();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), admin).await;
    Ok(match (ending, shutdown.ended_by()) {
        (Some(true), _) => Ending::Drained,
        (None, Some(signal)) => Ending::Forced(signal),
        (Some(false) | None, _) => Ending::CutShort,
    })
}

/// How much each lane fetches ahead: what runs, as much again to hide the broker's round trip, and no more than is soon begun. As
/// many again may wait without a slot for their destination's turn, and must not keep the others away.
fn lanes(config: &Config) -> Vec<(Lane, u16)> {
    let slots = config.worker.slots.get();
    let ahead = |running: u32, waiting: u32| {
        let count = running.saturating_mul(2).saturating_add(waiting);
        u16::try_from(count).unwrap_or(u16::MAX)
    };
    let mut lanes = vec![(Lane::Continued, ahead(slots, slots)), (Lane::Scheduled, ahead(slots, slots))];
    if config.worker.backfill_slots > 0 {
        lanes.push((Lane::Backfill, ahead(config.worker.backfill_slots.min(slots), 0)));
    }
    lanes
}
