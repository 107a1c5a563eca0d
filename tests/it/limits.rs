//! Limits that hold together: what `serve` would refuse at its start `check` has named before, each with its
//! place and its limit, and both exit 78. What is only doubtful is said, and served.

use std::fs;

use crate::bridge::{APPS, Bridge, TOPIC_CREATED, body, program, run, signed};
use crate::command::{CONFIGURATION, check_refused};
use crate::http;

/// Both commands refuse these settings, with these words.
fn check_fault(settings: &[&str], expected: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    for command in ["check", "serve"] {
        let mut program = program();
        program.current_dir(&folder).env("TOPIC_BRIDGE_APPS", APPS).arg(command);
        for setting in settings {
            program.args(["--set", setting]);
        }
        let ended = run(&mut program);
        check_refused(&ended, CONFIGURATION, expected);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is created");
}

#[test]
fn a_duration_has_a_longest() {
    let forever = "1000000000000years";
    for (key, limit) in [
        ("ingress.request_timeout", "1h"),
        ("ingress.ack_deadline", "1h"),
        ("ingress.header_timeout", "1h"),
        ("ingress.idle_timeout", "1day"),
        ("ingress.max_skew", "100years"),
        ("ingress.drain_delay", "1h"),
        ("outbox.dedupe_window", "100years"),
        ("outbox.history", "100years"),
        ("outbox.remember_ids", "100years"),
        ("relay.retry_max", "1day"),
        ("relay.confirm_timeout", "1h"),
        ("relay.drain_timeout", "1day"),
        ("nats.max_age", "100years"),
    ] {
        for time in [forever, "101years"] {
            let expected = format!("{key} (--set): \"{time}\" is longer than {limit}, the limit");
            check_fault(&[&format!("{key}={time}")], &[&expected]);
        }
    }
    check_fault(&["ingress.header_timeout=61m"], &["\"61m\" is longer than 1h, the limit"]);
}

#[test]
fn no_time_is_longer_than_the_platform_waits() {
    let too_long =
        "ingress.ack_deadline (--set): 2s 1ms is longer than the platform waits for an answer, 2s";
    check_fault(&["ingress.ack_deadline=2001ms"], &["has 1 fault:", too_long]);
    let to_read = "ingress.request_timeout (--set): 1s 600ms to read a request is longer than";
    check_fault(&["ingress.request_timeout=1600ms"], &["has 1 fault:", to_read]);
    let both = ["ingress.request_timeout=3s", "ingress.ack_deadline=3s"];
    check_fault(&both, &["has 1 fault:", "ingress.ack_deadline"]);
    // Whoever asks for a short answer need not know of the time to read.
    let bridge = Bridge::start(&[("ingress.ack_deadline", "200ms")]);
    assert_eq!(bridge.call(&body("topic")).status, 200);
}

#[test]
fn a_number_has_a_largest() {
    for (key, limit) in [
        ("ingress.max_in_flight", 1_000_000),
        ("ingress.max_connections", 1_000_000),
        ("admin.max_connections", 1_000_000),
        ("outbox.history_events", 1_000_000_000),
        ("outbox.remember_ids_max", 100_000_000),
        ("outbox.quarantine_events", 1_000_000_000),
        ("relay.batch", 10_000),
        ("kafka.partitions", 100_000),
        ("kafka.replication", 100),
        ("nats.replicas", 5),
        ("runtime.worker_threads", 1024),
    ] {
        for number in [0, limit + 1, 18_446_744_073_709_551_615_u64] {
            let expected = format!("{key} (--set): {number} is not from 1 to {limit}");
            check_fault(&[&format!("{key}={number}")], &[&expected]);
        }
    }
    check_fault(
        &["ingress.max_body_bytes=17 MiB"],
        &["ingress.max_body_bytes (--set): 17.0 MiB is more than 16.0 MiB, the limit"],
    );
    check_fault(&["outbox.max_bytes=17 TiB"], &["17.0 TiB is more than 16.0 TiB, the limit"]);
}

#[test]
fn an_outbox_that_is_too_small_to_live_is_a_fault() {
    let least = "256.0 KiB, the least that works: 128.0 KiB and 2 times ingress.max_body_bytes";
    check_fault(&["outbox.max_bytes=1"], &["outbox.max_bytes (--set): 1 B is less than", least]);
    check_fault(&["outbox.max_bytes=255 KiB"], &[least]);
    check_fault(
        &["outbox.max_bytes=16 MiB", "ingress.max_body_bytes=8 MiB"],
        &["16.0 MiB is less than 16.1 MiB"],
    );
    let bridge = Bridge::start(&[("outbox.max_bytes", "256 KiB")]);
    let body = body("large");
    let filler = r#"\""#.repeat((64 * 1024 - body.len() - 20) / 2);
    let large = body.replace('}', &format!(r#","New":["\ud800{filler}"]}}"#));
    assert!((65_000..=65_536).contains(&large.len()), "{}", large.len());
    assert_eq!(
        bridge.call(&large).status,
        200,
        "the largest callback fits into the smallest outbox"
    );
}

#[test]
fn two_listeners_need_two_addresses() {
    for (ingress, admin) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("127.0.0.1:8080", "[::]:8080"),
    ] {
        let settings = [format!("ingress.listen={ingress}"), format!("admin.listen={admin}")];
        let expected =
            format!("admin.listen (--set): {admin} collides with ingress.listen, {ingress}");
        check_fault(&[&settings[0], &settings[1]], &[&expected]);
    }
}

#[test]
fn the_backend_is_not_the_bridge_itself() {
    for (listen, url) in [
        ("127.0.0.1:8080", "http://127.0.0.1:8080/x"),
        ("127.0.0.1:8080", "http://localhost:8080"),
        ("0.0.0.0:80", "http://127.0.0.1/"),
        ("[::]:443", "https://[::1]/"),
    ] {
        let settings = [format!("ingress.listen={listen}"), format!("passthrough.url={url}")];
        let expected = "passthrough.url (--set): is the bridge's own public listener";
        check_fault(&[&settings[0], &settings[1]], &[expected]);
    }
}

#[test]
fn what_a_bridge_would_miss_at_its_start_is_named_with_all_other_faults() {
    let settings = [
        "outbox.path=no/such/folder/outbox.db",
        "ingress.tls.cert_file=no/certificate",
        "ingress.tls.key_file=no/key",
        "relay.batch=0",
    ];
    let expected = [
        "has 3 faults:",
        "outbox.path (--set): there is no directory no/such/folder",
        "ingress.tls.cert_file (--set): cannot read certificates from no/certificate",
        "relay.batch (--set): 0 is not from 1 to 10000",
    ];
    check_fault(&settings, &expected);
}

/// A faulty value is not compared with others: the default stands in for it.
#[test]
fn a_fault_brings_no_other_with_it() {
    check_fault(&["ingress.listen=nowhere", "admin.listen=127.0.0.1:8080"], &["has 1 fault:"]);
    check_fault(&["ingress.max_body_bytes=17 MiB", "outbox.max_bytes=200 KiB"], &["has 1 fault:"]);
}

#[test]
fn at_its_limits_a_bridge_works() {
    let bridge = Bridge::start(&[
        ("ingress.request_timeout", "2s"),
        ("ingress.ack_deadline", "2s"),
        ("ingress.header_timeout", "1h"),
        ("ingress.idle_timeout", "1day"),
        ("ingress.max_skew", "100years"),
        ("ingress.max_in_flight", "1000000"),
        ("ingress.max_connections", "1000000"),
        ("ingress.max_body_bytes", "16 MiB"),
        ("admin.max_connections", "1000000"),
        ("outbox.max_bytes", "16 TiB"),
        ("outbox.dedupe_window", "100years"),
        ("outbox.history", "100years"),
        ("outbox.history_events", "1000000000"),
        ("outbox.remember_ids", "100years"),
        ("outbox.remember_ids_max", "100000000"),
        ("outbox.quarantine_events", "1000000000"),
        ("relay.batch", "10000"),
        ("relay.retry_min", "1day"),
        ("relay.retry_max", "1day"),
        ("relay.confirm_timeout", "1h"),
        ("relay.drain_timeout", "1day"),
        ("runtime.worker_threads", "1024"),
    ]);
    let name = "n".repeat(3 << 20); // more takes a busy machine longer than two seconds
    let large = body("large").replace("MyFirstTopic", &name);
    assert_eq!(bridge.call(&large).status, 200);
    assert_eq!(bridge.call(&body("small")).status, 200);
    assert_eq!(bridge.topic_ids(), ["large", "small"]);
    let mut bridge = bridge.restart(&[]);
    assert_eq!(bridge.topic_ids(), ["large", "small"]);
    bridge.signal("TERM");
    assert_eq!(bridge.ended().code(), Some(0));
}

#[test]
fn a_setting_that_names_no_key_is_a_fault() {
    for setting in ["=hunter2", ".=hunter2", "a..b=hunter2", ".sink=hunter2", "sink.=x", " =x"] {
        let expected = "the 1st --set names no key: write it as section.key=value";
        check_fault(&[setting], &[expected]);
    }
    let second = "the 2nd --set has no =: write it as section.key=value";
    check_fault(&["log.level=info", "hunter2"], &["has 1 fault:", second]);
    for name in ["TOPIC_BRIDGE_", "TOPIC_BRIDGE___", "TOPIC_BRIDGE_A____B", "TOPIC_BRIDGE___LOG"] {
        let mut command = program();
        command.env("TOPIC_BRIDGE_APPS", APPS).env(name, "hunter2").arg("check");
        let expected = format!("{name}: names no key: write it as TOPIC_BRIDGE_SECTION__KEY");
        let ended = run(&mut command);
        check_refused(&ended, CONFIGURATION, &[&expected]);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

#[test]
fn a_path_is_taken_to_the_letter_or_refused() {
    for path in ["/{", "/*x", "/a?b", "/a#b", "callback", "/a b", "", "/<a>", "/\u{fc}"] {
        check_fault(
            &[&format!("ingress.path={path}")],
            &["ingress.path", "is not a plain URL path"],
        );
    }
    for path in ["/:id", "/a/:b/c"] {
        check_fault(&[&format!("ingress.path={path}")], &["ingress.path", "has a placeholder"]);
    }
    let bridge_on = |path: &str| Bridge::start(&[("ingress.path", path)]);
    for path in ["//", "/a//", "/%2F%20", "/.", "/a:b@c;d=e,f!$&'()+~"] {
        let bridge = bridge_on(path);
        let target = |path: &str| signed(TOPIC_CREATED, &[]).replacen('/', path, 1);
        let post = |path: &str| http::post(bridge.ingress, &target(path), body("a").as_bytes());
        assert_eq!(post(path).status, 200, "{path}");
        assert_eq!(post("/x").status, 404, "{path}");
        assert_eq!(post("/a/x/y").status, 404, "{path}");
    }
}

#[test]
fn what_is_doubtful_is_said_and_served() {
    let settings = [
        ("ingress.header_timeout", "3m"),
        ("ingress.max_skew", "1day"),
        ("outbox.sync", "normal"),
        ("apps", "[{sdk_app_id=7,allow_unsigned=true}]"),
    ];
    let expected = [
        "ingress.header_timeout: 3m is longer than ingress.idle_timeout",
        "ingress.max_skew: whoever has seen a signed request can use it again for 1day",
        "outbox.sync = \"normal\": events that were answered OK",
        "apps: callbacks without a Sign are taken for the app 7",
    ];
    let bridge = Bridge::start(&settings);
    let ended = run(&mut bridge.command("check"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said: Vec<_> =
        ended.stderr.lines().filter_map(|line| line.strip_prefix("doubtful ")).collect();
    assert_eq!(said.len(), expected.len(), "{}", ended.stderr);
    let log = bridge.log();
    for text in expected {
        assert!(said.iter().any(|line| line.starts_with(text)), "{text}: {}", ended.stderr);
        let is_logged =
            |line: &str| line.contains("WARN") && line.contains(&text.replace('"', "\\\""));
        assert!(log.lines().any(is_logged), "{text}: {log}");
    }

    let quiet = run(program().env("TOPIC_BRIDGE_APPS", APPS).arg("check"));
    assert_eq!(quiet.stderr, "the configuration is good\n", "the defaults leave no doubt");
}
