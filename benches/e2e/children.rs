//! This very binary, started again: as the null server, and as the reference client.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Fallible;
use crate::counts::{COUNTS_PATH, Counts};
use crate::manners::{FIX_PATH, Manners};
use crate::measure::Spent;
use crate::process::{self, Process};
use crate::scenario::Scenario;
use crate::stale::versions::{History, VERSIONS_PATH};
use crate::storm::ledger::{LEDGER_PATH, Stored};
use crate::tls::CA_FILE;
use crate::wire::Endpoint;

/// A null server in a process of its own; it ends with this value.
pub struct NullServer {
    pub endpoint: Endpoint,
    pub ca: Option<PathBuf>,
    _process: Process,
}

impl NullServer {
    /// With `tls`, https; the authority's certificate is put into that folder.
    pub async fn start(tls: Option<&Path>) -> Fallible<Self> {
        Self::start_with(tls, &Manners::default()).await
    }

    /// As [`NullServer::start`], for one that does not answer everybody at once.
    pub async fn start_with(tls: Option<&Path>, manners: &Manners) -> Fallible<Self> {
        let mut command = myself()?;
        command.arg("serve").args(manners.arguments());
        if let Some(folder) = tls {
            command.arg("--tls").arg(folder);
        }
        let mut process = Process::spawn(command.stdout(Stdio::piped()))?;
        let port = process.first_line().await?.parse()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let ca = tls.map(|folder| folder.join(CA_FILE));
        Ok(Self { endpoint: Endpoint::new(address, ca.as_deref())?, ca, _process: process })
    }

    /// From now on the missing bucket and all sources exist, and no request is held.
    pub async fn fix(&self) -> Fallible<()> {
        self.endpoint.get(FIX_PATH).await.map(drop)
    }

    /// The account of a server with a ledger.
    pub async fn ledger(&self) -> Fallible<Stored> {
        Ok(serde_json::from_slice(self.endpoint.get(LEDGER_PATH).await?.body())?)
    }

    /// The versions that a server with `versions` has stored.
    pub async fn versions(&self) -> Fallible<History> {
        Ok(serde_json::from_slice(self.endpoint.get(VERSIONS_PATH).await?.body())?)
    }

    /// Counts so far.
    pub async fn counts(&self) -> Fallible<Counts> {
        Ok(serde_json::from_slice(self.endpoint.get(COUNTS_PATH).await?.body())?)
    }
}

/// One run of the reference client; fails unless every byte has arrived.
pub async fn run_raw(server: &NullServer, scenario: &Scenario, folder: &Path) -> Fallible<Spent> {
    let before = server.counts().await?;
    let mut command = myself()?;
    command.arg("raw").arg("--address").arg(server.endpoint.address.to_string());
    command.arg("--folder").arg(folder).arg("--in-flight").arg(scenario.in_flight.to_string());
    if let Some(ca) = &server.ca {
        command.arg("--ca").arg(ca);
    }
    let output = process::output(command).await?;
    if !output.status.success() {
        return Err(format!("the reference client ended with {}", output.status).into());
    }
    check(scenario, server.counts().await?.since(before))?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A benchmark of bytes that did not arrive would be worthless.
pub fn check(scenario: &Scenario, seen: Counts) -> Fallible<()> {
    if seen.bytes == scenario.bytes() && seen.objects() == scenario.files && seen.broken == 0 && seen.aborts == 0 {
        return Ok(());
    }
    let expected = format!("{} objects, {} bytes", scenario.files, scenario.bytes());
    Err(format!("the null server saw {}, but expected were {expected}", seen.to_json()).into())
}

fn myself() -> Fallible<Command> {
    Ok(Command::new(std::env::current_exe()?))
}
