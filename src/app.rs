//! The composition root: builds every long-lived part once and owns the order of start and stop.
//!
//! Start: admin endpoint, identity, sessions, sources, uploader, queue, worker. Stop: worker
//! (drain), queue, admin endpoint.

mod last_reload;
mod signals;
mod status;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::admin;
use crate::config::{Config, Reload};
use crate::domain::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::{self, QueueError};
use crate::runtime::shutdown::{Shutdown, TerminationSignal};
use crate::runtime::systemd::ServiceManager;
use crate::session::{Sessions, WorkerIdentity};
use crate::source::Sources;
use crate::telemetry::LogHandle;
use crate::transfer::Transfers;
use crate::upload::Uploader;
use crate::worker::{Worker, WorkerParts};
use last_reload::LastReload;
use signals::{ReloadHandler, register};
use status::StatusSource;

/// The way a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerExit {
    /// Every delivery was settled or requeued in time.
    Drained,
    /// The drain timeout expired first. The queue redelivers the remaining jobs.
    TimedOut,
    /// A second signal stopped it immediately.
    Forced(TerminationSignal),
}

/// A failed start of a worker.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address of the admin endpoint is in use or does not belong to this machine.
    #[error("admin.listen: {address} can't be used: {error}; {}", listen_remedy(*.address, .error))]
    Admin {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The signal handlers can't be installed.
    #[error("failed to install signal handlers: {0}")]
    Signals(io::Error),
    /// The HTTPS client for sources can't be built.
    #[error("https sources can't be read: {0}")]
    Sources(String),
    /// The queue can't be used as configured.
    #[error("broker: {0}")]
    Queue(QueueError),
}

/// The parts of a worker that come from its environment instead of its configuration.
#[derive(Debug)]
pub struct WorkerEnvironment {
    /// AWS identity of the worker.
    pub identity: WorkerIdentity,
    /// Listener of the admin endpoint; `admin.listen` is ignored.
    pub listener: TcpListener,
    /// The signals that stop it.
    pub shutdown: Shutdown,
}

/// Runs a worker until a signal stops it.
///
/// If the broker is unavailable at the start, the worker waits for it, and `/readyz` reports that.
pub async fn run(config: Config, log: LogHandle, reload: Reload) -> Result<WorkerExit, StartError> {
    let shutdown = Shutdown::listen().map_err(StartError::Signals)?;
    let address = config.admin.listen;
    let listener = TcpListener::bind(address).await.map_err(|error| StartError::Admin { address, error })?;
    let identity = WorkerIdentity::load(&config.aws).await;
    run_in(WorkerEnvironment { identity, listener, shutdown }, config, Some((log, reload))).await
}

/// Remedy of an address that can't be used.
fn listen_remedy(address: SocketAddr, error: &io::Error) -> String {
    let (host, port) = (address.ip(), address.port());
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let free = SocketAddr::new(host, port.wrapping_add(1).max(1024));
            format!(
                "another process uses this address, perhaps another worker; stop it, or choose another port, for example \
                 --set admin.listen={free}"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "{host} is not an address of this machine; use an address of this machine, or 0.0.0.0 for all interfaces"
            )
        }
        io::ErrorKind::PermissionDenied if port < 1024 => {
            format!("port {port} needs the capability CAP_NET_BIND_SERVICE; choose port 1024 or higher")
        }
        _ => "choose another address".to_owned(),
    }
}

