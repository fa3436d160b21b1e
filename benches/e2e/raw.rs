//! The reference: the same bytes of the same files to the same server, without a queue. Small files
//! have a signature and a checksum; parts have neither.
//!
//! Runs as a process of its own, so that its CPU and memory are its own.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Fallible;
use crate::chunks::{Chunks, Pool};
use crate::measure::{self, Spent};
use crate::signature;
use crate::wire::{Endpoint, read_whole};

const PART: u64 = 8 * 1024 * 1024;

/// Arguments of the process.
#[derive(Debug, clap::Args)]
pub struct RawArgs {
    /// The null server.
    #[arg(long)]
    pub address: SocketAddr,
    /// Its authority's certificate; makes it https.
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// Every file in it is delivered.
    #[arg(long)]
    pub folder: PathBuf,
    /// Requests in flight at once, and files at once.
    #[arg(long)]
    pub in_flight: usize,
}

/// Sends the folder and says what it cost, from the first connection to the last answer.
pub async fn run(args: &RawArgs) -> Fallible<Spent> {
    let endpoint = Endpoint::new(args.address, args.ca.as_deref())?;
    let client = Arc::new(Client::new(endpoint, args.in_flight));
    let files = std::fs::read_dir(&args.folder)?.map(|entry| Ok(entry?.path())).collect::<Fallible<Vec<_>>>()?;
    let (started, cpu) = (Instant::now(), measure::own_cpu_seconds()?);
    let turns = Arc::new(Semaphore::new(args.in_flight));
    let mut running = JoinSet::new();
    for file in files {
        let turn = Arc::clone(&turns).acquire_owned().await?;
        let client = Arc::clone(&client);
        running.spawn(async move {
            let delivered = client.deliver(&file).await;
            drop(turn);
            delivered
        });
    }
    while let Some(delivered) = running.join_next().await {
        delivered??;
    }
    Ok(Spent {
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: measure::own_cpu_seconds()? - cpu,
        peak_rss_kib: measure::own_peak_rss_kib()?,
        switches: measure::own_context_switches()?,
    })
}

struct Client {
    endpoint: Endpoint,
    idle: Mutex<Vec<SendRequest<Chunks>>>,
    permits: Semaphore,
    pool: Pool,
}

impl Client {
    fn new(endpoint: Endpoint, in_flight: usize) -> Self {
        Self { endpoint, idle: Mutex::default(), permits: Semaphore::new(in_flight), pool: Pool::default() }
    }

    async fn deliver(self: &Arc<Self>, path: &Path) -> Fallible<()> {
        let file = Arc::new(File::open(path)?);
        let length = file.metadata()?.len();
        let target = format!("/bench/raw/{}", path.file_name().unwrap_or_default().to_string_lossy());
        if length > PART {
            return self.in_parts(file, length, &target).await;
        }
        let bytes = std::fs::read(path)?;
        let mut request = self.request(Method::PUT, target, Chunks::none(&self.pool))?;
        signature::add(&mut request, self.endpoint.address, &bytes)?;
        self.send_request(request.map(|_| Chunks::of_memory(bytes, &self.pool))).await.map(drop)
    }

    async fn in_parts(self: &Arc<Self>, file: Arc<File>, length: u64, target: &str) -> Fallible<()> {
        let created = self.send(Method::POST, format!("{target}?uploads"), Chunks::none(&self.pool)).await?;
        let upload = upload_id(created.body()).ok_or("the null server gave no upload id")?;
        let mut parts = JoinSet::new();
        for (number, at) in (1..).zip((0..length).step_by(usize::try_from(PART)?)) {
            let body = Chunks::of(Arc::clone(&file), at, PART.min(length - at), &self.pool);
            let part = format!("{target}?partNumber={number}&uploadId={upload}");
            let client = Arc::clone(self);
            parts.spawn(async move { client.send(Method::PUT, part, body).await });
        }
        while let Some(sent) = parts.join_next().await {
            sent??;
        }
        let complete = format!("{target}?uploadId={upload}");
        self.send(Method::POST, complete, Chunks::none(&self.pool)).await.map(drop)
    }

    async fn send(&self, method: Method, target: String, body: Chunks) -> Fallible<Response<Bytes>> {
        self.send_request(self.request(method, target, body)?).await
    }

    fn request(&self, method: Method, target: String, body: Chunks) -> Fallible<Request<Chunks>> {
        let request = Request::builder().method(method).uri(target);
        Ok(request.header(header::HOST, self.endpoint.address.to_string()).body(body)?)
    }

    async fn send_request(&self, request: Request<Chunks>) -> Fallible<Response<Bytes>> {
        let _permit = self.permits.acquire().await?;
        let idle = self.idle.lock().pop();
        let mut sender = match idle {
            Some(sender) => sender,
            None => self.endpoint.connect().await?,
        };
        sender.ready().await?;
        let answer = read_whole(sender.send_request(request).await?).await?;
        if !answer.status().is_success() {
            return Err(format!("the null server answered {}", answer.status()).into());
        }
        self.idle.lock().push(sender);
        Ok(answer)
    }
}

fn upload_id(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<UploadId>")?;
    Some(rest.split_once('<')?.0.to_owned())
}
