//! Hostile URLs of `tests/corpus/hostile_urls.txt`, with a listener that counts what reaches this
//! machine.

use std::sync::atomic::AtomicUsize;

use tokio::net::TcpListener;

use super::*;

const CORPUS: &str = include_str!("../../../tests/corpus/hostile_urls.txt");

/// Listens on every address of this machine, and counts connections.
struct Trap {
    port: u16,
    reached: Arc<AtomicUsize>,
}

impl Trap {
    async fn set() -> Self {
        let v4 = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = v4.local_addr().unwrap().port();
        let reached = Arc::new(AtomicUsize::new(0));
        let v6 = TcpListener::bind(("::1", port)).await.ok();
        for listener in [Some(v4), v6].into_iter().flatten() {
            let reached = reached.clone();
            tokio::spawn(async move {
                while listener.accept().await.is_ok() {
                    reached.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { port, reached }
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    /// The URLs of these kinds.
    fn urls(&self, kinds: &[&str]) -> Vec<String> {
        let lines = CORPUS.lines().filter(|line| !line.starts_with('#'));
        let entries = lines.map(|line| line.split_once(' ').unwrap());
        let urls: Vec<_> = entries.filter(|(kind, _)| kinds.contains(kind)).map(|(_, url)| url).collect();
        assert!(urls.len() > 15, "{kinds:?}");
        urls.into_iter().map(|url| url.replace("PORT", &self.port.to_string())).collect()
    }

    /// Fails unless the URL is refused as one that may not be read.
    async fn refused(&self, sources: &Sources, url: &str) {
        // A URL that is no URL at all is refused with the job.
        let Ok(location) = Location::parse(url) else { return };
        let failure = sources.open(&job(location), ANYONE).await.err();
        assert_eq!(failure.as_ref().map(|failure| failure.reason), Some(Reason::SourceForbidden), "{url}: {failure:?}");
    }

    /// Fails unless the URL leads here. Nobody answers, so the reading itself never ends.
    async fn springs(&self, sources: &Sources, url: &str) {
        let before = self.reached();
        let source = job(Location::parse(url).unwrap());
        let arrived = async {
            while self.reached() == before {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            ended = read(sources, &source) => assert!(self.reached() > before, "{url}: {ended:?}"),
            () = arrived => {}
        }
    }
}

fn allowing(networks: &[&str]) -> Sources {
    let allow_networks = networks.iter().map(|network| crate::config::parse_network(network).unwrap()).collect();
    sources(SourceConfig { allow_private_networks: false, allow_networks, ..config() })
}

#[tokio::test]
async fn no_hostile_url_leads_to_a_connection() {
    let trap = Trap::set().await;
    let strict = allowing(&[]);
    for url in trap.urls(&["self", "private", "never"]) {
        trap.refused(&strict, &url).await;
    }
    assert_eq!(trap.reached(), 0);
}

#[tokio::test]
async fn what_is_never_read_is_opened_by_no_setting() {
    let trap = Trap::set().await;
    let covered = ["0.0.0.0/0", "::/0", "169.254.0.0/16", "169.254.169.254", "fe80::/10", "fd00:ec2::254"];
    let switched = sources(config());
    for url in trap.urls(&["never"]) {
        trap.refused(&allowing(&covered), &url).await;
        trap.refused(&switched, &url).await;
    }
    assert_eq!(trap.reached(), 0);
}

#[tokio::test]
async fn an_allowed_network_opens_nothing_else() {
    let trap = Trap::set().await;
    let one = allowing(&["127.0.0.1/32", "10.0.0.0/16"]);
    for url in trap.urls(&["private", "never"]).into_iter().filter(|url| !url.contains("//10.0.0.1:")) {
        trap.refused(&one, &url).await;
    }
    assert_eq!(trap.reached(), 0);
    trap.springs(&one, &format!("http://127.0.0.1:{}/", trap.port)).await;
}

#[tokio::test]
async fn a_redirect_to_a_hostile_url_is_not_followed() {
    let trap = Trap::set().await;
    let origin = allowing(&["127.0.0.1/32"]);
    // A redirect with too many slashes leads to 127.0.0.1, which is allowed here.
    let lenient = |url: &String| url.starts_with("http:///") || url.starts_with("http://\\");
    for url in trap.urls(&["private", "never"]).into_iter().filter(|url| !lenient(url)) {
        let target = url.clone();
        let web =
            ScriptedOrigin::start(move |_, _| response(302, &[("location", &target), ("content-length", "0")], b""))
                .await;
        let ended = origin.open(&job(Location::Http(web.url("/f"))), ANYONE).await;
        assert!(ended.is_err(), "{url}");
        assert_eq!(web.heads().len(), 1, "{url}");
    }
    assert_eq!(trap.reached(), 0);
}

/// The listener counts: where private networks are allowed, every spelling reaches it.
#[tokio::test]
async fn the_switch_opens_this_machine() {
    let trap = Trap::set().await;
    let open = sources(config());
    let without_v6 = TcpListener::bind("[::1]:0").await.is_err();
    for url in trap.urls(&["self"]).into_iter().filter(|url| !(without_v6 && url.contains("::"))) {
        trap.springs(&open, &url).await;
    }
}
