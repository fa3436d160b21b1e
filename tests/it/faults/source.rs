//! The source breaks: cut, too long, changed, gone, slow, endless. Nothing half is ever delivered.

use std::time::Duration;

use serde_json::json;

use crate::shop::{Shop, site};
use crate::testbed::proxy::{Proxy, Weather, address_of};
use crate::testbed::scripted::Effect;
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::{MIB, bytes, until};

/// A shop whose jobs may read from a web server.
async fn shop(word: &str) -> (Shop, WebSource) {
    let (mut site, s3) = site(word).await;
    let web = WebSource::http().await;
    site.set("source.allow_http", true)
        .set("source.schemes", json!(["https", "file"]))
        .set("source.max_bytes", "60MiB");
    let worker = site.worker().await;
    (Shop { site, s3, worker }, web)
}

impl Shop {
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
    let (shop, web) = shop("srccut").await;
    let content = bytes(100, 20 * MIB);
    let cut = Content::new(content.clone()).cut_after(9 * MIB);
    let url = shop.site.can_settle(web.script("f", vec![cut, Content::new(content)]), bytes(100, 20 * MIB));
    shop.fetch("a", &url).await;
    assert_eq!(shop.delivered("a").await["attempts"], 1);
    let requests = web.requests("f");
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1]["range"], format!("bytes={}-", 9 * MIB), "the rest, and no more");
    assert!(requests[1].contains_key("if-range"), "of the same content only");
    assert!(requests.iter().all(|headers| headers["accept-encoding"] == "identity"));
    shop.close().await;
}

#[tokio::test]
async fn cut_off_where_it_cannot_be_read_on_nothing_is_completed() {
    let (shop, web) = shop("srctrunc").await;
    for (name, size) in [("small", 1000), ("large", 20 * MIB)] {
        let content = Content::new(bytes(101, size)).without_ranges().cut_after(size / 2);
        shop.fetch(name, &web.put(name, content)).await;
        shop.site.broker.taken("wait.5s", &format!("\"{name}\"")).await;
        shop.nothing_of(name);
    }
    assert_eq!(shop.failures("source_unavailable").await, 2.0);
    shop.close().await;
}

#[tokio::test]
async fn changed_while_it_is_read_it_is_never_glued_together() {
    let (shop, web) = shop("srcchanged").await;
    let first = Content::new(bytes(102, 20 * MIB)).cut_after(9 * MIB);
    let url = web.script("f", vec![first, Content::new(bytes(103, 20 * MIB))]);
    shop.fetch("a", &url).await;
    shop.failed("a", "source_changed").await;
    shop.nothing_of("a");
    shop.close().await;
}

#[tokio::test]
async fn longer_or_shorter_than_it_said_it_is_never_completed() {
    let (shop, web) = shop("srclength").await;
    for (name, size) in [("small", 1000), ("large", 20 * MIB)] {
        for (which, said) in [("longer", size - 1), ("shorter", size + 1)] {
            let name = format!("{which}-{name}");
            let url = web.put(&name, Content::of_unknown_length(bytes(104, size)));
            shop.schedule_with(&name, b"", &json!({"source": {"url": url, "size": said}})).await;
            shop.failed(&name, "source_mismatch").await;
            shop.nothing_of(&name);
        }
    }
    shop.close().await;
}

#[tokio::test]
async fn a_file_that_changes_under_the_upload_is_never_completed() {
    let shop = Shop::open("filechanged").await;
    shop.s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(2)));
    for name in ["rewritten", "truncated", "grown"] {
        let content = bytes(105, 20 * MIB);
        shop.schedule(name, &content).await;
        until("the upload is open", Duration::from_secs(30), async || (shop.s3.open_uploads() == 1).then_some(()))
            .await;
        let path = shop.site.files().join(name);
        match name {
            "rewritten" => std::fs::write(&path, bytes(106, 20 * MIB)).unwrap(),
            "truncated" => std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap(),
            _ => std::fs::write(&path, [content, vec![1]].concat()).unwrap(),
        }
        shop.failed(name, "source_changed").await;
        shop.nothing_of(name);
    }
    shop.close().await;
}

