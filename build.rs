//! Finds out what the program is built from, for `--version`: the commit, the compiler, and the libraries that cannot
//! be asked for their version when it runs.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What the program is built from. A change to anything else does not mark the commit as modified.
const SOURCES: [&str; 8] = [
    ".cargo",
    "Cargo.lock",
    "Cargo.toml",
    "build.rs",
    "config",
    "docs/asyncapi.yaml",
    "docs/schema",
    "src",
];

fn main() -> Result<(), Box<dyn Error>> {
    SOURCES.into_iter().for_each(rerun_if_changed);
    tell("COMMIT", &commit().unwrap_or("unknown".to_owned()));
    let compiler = output(&env::var("RUSTC")?, &["--version"]).ok_or("rustc has no version")?;
    tell("RUSTC", compiler.trim_start_matches("rustc "));
    let lock = fs::read_to_string("Cargo.lock")?;
    for (name, package) in [("RUSTLS", "rustls"), ("RING", "ring")] {
        tell(name, locked(&lock, package).ok_or(format!("{package} is not in Cargo.lock"))?);
    }
    println!("cargo:rerun-if-env-changed=OPENSSL_NO_VENDOR");
    let is_vendored = env::var_os("OPENSSL_NO_VENDOR").is_none_or(|value| value == "0");
    let openssl = locked(&lock, "openssl-src").and_then(|version| version.split_once('+'));
    tell(
        "OPENSSL",
        openssl.filter(|_| is_vendored).map_or("of the system", |(_, version)| version),
    );
    Ok(())
}

fn tell(name: &str, value: &str) {
    println!("cargo:rustc-env=BUILT_WITH_{name}={value}");
}

/// A path that does not exist would start the build script each time.
fn rerun_if_changed(path: &str) {
    if Path::new(path).exists() {
        println!("cargo:rerun-if-changed={path}");
    }
}

/// The commit as GIT_COMMIT gives it, for builds without the repository, as in an image; or else the repository's.
fn commit() -> Option<String> {
    println!("cargo:rerun-if-env-changed=GIT_COMMIT");
    if let Ok(given) = env::var("GIT_COMMIT")
        && let Some(given) = given.split_whitespace().next()
    {
        return Some(given.chars().take(40).collect());
    }
    // Without its own repository this may be unpacked inside of another one.
    if !Path::new(".git").exists() {
        return None;
    }
    let hash = git(&["rev-parse", "--short=12", "HEAD"])?;
    // The log of HEAD grows with each commit, checkout and reset, in a worktree and with packed references too.
    // Without optimization a commit alone is not worth compiling everything again: such a build names the commit
    // that its sources were last changed on.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        for file in ["HEAD", "logs/HEAD"] {
            git(&["rev-parse", "--git-path", file])
                .as_deref()
                .into_iter()
                .for_each(rerun_if_changed);
        }
    }
    let is_modified = !git(&[&["status", "--porcelain", "--"][..], &SOURCES].concat())?.is_empty();
    Some(if is_modified { hash + "-dirty" } else { hash })
}

fn git(arguments: &[&str]) -> Option<String> {
    output("git", &[&["--no-optional-locks"], arguments].concat())
}

/// Without the variables that git sets for a hook, which name a repository.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    for variable in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"] {
        command.env_remove(variable);
    }
    let output = command.args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// The version of a package. Each of those that are asked for is there once.
fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, entry) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    entry.split('"').next()
}
