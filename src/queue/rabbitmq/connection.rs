//! Endpoint of the broker, and connections to it.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use lapin::{Channel, Connection, ConnectionProperties};
use parking_lot::Mutex;
use secrecy::ExposeSecret as _;

use super::fields::short;
use super::login::Login;
use super::{errors, wire};
use crate::config::BrokerConfig;
use crate::queue::QueueError;

const HEARTBEAT_SECONDS: u16 = 15;
/// Frame size in bytes: RabbitMQ's own default. Proposed from the start, because lapin's buffers of
/// 32 such frames in each direction cost no memory before they are used. When the size comes from
/// the broker, they grow and all of it is written to: 8 MiB per connection.
const FRAME_MAX: u32 = 128 * 1024;
/// Limit for TCP, TLS and the AMQP handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Limit for opening a channel, declaring, binding, cancelling.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval of the check for a connection that has ended.
const WATCHDOG_INTERVAL: Duration = Duration::from_secs(1);
/// Limit for the close handshake of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Address of a broker, credentials and TLS files. Files are read at every connection, so renewed
/// certificates are used.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) uri: AMQPUri,
    name: String,
    ca_file: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    /// Login of every connection.
    pub(super) login: Arc<Login>,
}

impl fmt::Debug for Endpoint {
    /// Without user name and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        write!(f, "{scheme}://{}:{}/{vhost}", authority.host, authority.port)
    }
}

impl Endpoint {
    /// Parses `[broker]`. The broker shows `name` as the connection's name.
    ///
    /// With a client certificate and no user in the URL, the certificate authenticates (SASL
    /// EXTERNAL).
    pub(super) fn parse(config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        let url = config.url.as_ref().ok_or_else(|| wrong("is missing; set broker.url"))?;
        let (mut uri, names_user) = parse_url(url.expose_secret())?;
        if matches!(uri.scheme, AMQPScheme::AMQP) && !config.allow_plaintext && !is_loopback(&uri.authority.host) {
            return Err(wrong("sends the password in plain text; use amqps, or set broker.allow_plaintext = true"));
        }
        let identity = match (&config.client_cert_file, &config.client_key_file) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => return Err(wrong("needs broker.client_cert_file and broker.client_key_file together")),
        };
        uri.query.auth_mechanism = mechanism(uri.query.auth_mechanism, names_user, identity.is_some())?;
        let unnamed = matches!(uri.query.auth_mechanism, Some(SASLMechanism::External)) && !names_user;
        let user = (!unnamed).then(|| short(&uri.authority.userinfo.username)).transpose()?;
        let login = Arc::new(Login::new(user));
        Ok(Self { uri, name: name.to_owned(), ca_file: config.ca_file.clone(), identity, login })
    }

    /// Connects within a bounded time. `role` distinguishes the connections of this process.
    pub(super) async fn connect(&self, role: &str) -> Result<Connection, QueueError> {
        let name = format!("{} {role}", self.name);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = self.tls().await?;
        let what = format!("connecting to {}:{}", self.uri.authority.host, self.uri.authority.port);
        within(CONNECT_TIMEOUT, &what, wire::connect(self.uri.clone(), properties, tls), errors::of_connect).await
    }

    async fn tls(&self) -> Result<OwnedTLSConfig, QueueError> {
        let cert_chain = match &self.ca_file {
            Some(file) => Some(trusted_certificates(file).await?),
            None => None,
        };
        let identity = match &self.identity {
            Some((cert, key)) => {
                let (pem, key) = (read("client_cert_file", cert).await?, read("client_key_file", key).await?);
                Some(OwnedIdentity::PKCS8 { pem, key })
            }
            None => None,
        };
        Ok(OwnedTLSConfig { identity, cert_chain })
    }
}

/// Reads the CA file. A file without certificates would only show as an untrusted broker.
async fn trusted_certificates(file: &Path) -> Result<String, QueueError> {
    let pem = String::from_utf8_lossy(&read("ca_file", file).await?).into_owned();
    if pem.contains("-----BEGIN CERTIFICATE-----") {
        return Ok(pem);
    }
    Err(QueueError::Unavailable(format!("broker.ca_file {} holds no certificate in PEM form", file.display())))
}

fn mechanism(asked: Option<SASLMechanism>, user: bool, certificate: bool) -> Result<Option<SASLMechanism>, QueueError> {
    match asked {
        None if certificate && !user => Ok(Some(SASLMechanism::External)),
        Some(SASLMechanism::External) if !certificate => Err(wrong(
            "asks for auth_mechanism=external; that needs broker.client_cert_file and broker.client_key_file",
        )),
        asked => Ok(asked),
    }
}

