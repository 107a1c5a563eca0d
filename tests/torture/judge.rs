//! The judge: reads the broker with somebody else's client and compares it with the ledger. It asks the bridge nothing.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::broker::{Kind, Target, python};
use crate::callback::Callback;
use crate::ledger::{Entry, Fate, Ledger};
use crate::verdict::{Counts, Verdict};

/// How long before such a fault an event may have been sent that waits for it, and how long after it one may be overtaken.
const DISORDER: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));

type Span = (Duration, Duration);

pub(crate) struct Judge {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) verdict: Verdict,
    prefix: String,
    seed: u64,
    /// The numbers of the callbacks in the order of the first copy of each.
    order: Vec<usize>,
    seen: HashMap<usize, String>,
    repeated: u64,
    /// When whatever was sent may have been confirmed and then deleted by us.
    excused: Vec<Span>,
}

impl Judge {
    pub(crate) fn new(ledger: Arc<Ledger>, prefix: &str, seed: u64) -> Self {
        Judge {
            ledger,
            verdict: Verdict::default(),
            prefix: prefix.to_owned(),
            seed,
            order: Vec::new(),
            seen: HashMap::new(),
            repeated: 0,
            excused: Vec::new(),
        }
    }

    pub(crate) fn check(&mut self, holds: bool, otherwise: &str) {
        if !holds {
            self.verdict.broken(otherwise);
        }
    }

    /// What was sent in this time and is not there was deleted by us.
    pub(crate) fn excuse(&mut self, from: Duration, to: Duration) {
        self.excused.push((from, to));
    }

    /// Reads all that is there. Whatever was answered OK until now has to be among it, so it is called when the backlog
    /// is empty and nothing is being sent; and once for each life of a topic, queue or stream.
    pub(crate) fn read(&mut self, target: &Target) {
        let entries = self.ledger.entries();
        let is_missing = |(number, entry): &(usize, &Entry)| {
            entry.fate == Fate::Ok && !self.seen.contains_key(number) && !self.is_excused(entry)
        };
        let missing = entries.iter().enumerate().filter(is_missing).count();
        let mut in_this_life = HashSet::new();
        for line in read(target, missing).lines() {
            let raw: Value = serde_json::from_str(line).unwrap();
            let event: Value = match serde_json::from_str(raw["body"].as_str().unwrap()) {
                Ok(event) => event,
                Err(error) => {
                    self.verdict.broken(&format!("not an event: {error}: {line}"));
                    continue;
                }
            };
            let is_first = in_this_life.insert(event["id"].to_string());
            if target.kind == Kind::Nats && !is_first {
                self.verdict.broken(&format!("JetStream stored a repeat: {}", event["id"]));
            }
            self.look_at(&event, &entries);
        }
        self.look_for_losses(&entries);
    }

    fn is_excused(&self, entry: &Entry) -> bool {
        self.excused.iter().any(|(from, to)| (*from..=*to).contains(&entry.sent))
    }

    fn look_at(&mut self, event: &Value, entries: &[Entry]) {
        let topic_id = event["data"]["topic_id"].as_str().unwrap_or_default();
        let number = topic_id.strip_prefix(&self.prefix).and_then(|number| number.parse().ok());
        let known = number.and_then(|number: usize| Some((number, entries.get(number)?)));
        let Some((number, entry)) = known else {
            self.verdict.invented(&format!("nobody sent {topic_id}"));
            return;
        };
        if entry.fate == Fate::NotSent || entry.is_forged {
            self.verdict.invented(&format!("{topic_id} is {:?}: {entry:?}", entry.fate));
        }
        let callback = Callback::draw(&self.prefix, self.seed, entry.lane, number);
        if let Err(difference) = check_event(event, &callback) {
            self.verdict.broken(&format!("{topic_id}: {difference}"));
        }
        let id = event["id"].as_str().unwrap_or_default();
        if id != callback.id() && !entry.is_over_a_step {
            self.verdict.broken(&format!("{topic_id} has the id {id}, not {}", callback.id()));
        }
        match self.seen.get(&number) {
            Some(first) if first == id => self.repeated += 1,
            Some(_) => {} // a re-creation, as the clock had it
            None => {
                self.seen.insert(number, id.to_owned());
                self.order.push(number);
            }
        }
    }

    fn look_for_losses(&mut self, entries: &[Entry]) {
        for (number, entry) in entries.iter().enumerate() {
            let is_missing = entry.fate == Fate::Ok && !self.seen.contains_key(&number);
            if is_missing && !self.is_excused(entry) {
                self.verdict.lost(number, &format!("{}{number}: {entry:?}", self.prefix));
            }
        }
    }

