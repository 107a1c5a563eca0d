//! A TCP proxy between the bridge and a broker; it refuses, cuts, resets, delays and freezes connections.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

/// Accepts and drops all connections until it is opened. Its threads end with their connections, the
/// one that accepts with the tests.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    broker: String,
    /// Kafka tells its clients where to connect to: here, not past the proxy.
    is_kafka: bool,
    address: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_open: bool,
    is_held_up: bool,
    /// How long whatever comes through waits, in each direction.
    delay: Duration,
    /// After how many bytes towards the broker each of the next connections is cut.
    cuts: VecDeque<usize>,
    cut: usize,
    resets: usize,
    /// Of all connections so far, the bridge's end.
    connections: Vec<TcpStream>,
}

impl Proxy {
    /// In front of a broker, given as `host:port`.
    pub(crate) fn start(broker: &str) -> Self {
        Self::launch(broker, false)
    }

    /// The same in front of Kafka, given by the address that it tells its clients.
    pub(crate) fn start_for_kafka(broker: &str) -> Self {
        Self::launch(broker, true)
    }

    fn launch(broker: &str, is_kafka: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, changed) = (Mutex::default(), Condvar::new());
        let broker = broker.to_owned();
        let inner = Arc::new(Inner { broker, is_kafka, address, state, changed });
        let accepting = inner.clone();
        thread::spawn(move || {
            for bridge in listener.incoming() {
                accepting.connect(bridge.unwrap());
            }
        });
        Proxy { address, inner }
    }

    /// Lets connections through from now on. The first of them are cut, each after that many bytes
    /// towards the broker; the others are not.
    pub(crate) fn open(&self, cuts: &[usize]) {
        let mut state = self.inner.state.lock().unwrap();
        state.is_open = true;
        state.cuts = cuts.iter().copied().collect();
    }

    /// Cuts all connections and lets no more through.
    pub(crate) fn close(&self) {
        let mut state = self.inner.state.lock().unwrap();
        state.is_open = false;
        for connection in &state.connections {
            let _ = connection.shutdown(Shutdown::Both); // it may be closed already
        }
    }

    /// Ends all connections as a host that has forgotten them does; new ones come through.
    pub(crate) fn reset(&self) {
        let mut state = self.inner.state.lock().unwrap();
        state.resets += 1;
        for connection in state.connections.drain(..) {
            // With no time to linger, closing it is a reset; it is closed once nobody reads it any more.
            let _ = SockRef::from(&connection).set_linger(Some(Duration::ZERO));
            let _ = connection.shutdown(Shutdown::Read); // it may be closed already
        }
    }

    /// Makes whatever comes through wait for so long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.inner.state.lock().unwrap().delay = delay;
    }

    /// How many connections were let through.
    pub(crate) fn opened(&self) -> usize {
        self.inner.state.lock().unwrap().connections.len()
    }

    /// How many connections were cut after their number of bytes.
    pub(crate) fn cut(&self) -> usize {
        self.inner.state.lock().unwrap().cut
    }

    /// Lets nothing through in either direction, or lets it go on, as a broker that is frozen does.
    pub(crate) fn hold_up(&self, is_held_up: bool) {
        self.inner.state.lock().unwrap().is_held_up = is_held_up;
        self.inner.changed.notify_all();
    }
}

/// With after how many bytes the connection is cut.
#[derive(Clone, Copy)]
enum Direction {
    ToBroker(Option<usize>),
    ToBridge,
}

impl Inner {
    fn connect(self: &Arc<Self>, bridge: TcpStream) {
        let (limit, resets) = {
            let mut state = self.state.lock().unwrap();
            if !state.is_open {
                return;
            }
            state.connections.push(bridge.try_clone().unwrap());
            (state.cuts.pop_front(), state.resets)
        };
        let Ok(broker) = TcpStream::connect(&self.broker) else { return };
        let (to_bridge, to_broker) = (bridge.try_clone().unwrap(), broker.try_clone().unwrap());
        let (there, back) = (self.clone(), self.clone());
        thread::spawn(move || there.carry(bridge, to_broker, Direction::ToBroker(limit), resets));
        thread::spawn(move || back.carry(broker, to_bridge, Direction::ToBridge, resets));
    }

    /// Ends both directions when either side closes, or once the connection is to be cut.
    fn carry(&self, mut from: TcpStream, mut to: TcpStream, way: Direction, resets: usize) {
        let mut left = match way {
            Direction::ToBroker(limit) => limit.unwrap_or(usize::MAX),
            Direction::ToBridge => usize::MAX,
        };
        while left > 0 {
            let Some(bytes) = self.read(&mut from, way) else { break };
            let held_up = self.state.lock().unwrap();
            let state = self.changed.wait_while(held_up, |state| state.is_held_up).unwrap();
            let delay = state.delay;
            drop(state);
            thread::sleep(delay);
            let through = bytes.len().min(left);
            if to.write_all(&bytes[..through]).is_err() {
                break;
            }
            left -= through;
        }
        let mut state = self.state.lock().unwrap();
        state.cut += usize::from(left == 0);
        let is_reset = state.resets > resets;
        drop(state);
        let (bridge, broker) = match way {
            Direction::ToBroker(_) => (from, to),
            Direction::ToBridge => (to, from),
        };
        let _ = broker.shutdown(Shutdown::Both);
        if !is_reset {
            let _ = bridge.shutdown(Shutdown::Both); // would be an orderly end
        }
    }

    /// What comes next; from Kafka a whole answer, in which its address is replaced by the proxy's.
    fn read(&self, from: &mut TcpStream, way: Direction) -> Option<Vec<u8>> {
        if !(self.is_kafka && matches!(way, Direction::ToBridge)) {
            let mut bytes = vec![0; 4096];
            let read = from.read(&mut bytes).ok().filter(|read| *read > 0)?;
            bytes.truncate(read);
            return Some(bytes);
        }
        let mut length = [0; 4];
        from.read_exact(&mut length).ok()?;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        from.read_exact(&mut answer).ok()?;
        let (host, port) = self.broker.rsplit_once(':').unwrap();
        let wire = |port: u16| [host.as_bytes(), &u32::from(port).to_be_bytes()].concat();
        let (told, own) = (wire(port.parse().unwrap()), wire(self.address.port()));
        for at in 0..(answer.len() + 1).saturating_sub(told.len()) {
            if answer[at..].starts_with(&told) {
                answer[at..at + own.len()].copy_from_slice(&own);
            }
        }
        Some([&length[..], &answer].concat())
    }
}