/// Returns the URL, and true when it names a user.
fn parse_url(text: &str) -> Result<(AMQPUri, bool), QueueError> {
    // The parser's own messages may quote the URL, and with it the password.
    let malformed = || wrong("is not an AMQP URL; write amqps://user:password@host:5671/vhost");
    let mut uri: AMQPUri = text.parse().map_err(|_| malformed())?;
    let url = url::Url::parse(text).map_err(|_| malformed())?;
    match url.host() {
        // The parser treats an IPv6 address as an absent host, and would connect to localhost.
        Some(url::Host::Ipv6(address)) => uri.authority.host = address.to_string(),
        Some(_) => {}
        None => return Err(wrong("names no host")),
    }
    if uri.vhost.is_empty() {
        // Nearly everybody means the default virtual host by `amqp://host/`.
        "/".clone_into(&mut uri.vhost);
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    uri.query.frame_max.get_or_insert(FRAME_MAX);
    Ok((uri, !url.username().is_empty()))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn read(key: &str, file: &Path) -> Result<Vec<u8>, QueueError> {
    tokio::fs::read(file)
        .await
        .map_err(|e| QueueError::Unavailable(format!("broker.{key} {} can't be read: {e}", file.display())))
}

fn wrong(what: &str) -> QueueError {
    QueueError::Unavailable(format!("broker.url {what}"))
}

/// Short-lived connection, with its channels. A channel that is dropped is still closing when the
/// connection closes, which lapin reports as an error, so channels live as long as the connection.
pub(super) struct ScopedConnection {
    connection: Connection,
    channels: Mutex<Vec<Channel>>,
}

impl ScopedConnection {
    /// As [`Endpoint::connect`].
    pub(super) async fn connect(endpoint: &Endpoint, role: &str) -> Result<Self, QueueError> {
        Ok(Self { connection: endpoint.connect(role).await?, channels: Mutex::default() })
    }

    /// Opens a channel that stays open until [`ScopedConnection::close`], unless the broker closes
    /// it.
    pub(super) async fn open_channel(&self) -> Result<Channel, QueueError> {
        let channel = open_channel(&self.connection).await?;
        self.channels.lock().push(channel.clone());
        Ok(channel)
    }

    /// Closes the connection as [`close`].
    pub(super) async fn close(self) {
        close(&self.connection).await;
    }
}

/// Runs a future that uses the connection, and ends it when the connection ends: a call that lapin
/// never resolves must not outlive its connection.
///
/// # Errors
/// `Unavailable` when the connection has ended.
pub(super) async fn while_connected<T>(
    connection: &Connection,
    future: impl Future<Output = T>,
) -> Result<T, QueueError> {
    let status = connection.status();
    while_alive(|| status.connected(), future).await
}

async fn while_alive<T>(alive: impl Fn() -> bool, future: impl Future<Output = T>) -> Result<T, QueueError> {
    let ended = async {
        while alive() {
            tokio::time::sleep(WATCHDOG_INTERVAL).await;
        }
        // The future's own error names the cause, and may be on its way.
        tokio::time::sleep(WATCHDOG_INTERVAL).await;
    };
    tokio::select! {
        biased;
        value = future => Ok(value),
        () = ended => Err(QueueError::Unavailable("the connection has ended".to_owned())),
    }
}

/// Opens a channel within a bounded time.
pub(super) async fn open_channel(connection: &Connection) -> Result<Channel, QueueError> {
    call("opening a channel", connection.create_channel()).await
}

/// Performs one call to the broker within a bounded time.
pub(super) async fn call<T>(what: &str, future: impl Future<Output = lapin::Result<T>>) -> Result<T, QueueError> {
    within(CALL_TIMEOUT, what, future, errors::of_call).await
}

async fn within<T>(
    limit: Duration,
    what: &str,
    future: impl Future<Output = lapin::Result<T>>,
    classify: impl Fn(&str, &lapin::Error) -> QueueError,
) -> Result<T, QueueError> {
    match tokio::time::timeout(limit, future).await {
        Ok(result) => result.map_err(|e| classify(what, &e)),
        Err(_) => Err(QueueError::Unavailable(format!("{what}: no answer within {} s", limit.as_secs()))),
    }
}

/// Closes a connection. Waits for the reply within a bounded time.
pub(super) async fn close(connection: &Connection) {
    if connection.status().connected() {
        let closed = connection.close(200, "OK".into());
        if !matches!(tokio::time::timeout(CLOSE_TIMEOUT, closed).await, Ok(Ok(()))) {
            tracing::debug!(event = "close_unanswered", "the broker did not answer the close of a connection");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> BrokerConfig {
        BrokerConfig {
            url: Some(url.to_owned().into()),
            url_file: None,
            prefix: "consign".to_owned(),
            declare: false,
            lease_after: Duration::from_secs(600),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            allow_plaintext: false,
            reply_to: Vec::new(),
            without_file: false,
        }
    }

    fn parse(url: &str) -> Result<Endpoint, QueueError> {
        Endpoint::parse(&config(url), "w")
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_never_ends_ends_with_its_connection() {
        let ends_at = tokio::time::Instant::now() + Duration::from_secs(3600);
        let alive = || tokio::time::Instant::now() < ends_at;
        let ended = while_alive(alive, std::future::pending::<()>()).await;
        assert!(matches!(ended, Err(QueueError::Unavailable(_))), "{ended:?}");
        assert_eq!(ends_at.elapsed(), WATCHDOG_INTERVAL);
        let cause = tokio::time::sleep(WATCHDOG_INTERVAL / 2);
        assert!(while_alive(alive, cause).await.is_ok(), "an error that arrives soon is not replaced");
    }

    #[test]
    fn plain_amqp_stays_on_loopback() {
        for url in ["amqp://127.0.0.1:5672", "amqp://localhost/x", "amqp://[::1]:5672/%2f", "amqps://mq.example.com"] {
            assert!(parse(url).is_ok(), "{url}");
        }
        for url in ["amqp://10.0.0.1", "amqp://mq.example.com/", "amqp://[2001:db8::1]/"] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.contains("allow_plaintext"), "{url}: {error}");
            assert!(Endpoint::parse(&BrokerConfig { allow_plaintext: true, ..config(url) }, "w").is_ok());
        }
    }

    #[test]
    fn an_ipv6_host_is_not_localhost() {
        let endpoint = parse("amqps://[2001:db8::7]:5671/v").unwrap();
        assert_eq!(endpoint.uri.authority.host, "2001:db8::7");
    }

    #[test]
    fn the_virtual_host_the_heartbeat_and_the_frame_size_have_defaults() {
        for (url, vhost) in [("amqps://h", "/"), ("amqps://h/", "/"), ("amqps://h/%2f", "/"), ("amqps://h/a", "a")] {
            assert_eq!(parse(url).unwrap().uri.vhost, vhost, "{url}");
        }
        assert_eq!(parse("amqps://h").unwrap().uri.query.heartbeat, Some(15));
        assert_eq!(parse("amqps://h?heartbeat=5").unwrap().uri.query.heartbeat, Some(5));
        assert_eq!(parse("amqps://h").unwrap().uri.query.frame_max, Some(131_072));
        assert_eq!(parse("amqps://h?frame_max=8192").unwrap().uri.query.frame_max, Some(8_192));
    }

    #[test]
    fn the_password_shows_up_nowhere() {
        let marked = "s3cr3t-marker";
        for url in [
            format!("amqps://u:{marked}@h"),
            format!("amqp://u:{marked}@example.com"),
            format!("amqp//u:{marked}@"),
            format!("http://u:{marked}@h"),
            format!("amqps://u:{marked}@h?heartbeat=x"),
            format!("amqps:u:{marked}"),
        ] {
            let shown = format!("{:?}", parse(&url));
            assert!(!shown.contains(marked), "{shown}");
        }
    }

    #[test]
    fn half_an_identity_is_an_error() {
        let half = BrokerConfig { client_cert_file: Some("c.pem".into()), ..config("amqps://h") };
        assert!(Endpoint::parse(&half, "w").unwrap_err().to_string().contains("client_key_file"));
    }

    #[test]
    fn a_certificate_authenticates_when_the_url_names_no_user() {
        let mechanism = |url: &str, certified: bool| {
            let file = |name: &str| certified.then(|| name.into());
            let (client_cert_file, client_key_file) = (file("c.pem"), file("k.pem"));
            Endpoint::parse(&BrokerConfig { client_cert_file, client_key_file, ..config(url) }, "w")
                .map(|endpoint| endpoint.uri.query.auth_mechanism)
        };
        let external = Some(SASLMechanism::External);
        assert_eq!(mechanism("amqps://h", true).unwrap(), external);
        assert_eq!(mechanism("amqps://u:p@h", true).unwrap(), None);
        assert_eq!(mechanism("amqps://u:p@h?auth_mechanism=external", true).unwrap(), external);
        assert_eq!(mechanism("amqps://h?auth_mechanism=plain", true).unwrap(), Some(SASLMechanism::Plain));
        assert_eq!(mechanism("amqps://h", false).unwrap(), None);
        let user = |url: &str| {
            let (client_cert_file, client_key_file) = (Some("c.pem".into()), Some("k.pem".into()));
            let endpoint = Endpoint::parse(&BrokerConfig { client_cert_file, client_key_file, ..config(url) }, "w");
            endpoint.unwrap().login.user().map(|user| user.to_string())
        };
        assert_eq!(user("amqps://h"), None, "the broker takes it from the certificate");
        assert_eq!(user("amqps://u@h?auth_mechanism=external").as_deref(), Some("u"));
        assert_eq!(user("amqps://u%2B:p@h").as_deref(), Some("u+"));
        let error = mechanism("amqps://h?auth_mechanism=external", false).unwrap_err().to_string();
        assert!(error.contains("client_cert_file"), "{error}");
    }
}
