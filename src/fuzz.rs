//! Inputs from outside, altered at random: the samples in `tests/corpus/` with bits flipped, pieces taken out, put in
//! or exchanged. Runs with the other tests; `BRIDGE_FUZZ_CASES` makes it longer, and `BRIDGE_SEED` another.

use std::path::Path;

use fastrand::Rng;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::callback::{Callback, Query, digits};
use crate::config::Keys;
use crate::event::{self, TopicCreated};
use crate::message::Envelope;
use crate::secret::Secret;
use crate::settings::Settings;
use crate::signature::{App, verify};
use crate::time::Timestamp;

const CASES: usize = 20_000;

/// What a parser of ours or of others may stumble over.
const WORDS: [&[u8]; 18] = [
    b"\0",
    b"\"",
    b"\\",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"&",
    b"=",
    b"%",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"1e999",
    b"-1",
    b"18446744073709551616",
    b"99999999999999999999years",
    b"\r\n",
];

/// Shows the input that a test failed on.
struct Shown<'i>(&'i [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input: {}", self.0.escape_ascii());
        }
    }
}

/// Shows `see` every sample of a kind, and then altered ones.
pub(crate) fn each(kind: &str, mut see: impl FnMut(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(kind);
    let mut samples: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    samples.sort();
    let samples: Vec<_> = samples.into_iter().map(|path| std::fs::read(path).unwrap()).collect();
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let mut random = Rng::with_seed(number("BRIDGE_SEED").unwrap_or(7));
    let cases = number("BRIDGE_FUZZ_CASES").map_or(CASES, |cases| cases as usize);
    for case in 0..samples.len() + cases {
        let mut input = samples[case % samples.len()].clone();
        if case >= samples.len() {
            for _ in 0..random.usize(1..5) {
                alter(&mut input, &samples, &mut random);
            }
        }
        let shown = Shown(&input);
        see(&input);
        drop(shown);
    }
}

fn alter(input: &mut Vec<u8>, samples: &[Vec<u8>], random: &mut Rng) {
    if input.is_empty() {
        input.push(random.u8(..));
    }
    let at = random.usize(..input.len());
    let end = (at + random.usize(..16)).min(input.len());
    match random.u8(..8) {
        0 | 1 => input[at] ^= 1 << random.u8(..8),
        2 => input[at] = random.u8(..),
        3 => input.truncate(at),
        4 => drop(input.drain(at..end)),
        5 => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        6 => drop(input.splice(at..at, WORDS[random.usize(..WORDS.len())].iter().copied())),
        _ => {
            let other = &samples[random.usize(..samples.len())];
            let from = random.usize(..other.len());
            let to = (from + random.usize(..64)).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
    }
    input.truncate(1 << 16);
}

const TOKEN: &str = "0012345678";

fn apps() -> Vec<App> {
    let app = |sdk_app_id, tokens: &[&str], allow_unsigned| App {
        sdk_app_id,
        tokens: tokens.iter().map(|token| Secret::new((*token).to_owned())).collect(),
        allow_unsigned,
    };
    vec![app(1_400_000_000, &[TOKEN, "another"], false), app(7, &[], false)]
}

#[test]
fn only_a_right_signature_makes_a_callback_authentic() {
    let mut authentic = 0;
    each("query", |input| {
        let text = String::from_utf8_lossy(input);
        let Ok(verified) = verify(&apps(), Query::parse(&text), 1_669_872_112, 300) else { return };
        let query = verified.query();
        let (sign, time) = (query.sign.as_ref().unwrap(), query.request_time.as_ref().unwrap());
        let is_right = [TOKEN, "another"].iter().any(|token| {
            hex::encode(Sha256::digest(format!("{token}{time}"))).eq_ignore_ascii_case(sign)
        });
        assert!(is_right && verified.sdk_app_id == 1_400_000_000);
        assert!(digits(time).unwrap().abs_diff(1_669_872_112) <= 300);
        authentic += 1;
    });
    assert!(authentic > 0, "the sample is authentic");
}

#[test]
fn an_accepted_body_makes_an_event_that_strict_readers_read_and_that_comes_back_the_same() {
    let config = event::Config::read(&mut Keys::defaults());
    let apps = vec![App { sdk_app_id: 1, tokens: Vec::new(), allow_unsigned: true }];
    let mut accepted = 0;
    each("body", |input| {
        let Ok(callback) = Callback::parse(input) else { return };
        let query = Query::parse("SdkAppid=1&ClientIP=::1&OptPlatform=%00");
        let verified = verify(&apps, query, 0, 0).unwrap();
        let at = Timestamp::from_millis(1_800_000_000_000);
        let sealed = TopicCreated::new(&verified, callback, &config, at).seal();
        check_event(&sealed);
        accepted += 1;
    });
    assert!(accepted > 0, "the sample is accepted");
}

fn check_event(event: &Envelope) {
    let text = event.structured();
    let strict: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(strict["subject"], *event.topic_id);
    assert!(!text.contains('\n'), "an event is one line");
    assert_eq!(Envelope::open(&text).unwrap(), *event);
}

#[test]
fn a_stored_event_that_can_be_opened_comes_back_the_same() {
    let mut opened = 0;
    each("stored", |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let Ok(event) = Envelope::open(text) else { return };
        assert_eq!(Envelope::open(&event.structured()).unwrap(), event);
        opened += 1;
    });
    assert!(opened > 0, "the sample can be opened");
}

#[test]
fn a_faulty_configuration_is_refused_without_its_secrets() {
    const SECRET: &str = "hunter2-is-my-secret";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bridge.toml");
    let check = |settings: Result<Settings, crate::config::Faults>| match settings {
        Ok(settings) => {
            let shown = settings.effective_toml();
            let shown = shown.lines().find(|line| line.contains(SECRET));
            assert_eq!(shown, None);
        }
        Err(faults) => assert!(!faults.to_string().contains(SECRET), "{faults}"),
    };
    // A secret that moves to another key is none any more: these are altered in one place.
    let mut random = Rng::with_seed(3);
    let mut cases = 0;
    each("configuration", |input| {
        cases += 1;
        if cases % 40 != 0 && cases > 2 {
            return; // each takes a while
        }
        let is_whole = |sample: &str| {
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(sample)).unwrap()
        };
        let mut toml = is_whole("tests/corpus/configuration/whole");
        let mut set = is_whole("tests/corpus/configuration/set");
        if cases > 2 {
            for text in [&mut toml, &mut set] {
                let at = random.usize(..text.len());
                match random.bool() {
                    true => text[at] ^= 1 << random.u8(..7),
                    false => drop(
                        text.splice(at..at, WORDS[random.usize(..WORDS.len())].iter().copied()),
                    ),
                }
            }
        }
        std::fs::write(&file, &toml).unwrap();
        check(Settings::load_for_reading(Some(file.clone()), &[]));
        let set = String::from_utf8_lossy(&set);
        let set: Vec<_> = set.lines().map(str::to_owned).collect();
        check(Settings::load_for_reading(None, &set));
        // And what makes no sense at all makes no panic.
        std::fs::write(&file, input).unwrap();
        let _ = Settings::load_for_reading(Some(file.clone()), &[]);
    });
}
