//! Whether a server works, asked in its own protocol.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::BOUND;

pub(super) struct Probe {
    pub(super) port: u16,
    question: &'static [u8],
    /// So much of the answer is read.
    length: u64,
    is_ready: fn(&[u8]) -> bool,
}

impl Probe {
    /// Asks for metadata (version 1, of no topic): a broker lists itself once it may lead partitions.
    pub(super) fn kafka(port: u16) -> Self {
        let question = b"\0\0\0\x0e\0\x03\0\x01\0\0\0\x01\xff\xff\0\0\0\0";
        Probe { port, question, length: 12, is_ready: |answer| answer.get(8..) > Some(&[0; 4]) }
    }

    /// AMQP's first exchange: RabbitMQ opens its listeners last, when all else runs.
    pub(super) fn rabbitmq(port: u16) -> Self {
        let is_start = |answer: &[u8]| answer.get(7..) == Some(b"\0\x0a\0\x0a");
        Probe { port, question: b"AMQP\0\0\x09\x01", length: 11, is_ready: is_start }
    }

    /// NATS says itself whether it serves, with JetStream and all streams restored.
    pub(super) fn nats(port: u16) -> Self {
        let question = b"GET /healthz HTTP/1.0\r\n\r\n";
        Probe { port, question, length: 12, is_ready: |answer| answer.ends_with(b" 200") }
    }

    /// Somebody listens.
    pub(super) fn port(port: u16) -> Self {
        Probe { port, question: b"", length: 0, is_ready: |_| true }
    }

    fn ask(&self) -> io::Result<bool> {
        let patience = Duration::from_secs(2);
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(self.question)?;
        let mut answer = Vec::new();
        stream.take(self.length).read_to_end(&mut answer)?;
        Ok((self.is_ready)(&answer))
    }

    /// Waits until the server works.
    pub(super) fn wait(
        &self,
        is_running: impl Fn() -> bool,
        logs: impl Fn() -> String,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            let answer = self.ask();
            if matches!(answer, Ok(true)) {
                return Ok(());
            }
            let fault = if !is_running() {
                "it ended while it started"
            } else if began.elapsed() > BOUND {
                "it does not work a minute after its start"
            } else {
                thread::sleep(Duration::from_millis(50));
                continue;
            };
            let log = logs();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("{fault} ({answer:?}): its log's end may say why:\n{}", tail.join("\n"));
        }
    }
}
