//! A small backend, as the platform's customers have it: it answers callbacks over kept-alive connections,
//! notes what it saw, and can be slow, silent, broken, or away.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mood {
    Answering,
    Slow(Duration),
    /// Reads, and says nothing.
    Silent,
    /// Closes in the middle of its answer.
    Broken,
    /// Answers with so many bytes.
    Talkative(usize),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    /// The request line and each header, without line breaks.
    pub(crate) head: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let headers = self.head[1..].iter().filter_map(|line| line.split_once(':'));
        headers.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).next()
    }
}

#[derive(Default)]
struct State {
    mood: Option<Mood>,
    seen: Vec<Seen>,
    connections: Vec<TcpStream>,
    opened: usize,
    answered: usize,
    hung_up: usize,
    is_over: bool,
}

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    acceptor: Option<thread::JoinHandle<()>>,
}

impl Backend {
    pub(crate) fn start() -> Self {
        Self::on("127.0.0.1:0".parse().unwrap())
    }

    /// The same address once more.
    pub(crate) fn on(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { mood: Some(Mood::Answering), ..State::default() }));
        let shared = state.clone();
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let mut state = shared.lock().unwrap();
                if state.is_over {
                    return;
                }
                state.opened += 1;
                state.connections.push(stream.try_clone().unwrap());
                let shared = shared.clone();
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Backend { address, state, acceptor: Some(acceptor) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/im/callback?key=own", self.address)
    }

    pub(crate) fn becomes(&self, mood: Mood) {
        self.state.lock().unwrap().mood = Some(mood);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// How many connections were opened to it.
    pub(crate) fn opened(&self) -> usize {
        self.state.lock().unwrap().opened
    }

    /// How many answers it has written.
    pub(crate) fn answered(&self) -> usize {
        self.state.lock().unwrap().answered
    }

    /// How many callers were gone before it had worked out its answer.
    pub(crate) fn hung_up(&self) -> usize {
        self.state.lock().unwrap().hung_up
    }

    /// Ends it, with all its connections.
    pub(crate) fn kill(self) -> SocketAddr {
        self.address
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.state.lock().unwrap().is_over = true;
        let _ = TcpStream::connect(self.address); // wakes the acceptor
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for connection in &self.state.lock().unwrap().connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// The answer to a callback: a *before* callback is refused in the backend's own words.
fn answer(seen: &Seen) -> (&'static str, String) {
    if seen.head[0].contains("CallbackBefore") {
        let body = r#"{ "ActionStatus":"OK", "ErrorInfo":"no such words here", "ErrorCode":1, "Own":"ü" }"#;
        return ("200 As You Like", body.into());
    }
    if seen.head[0].contains("AfterSendMsg") {
        return ("418 I'm a teapot", "short and stout\n".into());
    }
    ("200 OK", r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0,"By":"backend"}"#.into())
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(seen) = read(&mut reader) {
        let mood = {
            let mut state = state.lock().unwrap();
            state.seen.push(seen.clone());
            state.mood.unwrap()
        };
        let (status, mut body) = answer(&seen);
        match mood {
            Mood::Answering | Mood::Broken => {}
            Mood::Slow(pause) => {
                thread::sleep(pause);
                stream.set_nonblocking(true).unwrap();
                let is_gone = matches!(stream.peek(&mut [0]), Ok(0));
                stream.set_nonblocking(false).unwrap();
                state.lock().unwrap().hung_up += usize::from(is_gone);
            }
            Mood::Silent => continue,
            Mood::Talkative(bytes) => body = "x".repeat(bytes),
        }
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/x-own; charset=UTF-8\r\nX-Own: a\r\nX-Own: b\r\n\
             Date: Tue, 01 Jan 2019 00:00:00 GMT\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if mood == Mood::Broken {
            body.truncate(body.len() / 2);
        }
        if stream.write_all(format!("{head}{body}").as_bytes()).is_err() {
            return;
        }
        state.lock().unwrap().answered += 1;
        if mood == Mood::Broken {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The next request on a connection, if there is one.
fn read(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let mut seen = Seen { head, body: Vec::new() };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    seen.body.resize(length, 0);
    reader.read_exact(&mut seen.body).ok()?;
    Some(seen)
}
