//! Keyboard, screen reader, phone, dark mode: checked from what the browser computes.

use serde_json::{Value, json};

use super::complaints;
use super::stub::{Stub, busy, idle, problem, running};
use crate::testbed::browser::Browser;

const TAB: &str = "\u{E004}";
const RIGHT: &str = "\u{E014}";
const ENTER: &str = "\u{E007}";

/// Every text whose contrast with what is behind it is under 4.5:1 (3:1 where it is large).
const CONTRAST: &str = r#"
    const parse = (color) => { const n = color.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
    const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const light = (c) => { const f = (v) => (v /= 255, v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]); };
    const behind = (node) => {
        const layers = [];
        for (let at = node; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    const poor = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(".unseen, .skip, noscript")) continue;
        const style = getComputedStyle(node);
        const ground = behind(node);
        const ink = over(parse(node.closest("svg") ? style.fill : style.color), ground);
        const [a, b] = [light(ink), light(ground)];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const large = parseFloat(style.fontSize) >= 24;
        if (ratio < (large ? 3 : 4.5)) poor.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim()}`);
    }
    return poor;
"#;

/// Defects that a screen reader would meet.
const STUMBLES: &str = r#"
    const found = [];
    const name = (node) => (node.getAttribute("aria-label") || (node.labels?.[0] ?? node).textContent || "").trim();
    for (const node of document.querySelectorAll("a, button, input, select, [role=progressbar], [role=meter], [role=img]")) {
        if (node.checkVisibility({ checkOpacity: false }) && !name(node)) found.push(`no name: ${node.outerHTML.slice(0, 120)}`);
    }
    let level = 0;
    for (const heading of document.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
        const next = Number(heading.tagName[1]);
        if (next > level + 1 || (level === 0 && next !== 1)) found.push(`a heading is skipped before: ${heading.textContent}`);
        level = next;
    }
    if (document.querySelectorAll("h1").length !== 1) found.push("there must be one h1");
    for (const landmark of ["header", "main", "footer", "nav"]) {
        if (!document.querySelector(landmark)) found.push(`no landmark ${landmark}`);
    }
    for (const head of document.querySelectorAll("th")) {
        if (!["row", "col"].includes(head.scope)) found.push(`a table's head without scope: ${head.textContent}`);
    }
    for (const section of document.querySelectorAll("section")) {
        if (!document.getElementById(section.getAttribute("aria-labelledby"))?.textContent) found.push("a section without a name");
    }
    for (const bar of document.querySelectorAll("[role=progressbar], [role=meter]")) {
        const now = bar.getAttribute("aria-valuenow");
        const whole = bar.getAttribute("aria-valuetext") && bar.getAttribute("aria-valuemax") === "100";
        if (!whole || (now !== null && !(now >= 0 && now <= 100))) found.push(`a bar without a value: ${bar.outerHTML}`);
    }
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    ids.filter((id, place) => ids.indexOf(id) !== place).forEach((id) => found.push(`two elements are ${id}`));
    if (document.documentElement.lang !== "en") found.push("no language");
    if (document.querySelectorAll("[aria-live], [role=status], [role=alert]").length !== 1) found.push("one live region is enough");
    return found;
"#;

async fn opened(status: Value) -> (Stub, Browser) {
    let stub = Stub::start(status).await;
    let browser = Browser::start().await;
    browser.open(&stub.url).await;
    browser.until("document.querySelectorAll('#lanes tbody tr').length === 3").await;
    (stub, browser)
}

fn none() -> Value {
    json!([])
}

