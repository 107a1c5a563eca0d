//! The private listener cannot hurt the public one: whatever its readers do, callbacks and probes are answered, and
//! memory stays within one budget. On a loopback address it serves only those who mean this host.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::bridge::{Bridge, TOPIC_CREATED, body, eventually, signed};
use crate::http::{self, Connection};

const PAGE: &str = "Accept: application/x-ndjson";

/// A callback as large as allowed.
fn large(topic: &str) -> String {
    let name = "x".repeat(62 << 10);
    body(topic).replace("MyFirstTopic", &name)
}

fn fill(bridge: &Bridge, events: u32) {
    let mut connection = Connection::open(bridge.ingress);
    let target = signed(TOPIC_CREATED, &[]);
    for number in 1..=events {
        let body = large(&format!("topic {number}"));
        let reply = connection.request("POST", &target, &[], body.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

/// A number from `/proc`.
fn status(bridge: &Bridge, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", bridge.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn memory(bridge: &Bridge) -> u64 {
    status(bridge, "VmRSS:") << 10
}

/// Asks for events, and never reads a byte of what comes.
fn ask(address: SocketAddr, target: &str, headers: &[&str]) -> Connection {
    let mut reader = Connection::open(address);
    reader.stream.write_all(&http::head("GET", target, headers, 0)).unwrap();
    reader
}

/// Waits until something has come for each, and reads none of it. A connection that is closed by then is fine, too.
fn are_answered(readers: &[Connection]) {
    for reader in readers {
        let _ = reader.stream.peek(&mut [0]);
    }
}

/// Measured on release 0.1.0: 1.3 GiB, and callbacks answered 503.
#[test]
fn readers_that_do_not_read_hold_up_no_callback_and_no_probe_and_take_bounded_memory() {
    const READERS: usize = 240;
    const BUDGET: u64 = 32 << 20;
    const MARGIN: u64 = 48 << 20; // 23 KiB for each connection, and what the allocator keeps
    let bridge = Bridge::start(&[("admin.max_connections", "600")]);
    fill(&bridge, 300);
    let idle = memory(&bridge);
    let watch = |is_over: &AtomicBool| {
        let (mut most, mut slowest, mut number) = (0, Duration::ZERO, 0);
        while !is_over.load(Relaxed) {
            let since = Instant::now();
            let reply = bridge.call(&body(&format!("honest {number}")));
            assert_eq!(reply.status, 200, "{reply:?}");
            slowest = slowest.max(since.elapsed());
            assert_eq!(bridge.readiness().0, 200);
            assert_eq!(bridge.get("/metrics").status, 200);
            most = most.max(memory(&bridge));
            let threads = status(&bridge, "Threads:");
            assert!(threads < 30, "{threads} threads: readers wait on one each");
            number += 1;
        }
        eprintln!(
            "idle {idle}, then at most {most} bytes, the slowest of {number} after {slowest:?}"
        );
        assert!(most < idle + BUDGET + MARGIN, "{most} bytes, idle {idle}");
    };
    let streams = || ask(bridge.admin, "/events?from=start", &[]);
    let pages = || ask(bridge.admin, "/events?limit=10000", &[PAGE]);
    let check = |kinds: [&dyn Fn() -> Connection; 2]| {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let watched = scope.spawn(|| watch(&is_over));
            let readers = kinds.map(|open| {
                let readers: Vec<_> = (0..READERS).map(|_| open()).collect();
                are_answered(&readers);
                readers
            });
            is_over.store(true, Relaxed);
            watched.join().unwrap();
            drop(readers);
        });
        eventually("whoever reads is served again", || {
            let page = http::get(bridge.admin, "/events?limit=1", &[PAGE]);
            (page.status == 200).then_some(())
        });
    };
    check([&streams, &pages]);
    check([&pages, &streams]);
}

#[test]
fn a_page_without_a_share_of_the_memory_is_told_when_to_ask_again() {
    let bridge = Bridge::start(&[("admin.max_buffer_bytes", "8 MiB")]);
    fill(&bridge, 160);
    let mut holder = ask(bridge.admin, "/events", &[PAGE]);
    holder.read_head();
    let refused = http::get(bridge.admin, "/events?limit=1", &[PAGE]);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("5"));
    let error = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("admin.max_buffer_bytes"), "{error}");
    assert_eq!(bridge.readiness().0, 200);
    assert_eq!(bridge.metric("topic_bridge_dead_letters"), 0.0);

    // A stream waits for its turn.
    let mut stream = bridge.stream("/events?after=159", &[]);
    drop(holder);
    let text = stream.read_until(|text| text.contains("\"topic 160\""));
    assert!(text.contains("\nid: 160\n"), "{}", text.len());
}

#[test]
fn a_page_is_cut_by_its_bytes_and_its_reader_finds_neither_gap_nor_repeat() {
    let expected: Vec<_> = (1..=160).map(|number| format!("topic {number}")).collect();
    for budget in ["32 MiB", "100 KiB", "1 KiB"] {
        let bridge = Bridge::start(&[("admin.max_buffer_bytes", budget)]);
        fill(&bridge, 160);
        let page = bridge.page("?limit=1000");
        let lines = page.body.lines().count();
        assert!((1..160).contains(&lines), "{lines}");
        assert_eq!(page.header("next-after"), Some(lines.to_string().as_str()), "{budget}");
        assert_eq!(bridge.topic_ids(), expected, "{budget}");
        let mut stream = bridge.stream("/events?from=start", &[]);
        let text =
            stream.read_until(|text| text.ends_with("\n\n\r\n") && text.contains("topic 160"));
        assert_eq!(text.matches("\ndata: ").count(), 160, "{budget}");
    }
}

#[test]
fn on_a_loopback_address_only_those_who_mean_this_host_are_served() {
    let check = |listen: &str, host: &str, status: u16| {
        let bridge = Bridge::start(&[("admin.listen", listen)]);
        for target in ["/livez", "/readyz", "/metrics", "/events?from=now&x=", "/nowhere"] {
            let mut connection = Connection::open(bridge.admin);
            let head = format!("GET {target} HTTP/1.1\r\n{host}\r\n{PAGE}\r\n\r\n");
            connection.send(head.as_bytes());
            let reply = connection.reply().unwrap();
            let expected = if target == "/nowhere" && status == 200 { 404 } else { status };
            assert_eq!(reply.status, expected, "{listen} {host} {target}");
            if status == 403 {
                let error = reply.json()["error"].as_str().unwrap().to_owned();
                assert!(error.contains("attacker.example") && error.contains("admin.listen"));
            }
        }
    };
    check("127.0.0.1:0", "Host: localhost:9090", 200);
    check("127.0.0.1:0", "Host: 127.0.0.1", 200);
    check("127.0.0.1:0", "host:", 200);
    check("127.0.0.1:0", "Host: attacker.example:9090", 403);
    check("0.0.0.0:0", "Host: attacker.example", 200); // a service's name in a cluster, say
}
