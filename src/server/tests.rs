//! The accept loop with a service of its own, and limits that are short: whom it serves, and whom it cuts off.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Limits, Peer, Phase, Server, Spare, bind};

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

const LIMITS: Limits = Limits {
    max_connections: 1,
    spare_connections: 0,
    header_timeout: PATIENCE,
    idle_timeout: PATIENCE,
    write_timeout: PATIENCE,
    half_close: false,
};

/// A server, its clients, and what paces its streams.
struct Served {
    address: SocketAddr,
    words: watch::Sender<u64>,
    _phase: watch::Sender<Phase>,
}

type Answer = Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible>;

/// `/flood` never ends, `/words` says a word when it is told to, all else is who asks.
fn answer(request: &Request<Incoming>, words: watch::Receiver<u64>) -> Answer {
    let frame = |bytes: &'static [u8]| Ok(Frame::data(Bytes::from_static(bytes)));
    Ok(Response::new(match request.uri().path() {
        "/flood" => {
            let flood = stream::repeat(()).map(move |()| frame(&[b'x'; 64 * 1024]));
            StreamBody::new(flood).boxed_unsync()
        }
        "/words" => {
            let words = stream::unfold(words, move |mut words| async move {
                words.changed().await.ok().map(|()| (frame(b"word"), words))
            });
            StreamBody::new(words).boxed_unsync()
        }
        _ => {
            let extensions = request.extensions();
            let is_spare = extensions.get::<Spare>().is_some();
            let peer = extensions.get::<Peer>().unwrap().0;
            Full::new(format!("{peer} {is_spare}").into()).boxed_unsync()
        }
    }))
}

async fn serve(limits: Limits) -> Served {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (phase, phases) = watch::channel(Phase::Serving);
    let turned_away = "too many".to_owned();
    let server = Server { listener, limits, tls: None, phase: phases, turned_away };
    let (words, spoken) = watch::channel(0);
    let service = service_fn(move |request| {
        let answer = answer(&request, spoken.clone());
        async move { answer }
    });
    tokio::spawn(server.run(service, || ()));
    Served { address, words, _phase: phase }
}

impl Served {
    async fn open(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn request(&self, path: &str) -> TcpStream {
        let mut stream = self.open().await;
        ask(&mut stream, path).await;
        stream
    }

    /// Waits until somebody who is idle was cut off.
    async fn wait(&self) {
        let mut idle = self.open().await;
        assert_eq!(read(&mut idle, "").await, "");
    }
}

async fn ask(stream: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: server\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// Reads until such an end, or that of the connection.
async fn read(stream: &mut TcpStream, end: &str) -> String {
    let (mut text, mut bytes) = (String::new(), [0; 1024]);
    while end.is_empty() || !text.ends_with(end) {
        let read = timeout(PATIENCE, stream.read(&mut bytes)).await.expect("an end");
        match read {
            Ok(0) | Err(_) => break,
            Ok(read) => text += std::str::from_utf8(&bytes[..read]).unwrap(),
        }
    }
    text
}

#[tokio::test]
async fn who_takes_nothing_of_an_answer_is_cut_off() {
    let served = serve(Limits { write_timeout: SHORT, ..LIMITS }).await;
    let deaf = served.request("/flood").await;
    let served_another =
        async { while !read(&mut served.request("/").await, "false").await.ends_with("false") {} };
    timeout(PATIENCE, served_another).await.expect("its place is free again");
    drop(deaf);
}

#[tokio::test]
async fn a_stream_that_has_nothing_to_say_is_kept() {
    let [header_timeout, idle_timeout, write_timeout] = [SHORT / 4; 3];
    let limits =
        Limits { max_connections: 2, header_timeout, idle_timeout, write_timeout, ..LIMITS };
    let served = serve(limits).await;
    let mut stream = served.request("/words").await;
    read(&mut stream, "\r\n\r\n").await;
    for _ in 0..3 {
        for _ in 0..3 {
            served.wait().await;
        }
        served.words.send_modify(|word| *word += 1);
        assert_eq!(read(&mut stream, "word\r\n").await, "4\r\nword\r\n");
    }
}

/// Nor does the time that a head may take start late because the connection was idle before.
#[tokio::test]
async fn a_half_sent_head_is_cut_off_in_its_time_also_after_a_rest() {
    let served = serve(Limits { max_connections: 2, header_timeout: SHORT, ..LIMITS }).await;
    let mut stream = served.request("/").await;
    assert!(read(&mut stream, "false").await.ends_with("false"));
    for _ in 0..2 {
        served.wait().await;
    }
    let half = tokio::time::Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert_eq!(read(&mut stream, "").await, "");
    assert!(half.elapsed() < PATIENCE / 2, "it is not the limit of idling that ends it");
}

#[tokio::test]
async fn a_few_connections_over_the_limit_get_one_answer_each() {
    let served = serve(Limits { spare_connections: 2, ..LIMITS }).await;
    let mut first = served.request("/").await;
    let peer = first.local_addr().unwrap();
    assert!(read(&mut first, "false").await.ends_with(&format!("{peer} false")));

    let (mut second, mut third) = (served.open().await, served.open().await);
    let mut fourth = served.request("/").await;
    let refused = read(&mut fourth, "").await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.ends_with("too many"), "{refused}");
    for spare in [&mut second, &mut third] {
        ask(spare, "/").await;
        let answer = read(spare, "").await;
        let peer = spare.local_addr().unwrap();
        assert!(answer.ends_with(&format!("{peer} true")), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    // Who says nothing does not keep its place for long, whatever the limits of others are.
    let cut_off = async { while !read(&mut served.open().await, "").await.is_empty() {} };
    timeout(PATIENCE, cut_off).await.expect("it is cut off");
    ask(&mut first, "/").await;
    assert!(read(&mut first, "false").await.ends_with("false"), "the first one is as it was");
}
