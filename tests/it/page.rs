//! The page at the private listener shows the bridge at work, in a real browser: what strangers send stays text, and
//! what it shows is true, also when the bridge is gone.

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::bridge::{Bridge, TOPIC_CREATED, body, is_delivered, signed};
use crate::browser::Browser;
use crate::http;

const HOSTILE: &str = "<img src=x onerror=alert(1)>\u{202e}";

fn named(topic: &str, name: &str) -> String {
    let mut body: Value = serde_json::from_str(&body(topic)).unwrap();
    body["Name"] = json!(name);
    body.to_string()
}

/// With three dead letters and two callbacks in quarantine, of which one is no text.
fn with_kept() -> Bridge {
    let mut bridge = Bridge::start(&[]);
    for topic in ["dead-1", "dead-2", "dead-3"] {
        bridge.call(&named(topic, HOSTILE));
    }
    is_delivered(&bridge);
    bridge.stop();
    // As if a sink had refused them.
    let outbox = Connection::open(bridge.outbox()).unwrap();
    let known: Vec<String> = outbox
        .prepare("SELECT name FROM pragma_table_info('events')")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let columns = known.join(", ");
    let sql = format!(
        "INSERT INTO dead_letters ({columns}, refused_at, reason)
         SELECT {columns}, accepted_at, 'larger than <b>allowed</b>' FROM events"
    );
    assert_eq!(outbox.execute(&sql, []).unwrap(), 3);
    drop(outbox);
    let bridge = bridge.restart(&[]);
    for bytes in [&br#"{"TopicId":7,"Name":"<b>bold</b>"}"#[..], b"\xff no text"] {
        assert_eq!(http::post(bridge.ingress, &signed(TOPIC_CREATED, &[]), bytes).status, 400);
    }
    bridge
}

#[test]
fn the_page_is_one_file_that_may_load_and_run_nothing_else() {
    let bridge = Bridge::start(&[]);
    let page = bridge.get("/");
    assert_eq!(page.status, 200);
    for (name, expected) in [
        ("content-type", "text/html; charset=utf-8"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(page.header(name), Some(expected), "{name}");
    }
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(policy.contains("connect-src 'self'") && !policy.contains("unsafe"), "{policy}");
    for outside in ["http:", "https:", "//cdn", "@import", "url("] {
        assert!(!page.body.contains(outside), "{outside}");
    }
    for more in ["/events?from=now&limit=1", "/readyz", "/nowhere"] {
        let reply = http::get(bridge.admin, more, &["Accept: application/x-ndjson"]);
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{more}");
    }
    let other = http::request(bridge.admin, "GET", "/", &["Host: attacker.example"], b"");
    assert_eq!(other.status, 403, "{other:?}");
}

#[test]
fn dead_letters_and_quarantine_are_read_page_by_page() {
    let bridge = with_kept();
    let read = |target: &str| {
        let page = bridge.get(target);
        assert_eq!(page.status, 200, "{page:?}");
        let rows = page.body.lines().map(|line| serde_json::from_str(line).unwrap());
        (rows.collect::<Vec<Value>>(), page.header("next-after").unwrap().to_owned())
    };
    let (first, next) = read("/dead-letters?limit=2");
    assert_eq!((first.len(), next.as_str()), (2, "2"));
    let (rest, next) = read("/dead-letters?limit=2&after=2");
    assert_eq!((rest.len(), next.as_str()), (1, "3"));
    assert_eq!((&rest[0]["number"], &rest[0]["reason"]), (&json!(3), &first[0]["reason"]));
    let event: Value = serde_json::from_str(rest[0]["content"].as_str().unwrap()).unwrap();
    assert_eq!(event["data"]["topic_name"], HOSTILE);
    let (kept, _) = read("/quarantine");
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[0]["content"], r#"{"TopicId":7,"Name":"<b>bold</b>"}"#);
    assert_eq!(kept[1]["hex"], hex::encode(b"\xff no text"));
    assert_eq!(read("/quarantine?after=99"), (vec![], "99".into()));
    assert_eq!(bridge.get("/quarantine?after=x").status, 400);
}

#[test]
#[ignore = "needs a browser: run tests/run.sh"]
fn a_browser_shows_the_bridge_at_work_and_strangers_text_as_text() {
    let bridge = with_kept();
    let mut browser = Browser::start();
    browser.looks(1280, "light");
    browser.open(&format!("http://{}/", bridge.admin));
    browser.becomes("document.querySelector('#status').textContent === 'ready'");
    bridge.call(&named("topic-of-now", HOSTILE));
    http::post(bridge.ingress, &signed(TOPIC_CREATED, &[]).replace("Sign=", "Sign=0"), b"{}");
    let shows = |text: &str| format!("document.body.innerText.includes({})", json!(text));
    browser.becomes(&shows("topic-of-now"));
    browser.becomes(&shows("<img src=x onerror=alert(1)>\\u{202e}"));
    browser.becomes(&shows("Sign has 65 characters, a SHA-256 in hex has 64"));
    browser.value("document.querySelectorAll('.kept').forEach(kept => kept.open = true)");
    browser.becomes(&shows("larger than <b>allowed</b>"));
    browser.becomes("document.querySelectorAll('#quarantine .rows details').length === 2");
    browser.value("document.querySelectorAll('.rows details').forEach(row => row.open = true)");
    browser.becomes(&shows("\"Name\": \"<b>bold</b>\""));
    browser.becomes(&shows(&hex::encode(b"\xff no text")));
    assert_eq!(browser.value("document.querySelectorAll('img, b').length"), 0);
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] {
        browser.looks(width, scheme);
        assert_eq!(browser.value(TOO_FAINT), json!([]), "{scheme}");
        let overflows = "document.documentElement.scrollWidth > innerWidth";
        assert_eq!(browser.value(overflows), false, "{width} wide");
    }
    assert_eq!(browser.complaints, Vec::<String>::new());
    drop(bridge);
    browser.becomes(
        r"/^no answer since \d\d:\d\d:\d\d$/.test(document.querySelector('#status').textContent)",
    );
    assert_eq!(browser.value(TOO_FAINT), json!([]), "greyed");
}

