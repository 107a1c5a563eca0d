//! A disk that forgets: what was done to files, as `recorder.c` wrote it down, and what may be left of it
//! when the power fails at any moment.
//!
//! What is assumed of a disk and its file system: a sync that has ended keeps what was written before it
//! began; without one each 512 bytes, or each 4 KiB, of a write are there or not, on their own and in any
//! order, and so is a change of a file's length; a file's name is there once the file or its folder was
//! synced, and until then what had the name before.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// An entry of the record.
struct Entry {
    kind: u8,
    /// The file's name in its folder.
    name: String,
    number: u64,
    bytes: Vec<u8>,
    /// Where it ends in the record.
    end: u64,
}

pub(super) struct Record(Vec<Entry>);

impl Record {
    pub(super) fn read(path: &Path) -> Self {
        let text = fs::read(path).unwrap();
        let (mut entries, mut at) = (Vec::new(), 0);
        let number = |at: usize, bytes: usize| {
            let mut word = [0; 8];
            word[..bytes].copy_from_slice(&text[at..at + bytes]);
            u64::from_le_bytes(word)
        };
        while at + 15 <= text.len() {
            let path_end = at + 15 + number(at + 1, 2) as usize;
            let end = path_end + number(at + 11, 4) as usize;
            if end > text.len() {
                break; // killed while it was written
            }
            let path = String::from_utf8(text[at + 15..path_end].to_vec()).unwrap();
            let name = Path::new(&path).file_name().unwrap().to_str().unwrap().to_owned();
            let (kind, number) = (text[at], number(at + 3, 8));
            entries.push(Entry {
                kind,
                name,
                number,
                bytes: text[path_end..end].to_vec(),
                end: end as u64,
            });
            at = end;
        }
        Record(entries)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first cut that comes after this place in the record.
    pub(super) fn cut_at(&self, mark: u64) -> usize {
        self.0.partition_point(|entry| entry.end <= mark)
    }

    /// Where the record stood at a cut: what was answered before has to be there.
    pub(super) fn mark_of(&self, cut: usize) -> u64 {
        cut.checked_sub(1).map_or(0, |last| self.0[last].end)
    }
}

/// A change that no sync has made sure of.
#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone, Default)]
struct File {
    durable: Vec<u8>,
    /// With the number of the entry.
    pending: Vec<(usize, Change)>,
    is_named: bool,
    /// What had the name before, if the folder may still say so.
    before: Option<Vec<u8>>,
}

#[derive(Clone, Default)]
pub(super) struct Disk {
    files: BTreeMap<String, File>,
    /// Removed names, with what they may still stand for.
    removed: BTreeMap<String, Vec<u8>>,
    begun: BTreeMap<u64, usize>,
}

/// How much of what was not synced is there after all.
#[derive(Debug, Clone, Copy)]
pub(super) enum Survivors {
    None,
    All,
    /// In order, up to some moment.
    First,
    /// Any of them, torn.
    Some,
}

impl Disk {
    /// A disk that holds what is in a folder.
    pub(super) fn of(folder: &Path) -> Self {
        let mut disk = Disk::default();
        for found in fs::read_dir(folder).unwrap() {
            let found = found.unwrap();
            let name = found.file_name().into_string().unwrap();
            if name.starts_with("outbox.db") && !name.ends_with("-shm") {
                let durable = fs::read(found.path()).unwrap();
                disk.files.insert(name, File { durable, is_named: true, ..File::default() });
            }
        }
        disk
    }

    /// What the disk has been told of when the entries from `from` to `to` are done.
    pub(super) fn advance(&mut self, record: &Record, from: usize, to: usize) {
        for (number, entry) in record.0.iter().enumerate().take(to).skip(from) {
            self.take(number, entry);
        }
    }

    fn take(&mut self, number: usize, entry: &Entry) {
        let at = usize::try_from(entry.number).unwrap_or(usize::MAX);
        match entry.kind {
            b'W' => {
                let change = Change::Write(at, entry.bytes.clone());
                self.file(&entry.name).pending.push((number, change));
            }
            b'T' => self.file(&entry.name).pending.push((number, Change::Length(at))),
            b'B' => {
                self.begun.insert(entry.number, number);
            }
            b'S' => {
                let begun = self.begun.remove(&entry.number).unwrap();
                let file = self.file(&entry.name);
                let (done, rest) =
                    std::mem::take(&mut file.pending).into_iter().partition(|(n, _)| *n < begun);
                file.pending = rest;
                let done: Vec<(usize, Change)> = done;
                for (_, change) in done {
                    change.apply(&mut file.durable);
                }
                file.is_named = true;
                file.before = None;
            }
            b'D' => {
                self.removed.clear();
                for file in self.files.values_mut() {
                    file.is_named = true;
                    file.before = None;
                }
            }
            b'U' => {
                if let Some(file) = self.files.remove(&entry.name) {
                    let left = if file.is_named { Some(file.durable) } else { file.before };
                    if let Some(left) = left {
                        self.removed.insert(entry.name.clone(), left);
                    }
                }
            }
            other => panic!("the record has an entry {other}"),
        }
    }

    fn file(&mut self, name: &str) -> &mut File {
        let removed = &mut self.removed;
        let create = || File { before: removed.remove(name), ..File::default() };
        self.files.entry(name.to_owned()).or_insert_with(create)
    }

    /// Writes what may be left after a power cut into an empty folder.
    pub(super) fn image(&self, folder: &Path, survivors: Survivors, random: &mut fastrand::Rng) {
        for (name, file) in &self.files {
            let is_there = file.is_named || matches!(survivors, Survivors::All) || random.bool();
            let content = match (is_there, &file.before) {
                (true, _) => file.content(survivors, random),
                (false, Some(before)) => before.clone(),
                (false, None) => continue,
            };
            fs::write(folder.join(name), content).unwrap();
        }
        for (name, left) in &self.removed {
            if !matches!(survivors, Survivors::All) && random.bool() {
                fs::write(folder.join(name), left).unwrap();
            }
        }
    }
}

impl File {
    fn content(&self, survivors: Survivors, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut content = self.durable.clone();
        let first = match survivors {
            Survivors::First => random.usize(..=self.pending.len()),
            Survivors::None => 0,
            Survivors::All | Survivors::Some => self.pending.len(),
        };
        for (_, change) in &self.pending[..first] {
            match survivors {
                Survivors::Some => change.apply_torn(&mut content, random),
                _ => change.apply(&mut content),
            }
        }
        content
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write(at, bytes) => put(content, *at, bytes),
            Change::Length(length) => content.resize(*length, 0),
        }
    }

    /// All of it, nothing, or any sectors of it.
    fn apply_torn(&self, content: &mut Vec<u8>, random: &mut fastrand::Rng) {
        match (self, random.u8(..4)) {
            (_, 0) => {}
            (Change::Write(at, bytes), 1 | 2) => {
                let sector = if random.bool() { 512 } else { 4096 };
                let mut from = 0;
                while from < bytes.len() {
                    let to = bytes.len().min(from + sector - (at + from) % sector);
                    if random.bool() {
                        put(content, at + from, &bytes[from..to]);
                    }
                    from = to;
                }
            }
            _ => self.apply(content),
        }
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}
