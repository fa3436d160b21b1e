//! The source breaks: cut, too long, changed, gone, slow, endless. Nothing half is ever delivered.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::json;
use sha2::Digest as _;

use crate::fixture::{AcmeFixture, site};
use crate::testbed::proxy::{Condition, Proxy, address_of};
use crate::testbed::scripted::Effect;
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::{MIB, bytes, until};

/// A fixture whose jobs may read from a web server.
async fn fixture(word: &str) -> (AcmeFixture, WebSource) {
    let (mut site, s3) = site(word).await;
    let web = WebSource::http().await;
    site.set("source.allow_http", true)
        .set("source.schemes", json!(["https", "file"]))
        .set("source.max_bytes", "60MiB");
    let worker = site.worker().await;
    (AcmeFixture { site, s3, worker }, web)
}

impl AcmeFixture {
    /// Schedules a job that reads this URL.
    async fn fetch(&self, name: &str, url: &str) {
        self.schedule_with(name, b"", &json!({"source": {"url": url}})).await;
    }

    /// Nothing of it can be seen, and nothing is open.
    fn nothing_of(&self, name: &str) {
        assert!(self.object(name).is_none(), "{name} is visible");
        assert_eq!(self.s3.open_uploads(), 0, "{name} left an upload open");
    }
}

#[tokio::test]
async fn cut_off_it_is_read_on_where_it_broke() {
    let (fixture, web) = fixture("srccut").await;
    let content = bytes(100, 20 * MIB);
    let cut = Content::new(content.clone()).cut_after(9 * MIB);
    let url = fixture.site.can_settle(web.script("f", vec![cut, Content::new(content)]), bytes(100, 20 * MIB));
    fixture.fetch("a", &url).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    let requests = web.requests("f");
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1]["range"], format!("bytes={}-", 9 * MIB), "the rest, and no more");
    assert!(requests[1].contains_key("if-range"), "of the same content only");
    assert!(requests.iter().all(|headers| headers["accept-encoding"] == "identity"));
    fixture.close().await;
}

#[tokio::test]
async fn cut_off_where_it_cannot_be_read_on_nothing_is_completed() {
    let (fixture, web) = fixture("srctrunc").await;
    for (name, size) in [("small", 1000), ("large", 20 * MIB)] {
        let content = Content::new(bytes(101, size)).without_ranges().cut_after(size / 2);
        fixture.fetch(name, &web.put(name, content)).await;
        fixture.site.broker.taken("wait.5s", &format!("\"{name}\"")).await;
        fixture.nothing_of(name);
    }
    assert_eq!(fixture.failures("source_unavailable").await, 2.0);
    fixture.close().await;
}

/// The next attempt reads the new content; a job that names its content gets nothing else.
#[tokio::test]
async fn changed_while_it_is_read_it_is_never_glued_together() {
    let (fixture, web) = fixture("srcchanged").await;
    let (old, new) = (bytes(102, 20 * MIB), bytes(103, 20 * MIB));
    let first = Content::new(old.clone()).cut_after(9 * MIB);
    let url = web.script("f", vec![first.clone(), Content::new(new.clone())]);
    fixture.fetch("a", &fixture.site.can_settle(url, new.clone())).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 2);
    let digest = hex::encode(sha2::Sha256::digest(&old));
    for (name, named) in [("digest", json!({"sha256": digest})), ("tag", json!({"etag": first.etag()}))] {
        let mut source = named;
        source["url"] = json!(web.script(name, vec![first.clone(), Content::new(new.clone())]));
        fixture.schedule_with(name, b"", &json!({"source": source})).await;
        fixture.failed(name, "source_mismatch").await;
        fixture.nothing_of(name);
    }
    fixture.close().await;
}

/// As above, and it is certain before the next attempt: the rest can't be had of a shorter file.
#[tokio::test]
async fn replaced_by_a_shorter_one_while_it_is_read_only_a_job_that_names_its_content_fails() {
    let (fixture, web) = fixture("srcshorter").await;
    let new = bytes(112, 5 * MIB);
    let first = Content::new(bytes(113, 20 * MIB)).cut_after(9 * MIB);
    let script = |name| web.script(name, vec![first.clone(), Content::refused(416), Content::new(new.clone())]);
    fixture.fetch("a", &fixture.site.can_settle(script("f"), new.clone())).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 2);
    let source = json!({"url": script("g"), "etag": first.etag()});
    fixture.schedule_with("b", b"", &json!({"source": source})).await;
    let data = fixture.failed("b", "source_changed").await;
    assert!(data["hint"].as_str().unwrap().contains("etag or sha256"), "{data:#}");
    fixture.nothing_of("b");
    fixture.close().await;
}

