//! A TCP proxy between the bridge and a broker; it refuses, cuts and delays connections.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Accepts and drops all connections until it is opened. Its threads end with their connections, the
/// one that accepts with the tests.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    broker: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_open: bool,
    is_held_up: bool,
    /// After how many bytes towards the broker each of the next connections is cut.
    cuts: VecDeque<usize>,
    cut: usize,
    /// Of all connections so far, the bridge's end.
    connections: Vec<TcpStream>,
}

impl Proxy {
    /// In front of a broker, given as `host:port`.
    pub(crate) fn start(broker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, changed) = (Mutex::default(), Condvar::new());
        let inner = Arc::new(Inner { broker: broker.to_owned(), state, changed });
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

impl Inner {
    fn connect(self: &Arc<Self>, bridge: TcpStream) {
        let limit = {
            let mut state = self.state.lock().unwrap();
            if !state.is_open {
                return;
            }
            state.connections.push(bridge.try_clone().unwrap());
            state.cuts.pop_front()
        };
        let Ok(broker) = TcpStream::connect(&self.broker) else { return };
        let (to_bridge, to_broker) = (bridge.try_clone().unwrap(), broker.try_clone().unwrap());
        let (there, back) = (self.clone(), self.clone());
        thread::spawn(move || there.carry(bridge, to_broker, limit));
        thread::spawn(move || back.carry(broker, to_bridge, None));
    }

    /// Ends both directions when either side closes, or once `limit` bytes are through.
    fn carry(&self, mut from: TcpStream, mut to: TcpStream, limit: Option<usize>) {
        let mut left = limit.unwrap_or(usize::MAX);
        let mut bytes = [0; 4096];
        while left > 0 {
            let Ok(read @ 1..) = from.read(&mut bytes) else { break };
            let held_up = self.state.lock().unwrap();
            drop(self.changed.wait_while(held_up, |state| state.is_held_up).unwrap());
            let through = read.min(left);
            if to.write_all(&bytes[..through]).is_err() {
                break;
            }
            left -= through;
        }
        if left == 0 {
            self.state.lock().unwrap().cut += 1;
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
