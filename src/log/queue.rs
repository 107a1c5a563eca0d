//! Lines on their way to stderr: a buffer of bounded size, and the thread that writes it. A line that does not fit
//! is dropped and counted, so no thread that logs ever waits for whoever reads the pipe.
//!
//! `tracing_appender::non_blocking` counts lines where this counts bytes, and at the end of a process whose stderr
//! nobody reads it prints to stdout, which blocks for ever where both are the same pipe.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Some two thousand lines may wait to be written, while as many more are being written.
const MAX_BYTES: usize = 512 << 10;

/// How long the end of the process waits for its last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    is_writing: bool,
    dropped: u64,
}

impl Queue {
    pub(super) fn start() -> Arc<Self> {
        // Its own descriptor: who holds the lock of std's stderr while the pipe is full would stop the report of a
        // panic, too.
        let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
        let queue = Self::new();
        if let Ok(stderr) = stderr {
            queue.clone().write_to(stderr);
        }
        queue // without stderr, or without a thread, all lines are dropped
    }

    fn new() -> Arc<Self> {
        Arc::new(Queue { waiting: Mutex::default(), changed: Condvar::new() })
    }

    fn write_to(self: Arc<Self>, mut to: impl Write + Send + 'static) {
        let write = move || {
            let (mut reported, mut is_read) = (0, false);
            loop {
                let (bytes, dropped) = self.take();
                // Now there is room for the report. Where nothing can be written, it would only be lost, too.
                if is_read && dropped > reported {
                    tracing::warn!(
                        lines = dropped - reported,
                        "log lines were dropped: stderr was not read as fast as they came"
                    );
                    reported = dropped;
                }
                is_read = to.write_all(&bytes).is_ok();
                self.wrote(&bytes, is_read);
            }
        };
        let _ = thread::Builder::new().name("log".into()).spawn(write);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.bytes.len() + line.len() > MAX_BYTES {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        self.changed.notify_all();
    }

    /// Everything that waits, as soon as there is something, and how many lines have been dropped so far.
    fn take(&self) -> (Vec<u8>, u64) {
        let waiting = self.lock();
        let waiting = self.changed.wait_while(waiting, |waiting| waiting.bytes.is_empty());
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        waiting.is_writing = true;
        (std::mem::take(&mut waiting.bytes), waiting.dropped)
    }

    fn wrote(&self, bytes: &[u8], is_written: bool) {
        let mut waiting = self.lock();
        waiting.is_writing = false;
        if !is_written {
            waiting.dropped += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        drop(waiting);
        self.changed.notify_all();
    }

    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    pub(super) fn flush(&self) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.bytes.is_empty();
        let _ = self.changed.wait_timeout_while(self.lock(), LAST_LINES, is_busy);
    }
}

/// `tracing_subscriber` writes each line with one call.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Takes one batch of lines for each word.
    struct Pipe {
        words: Receiver<()>,
        taken: Sender<Vec<u8>>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.words.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.taken.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn while_nobody_reads_lines_are_dropped_and_counted_and_nobody_waits() {
        let ((word, words), (taken, lines)) = (channel(), channel());
        let queue = Queue::new();
        queue.clone().write_to(Pipe { words, taken });
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let count = 4 * MAX_BYTES / line.len();
        for _ in 0..count {
            (&*queue).write_all(&line).unwrap();
        }
        let dropped = queue.dropped() as usize;
        let (least, most) = (count - 2 * MAX_BYTES / line.len(), count - MAX_BYTES / line.len());
        assert!((least..=most).contains(&dropped), "{dropped}");

        let mut written = 0;
        while written < count - dropped {
            word.send(()).unwrap();
            written += lines.recv().unwrap().len() / line.len();
        }
        queue.flush();
        drop(word);
        (&*queue).write_all(b"lost\nlost\n").unwrap();
        queue.flush();
        assert_eq!(queue.dropped() as usize, dropped + 2, "what could not be written");
    }
}
