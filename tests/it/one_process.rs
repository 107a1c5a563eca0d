//! One process has the outbox, whatever name it is opened by. A process that loses it, because its file
//! was deleted, replaced or moved, accepts nothing more and exits.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bridge::{Bridge, TOPIC_CREATED, body, is_delivered, run, signed};
use crate::http;
use crate::outbox_file::{beside, serve_on};

/// It is to take a second; a slow machine may need more.
const LONG: Duration = Duration::from_secs(15);

fn check_second_is_refused(link: impl FnOnce(&Path, &Path)) {
    let bridge = Bridge::start(&[]);
    let other_name = bridge.home().join("other-name.db");
    link(&bridge.outbox(), &other_name);
    let ended = run(&mut serve_on(&other_name));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let expected = format!("another topic-bridge (process {}) uses the outbox", bridge.pid());
    assert!(ended.stderr.contains(&expected), "{ended:?}");
    assert_eq!(bridge.call(&body("the first goes on")).status, 200);
    assert_eq!(bridge.topic_ids(), ["the first goes on"]);
}

#[test]
fn a_second_process_is_refused_that_comes_by_a_symbolic_link() {
    check_second_is_refused(|outbox, link| symlink(outbox, link).unwrap());
}

#[test]
fn a_second_process_is_refused_that_comes_by_a_hard_link() {
    check_second_is_refused(|outbox, link| fs::hard_link(outbox, link).unwrap());
}

#[test]
fn a_second_process_is_refused_that_comes_by_a_link_to_the_folder() {
    check_second_is_refused(|outbox, link| {
        let folder = link.with_extension("folder");
        symlink(outbox.parent().unwrap(), &folder).unwrap();
        symlink(folder.join(outbox.file_name().unwrap()), link).unwrap();
    });
}

/// It notices while nobody calls, and under load.
fn check_noticed(what: &str, harm: impl Fn(&Path)) {
    let mut idle = Bridge::start(&[]);
    assert_eq!(idle.call(&body("before")).status, 200);
    is_delivered(&idle);
    harm(&idle.outbox());
    check_ended(&mut idle, what);
    check_noticed_under_load(what, harm);
}

fn check_ended(bridge: &mut Bridge, what: &str) {
    assert_eq!(bridge.ended().code(), Some(1), "{what}");
    let log = bridge.log();
    assert!(log.contains("was deleted, moved or replaced"), "{what}: {log}");
}

/// Callbacks come all the while: from the moment the log tells of it none is answered OK.
fn check_noticed_under_load(what: &str, harm: impl Fn(&Path)) {
    let mut bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(&body("before")).status, 200);
    harm(&bridge.outbox());
    let began = Instant::now();
    let mut told = false;
    for number in 0.. {
        told = told || bridge.log().contains("was deleted, moved or replaced");
        let topic = format!("{what} {number}");
        let target = signed(TOPIC_CREATED, &[]);
        match http::try_post(bridge.ingress, &target, body(&topic).as_bytes()) {
            Ok(reply) if told => assert_eq!(reply.status, 503, "{what}: {}", bridge.log()),
            Ok(_) => assert!(began.elapsed() < LONG, "{what}: never noticed\n{}", bridge.log()),
            Err(_) => break, // it ended
        }
    }
    check_ended(&mut bridge, what);
}

fn replace_by_a_copy(path: &Path) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    fs::rename(copy, path).unwrap();
}

#[test]
fn a_bridge_ends_whose_outbox_is_deleted() {
    check_noticed("outbox deleted", |outbox| fs::remove_file(outbox).unwrap());
}

#[test]
fn a_bridge_ends_whose_outbox_is_replaced() {
    check_noticed("outbox replaced", replace_by_a_copy);
}

#[test]
fn a_bridge_ends_whose_outbox_is_moved_away() {
    let away = |outbox: &Path| fs::rename(outbox, outbox.with_extension("away")).unwrap();
    check_noticed("outbox moved", away);
}

#[test]
fn a_bridge_ends_whose_folder_is_moved_away() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    fs::create_dir(&here).unwrap();
    let path = here.join("outbox.db");
    let mut bridge = Bridge::start(&[("outbox.path", path.to_str().unwrap())]);
    fs::rename(&here, &there).unwrap();
    check_ended(&mut bridge, "folder moved");
}

#[test]
fn a_bridge_ends_whose_log_is_deleted() {
    check_noticed("log deleted", |outbox| fs::remove_file(beside(outbox, "-wal")).unwrap());
}

#[test]
fn a_bridge_ends_whose_log_is_replaced() {
    check_noticed("log replaced", |outbox| replace_by_a_copy(&beside(outbox, "-wal")));
}

#[test]
fn a_bridge_ends_whose_log_is_moved_away() {
    check_noticed("log moved", |outbox| {
        fs::rename(beside(outbox, "-wal"), outbox.with_extension("away")).unwrap();
    });
}
