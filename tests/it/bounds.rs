//! What clients can cost: memory for each connection, and time of the others'.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_rustls::rustls::ClientConnection;

use crate::tls::{client_config, connect, on_a_runtime, request, secured};

/// Each hello is a millisecond of arithmetic or more. Those who send them get their turn, and those who are
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