#[tokio::test]
async fn everybody_can_read_it_in_light_and_dark() {
    let (stub, browser) = opened(busy()).await;
    browser.prefers("prefers-color-scheme", "light").await;
    let light = browser.value("getComputedStyle(document.body).backgroundColor").await;
    assert_eq!(browser.run(CONTRAST).await, none(), "in light colours");
    assert_eq!(browser.run(STUMBLES).await, none());
    browser.picture("stub-light").await;
    browser.prefers("prefers-color-scheme", "dark").await;
    let dark = browser.value("getComputedStyle(document.body).backgroundColor").await;
    assert_ne!(light, dark);
    assert_eq!(browser.run(CONTRAST).await, none(), "in dark colours");
    browser.window(1280, 1500, false).await;
    browser.picture("stub-dark").await;
    // The states that are rarer: idle, and not ready.
    let mut away = idle();
    away["ready"] = json!(false);
    away["not_ready_because"] = json!("the broker is away: connection refused");
    away["broker"]["connected"] = json!(false);
    stub.say(away);
    browser
        .until("!document.getElementById('running-empty').hidden && !document.getElementById('banner').hidden")
        .await;
    for scheme in ["dark", "light"] {
        browser.prefers("prefers-color-scheme", scheme).await;
        assert_eq!(browser.run(CONTRAST).await, none(), "not ready, {scheme}");
    }
    assert_eq!(browser.run(STUMBLES).await, none());
    browser.picture("stub-away").await;
    let mut leaving = busy();
    leaving["ready"] = json!(false);
    leaving["not_ready_because"] = json!("draining");
    leaving["draining"] = json!(true);
    stub.say(leaving);
    browser.until("document.getElementById('state').textContent === '‖ Draining'").await;
    assert!(browser.text("#banner").await.contains("2 transfers may still finish"));
    assert_eq!(complaints(&browser).await, Vec::<String>::new());
    browser.close().await;
}

/// The checks above must be able to fail.
#[tokio::test]
async fn the_checks_of_access_find_what_is_wrong() {
    let (_stub, browser) = opened(busy()).await;
    let spoil = "document.getElementById('prefix').style.color = '#b0b8c0'; \
        document.getElementById('filter').parentElement.firstElementChild.remove(); \
        document.querySelector('#lanes .bar').removeAttribute('aria-valuetext'); \
        document.querySelector('h3').replaceWith(Object.assign(document.createElement('h5'), {textContent: 'deep'}));";
    browser.run(spoil).await;
    let poor = browser.run(CONTRAST).await;
    assert!(poor.as_array().unwrap().iter().any(|text| text.as_str().unwrap().ends_with(" consign")), "{poor}");
    let found = browser.run(STUMBLES).await.to_string();
    for stumble in ["no name: <input type=\\\"search\\\"", "a heading is skipped before: deep", "a bar without a value"]
    {
        assert!(found.contains(stumble), "{stumble}: {found}");
    }
    browser.close().await;
}

#[tokio::test]
async fn it_fits_a_phone() {
    let mut status = busy();
    status["running"][0]["job_id"] = json!("a".repeat(200));
    status["destination_states"]["shown"][0]["id"] = json!("b".repeat(63));
    status["recent"]["ended"][1]["trouble"]["message"] = json!("w".repeat(600));
    let (_stub, browser) = opened(status).await;
    for (width, phone) in [(360, true), (768, true), (1280, false)] {
        browser.window(width, 800, phone).await;
        browser.prefers("prefers-reduced-motion", "reduce").await;
        browser.until(&format!("window.innerWidth === {width}")).await;
        let wide = browser.value("document.documentElement.scrollWidth").await;
        assert!(wide.as_u64().unwrap() <= u64::from(width), "{wide} at {width}");
        // Nothing is cut off at the side either.
        let cut = "[...document.querySelectorAll('main *')].filter((n) => n.checkVisibility() && !n.closest('.unseen, thead, noscript') \
                   && n.getBoundingClientRect().right > window.innerWidth + 1).map((n) => n.outerHTML.slice(0, 100))";
        assert_eq!(browser.value(cut).await, none(), "at {width}");
    }
    browser.window(360, 2400, true).await;
    browser.picture("stub-phone").await;
    browser.run("document.getElementById('failures-title').scrollIntoView()").await;
    browser.picture("stub-phone-below").await;
    browser.close().await;
}

/// Words of signs that begin in one line and end in another.
const BROKEN: &str = r#"
    const broken = [];
    for (const badge of document.querySelectorAll(".badge")) {
        const walker = document.createTreeWalker(badge, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            for (const word of walker.currentNode.data.matchAll(/\S+/g)) {
                const range = document.createRange();
                range.setStart(walker.currentNode, word.index);
                range.setEnd(walker.currentNode, word.index + word[0].length);
                if (range.getClientRects().length > 1) broken.push(word[0]);
            }
        }
    }
    return broken;
"#;

