//! Libraries preloaded into the program under test, so that its disk and its clock misbehave.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds a library from a C file beside this one.
fn build(folder: &Path, name: &str) -> PathBuf {
    let library = folder.join(name).with_extension("so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(name);
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source.with_extension("c"));
    assert!(compiler.arg("-ldl").status().unwrap().success(), "{name} cannot be built");
    library
}

/// A disk that is faulty while the files of the library's variables are there.
pub(crate) fn faulty_disk(folder: &Path) -> PathBuf {
    build(folder, "faulty_disk")
}

/// What writes down all that is done to a file and those beside it.
pub(crate) fn recorder(folder: &Path) -> PathBuf {
    build(folder, "recorder")
}

/// A clock that can be set for one process alone.
pub(crate) struct Clock(PathBuf);

impl Clock {
    pub(crate) fn new(folder: &Path) -> Self {
        Clock(build(folder, "shifted_clock"))
    }

    /// A last word on a command, whose clock is so many seconds ahead of the machine's.
    pub(crate) fn ahead(&self, seconds: i64) -> impl FnOnce(&mut Command) {
        move |command| {
            command.env("LD_PRELOAD", &self.0).env("CLOCK_AHEAD_SECONDS", seconds.to_string());
        }
    }

    /// The same, and it can be set while the command runs, by what the file holds: so many seconds, in eight bytes.
    pub(crate) fn set_by(&self, file: &Path) -> impl FnOnce(&mut Command) {
        move |command| {
            command.env("LD_PRELOAD", &self.0).env("CLOCK_AHEAD_FILE", file);
        }
    }
}