    /// After the last read; `faults` are the times of those that may break the order.
    pub(crate) fn judge(&mut self, faults: &[Span]) -> Counts {
        let entries = self.ledger.entries();
        let is = |fate: Fate| entries.iter().filter(|entry| entry.fate == fate).count() as u64;
        let mut refused: HashMap<u16, u64> = HashMap::new();
        for entry in &entries {
            if let Fate::Refused(status) = entry.fate {
                *refused.entry(status).or_default() += 1;
                let is_expected = status == 503 || entry.is_forged && status == 401;
                if !is_expected {
                    self.verdict.broken(&format!("answered {status}: {entry:?}"));
                }
            } else if entry.is_forged && entry.fate == Fate::Ok {
                self.verdict.broken(&format!("a forged callback was answered OK: {entry:?}"));
            }
        }
        let is_deleted = |(number, entry): &(usize, &Entry)| {
            let is_missing = entry.fate == Fate::Ok && !self.seen.contains_key(number);
            is_missing && self.is_excused(entry)
        };
        let deleted = entries.iter().enumerate().filter(is_deleted).count() as u64;
        let (inversions, disorder) = self.inversions(&entries, faults);
        if disorder > 0 {
            self.verdict.broken(&format!("{disorder} inversions that no fault explains"));
        }
        Counts {
            sent: entries.len() as u64,
            ok: is(Fate::Ok),
            refused,
            unknown: is(Fate::Unknown),
            not_sent: is(Fate::NotSent),
            delivered: self.seen.len() as u64,
            repeated: self.repeated,
            deleted,
            lost: self.verdict.lost.len() as u64,
            invented: self.verdict.invented,
            inversions,
        }
    }

    /// In each group, those that arrived after one that was sent later; and how many of them no fault explains. Only callbacks count that were answered OK at once: of all others it is not known when they came.
    fn inversions(&self, entries: &[Entry], faults: &[Span]) -> (u64, u64) {
        let (mut all, mut far) = (0, 0);
        let mut newest: HashMap<usize, usize> = HashMap::new();
        for number in &self.order {
            let entry = &entries[*number];
            if entry.fate != Fate::Ok || entry.sends != 1 {
                continue;
            }
            let newest = newest.entry(entry.lane).or_default();
            if *number < *newest {
                all += 1;
                let is_near = |(from, to): &Span| {
                    (from.saturating_sub(DISORDER.0)..=*to + DISORDER.1).contains(&entry.sent)
                };
                far += u64::from(!faults.iter().any(is_near));
            }
            *newest = (*newest).max(*number);
        }
        (all, far)
    }
}

/// Byte for byte, but for what only the bridge knows.
fn check_event(event: &Value, callback: &Callback) -> Result<(), String> {
    let mut data = event["data"].clone();
    let accepted = data.as_object_mut().and_then(|data| data.remove("accepted_at"));
    let accepted = accepted.and_then(|at| Some(at.as_str()?.to_owned())).unwrap_or_default();
    let time = match callback.event_time {
        None => accepted.clone(),
        Some(time) => {
            let time = std::time::UNIX_EPOCH + Duration::from_millis(time);
            humantime::format_rfc3339_millis(time).to_string()
        }
    };
    let data_of = &callback.data;
    let expected = [
        ("specversion", "1.0"),
        ("type", "chat.topic.created.v1"),
        ("source", "/apps/1400000000"),
        ("subject", data_of["topic_id"].as_str().unwrap()),
        ("partitionkey", data_of["group_id"].as_str().unwrap()),
        ("datacontenttype", "application/json"),
        ("dataschema", "urn:topic-bridge:schema:topic-created:v1"),
        ("time", &time),
    ];
    for (name, value) in expected {
        if event[name] != value {
            return Err(format!("{name} is {}, not {value:?}", event[name]));
        }
    }
    if humantime::parse_rfc3339(&accepted).is_err() {
        return Err(format!("accepted_at is {accepted:?}"));
    }
    if data != *data_of {
        return Err(format!("data is {data}, not {data_of}"));
    }
    Ok(())
}

/// What somebody else's client finds; if it waits in vain for `count` events, what there is.
fn read(target: &Target, count: usize) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/brokers/read.py");
    let mut command = Command::new(python());
    command.arg(script).args([target.kind.name(), &target.address, &target.name]);
    let output = command.arg(count.to_string()).output().unwrap();
    if !output.status.success() {
        println!("torture: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).unwrap()
}
