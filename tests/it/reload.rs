//! What is taken up without a restart: token files when they change; on SIGHUP apps, tokens and the log's level.
//! A faulty state keeps the old one, and no token is ever shown.

use std::fs;

use crate::bridge::{APP, Bridge, body, eventually, now, signed_by};
use crate::http;

/// Whether a callback with this token is accepted now. The topic is new each time.
fn accepts(bridge: &Bridge, app: u64, token: &str) -> bool {
    let topic = format!("topic {}", fastrand::u64(..));
    let target = signed_by(app, token, now());
    http::post(bridge.ingress, &target, body(&topic).as_bytes()).status == 200
}

fn changes(bridge: &Bridge, message: &str, field: &str) -> Vec<String> {
    let lines = bridge.logged(message).into_iter();
    lines.map(|line| line["fields"][field].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_changed_token_file_is_taken_up_and_a_faulty_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "first-secret\n").unwrap();
    let apps = format!("[{{sdk_app_id={APP},tokens=[\"inline-secret\"],token_files=[{file:?}]}}]");
    let bridge = Bridge::start(&[("apps", &apps)]);
    assert!(accepts(&bridge, APP, "first-secret"));
    fs::write(&file, "second-secret").unwrap();
    eventually("the new one counts", || accepts(&bridge, APP, "second-secret").then_some(()));
    assert!(!accepts(&bridge, APP, "first-secret"));
    assert!(accepts(&bridge, APP, "inline-secret"));
    let taken_up = || changes(&bridge, "took up a changed token file", "change");
    let expected = [format!("app {APP}: tokens added: 1, removed: 1")];
    eventually("it is told", || (taken_up() == expected).then_some(()));

    let refused = || changes(&bridge, "a changed token file cannot be used", "reason");
    fs::write(&file, "").unwrap();
    eventually("the empty one is noticed", || (refused().len() == 1).then_some(()));
    fs::remove_file(&file).unwrap();
    eventually("that it is gone is noticed", || (refused().len() == 2).then_some(()));
    assert!(accepts(&bridge, APP, "second-secret"), "the old one stays in use");
    let renamed = folder.path().join("renamed");
    fs::write(&renamed, "third-secret").unwrap();
    fs::rename(&renamed, &file).unwrap();
    eventually("the mended one counts", || accepts(&bridge, APP, "third-secret").then_some(()));
    assert_eq!(refused().len(), 2, "each fault is told once");
    assert!(!bridge.log().contains("-secret"), "{}", bridge.log());
}

#[test]
fn sighup_takes_up_apps_tokens_and_the_logs_level_and_names_what_needs_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bridge.toml");
    let app = |id: u64, token: &str| format!("[[apps]]\nsdk_app_id = {id}\ntokens = [{token:?}]\n");
    let write = |more: &str| fs::write(&file, more).unwrap();
    write(&(app(1, "one-secret") + &app(2, "two-secret")));
    let bridge = Bridge::start_without_apps(|command| {
        command.arg("--config").arg(&file);
    });
    assert!(accepts(&bridge, 1, "one-secret") && accepts(&bridge, 2, "two-secret"));
    assert_eq!(bridge.logged("took a callback").len(), 0);

    write(&(app(1, "new-secret") + &app(3, "three-secret") + "[log]\nlevel = \"debug\"\n"));
    bridge.signal("HUP");
    eventually("the new app counts", || accepts(&bridge, 3, "three-secret").then_some(()));
    assert!(accepts(&bridge, 1, "new-secret"));
    assert!(!accepts(&bridge, 1, "one-secret") && !accepts(&bridge, 2, "two-secret"));
    let taken_up = || changes(&bridge, "took up the configuration", "changes");
    let expected = "app 1: tokens added: 1, removed: 1; app 3 is new; app 2 is gone; \
                    log.level is now debug";
    eventually("it is told", || (taken_up() == [expected]).then_some(()));
    let is_talkative = || (!bridge.logged("took a callback").is_empty()).then_some(());
    eventually("it is more talkative", is_talkative);

    write(&(app(1, "newer-secret") + "[relay]\nbatch = 7\nbtach = 8\n"));
    bridge.signal("HUP");
    let refused = || changes(&bridge, "the configuration is not taken up", "faults");
    let faults = eventually("the fault is told", || refused().pop());
    assert!(faults.contains("relay.btach") && faults.contains("did you mean"), "{faults}");
    assert!(accepts(&bridge, 1, "new-secret"), "the old ones stay in force");

    write(&(app(1, "newer-secret") + "[relay]\nbatch = 7\n"));
    bridge.signal("HUP");
    eventually("it is taken up", || accepts(&bridge, 1, "newer-secret").then_some(()));
    let restarts = || changes(&bridge, "take a restart", "keys");
    eventually("it is told", || (restarts() == ["relay.batch"]).then_some(()));
    assert_eq!(refused().len(), 1);
    assert!(!bridge.log().contains("-secret"), "{}", bridge.log());
}