/// Runs a worker as [`run`] does, in the given environment. Without `reload`, SIGHUP is left to the
/// holder of the [`Shutdown`].
pub async fn run_in(
    environment: WorkerEnvironment,
    config: Config,
    reload: Option<(LogHandle, Reload)>,
) -> Result<WorkerExit, StartError> {
    let WorkerEnvironment { identity, listener, shutdown } = environment;
    let metrics = Arc::new(Metrics::new(config.metrics.max_destinations));
    let (destinations, current) = watch::channel(config.destinations.clone());
    register(&metrics, &config.destinations);
    let staging = (!config.source.s3.is_empty()).then(|| identity.staging_client(&config.aws));
    let sessions = Arc::new(Sessions::new(config.session.clone(), config.aws.clone(), identity, metrics.clone()));
    let sources = Sources::new(config.source.clone(), config.upload.min_rate, metrics.clone(), staging);
    let sources = sources.map_err(StartError::Sources)?;
    let uploader = Uploader::new(config.upload.clone(), config.worker.memory_budget, sessions.clone(), metrics.clone());
    let queue = queue::start(&config.broker, &config.worker.id, lanes(&config), metrics.clone());
    let queue = queue.map_err(StartError::Queue)?;
    let worker = Worker::new(WorkerParts {
        config: config.worker.clone(),
        prefix: config.broker.prefix.clone(),
        lease_after: config.broker.lease_after,
        denied_for: config.session.denied_for,
        egress_addresses: config.check.egress_addresses.clone(),
        inline: config.inline.clone(),
        queue,
        transport: Arc::new(Transfers { sessions: sessions.clone(), sources, uploader, metrics: metrics.clone() }),
        clock: jiff::Timestamp::now,
        destinations: current.clone(),
        metrics: metrics.clone(),
    });
    let (stop_admin, last_reload) = (CancellationToken::new(), LastReload::default());
    let state = status::admin_state(StatusSource {
        worker: worker.clone(),
        sessions: sessions.clone(),
        metrics: metrics.clone(),
        destinations: current,
        last_reload: last_reload.clone(),
        settings: config.worker.clone(),
        broker: config.broker.clone(),
        admin: config.admin.clone(),
        started: jiff::Timestamp::now(),
    });
    let address = listener.local_addr().unwrap_or(config.admin.listen);
    let admin = tokio::spawn(admin::serve(listener, state.clone(), stop_admin.clone()));
    tracing::info!(
        event = "worker_started", worker = config.worker.id, admin = %address, slots = config.worker.slots,
        destinations = config.destinations.len(), version = env!("CARGO_PKG_VERSION"), "worker started"
    );
    let service_manager = ServiceManager::from_environment();
    service_manager.ready();
    let reload_handler = ReloadHandler {
        destinations: &destinations,
        sessions: &sessions,
        metrics: &metrics,
        worker: &worker,
        service_manager,
        last: last_reload,
    };
    let (force, drain) = (shutdown.force(), shutdown.drain());
    let drained = tokio::select! {
        () = force.cancelled() => None,
        () = reload_handler.follow(shutdown.clone(), reload) => None,
        () = signals::log_status_on_request(shutdown.clone(), state.clone()) => None,
        () = service_manager.follow(|| worker.alive(), || worker.ready()) => None,
        () = service_manager.stop_with(shutdown.drain()) => None,
        drained = run_as_task(&worker, drain) => Some(drained),
    };
    stop_admin.cancel();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), admin).await;
    Ok(worker_exit(drained, shutdown.forced_by()))
}

/// Runs the worker as a task of the runtime, which wakes it on the thread where a job arrived or
/// ended: the main thread, which polls the future of this function, would be woken for each job.
async fn run_as_task(worker: &Arc<Worker>, drain: CancellationToken) -> bool {
    let worker = Arc::clone(worker);
    let task = AbortOnDropHandle::new(tokio::spawn(async move { worker.run(drain).await }));
    task.await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => false,
    })
}

fn worker_exit(drained: Option<bool>, forced_by: Option<TerminationSignal>) -> WorkerExit {
    match (drained, forced_by) {
        (Some(true), _) => WorkerExit::Drained,
        (None, Some(signal)) => WorkerExit::Forced(signal),
        (Some(false) | None, _) => WorkerExit::TimedOut,
    }
}

/// Prefetch count of each lane: the running jobs, as many again to hide the round trip to the
/// broker, and no more than can start soon. As many again may wait without a slot for a permit of
/// their destination, and must not block the others.
fn lanes(config: &Config) -> Vec<(Lane, u16)> {
    let slots = config.worker.slots.get();
    let prefetch = |running: u32, waiting: u32| {
        let count = running.saturating_mul(2).saturating_add(waiting);
        u16::try_from(count).unwrap_or(u16::MAX)
    };
    let mut lanes = vec![(Lane::Continued, prefetch(slots, slots)), (Lane::Scheduled, prefetch(slots, slots))];
    if config.worker.backfill_slots > 0 {
        lanes.push((Lane::Backfill, prefetch(config.worker.backfill_slots.min(slots), 0)));
    }
    lanes
}
