//! What clients can cost: memory for each connection, and time of the others'.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_rustls::rustls::ClientConnection;

use crate::bridge::{Bridge, TOPIC_CREATED, body, eventually, signed};
use crate::http::{Connection, head};
use crate::platform::without;
use crate::tls::{client_config, connect, on_a_runtime, request, secured};

/// Each hello is milliseconds of arithmetic. Those who send them get their turn, and those who are
/// connected already have theirs in between, not after them all.
#[test]
fn a_burst_of_tls_handshakes_keeps_nobody_waiting_who_is_connected() {
    const BURST: usize = 500;
    let secured = secured(&[("ingress.header_timeout", "1m")]);
    let config = Arc::new(client_config(&secured, b"http/1.1", None));
    let mut client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let open = |_| TcpStream::connect(secured.bridge.ingress).unwrap();
    let mut waiting: Vec<_> = (0..BURST).map(open).collect();

    let mut between = 0;
    on_a_runtime(async {
        let stream = connect(&secured, b"http/1.1", None).await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for stranger in &mut waiting {
            stranger.write_all(&hello).unwrap();
            stranger.set_nonblocking(true).unwrap();
        }
        while !waiting.is_empty() {
            let answer = sender.send_request(request(&format!("topic {between}"))).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            answer.into_body().collect().await.unwrap();
            waiting.retain_mut(|stranger| match stranger.read(&mut [0]) {
                Ok(read) => read == 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            });
            between += 1;
        }
    });
    assert!(between >= 5, "all {BURST} came before {between} callbacks were answered");
}

const MANY: usize = 400;
const KIB: usize = 1024;

/// Bytes of the bridge's memory, once nothing moves any more.
fn resident(bridge: &Bridge) -> usize {
    let read = || bridge.metric("process_resident_memory_bytes") as usize;
    let mut before = read();
    eventually("it is at rest", || {
        let now = read();
        (std::mem::replace(&mut before, now) == now).then_some(now)
    })
}

/// By how much each of many connections makes a bridge larger.
fn check<C>(what: &str, limit: usize, bridge: &Bridge, mut open: impl FnMut() -> C) {
    drop(open()); // what the first one costs, it costs once
    let before = resident(bridge);
    assert!(before <= 60 * KIB * KIB, "{before} bytes without a connection");
    let open: Vec<_> = (0..MANY).map(|_| open()).collect();
    let cost = resident(bridge).saturating_sub(before) / MANY;
    eprintln!("{what}: {cost} bytes, beside {before}");
    assert!(cost <= limit, "{what}: {cost} bytes");
    drop(open);
}

/// The figures are those of `docs/guarantees.md`, and twice as much is allowed: an allocator has its ways.
#[test]
fn a_connection_costs_no_more_memory_than_the_documents_say() {
    let long = [
        ("ingress.request_timeout", "2s"),
        ("ingress.ack_deadline", "2s"),
        ("ingress.header_timeout", "1m"),
    ];
    let target = signed(TOPIC_CREATED, &[]);

    let secured = secured(&long);
    check("an idle connection over TLS", 64 * KIB, &secured.bridge, || {
        on_a_runtime(connect(&secured, b"http/1.1", None))
    });
    let bridge = Bridge::start(&long);
    check("an idle connection", 32 * KIB, &bridge, || {
        let mut connection = Connection::open(bridge.ingress);
        let body = body("topic");
        assert_eq!(connection.request("POST", &target, &[], body.as_bytes()).status, 200);
        connection
    });
    let almost = vec![b'x'; 64 * KIB - 1];
    for (what, limit, target) in [
        ("a body of 64 KiB but for a byte", 256 * KIB, target.clone()),
        ("such a body that is refused", 128 * KIB, without("Sign", &target)),
    ] {
        let bridge = Bridge::start(&long);
        check(what, limit, &bridge, || {
            let mut connection = Connection::open(bridge.ingress);
            connection.send(&[&head("POST", &target, &[], 64 * KIB), &almost[..]].concat());
            connection
        });
    }
}