/// Texts with less contrast to what is behind them than WCAG's AA asks for.
const TOO_FAINT: &str = r"(() => {
    const numbers = color => color.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = element => {
        for (let at = element; at; at = at.parentElement) {
            const color = numbers(getComputedStyle(at).backgroundColor);
            if (color[3] === undefined || color[3] === 1) return color;
        }
        throw new Error('the page has no colour');
    };
    const hasText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    return [...document.body.querySelectorAll('*')].filter(hasText).filter(element => element.checkVisibility())
        .map(element => {
            const two = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
            return [element.textContent.slice(0, 40), (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05)];
        }).filter(([_, ratio]) => ratio < 4.5);
})()";

#[test]
#[ignore = "needs a browser: run tests/run.sh"]
fn the_page_is_used_by_keyboard() {
    let bridge = Bridge::start(&[]);
    let mut browser = Browser::start();
    browser.looks(1280, "light");
    browser.open(&format!("http://{}/", bridge.admin));
    browser.becomes("document.querySelector('#status').textContent === 'ready'");
    let mut seen = Vec::new();
    for _ in 0..7 {
        browser.press("Tab", 9, "");
        let focused = "(at => [at.className || at.parentElement.id, \
             getComputedStyle(at).outlineStyle !== 'none'])(document.activeElement)";
        let focused = browser.value(focused);
        assert_eq!(focused[1], true, "{focused} shows its focus");
        seen.push(focused[0].as_str().unwrap().to_owned());
    }
    let order = ["only", "pause", "rows", "pause", "rows", "dead-letters", "quarantine"];
    assert_eq!(seen, order);
    browser.press("Enter", 13, "\r");
    browser.becomes(
        "document.querySelector('#quarantine .kept-state').textContent.startsWith('0, read')",
    );
}

#[test]
#[ignore = "needs a browser: run tests/run.sh"]
fn a_sink_that_is_away_is_told_with_its_reason() {
    let settings = [("sink", "nats"), ("nats.servers", r#"["nats://127.0.0.1:1"]"#)];
    let bridge = Bridge::start(&settings);
    bridge.call(&body("waits"));
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", bridge.admin));
    browser.becomes("document.querySelector('#status').textContent === 'degraded'");
    browser.becomes(
        "document.querySelector('#parts').innerText.includes('cannot connect to 127.0.0.1:1')",
    );
    browser.becomes("document.querySelector('#backlog').textContent === '1 event'");
}
