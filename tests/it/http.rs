//! As much HTTP/1.1 as the tests need, written by hand: a well-behaved client cannot send half a head or
//! a slow body, or hang up early.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than any limit that a test configures: what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Lower-case names.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// One connection, kept alive as long as both sides like.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { stream, unread: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends a request with a `Content-Length`, and no `Content-Type`.
    pub(crate) fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: &[u8],
    ) -> Reply {
        self.send(&head(method, target, headers, body.len()));
        // A refusal may come, and the connection go, before all of the body is out.
        let _ = self.stream.write_all(body);
        self.reply().expect("an answer")
    }

    /// The next answer, or nothing if the connection was closed before one.
    pub(crate) fn reply(&mut self) -> Option<Reply> {
        let end = loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break end;
            }
            if !self.read_more() {
                assert!(self.unread.is_empty(), "cut off in the head: {:?}", self.unread);
                return None;
            }
        };
        let head = String::from_utf8(self.unread.drain(..end + 4).collect()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let mut reply = Reply { status, headers, body: String::new() };
        let length = reply.header("content-length").map(|length| length.parse::<usize>().unwrap());
        let length = length.expect("answers of a known length");
        while self.unread.len() < length {
            assert!(self.read_more(), "cut off in the body");
        }
        reply.body = String::from_utf8(self.unread.drain(..length).collect()).unwrap();
        Some(reply)
    }

    /// Whatever comes until `enough` says so, or the end.
    pub(crate) fn read_until(&mut self, enough: impl Fn(&str) -> bool) -> String {
        while !enough(&String::from_utf8_lossy(&self.unread)) && self.read_more() {}
        String::from_utf8(std::mem::take(&mut self.unread)).unwrap()
    }

    /// Whether the other side closes without another byte.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && !self.read_more()
    }

    fn read_more(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(read) => {
                self.unread.extend_from_slice(&bytes[..read]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing came: {error}"),
        }
    }
}

pub(crate) fn head(method: &str, target: &str, headers: &[&str], length: usize) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n"
    )
    .into_bytes()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

pub(crate) fn post(address: SocketAddr, target: &str, body: &[u8]) -> Reply {
    Connection::open(address).request("POST", target, &[], body)
}

pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[&str],
    body: &[u8],
) -> Reply {
    Connection::open(address).request(method, target, headers, body)
}

/// A callback to a bridge that may be killed at any moment: without an answer it is an error.
pub(crate) fn try_post(address: SocketAddr, target: &str, body: &[u8]) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&head("POST", target, &["Connection: close"], body.len()))?;
    stream.write_all(body)?;
    let mut unread = Vec::new();
    stream.read_to_end(&mut unread)?;
    let mut connection = Connection { stream, unread };
    connection.reply().ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

pub(crate) fn get(address: SocketAddr, target: &str, headers: &[&str]) -> Reply {
    Connection::open(address).request("GET", target, headers, b"")
}

impl Connection {
    /// The head of an answer, and not a byte of what follows it.
    pub fn read_head(&mut self) -> String {
        let end = loop {
            match find(&self.unread, b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => assert!(self.read_more(), "cut off in the head"),
            }
        };
        String::from_utf8(self.unread.drain(..end).collect()).unwrap()
    }
}
