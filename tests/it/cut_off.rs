//! A connection that is cut in the middle of a batch, by a proxy between the bridge and NATS: what is sent
//! again must not come behind what an abandoned client still sends by itself.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::bridge::{TOPIC_CREATED, body, is_delivered, signed};
use crate::broker::{self, Kind, Message};
use crate::brokers::{becomes, call, start};
use crate::http;

/// Passes bytes on, until it cuts a connection.
struct Proxy {
    address: SocketAddr,
    is_open: Arc<AtomicBool>,
    /// Bytes towards the server after which each of the next connections is cut.
    cuts: Arc<Mutex<Vec<usize>>>,
    /// Nothing more comes back from the server.
    is_silent: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap(),
            is_open: Arc::default(),
            cuts: Arc::default(),
            is_silent: Arc::default(),
            connections: Arc::default(),
        };
        let (is_open, cuts) = (proxy.is_open.clone(), proxy.cuts.clone());
        let (is_silent, connections) = (proxy.is_silent.clone(), proxy.connections.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if is_open.load(Ordering::Relaxed) {
                    connections.fetch_add(1, Ordering::Relaxed);
                    let cut = cuts.lock().unwrap().pop().unwrap_or(usize::MAX);
                    let upstream = TcpStream::connect(&server).unwrap();
                    let (to, from) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                    let is_silent = is_silent.clone();
                    thread::spawn(move || pass_on(client, upstream, cut, &AtomicBool::default()));
                    thread::spawn(move || pass_on(from, to, usize::MAX, &is_silent));
                }
            }
        });
        proxy
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, mut left: usize, is_silent: &AtomicBool) {
    let mut buffer = vec![0; 16 * 1024];
    while left > 0 {
        let most = buffer.len().min(left);
        let Ok(read @ 1..) = from.read(&mut buffer[..most]) else { break };
        while is_silent.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        left -= read;
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn the_order_inside_a_group_outlives_cuts_in_the_middle_of_a_batch() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let proxy = Proxy::to(broker.target.address.trim_start_matches("nats://").to_owned());
    let url = format!("nats://{}", proxy.address);
    let bridge = start(&broker.target, &[("nats.servers", url.as_str())]);
    let mut connection = http::Connection::open(bridge.ingress);
    let topics: Vec<_> = (0..4000).map(|number| format!("t-{number}")).collect();
    for topic in &topics {
        let target = signed(TOPIC_CREATED, &[]);
        let reply = connection.request("POST", &target, &[], body(topic).as_bytes());
        assert_eq!(reply.status, 200);
    }
    *proxy.cuts.lock().unwrap() = vec![900_000, 30_000, 400_000, 700_000, 150_000, 250_000];
    proxy.is_open.store(true, Ordering::Relaxed);
    is_delivered(&bridge);
    let stored = broker.target.read(4000);
    let found: Vec<_> = stored.iter().map(Message::topic_id).collect();
    let first_wrong = found.iter().zip(&topics).position(|(found, topic)| found != topic);
    assert_eq!(first_wrong, None, "{} stored", found.len());
    assert!(proxy.cuts.lock().unwrap().is_empty(), "each of the cuts has come");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn an_acknowledgement_is_waited_for_as_long_as_is_configured() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let proxy = Proxy::to(broker.target.address.trim_start_matches("nats://").to_owned());
    proxy.is_open.store(true, Ordering::Relaxed);
    let url = format!("nats://{}", proxy.address);
    let more = [("nats.servers", url.as_str()), ("relay.confirm_timeout", "60s")];
    let bridge = start(&broker.target, &more);
    becomes(&bridge, "ready");
    let timeouts = "topic_bridge_publish_errors_total{kind=\"timeout\",sink=\"nats\"}";
    proxy.is_silent.store(true, Ordering::Relaxed);
    call(&bridge, "slow");
    // Longer than the five seconds that the client takes for an acknowledgement by itself, and shorter
    // than its pings take to count the connection as dead.
    thread::sleep(Duration::from_secs(7));
    proxy.is_silent.store(false, Ordering::Relaxed);
    is_delivered(&bridge);
    assert_eq!(bridge.metric(timeouts), 0.0);
    assert_eq!(proxy.connections.load(Ordering::Relaxed), 1);
    assert_eq!(broker.target.read(1).len(), 1);
}
