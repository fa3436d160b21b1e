//! S3 and STS on loopback, for `consign dev`: real signatures, sessions, permissions, encryption
//! headers and checksums over a folder.
//!
//! It exists so that the worker's own code runs as it runs against AWS, least privilege included: a
//! customer's key may put objects below its prefix, list there and ask for the region, and is
//! refused everything else. It is no store to keep things in.

mod body;
mod grants;
mod keys;
mod limits;
mod memory;
mod objects;
pub(crate) mod policy;
mod sts;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Collected};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use keys::KeyPair;
use keys::{KeyGuard, Keys};
use memory::Memory;
use objects::Objects;
use policy::Policy;

/// Account of the platform, which no customer has.
const PLATFORM_ACCOUNT: &str = "000000000000";
/// Connections at once; more wait in the listener's backlog.
const CONNECTIONS: usize = 512;
/// Until a request's head is complete.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// One customer's bucket, and the way into it.
#[derive(Debug)]
pub struct Customer {
    /// The bucket.
    pub bucket: String,
    /// Nothing is allowed outside of it; ends in `/` or is empty.
    pub prefix: String,
    /// The region S3 names.
    pub region: String,
    /// The account that owns the bucket.
    pub account: String,
    /// Access of the platform.
    pub way: Way,
    /// The one KMS key that may be asked for.
    pub kms_key_arn: Option<String>,
}

/// The two ways in.
#[derive(Debug)]
pub enum Way {
    /// A role that trusts the platform's key together with an external id.
    Role {
        /// The role.
        arn: String,
        /// External id that its trust policy requires.
        external_id: String,
    },
    /// A user's key.
    Key(KeyPair),
}

impl Customer {
    /// Permissions that the customer grants: the minimum that consign asks for, and listing.
    fn grants(&self) -> Policy {
        let bucket = format!("arn:aws:s3:::{}", self.bucket);
        let document = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": "s3:PutObject", "Resource": format!("{bucket}/{}*", self.prefix) },
            { "Effect": "Allow", "Action": "s3:GetBucketLocation", "Resource": bucket },
            { "Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket,
              "Condition": { "StringLike": { "s3:prefix": format!("{}*", self.prefix) } } },
        ] });
        Policy::parse(&document.to_string()).unwrap_or_default()
    }
}

/// A part that is answered `503 SlowDown` at its first try, once.
#[derive(Debug, Clone)]
pub struct InjectedFault {
    /// The object's whole key.
    pub key: String,
    /// The part's number.
    pub part: i32,
}

/// Parts of a cloud.
#[derive(Debug)]
pub struct CloudPlan {
    /// The buckets and who owns them.
    pub customers: Vec<Customer>,
    /// The key that may assume the customers' roles.
    pub platform: KeyPair,
    /// A key that may list and read everything.
    pub viewer: KeyPair,
    /// Maximum lifetime of a session, whatever a request asks for.
    pub session_lives: Duration,
    /// Trouble on purpose.
    pub injected_fault: Option<InjectedFault>,
}

/// A running cloud. Ends when it is dropped.
#[derive(Debug)]
pub struct Cloud {
    address: SocketAddr,
    memory: Arc<Memory>,
    stop: CancellationToken,
}

impl Cloud {
    /// Serves the folders below `root` as buckets on a free loopback port; makes what is missing.
    ///
    /// # Errors
    /// `root` can't be read and written, or no port be had.
    pub async fn start(root: &Path, plan: CloudPlan) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let CloudPlan { customers, platform, viewer, session_lives, injected_fault } = plan;
        let customers: Vec<Arc<Customer>> = customers.into_iter().map(Arc::new).collect();
        let keys = Arc::new(Keys::new(platform, viewer, session_lives, &customers));
        let memory = Arc::new(Memory::open(root.join(".encryption"))?);
        let mut service =
            S3ServiceBuilder::new(Objects::open(root, memory.clone(), customers.clone(), injected_fault)?);
        service.set_auth(KeyGuard(keys.clone()));
        service.set_access(grants::Door { keys: keys.clone(), customers: customers.clone() });
        service.set_route(sts::Sts { keys, customers });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        tokio::spawn(serve(listener, service.build(), stop.clone()));
        Ok(Self { address, memory, stop })
    }

    /// Endpoint of S3 and STS.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes the number of parts of an object that were sent more than once.
    pub fn take_sent_again(&self, bucket: &str, key: &str) -> u32 {
        self.memory.take_again(bucket, key)
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(listener: TcpListener, service: S3Service, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let next = async { (places.clone().acquire_owned().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            // Most often "too many open files": wait for some to be closed instead of turning at full speed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (service, stop) = (service.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(stream, service) => {}
            }
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, service: S3Service) {
    let _ = stream.set_nodelay(true);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let answer = service_fn(move |request| answer(service.clone(), request));
    // A client that goes away is no concern of ours.
    let _ = http.serve_connection(TokioIo::new(stream), answer).await;
}

async fn answer(service: S3Service, request: Request<Incoming>) -> Result<Response<Body>, HttpError> {
    let sts = sts::is_sts(request.method(), request.uri(), request.headers());
    let response = service.call(request.map(Body::from)).await?;
    let mut response = if sts { in_the_words_of_sts(response).await } else { response };
    let id = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
    if let Ok(id) = HeaderValue::from_str(&id[..16]) {
        response.headers_mut().insert("x-amz-request-id", id.clone());
        response.headers_mut().insert("x-amzn-requestid", id);
    }
    Ok(response)
}

/// Requests that are denied before the route is reached (a wrong signature, an unknown key) are
/// answered in the shape of S3.
async fn in_the_words_of_sts(response: Response<Body>) -> Response<Body> {
    if response.status().is_success() {
        return response;
    }
    let (head, body) = response.into_parts();
    let text = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    if text.contains("<ErrorResponse") {
        return Response::from_parts(head, Body::from(text));
    }
    let within = |tag: &str| {
        let after = text.split_once(&format!("<{tag}>"))?.1;
        after.split_once(&format!("</{tag}>")).map(|(inner, _)| inner.to_owned())
    };
    let code = match within("Code").as_deref() {
        Some("InvalidAccessKeyId") => "InvalidClientTokenId".to_owned(),
        Some(code) => code.to_owned(),
        None => "AccessDenied".to_owned(),
    };
    let mut response =
        Response::from_parts(head, Body::from(sts::refusal(&code, &within("Message").unwrap_or_default())));
    response.headers_mut().remove(http::header::CONTENT_LENGTH);
    response
}

/// Text in XML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
