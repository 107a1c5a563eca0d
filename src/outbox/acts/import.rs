//! Events from another outbox, or from a page of the event stream: a CloudEvent a line. They are read piece by
//! piece, and appended to the queue under their own ids. A faulty line ends the import; what came before it is
//! imported, and a second attempt skips it.

use std::mem;

use serde::Deserialize;
use uuid::Uuid;

use super::matching::Known;
use super::step::{Imported, Step};
use super::{Outbox, Record, Stopped, Tally};
use crate::callback::Text;
use crate::event::{id, recreated_id};
use crate::message::Envelope;
use crate::time::Timestamp;

/// Longer than any event: a body may have 16 MiB, and its event twice as much.
const MAX_LINE: usize = 40 << 20;

/// Events that are appended in one step: so many, and so many bytes.
const EVENTS: usize = 500;
const EVENTS_BYTES: usize = 1 << 20;

/// Cuts what arrives into lines.
#[derive(Default)]
struct Lines {
    unread: Vec<u8>,
    /// How far `unread` was searched for the end of a line.
    searched: usize,
    /// The number of the line that was returned last.
    number: u64,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next whole line that is not blank; at the end of the input also one without a line break.
    fn next(&mut self, is_end: bool) -> Result<Option<Vec<u8>>, Stopped> {
        loop {
            let found = self.unread[self.searched..].iter().position(|byte| *byte == b'\n');
            let end = match found {
                Some(at) => self.searched + at + 1,
                None if is_end && !self.unread.is_empty() => self.unread.len(),
                None if self.unread.len() > MAX_LINE => {
                    let line = self.number + 1;
                    return Err(format!("line {line} is longer than {MAX_LINE} bytes"));
                }
                None => {
                    self.searched = self.unread.len();
                    return Ok(None);
                }
            };
            let rest = self.unread.split_off(end);
            let line = mem::replace(&mut self.unread, rest);
            self.searched = 0;
            self.number += 1;
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

/// An import in progress.
pub(crate) struct Import {
    outbox: Outbox,
    is_rehearsal: bool,
    known: Known,
    lines: Lines,
    events: Vec<Imported>,
    bytes: usize,
    tally: Tally,
}

impl Import {
    /// Reads the ids of all that the outbox holds: until the end of the import, each takes some sixteen bytes of
    /// memory.
    pub(crate) async fn into(outbox: &Outbox, is_rehearsal: bool) -> Result<Self, Stopped> {
        let reader = outbox.reader().map_err(|error| error.to_string())?;
        let known = Known::read(&reader).await.map_err(|error| error.to_string())?;
        Ok(Import {
            outbox: outbox.clone(),
            is_rehearsal,
            known,
            lines: Lines::default(),
            events: Vec::new(),
            bytes: 0,
            tally: Tally::default(),
        })
    }

    /// Takes the next piece of the input.
    pub(crate) async fn push(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.lines.push(bytes);
        self.work(false).await
    }

    /// Ends the import: after all of the input, or for this reason.
    pub(crate) async fn end(mut self, result: Result<(), Stopped>) -> Tally {
        let result = match result {
            Ok(()) => self.work(true).await,
            stopped => stopped,
        };
        let flushed = self.flush().await;
        self.tally.stopped = result.and(flushed).err();
        self.tally
    }

    async fn work(&mut self, is_end: bool) -> Result<(), Stopped> {
        while let Some(line) = self.lines.next(is_end)? {
            let imported = read(&line).map_err(|reason| {
                format!("line {} is not an event of this bridge: {reason}", self.lines.number)
            })?;
            self.tally.matched += 1;
            if !self.known.insert(imported.record.event.id.as_bytes()) {
                self.tally.duplicates += 1;
                continue;
            }
            self.bytes += line.len();
            self.events.push(imported);
            if self.events.len() >= EVENTS || self.bytes >= EVENTS_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Stopped> {
        self.bytes = 0;
        let events = mem::take(&mut self.events);
        if events.is_empty() {
            return Ok(());
        }
        let step = Step::Append { events, is_rehearsal: self.is_rehearsal };
        self.outbox.step(step, &mut self.tally).await
    }
}

/// An event as `outbox export` and the pages of `/events` write it.
fn read(line: &[u8]) -> Result<Imported, String> {
    #[derive(Deserialize)]
    struct Outside<'a> {
        #[serde(borrow)]
        specversion: Text<'a>,
        #[serde(borrow)]
        data: Inside<'a>,
    }
    #[derive(Deserialize)]
    struct Inside<'a> {
        #[serde(borrow)]
        topic_id: Text<'a>,
        #[serde(borrow)]
        accepted_at: Text<'a>,
    }
    let text = std::str::from_utf8(line).map_err(|error| error.to_string())?.trim();
    let event = Envelope::open(text).map_err(explain)?;
    let Outside { specversion, data } = serde_json::from_str(text).map_err(explain)?;
    if specversion.0 != "1.0" {
        return Err("its specversion is not \"1.0\"".into());
    }
    if data.topic_id.0 != event.topic_id {
        return Err("its subject is not the topic_id of its data".into());
    }
    let accepted_at = Timestamp::parse_rfc3339(&data.accepted_at.0)
        .map_err(|_| "the accepted_at of its data is not a time".to_owned())?;
    let first_id = first_id(&event, accepted_at);
    let record = Record { accepted_at, event, traceparent: None, confirm: None };
    Ok(Imported { first_id, record })
}

/// serde's own message for a wrong type quotes the value, which may be a person's name; ours does not.
fn explain(error: serde_json::Error) -> String {
    let text = error.to_string();
    match error.classify() {
        serde_json::error::Category::Data if !text.starts_with("missing field") => {
            format!("a value at column {} is not of the type that it should be", error.column())
        }
        _ => text,
    }
}

/// The id of the topic's first creation: the event's own, unless it is a later one.
fn first_id(event: &Envelope, accepted_at: Timestamp) -> Uuid {
    let (app, topic) = (event.sdk_app_id, &event.topic_id);
    let candidates = [id(app, topic, None), id(app, topic, Some(event.time))];
    let is_first = |first: &&Uuid| recreated_id(**first, accepted_at) == event.id;
    *candidates.iter().find(is_first).unwrap_or(&event.id)
}
