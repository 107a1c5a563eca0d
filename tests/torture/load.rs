//! Callbacks as the platform sends them: signed, on kept-alive connections, with two seconds for each answer, and once
//! more where none came. Some are repeated at once, and some are forged.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock, RwLockWriteGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::bridge::{APP, TOPIC_CREATED, now, signed, signed_by};
use crate::callback::Callback;
use crate::http;
use crate::ledger::{Fate, Ledger};

/// Connections, each with one callback at a time, so that the order within its group is known.
const LANES: usize = 12;

/// The platform's.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct Load {
    shared: Arc<Shared>,
    lanes: Vec<JoinHandle<()>>,
}

struct Shared {
    prefix: String,
    seed: u64,
    /// Between two callbacks of a lane.
    pace: Duration,
    ledger: Arc<Ledger>,
    address: Mutex<SocketAddr>,
    /// How far the bridge's clock was moved by now.
    step: Arc<AtomicI64>,
    is_over: AtomicBool,
    /// Written by whoever wants quiet.
    quiet: RwLock<()>,
}

impl Load {
    pub(crate) fn start(
        prefix: &str,
        seed: u64,
        rate: f64,
        ledger: Arc<Ledger>,
        address: SocketAddr,
        step: Arc<AtomicI64>,
    ) -> Self {
        let shared = Arc::new(Shared {
            prefix: prefix.to_owned(),
            seed,
            pace: Duration::from_secs_f64(LANES as f64 / rate),
            ledger,
            address: Mutex::new(address),
            step,
            is_over: AtomicBool::new(false),
            quiet: RwLock::new(()),
        });
        let lane = |lane| {
            let shared = shared.clone();
            thread::spawn(move || shared.drive(lane))
        };
        let lanes = (0..LANES).map(lane).collect();
        Load { shared, lanes }
    }

    /// Where the bridge is from now on.
    pub(crate) fn moves_to(&self, address: SocketAddr) {
        *self.shared.address.lock().unwrap() = address;
    }

    /// Waits for the answers under way; nothing is sent as long as this is held.
    pub(crate) fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.shared.quiet.write().unwrap()
    }

    pub(crate) fn stop(&mut self) {
        self.shared.is_over.store(true, Relaxed);
        for lane in self.lanes.drain(..) {
            lane.join().unwrap();
        }
    }

    /// One more callback, on a connection of its own.
    pub(crate) fn one(&self) -> Fate {
        self.shared.call(LANES, false, &mut None)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Relaxed);
    }
}

impl Shared {
    fn drive(&self, lane: usize) {
        let mut draw = fastrand::Rng::with_seed(self.seed ^ lane as u64);
        let mut connection = None;
        let mut due = Instant::now() + self.pace.mul_f64(draw.f64());
        while !self.is_over.load(Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // A pause is not caught up with.
            due = (due + self.pace.mul_f64(0.5 + draw.f64())).max(Instant::now());
            let quiet = self.quiet.read().unwrap();
            let (is_forged, repeats) = (draw.u8(..100) == 0, draw.u8(..50) == 0);
            let fate = self.call_and_repeat(lane, is_forged, repeats, &mut connection);
            drop(quiet);
            if fate == Fate::NotSent {
                thread::sleep(Duration::from_millis(20)); // it is starting again
            }
        }
    }

    fn call(&self, lane: usize, is_forged: bool, connection: &mut Option<TcpStream>) -> Fate {
        self.call_and_repeat(lane, is_forged, false, connection)
    }

    /// As the platform does where it is told to, a callback without an answer in time is sent once more.
    fn call_and_repeat(
        &self,
        lane: usize,
        is_forged: bool,
        repeats: bool,
        connection: &mut Option<TcpStream>,
    ) -> Fate {
        let number = self.ledger.open(lane, is_forged);
        let callback = Callback::draw(&self.prefix, self.seed, lane, number);
        let mut post = || {
            let target = if is_forged {
                signed_by(APP, "somebody else's token", now())
            } else {
                signed(TOPIC_CREATED, &[])
            };
            let address = *self.address.lock().unwrap();
            exchange(connection, address, &target, callback.body.as_bytes())
        };
        let step = self.step.load(Relaxed);
        let fate = post();
        self.ledger.answered(number, fate, false);
        if !is_forged && (fate == Fate::Unknown || repeats && fate == Fate::Ok) {
            let again = post();
            self.ledger.answered(number, again, self.step.load(Relaxed) != step);
        }
        fate
    }
}

/// One callback and its answer, over the connection that is there or a new one.
fn exchange(kept: &mut Option<TcpStream>, address: SocketAddr, target: &str, body: &[u8]) -> Fate {
    let stream = kept.take().filter(|stream| stream.peer_addr().is_ok_and(|peer| peer == address));
    let is_open = |stream: &TcpStream| {
        let _ = stream.set_nonblocking(true);
        let looked = stream.peek(&mut [0]);
        let _ = stream.set_nonblocking(false);
        looked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    let mut stream = match stream.filter(is_open) {
        Some(stream) => stream,
        None => match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => stream,
            Err(_) => return Fate::NotSent,
        },
    };
    let _ = stream.set_nodelay(true);
    let request = [&http::head("POST", target, &[], body.len()), body].concat();
    match stream.write_all(&request).ok().and_then(|()| answer(&mut stream)) {
        None => Fate::Unknown,
        Some((status, is_ok)) => {
            *kept = Some(stream);
            if is_ok { Fate::Ok } else { Fate::Refused(status) }
        }
    }
}

/// Its status, and whether it says OK.
fn answer(stream: &mut TcpStream) -> Option<(u16, bool)> {
    let (began, mut bytes) = (Instant::now(), Vec::new());
    loop {
        let left = PATIENCE.checked_sub(began.elapsed()).filter(|left| !left.is_zero())?;
        stream.set_read_timeout(Some(left)).ok()?;
        let mut more = [0; 4096];
        let read = stream.read(&mut more).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&more[..read]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
        if body.len() < length.parse::<usize>().ok()? {
            continue;
        }
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let is_ok =
            status == 200 && body == r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;
        return Some((status, is_ok));
    }
}
