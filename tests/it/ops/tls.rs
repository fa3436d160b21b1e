//! The broker over TLS: a private CA, client certificates, and what is said when they do not fit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use serde_json::json;

use crate::fixture::{ACME, role_destination};
use crate::testbed::broker::Broker;
use crate::testbed::node::Node;
use crate::testbed::site::{Site, job};
use crate::testbed::{unique, until};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

/// Writes `stem`.pem and `stem`.key: a certificate of this common name, for these hosts.
fn issue(by: &Authority, name: &str, hosts: &[&str], stem: &Path) {
    let hosts: Vec<_> = hosts.iter().copied().map(str::to_owned).collect();
    let mut parameters = CertificateParams::new(hosts).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = parameters.signed_by(&key, by).unwrap();
    std::fs::write(stem.with_extension("pem"), certificate.pem()).unwrap();
    std::fs::write(stem.with_extension("key"), key.serialize_pem()).unwrap();
}

/// Certificates for one test, and a site on a node that asks for them.
struct Pki {
    site: Site,
    node: Node,
    files: PathBuf,
}

impl Pki {
    async fn set_up(name: &str) -> Self {
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        let node = Node::over_tls(name, |files| {
            std::fs::write(files.join("ca.pem"), ours.pem()).unwrap();
            issue(&ours, "broker", &["localhost"], &files.join("server"));
        });
        let site = Site::on(Broker::at(node.url.clone(), &unique("tls"))).await;
        let files = site.dir.path().to_owned();
        std::fs::write(files.join("ca.pem"), ours.pem()).unwrap();
        std::fs::write(files.join("wrong-ca.pem"), theirs.pem()).unwrap();
        // The node takes the common name for the user: one is there, one is not.
        issue(&ours, "consign", &[], &files.join("client"));
        issue(&ours, "stranger", &[], &files.join("stranger"));
        issue(&theirs, "consign", &[], &files.join("forged"));
        Self { site, node, files }
    }

    /// The worker's side: URL without scheme and port, CA, client certificate.
    fn configure(&mut self, host: &str, ca: &str, client: Option<&str>) {
        let path = |name: &str| self.files.join(name).display().to_string();
        self.site.set("broker.url", format!("amqps://{host}:{}/%2f", self.node.tls_port()));
        self.site.set("broker.ca_file", path(ca));
        self.site.unset("broker.client_cert_file").unset("broker.client_key_file");
        if let Some(client) = client {
            self.site.set("broker.client_cert_file", path(&format!("{client}.pem")));
            self.site.set("broker.client_key_file", path(&format!("{client}.key")));
        }
    }

    /// A worker takes a job and sends its outcome.
    async fn works(&self, id: &str) {
        let worker = self.site.worker().await;
        let url = self.site.file("f", b"hello");
        self.site.broker.schedule(&job(id, &url, "nobody", id)).await;
        let outcome = self.site.broker.ended(id).await;
        assert_eq!(outcome["data"]["reason"], "unknown_destination", "{outcome}");
        worker.terminate();
        assert!(worker.exit(Duration::from_secs(30)).await.success());
    }

    /// A worker is not ready and says this.
    async fn refuses(&self, words: &[&str]) {
        let worker = self.site.starting_worker().await;
        let mut last = String::new();
        let what = format!("the worker says {words:?}");
        until(&what, Duration::from_secs(40), async || {
            assert!(worker.ended().is_none(), "it ended: {}", worker.log());
            let said = worker.try_get("/readyz").await?;
            if said != last {
                eprintln!("readyz: {said}");
                last.clone_from(&said);
            }
            words.iter().all(|word| said.contains(word)).then_some(())
        })
        .await;
        assert!(worker.get("/status").await.contains("\"ready\":false"));
    }
}

#[tokio::test]
async fn a_broker_over_tls_is_used_or_the_reason_is_said() {
    let mut pki = Pki::set_up("reasons").await;
    // No user in the URL: the certificate says who it is (SASL EXTERNAL).
    pki.configure("localhost", "ca.pem", Some("client"));
    pki.works("by-certificate").await;
    // A user in the URL: the certificate opens the door, the password says who it is.
    pki.configure("consign:marked-secret-amqp@localhost", "ca.pem", Some("client"));
    pki.works("by-password").await;

    pki.configure("localhost", "wrong-ca.pem", Some("client"));
    pki.refuses(&["signed by a CA that is not trusted here", "broker.ca_file"]).await;
    pki.configure("127.0.0.1", "ca.pem", Some("client"));
    pki.refuses(&["another host", "broker.url", "localhost"]).await;
    pki.configure("consign:marked-secret-amqp@localhost", "ca.pem", None);
    pki.refuses(&["client certificate", "broker.client_cert_file"]).await;
    pki.configure("localhost", "ca.pem", Some("forged"));
    pki.refuses(&["client certificate", "signed by a CA"]).await;
    pki.configure("localhost", "ca.pem", Some("stranger"));
    pki.refuses(&["EXTERNAL"]).await;
    pki.configure("localhost", "client.key", Some("client"));
    pki.refuses(&["broker.ca_file", "no certificate"]).await;
}

/// The broker takes the login from the certificate, and verifies messages by that name.
#[tokio::test]
async fn a_login_of_another_name_than_in_the_url_is_learnt() {
    let mut pki = Pki::set_up("login").await;
    pki.configure("localhost", "ca.pem", Some("client"));
    pki.site.set("broker.url", format!("amqps://named@localhost:{}/%2f?auth_mechanism=external", pki.node.tls_port()));
    let mut guarded = role_destination("nowhere", ACME);
    guarded["publishers"] = json!(["consign"]);
    pki.site.set("source.allow_http", true).aws("http://127.0.0.1:1").destination("guarded", &guarded);
    // No settlement is lost.
    pki.works("by-certificate").await;
    // A command learns the name from the refusal of its first message.
    let enqueued = pki.site.consign(&[
        "enqueue",
        "--source",
        "http://127.0.0.1:1/f",
        "--to",
        "guarded",
        "--key",
        "k",
        "--id",
        "retried",
    ]);
    assert!(enqueued.status.success(), "{enqueued:?}");
    // That job is of a publisher of its destination, and so is the worker's copy of it.
    let worker = pki.site.worker().await;
    let copy = pki.site.broker.taken("wait.5s", "retried").await;
    assert_eq!((copy.user_id.as_deref(), copy.header("consign-publisher")), (Some("consign"), "consign"));
    assert!(worker.log().contains("\"login\":\"consign\""), "{}", worker.log());
    worker.terminate();
    assert!(worker.exit(Duration::from_secs(30)).await.success());
}
