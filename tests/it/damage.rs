//! A damaged outbox: an event that is unreadable or altered is set aside and the queue moves on; a
//! damaged page ends the program with advice on how to recover.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::bridge::{Bridge, TOPIC_CREATED, body, is_delivered, program, run, signed};
use crate::broker::{self, Kind};
use crate::calls::topic_ids;
use crate::http::Connection;
use crate::outbox_file::{damage_event, list, number, serve_on};

/// So that all of it still waits when the damage is done.
const NO_SINK: [(&str, &str); 3] =
    [("sink", "nats"), ("nats.servers", "nats://127.0.0.1:1"), ("relay.drain_timeout", "100ms")];

fn stopped_with_events(count: usize) -> Bridge {
    let mut bridge = Bridge::start(&NO_SINK);
    let mut connection = Connection::open(bridge.ingress);
    for number in 1..=count {
        let body = body(&format!("topic {number}"));
        let target = signed(TOPIC_CREATED, &[]);
        assert_eq!(connection.request("POST", &target, &[], body.as_bytes()).status, 200);
    }
    bridge.stop();
    bridge
}

/// In the name, where the JSON stays good JSON.
fn name_of(event: &mut [u8]) -> &mut u8 {
    let name = b"MyFirstTopic";
    let at = event.windows(name.len()).position(|window| window == name).unwrap();
    &mut event[at]
}

fn invalid_utf8(event: &mut [u8]) {
    *name_of(event) = 0xff;
}

fn flipped_bit(event: &mut [u8]) {
    *name_of(event) ^= 1;
}

fn zeroed(event: &mut [u8]) {
    let half = event.len() / 2;
    event[half..].fill(0);
}

/// Eight events, of which the first, the fourth and the last are damaged.
const DAMAGED: [u64; 3] = [1, 4, 8];

fn damaged_outbox(damage: fn(&mut [u8])) -> Bridge {
    let bridge = stopped_with_events(8);
    for position in DAMAGED {
        damage_event(&bridge.outbox(), position, damage);
    }
    bridge
}

fn whole_topics() -> BTreeSet<String> {
    (1..=8).filter(|number| !DAMAGED.contains(number)).map(|n| format!("topic {n}")).collect()
}

fn check_set_aside(bridge: &Bridge) {
    is_delivered(bridge);
    let dead = list(&bridge.outbox(), &["--dead"]);
    let positions: Vec<_> = dead.iter().filter_map(|line| line["position"].as_u64()).collect();
    assert_eq!(positions, DAMAGED, "{dead:?}");
    for line in &dead {
        assert!(line["reason"].as_str().unwrap().contains("damaged"), "{line}");
    }
    assert_eq!(bridge.metric("topic_bridge_dead_letters"), 3.0);
    let shown: BTreeSet<_> = bridge.topic_ids().into_iter().collect();
    assert_eq!(shown, whole_topics(), "the event stream does not show what nobody sent");
    assert_eq!(bridge.call(&body("later")).status, 200);
    assert_eq!(bridge.topic_ids().last().map(String::as_str), Some("later"));
}

fn check_embedded(damage: fn(&mut [u8])) {
    let bridge = damaged_outbox(damage).restart(&[("sink", "embedded")]);
    check_set_aside(&bridge);
    // They are dead letters for good.
    let bridge = bridge.restart(&[]);
    is_delivered(&bridge);
    assert_eq!(list(&bridge.outbox(), &["--dead"]).len(), 3);
}

#[test]
fn an_event_with_an_invalid_byte_becomes_a_dead_letter() {
    check_embedded(invalid_utf8);
}

#[test]
fn an_event_with_a_flipped_bit_becomes_a_dead_letter() {
    check_embedded(flipped_bit);
}

#[test]
fn an_event_of_which_half_is_zeros_becomes_a_dead_letter() {
    check_embedded(zeroed);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_damaged_event_never_reaches_a_broker_and_the_others_do() {
    for damage in [invalid_utf8 as fn(&mut [u8]), flipped_bit] {
        let Some(broker) = broker::shared(Kind::Nats) else { return };
        let settings = broker.target.settings();
        let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let bridge = damaged_outbox(damage).restart(&settings);
        is_delivered(&bridge);
        assert_eq!(topic_ids(&broker.target.read(5)), whole_topics());
        check_set_aside(&bridge);
        is_delivered(&bridge);
        assert_eq!(broker.target.read(6).len(), 6, "each once, and `later`");
    }
}

/// Overwrites a page in the middle of those that hold events.
fn damage_page(outbox: &Path) {
    const LEAF_OF_A_TABLE: u8 = 0x0d;
    let page_size = number(outbox, "PRAGMA page_size") as usize;
    let mut bytes = fs::read(outbox).unwrap();
    let holds_events = |page: &[u8]| {
        page[0] == LEAF_OF_A_TABLE && page.windows(6).any(|window| window == b"topic ")
    };
    let pages = bytes.chunks_exact(page_size).enumerate().skip(1);
    let pages: Vec<_> =
        pages.filter(|(_, page)| holds_events(page)).map(|(number, _)| number).collect();
    assert!(pages.len() > 20, "only {} pages hold events", pages.len());
    let at = pages[pages.len() / 2] * page_size;
    bytes[at..at + page_size].fill(0xa5);
    fs::write(outbox, bytes).unwrap();
}

#[test]
fn a_damaged_page_ends_the_program_with_the_advice_that_helps() {
    const EVENTS: usize = 600;
    let bridge = stopped_with_events(EVENTS);
    let before: BTreeSet<_> = list(&bridge.outbox(), &[]).iter().map(event_of).collect();
    assert_eq!(before.len(), EVENTS);
    damage_page(&bridge.outbox());
    let ended = run(&mut serve_on(&bridge.outbox()));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for words in ["outbox check", "outbox salvage", bridge.outbox().to_str().unwrap()] {
        assert!(ended.stderr.contains(words), "{words:?} should be in {}", ended.stderr);
    }
    let damaged = fs::read(bridge.outbox()).unwrap();
    let again = run(&mut serve_on(&bridge.outbox()));
    assert_eq!((again.code, fs::read(bridge.outbox()).unwrap() == damaged), (Some(1), true));

    let new = bridge.home().join("outbox.db.new");
    let salvaged =
        run(program().args(["outbox", "salvage"]).arg(&new).arg("--path").arg(bridge.outbox()));
    assert_eq!(salvaged.code, Some(0), "{salvaged:?}");
    assert!(salvaged.stdout.contains("cannot be read"), "{}", salvaged.stdout);
    assert!(fs::read(bridge.outbox()).unwrap() == damaged, "it stays as it is");
    let recovered = Bridge::start(&[("outbox.path", new.to_str().unwrap())]);
    is_delivered(&recovered);
    let lost = recovered.metric("topic_bridge_dead_letters");
    assert!((1.0..20.0).contains(&lost), "{lost} stand for what is lost");
    let after: BTreeSet<_> = recovered.events().iter().map(Value::to_string).collect();
    assert!(after.is_subset(&before), "nothing is there that was not sent");
    assert!(after.len() + 20 >= EVENTS && after.len() < EVENTS, "{} are there", after.len());
    assert_eq!(recovered.call(&body("goes on")).status, 200);
    let positions: Vec<_> = list(&new, &[]).iter().map(|line| line["position"].as_u64()).collect();
    assert!(positions.is_sorted() && positions.last() == Some(&Some(EVENTS as u64 + 1)));
}

fn event_of(line: &Value) -> String {
    line["event"].to_string()
}