#[tokio::test]
async fn asked_for_patience_the_job_has_it() {
    let (shop, web) = shop("srcpatience").await;
    for (name, status, after, delay) in
        [("busy", 429, "100", "2m"), ("down", 503, "20", "30s"), ("absurd", 429, "99999999", "12h")]
    {
        let content = Content::refused(status).with("retry-after", after);
        shop.fetch(name, &web.put(name, content)).await;
        let waiting = shop.site.broker.taken(&format!("wait.{delay}"), &format!("\"{name}\"")).await;
        assert_eq!(waiting.header("x-attempt"), "1", "{name}");
    }
    shop.close().await;
}

#[tokio::test]
async fn slow_it_is_ended_and_the_others_do_not_wait_for_it() {
    let (shop, web) = shop("srcslow").await;
    let slow = Content::new(bytes(107, MIB)).slowly(1000, Duration::from_secs(1));
    shop.fetch("slow", &web.put("slow", slow)).await;
    shop.running(1.0).await;
    shop.schedule_many("job", 50).await;
    shop.site.broker.all_ended(50, Duration::from_secs(20)).await;
    assert_eq!(shop.failures("source_slow").await, 0.0, "it was ended before the others were done");
    shop.site.broker.taken("wait.5s", "\"slow\"").await;
    assert_eq!(shop.failures("source_slow").await, 1.0);
    shop.nothing_of("slow");
    shop.close().await;
}

#[tokio::test]
async fn without_end_it_ends_at_the_limit() {
    let (shop, web) = shop("srcendless").await;
    shop.fetch("a", &web.put("f", Content::of_unknown_length(bytes(108, 100 * MIB)))).await;
    shop.failed("a", "too_large").await;
    shop.nothing_of("a");
    shop.close().await;
}

#[tokio::test]
async fn more_than_ten_thousand_parts_are_refused_before_the_first_and_the_setting_is_named() {
    let (mut site, s3) = site("srchuge").await;
    let web = WebSource::http().await;
    site.set("source.allow_http", true);
    let worker = site.worker().await;
    let shop = Shop { site, s3, worker };
    shop.fetch("a", &web.put("f", Content::new(bytes(109, 1000)).announcing(100 << 40))).await;
    let data = shop.failed("a", "too_large").await;
    assert!(data["hint"].as_str().unwrap().contains("worker.memory_budget"), "{data:#}");
    assert_eq!(shop.s3.calls("CreateMultipartUpload").len(), 0);
    shop.close().await;
}

#[tokio::test]
async fn redirects_are_followed_three_times_and_each_is_checked() {
    let (shop, web) = shop("srcredirect").await;
    let to = |place: &str| Content::refused(302).with("location", place.to_owned());
    let last = shop.site.can_settle(web.put("end", Content::new("hello")), "hello");
    let mut next = last;
    for n in 0..4 {
        next = shop.site.can_settle(web.put(&format!("hop-{n}"), to(&next)), "hello");
        let name = format!("after-{}", n + 1);
        shop.fetch(&name, &next).await;
        if n < 3 {
            shop.delivered(&name).await;
        } else {
            shop.failed(&name, "unclassified").await;
        }
    }
    shop.fetch("elsewhere", &web.put("elsewhere", to("ftp://localhost/f"))).await;
    shop.failed("elsewhere", "source_forbidden").await;
    shop.close().await;
}

#[tokio::test]
async fn the_network_in_between_breaks_and_the_bytes_are_whole() {
    let (shop, web) = shop("srcwire").await;
    let content = bytes(110, 20 * MIB);
    let direct = web.put("f", Content::new(content.clone()));
    let proxy = Proxy::before(address_of(&direct)).await;
    let url = shop.site.can_settle(proxy.in_place_of(&direct), content);
    for (round, weather) in [
        Weather::CutReplyAfter(3 * MIB),
        Weather::HalfClose,
        Weather::Reset,
        Weather::Latency(Duration::from_millis(1)),
        Weather::BlackHole,
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("job-{round}");
        proxy.set(Weather::Latency(Duration::from_millis(2)));
        shop.fetch(&name, &url).await;
        shop.running(1.0).await;
        proxy.set(weather);
        tokio::time::sleep(Duration::from_secs(1)).await;
        proxy.set(Weather::Fair);
        shop.delivered(&name).await;
    }
    shop.close().await;
}