#[tokio::test]
async fn half_a_file_without_a_length_is_never_delivered() {
    let (fixture, web) = fixture("srchalf").await;
    let whole = bytes(111, 39_788);
    let half = Content::until_the_connection_ends(whole[..19_894].to_vec());
    let url = web.put("half", half.clone());
    for (name, source) in [("bare", json!({"url": url})), ("sized", json!({"url": url, "size": whole.len()}))] {
        fixture.schedule_with(name, b"", &json!({"source": source})).await;
        let waiting = fixture.site.broker.taken("wait.5s", &format!("\"{name}\"")).await;
        assert_eq!(waiting.header("x-attempt"), "1", "{name}");
        fixture.nothing_of(name);
    }
    assert_eq!(fixture.failures("source_unavailable").await, 2.0);
    let url =
        fixture.site.can_settle(web.put("whole", Content::until_the_connection_ends(whole.clone())), whole.clone());
    let accepted = json!({"source": {"url": url, "allow_unproven_length": true}});
    fixture.schedule_with("accepted", b"", &accepted).await;
    assert_eq!(fixture.delivered("accepted").await["length_unproven"], true);
    let proven = json!({"source": {"url": url, "size": whole.len()}});
    fixture.schedule_with("proven", b"", &proven).await;
    assert_eq!(fixture.delivered("proven").await.get("length_unproven"), None);
    fixture.close().await;
}

#[tokio::test]
async fn stored_compressed_it_is_labelled_so_and_never_compressed_twice() {
    let (fixture, web) = fixture("srcgzip").await;
    let plain = b"date,campaign,clicks\n".repeat(5_000);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    let stored = encoder.finish().unwrap();
    let content = Content::new(stored.clone()).with("content-encoding", "gzip");
    let as_stored = fixture.site.can_settle(web.put("as-stored.csv", content.clone()), stored.clone());
    let decoded = fixture.site.can_settle(web.put("decoded.csv", content), plain.clone());
    for (name, extra, encoding) in [
        ("as-it-is", json!({}), Some("gzip")),
        ("named", json!({"content_encoding": "x-special"}), Some("x-special")),
        ("gzip", json!({"compression": "gzip"}), Some("gzip")),
        ("zstd", json!({"compression": "zstd"}), Some("zstd")),
    ] {
        let url = if extra.get("compression").is_some() { &decoded } else { &as_stored };
        let mut fields = json!({"source": {"url": url, "size": stored.len()}});
        fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        fixture.schedule_with(name, b"", &fields).await;
        let data = fixture.delivered(name).await;
        assert_eq!(data["source_bytes"], stored.len(), "{name}");
        let object = fixture.object(name).unwrap();
        assert_eq!(object.headers.get("content-encoding").map(String::as_str), encoding, "{name}");
        let read = match name {
            "zstd" => zstd::decode_all(&*object.bytes).unwrap(),
            _ => gunzip(&object.bytes),
        };
        assert_eq!(read, plain, "{name}");
    }
    fixture.close().await;
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

#[tokio::test]
async fn not_ready_or_altered_on_the_way_it_is_tried_again() {
    let (fixture, web) = fixture("srcnotyet").await;
    for (name, status) in [("made", 202), ("altered", 203)] {
        fixture.fetch(name, &web.put(name, Content::refused(status).with("retry-after", "20"))).await;
        let waiting = fixture.site.broker.taken("wait.30s", &format!("\"{name}\"")).await;
        assert_eq!(waiting.header("x-attempt"), "1", "{name}");
    }
    fixture.close().await;
}

#[tokio::test]
async fn longer_or_shorter_than_it_said_it_is_never_completed() {
    let (fixture, web) = fixture("srclength").await;
    for (name, size) in [("small", 1000), ("large", 20 * MIB)] {
        for (which, said) in [("longer", size - 1), ("shorter", size + 1)] {
            let name = format!("{which}-{name}");
            let url = web.put(&name, Content::of_unknown_length(bytes(104, size)));
            fixture.schedule_with(&name, b"", &json!({"source": {"url": url, "size": said}})).await;
            fixture.failed(&name, "source_mismatch").await;
            fixture.nothing_of(&name);
        }
    }
    fixture.close().await;
}

#[tokio::test]
async fn a_file_that_changes_under_the_upload_is_never_completed() {
    let fixture = AcmeFixture::start("filechanged").await;
    fixture.s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(2)));
    for name in ["rewritten", "truncated", "grown"] {
        let content = bytes(105, 20 * MIB);
        // Without the digest the next attempt would deliver the new content.
        let url = format!("file://{}", fixture.site.files().join(name).display());
        let source = json!({"url": url, "sha256": hex::encode(sha2::Sha256::digest(&content))});
        fixture.schedule_with(name, &content, &json!({"source": source})).await;
        until("the upload is open", Duration::from_secs(30), async || (fixture.s3.open_uploads() == 1).then_some(()))
            .await;
        let path = fixture.site.files().join(name);
        match name {
            "rewritten" => std::fs::write(&path, bytes(106, 20 * MIB)).unwrap(),
            "truncated" => std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap(),
            _ => std::fs::write(&path, [content, vec![1]].concat()).unwrap(),
        }
        fixture.failed(name, "source_changed").await;
        fixture.nothing_of(name);
    }
    fixture.close().await;
}

