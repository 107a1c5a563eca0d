//! HTTP/2 on the public listener: the same limits as over HTTP/1.1, also where the protocol has ways of its
//! own to reach them.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use crate::bridge::{TOPIC_CREATED, body, eventually, signed};
use crate::platform::fail;
use crate::tls::{Secured, connect, on_a_runtime, request, secured};

const PATIENCE: Duration = Duration::from_secs(20);

/// A client whose streams have such a window for answers.
async fn client(
    secured: &Secured,
    window: u32,
) -> (http2::SendRequest<Full<Bytes>>, tokio::task::JoinHandle<hyper::Result<()>>) {
    let stream = TokioIo::new(connect(secured, b"h2", None).await);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// The answer is ready, and the client gives it no room: nobody else may wait for its place for ever.
#[test]
fn a_client_that_takes_no_answer_is_cut_off() {
    let secured = secured(&[("ingress.idle_timeout", "1s"), ("ingress.max_connections", "1")]);
    on_a_runtime(async {
        let (mut sender, connection) = client(&secured, 0).await;
        let answer = sender.send_request(request("topic")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        timeout(PATIENCE, connection).await.expect("it is cut off").unwrap().ok();
        drop(answer);
    });
    on_a_runtime(async {
        let (mut sender, _) = client(&secured, 1000).await;
        assert_eq!(sender.send_request(request("another")).await.unwrap().status(), StatusCode::OK);
    });
}

/// A field counts as its name, its value and 32 bytes (RFC 9113, 6.5.2).
#[test]
fn a_head_may_be_as_large_as_the_limit_and_not_a_byte_larger() {
    let secured = secured(&[]);
    let target = signed(TOPIC_CREATED, &[]);
    let text = body("topic");
    let length = text.len().to_string();
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", &target),
        ("content-length", &length),
        ("x-filler", ""),
        ("x-filler", ""),
    ];
    let size: usize = fields.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
    let check = |filler: usize, at: usize, status: StatusCode| {
        let answer = on_a_runtime(async {
            let (mut sender, _) = client(&secured, 1000).await;
            let request = Request::post(format!("https://localhost{target}"))
                .header("x-filler", "~".repeat(at))
                .header("x-filler", "~".repeat(filler - at))
                .body(Full::new(text.clone().into()))
                .unwrap();
            sender.send_request(request).await.map(|answer| answer.status())
        });
        assert_eq!(answer.unwrap(), status, "{filler} bytes of filler");
    };
    let room = 32 * 1024 - size;
    for at in [0, 1, room / 2, 16 * 1024] {
        check(room, at, StatusCode::OK);
        check(room + 1, at, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        check(40 * 1024, at, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
}

/// The word that the client waits for is its refusal.
#[test]
fn a_body_that_is_announced_too_large_is_refused_before_it_is_sent() {
    let secured = secured(&[]);
    on_a_runtime(async {
        let stream = TokioIo::new(connect(&secured, b"h2", None).await);
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let request = Request::post(format!("https://localhost{}", signed(TOPIC_CREATED, &[])))
            .header("expect", "100-continue")
            .header("content-length", "70000")
            .body(body)
            .unwrap();
        let answer = timeout(Duration::from_secs(5), sender.send_request(request)).await;
        let answer = answer.expect("an answer").unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, fail(41301, "body is larger than the limit of 65536 bytes"));
    });
    eventually("it is counted", || (secured.bridge.counted("too_large") == 1.0).then_some(()));
}
