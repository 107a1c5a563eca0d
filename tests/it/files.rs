//! The outbox's files: readable by their owner only, nothing left over next to them, and only where an
//! outbox can be.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::bridge::{APPS, Bridge, body, program, run};
use crate::outbox_file::beside;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn check_modes(bridge: &Bridge, what: &str) {
    assert_eq!(bridge.call(&body(what)).status, 200);
    for suffix in ["", "-wal", "-shm"] {
        let path = beside(&bridge.outbox(), suffix);
        assert_eq!(format!("{:o}", mode(&path)), "600", "{what}: {}", path.display());
    }
}

/// Puts a shell before the program that sets its umask.
fn with_umask(umask: &str) -> impl FnOnce(&mut Command) {
    move |command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        *command = shell;
    }
}

#[test]
fn the_outbox_is_for_its_owner_alone_whatever_the_umask() {
    for umask in ["000", "022", "077", "0177"] {
        let bridge = Bridge::start_with(&[], with_umask(umask));
        check_modes(&bridge, umask);
    }
}

#[test]
fn an_outbox_that_others_could_read_is_theirs_no_more() {
    let mut bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(&body("before")).status, 200);
    bridge.signal("KILL");
    bridge.ended();
    for suffix in ["", "-wal", "-shm"] {
        let path = beside(&bridge.outbox(), suffix);
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    let bridge = bridge.restart(&[]);
    check_modes(&bridge, "after a kill");
    assert_eq!(bridge.topic_ids(), ["before", "after a kill"]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: Result<fs::DirEntry, _>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

#[test]
fn nothing_but_the_database_is_left_beside_it() {
    let mut bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(&body("one")).status, 200);
    let expected = ["outbox.db", "outbox.db-reserve", "outbox.db-shm", "outbox.db-wal"];
    assert_eq!(names(bridge.home()), expected);
    bridge.stop();
    assert_eq!(names(bridge.home()), ["outbox.db"]);
}

/// The lock of an older release means nothing any more.
#[test]
fn a_lock_file_that_an_older_release_left_is_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.db");
    fs::write(beside(&path, ".lock"), "4711\n").unwrap();
    let mut bridge = Bridge::start(&[("outbox.path", path.to_str().unwrap())]);
    assert_eq!(bridge.call(&body("one")).status, 200);
    bridge.stop();
    assert_eq!(names(folder.path()), ["outbox.db"]);
}

/// A path where no outbox can be is one fault of the configuration, and nothing comes into being.
fn check_no_place(path: &str, why: &str) {
    for subcommand in ["check", "serve"] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        let mut command = program();
        command.current_dir(&folder).arg(subcommand);
        let path = format!("outbox.path={path}");
        for setting in ["ingress.listen=127.0.0.1:0", "admin.listen=127.0.0.1:0", path.as_str()] {
            command.args(["--set", setting]);
        }
        let ended = run(command.args(["--set", &format!("apps={APPS}")]));
        assert_eq!(ended.code, Some(78), "{subcommand} {path}: {ended:?}");
        for words in ["has 1 fault:", "outbox.path", why] {
            assert!(ended.stderr.contains(words), "{words:?} should be in {}", ended.stderr);
        }
        assert_eq!(names(folder.path()), ["folder"], "{subcommand} {path}");
        assert_eq!(names(&folder.path().join("folder")), Vec::<String>::new());
    }
}

#[test]
fn a_device_is_no_place_for_an_outbox() {
    check_no_place("/dev/null", "/dev/null");
}

#[test]
fn memory_is_no_place_for_an_outbox() {
    check_no_place(":memory:", ":memory:");
}

#[test]
fn a_folder_is_no_place_for_an_outbox() {
    check_no_place("folder", "folder");
}