/// Nothing in the job says which content it wants.
#[tokio::test]
async fn a_file_that_is_rewritten_under_the_upload_is_delivered_by_the_next_attempt() {
    let fixture = AcmeFixture::start("filerewritten").await;
    fixture.s3.on("UploadPart").first(3).before(Effect::Delay(Duration::from_secs(2)));
    let (old, new) = (bytes(114, 20 * MIB), bytes(115, 20 * MIB));
    fixture.schedule("a", &old).await;
    until("the upload is open", Duration::from_secs(30), async || (fixture.s3.open_uploads() == 1).then_some(())).await;
    fixture.site.file("a", &new);
    assert_eq!(fixture.delivered("a").await["attempts"], 2);
    assert!(fixture.object("a").unwrap().bytes == new, "it is the new content");
    assert_eq!(fixture.failures("source_unavailable").await, 1.0);
    fixture.close().await;
}

#[tokio::test]
async fn asked_for_patience_the_job_has_it() {
    let (fixture, web) = fixture("srcpatience").await;
    for (name, status, after, delay) in
        [("busy", 429, "100", "2m"), ("down", 503, "20", "30s"), ("absurd", 429, "99999999", "12h")]
    {
        let content = Content::refused(status).with("retry-after", after);
        fixture.fetch(name, &web.put(name, content)).await;
        let waiting = fixture.site.broker.taken(&format!("wait.{delay}"), &format!("\"{name}\"")).await;
        assert_eq!(waiting.header("x-attempt"), "1", "{name}");
    }
    fixture.close().await;
}

#[tokio::test]
async fn slow_it_is_ended_and_the_others_do_not_wait_for_it() {
    let (fixture, web) = fixture("srcslow").await;
    let slow = Content::new(bytes(107, MIB)).slowly(1000, Duration::from_secs(1));
    fixture.fetch("slow", &web.put("slow", slow)).await;
    fixture.running(1.0).await;
    fixture.schedule_many("job", 50).await;
    fixture.site.broker.all_ended(50, Duration::from_secs(20)).await;
    assert_eq!(fixture.failures("source_slow").await, 0.0, "it was ended before the others were done");
    fixture.site.broker.taken("wait.5s", "\"slow\"").await;
    assert_eq!(fixture.failures("source_slow").await, 1.0);
    fixture.nothing_of("slow");
    fixture.close().await;
}

#[tokio::test]
async fn without_end_it_ends_at_the_limit() {
    let (fixture, web) = fixture("srcendless").await;
    fixture.fetch("a", &web.put("f", Content::of_unknown_length(bytes(108, 100 * MIB)))).await;
    fixture.failed("a", "too_large").await;
    fixture.nothing_of("a");
    fixture.close().await;
}

#[tokio::test]
async fn more_than_ten_thousand_parts_are_refused_before_the_first_and_the_setting_is_named() {
    let (mut site, s3) = site("srchuge").await;
    let web = WebSource::http().await;
    site.set("source.allow_http", true);
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.fetch("a", &web.put("f", Content::new(bytes(109, 1000)).announcing(100 << 40))).await;
    let data = fixture.failed("a", "too_large").await;
    assert!(data["hint"].as_str().unwrap().contains("worker.memory_budget"), "{data:#}");
    assert_eq!(fixture.s3.calls("CreateMultipartUpload").len(), 0);
    fixture.close().await;
}

#[tokio::test]
async fn redirects_are_followed_three_times_and_each_is_checked() {
    let (fixture, web) = fixture("srcredirect").await;
    let to = |place: &str| Content::refused(302).with("location", place.to_owned());
    let last = fixture.site.can_settle(web.put("end", Content::new("hello")), "hello");
    let mut next = last;
    for n in 0..4 {
        next = fixture.site.can_settle(web.put(&format!("hop-{n}"), to(&next)), "hello");
        let name = format!("after-{}", n + 1);
        fixture.fetch(&name, &next).await;
        if n < 3 {
            fixture.delivered(&name).await;
        } else {
            fixture.failed(&name, "unclassified").await;
        }
    }
    fixture.fetch("elsewhere", &web.put("elsewhere", to("ftp://localhost/f"))).await;
    fixture.failed("elsewhere", "source_forbidden").await;
    fixture.close().await;
}

#[tokio::test]
async fn the_network_in_between_breaks_and_the_bytes_are_whole() {
    let (fixture, web) = fixture("srcwire").await;
    let content = bytes(110, 20 * MIB);
    let direct = web.put("f", Content::new(content.clone()));
    let proxy = Proxy::before(address_of(&direct)).await;
    let url = fixture.site.can_settle(proxy.in_place_of(&direct), content);
    for (round, condition) in [
        Condition::CutReplyAfter(3 * MIB),
        Condition::HalfClose,
        Condition::Reset,
        Condition::Latency(Duration::from_millis(1)),
        Condition::BlackHole,
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("job-{round}");
        proxy.set(Condition::Latency(Duration::from_millis(2)));
        fixture.fetch(&name, &url).await;
        fixture.running(1.0).await;
        proxy.set(condition);
        tokio::time::sleep(Duration::from_secs(1)).await;
        proxy.set(Condition::Normal);
        fixture.delivered(&name).await;
    }
    fixture.close().await;
}