#[tokio::test]
async fn signs_are_whole_and_no_tile_is_alone_at_any_width() {
    let mut status = busy();
    status["destination_states"]["shown"][0]["last_failure"]["message"] =
        json!("S3 answered 403 AccessDenied. ".repeat(20));
    let (_stub, browser) = opened(status).await;
    for width in [700, 1000, 1152, 1200, 1360] {
        browser.window(width, 900, false).await;
        browser.until(&format!("window.innerWidth === {width}")).await;
        assert_eq!(browser.run(BROKEN).await, none(), "at {width}");
        let last_row = "const tops = [...document.querySelectorAll('.tile')].map((tile) => tile.offsetTop); \
                        return tops.filter((top) => top === tops.at(-1)).length;";
        assert!(browser.run(last_row).await.as_u64().unwrap() > 1, "at {width}");
    }
    browser.close().await;
}

#[tokio::test]
async fn long_lists_are_short_at_first() {
    let mut status = busy();
    let ends = (1..=50).rev().map(|number| problem(number, &format!("job-{number}"), "timeout", "slow", ""));
    status["recent"]["ended"] = ends.collect();
    status["running"] = (1..=400).map(|number| running(number, &format!("run-{number}"), 1, Some(2))).collect();
    status["slots"] = json!({"total": 1000, "busy": 700, "backfill": 8});
    let (_stub, browser) = opened(status).await;
    let rows = "document.querySelectorAll('#ended tbody tr').length";
    assert_eq!(browser.value(rows).await, 10);
    browser.run("document.getElementById('ended-more').focus()").await;
    browser.press(ENTER).await;
    browser.until(&format!("{rows} === 50")).await;
    assert_eq!(browser.value("document.getElementById('ended-more').ariaExpanded").await, "true");
    assert_eq!(browser.value("document.querySelectorAll('#running tbody tr').length").await, 100);
    assert_eq!(browser.text("#running-rest").await, "and 600 more");
    assert_eq!(browser.text("#destinations-rest").await, "and 2,343 more. Find one by its id.");
    browser.press(ENTER).await;
    browser.until(&format!("{rows} === 10")).await;
    browser.close().await;
}

#[tokio::test]
async fn the_keyboard_reaches_everything_and_keeps_its_place() {
    let (stub, browser) = opened(busy()).await;
    let focus = "document.activeElement.id || document.activeElement.value || document.activeElement.textContent";
    let mut order = Vec::new();
    for _ in 0..7 {
        browser.press(TAB).await;
        order.push(browser.value(focus).await.as_str().unwrap().to_owned());
        let ring = "getComputedStyle(document.activeElement.matches('.choice input') ? \
                    document.activeElement.nextElementSibling : document.activeElement).outlineStyle";
        assert_eq!(browser.value(ring).await, "solid", "the focus is not seen at {order:?}");
    }
    let expected =
        ["Skip to the content", "ended", "filter", "status as JSON", "metrics for Prometheus", "readyz", "livez"];
    assert_eq!(order, expected);

    // The choice of problems, by keyboard; the focus survives the next look at the worker.
    browser.run("document.querySelector('input[value=ended]').focus()").await;
    browser.press(RIGHT).await;
    browser.until("document.querySelectorAll('#ended tbody tr').length === 1").await;
    let mut next = busy();
    next["uptime_seconds"] = json!(31);
    next["recent"]["problems"] = json!([]);
    stub.say(next);
    browser.until("document.getElementById('uptime').textContent === '31 s'").await;
    assert_eq!(browser.value("document.activeElement.value").await, "problems");
    assert_eq!(browser.text("#ended-empty").await, "No problem since the worker started.");

    // The filter asks the worker: it knows more destinations than the page shows.
    browser.run("document.getElementById('filter').focus()").await;
    browser.press("glo bex<").await;
    let mut found = busy();
    found["destination_states"] = json!({"shown": [], "matching": 0, "filter": "glo bex<"});
    stub.say(found);
    browser.until("document.getElementById('destinations-empty').textContent.includes('“glo bex<”')").await;
    assert!(stub.filters().iter().any(|filter| filter == "glo bex<"), "{:?}", stub.filters());
    assert_eq!(complaints(&browser).await, Vec::<String>::new());
    browser.close().await;
}
