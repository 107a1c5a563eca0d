//! What `--version` says the program is built from.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::command::topic_bridge;

#[test]
fn the_short_version_is_one_line_and_the_long_one_names_what_is_in_it() {
    let number = env!("CARGO_PKG_VERSION");
    assert_eq!(topic_bridge(&["-V"]).stdout, format!("topic-bridge {number}\n"));

    let version = topic_bridge(&["--version"]).stdout;
    let mut lines = version.lines();
    assert_eq!(lines.next(), Some(&*format!("topic-bridge {number}")));
    let lines: Vec<_> = lines.map(|line| line.split_once(' ').unwrap()).collect();
    let value = |name| lines.iter().find(|(found, _)| *found == name).unwrap().1.trim();

    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().unwrap();
    let locked = |name| {
        let mut packages = lock["package"].as_array().unwrap().iter();
        packages.find(|package| package["name"].as_str() == Some(name)).unwrap()["version"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(value("SQLite"), rusqlite::version());
    assert_eq!(value("TLS"), format!("rustls {}, ring {}", locked("rustls"), locked("ring")));
    assert!(value("Rust").starts_with("1."), "{version}");
    if cfg!(all(feature = "kafka", feature = "nats", feature = "rabbitmq")) {
        let (openssl, librdkafka) = (locked("openssl-src"), locked("rdkafka-sys"));
        let after_plus = |version: &str| version.split_once('+').unwrap().1.to_owned();
        let expected = format!("{}, OpenSSL {}", after_plus(&librdkafka), after_plus(&openssl));
        assert_eq!(value("librdkafka"), expected);
        assert_eq!(value("features"), "kafka, nats, rabbitmq");
    }
    let commit = value("commit").trim_end_matches("-dirty");
    let is_hash = commit.len() >= 12 && commit.chars().all(|char| char.is_ascii_hexdigit());
    assert!(is_hash || commit == "unknown", "{commit}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The build script, compiled, and folders to run it in.
struct Script {
    home: TempDir,
}

impl Script {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut rustc = Command::new("rustc");
        rustc.args(["--edition", "2024", "-o"]).arg(home.path().join("script"));
        assert!(rustc.arg(root().join("build.rs")).status().unwrap().success());
        Script { home }
    }

    /// A folder with sources, as from a tarball.
    fn unpack(&self, name: &str) -> PathBuf {
        let folder = self.home.path().join(name);
        std::fs::create_dir_all(folder.join("src")).unwrap();
        std::fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
        std::fs::write(folder.join("src/main.rs"), "fn main() {}").unwrap();
        std::fs::write(folder.join("README.md"), "read me").unwrap();
        folder
    }

    fn run(&self, folder: &Path, variables: &[(&str, &str)]) -> Told {
        let mut script = Command::new(self.home.path().join("script"));
        script.current_dir(folder).env("RUSTC", "rustc").env("PROFILE", "debug");
        script.env_remove("GIT_COMMIT").envs(variables.iter().copied());
        let output = script.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Told { folder: folder.to_owned(), text: String::from_utf8(output.stdout).unwrap() }
    }

    fn commit(&self, folder: &Path) -> String {
        self.run(folder, &[]).commit()
    }
}

/// What it told cargo.
struct Told {
    folder: PathBuf,
    text: String,
}

impl Told {
    fn values(&self, prefix: &str) -> Vec<String> {
        self.text.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    fn commit(&self) -> String {
        self.values("cargo:rustc-env=BUILT_WITH_COMMIT=").pop().unwrap()
    }

    /// What belongs to git of the files that are to start the script again.
    fn watched(&self) -> Vec<PathBuf> {
        let paths = self.values("cargo:rerun-if-changed=");
        let paths: Vec<_> = paths.iter().map(|path| self.folder.join(path)).collect();
        let missing = paths.iter().find(|path| !path.exists());
        assert_eq!(missing, None, "cargo would start the script each time");
        paths.into_iter().filter(|path| path.to_str().unwrap().contains(".git")).collect()
    }
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut git = Command::new("git");
    git.current_dir(folder).args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(arguments);
    for variable in ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"] {
        git.env_remove(variable);
    }
    let output = git.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn commit_all(folder: &Path) -> String {
    git(folder, &["add", "--all"]);
    git(folder, &["commit", "--quiet", "--message", "more"]);
    git(folder, &["rev-parse", "--short=12", "HEAD"])
}

#[test]
fn without_a_repository_the_commit_is_the_one_that_is_given() {
    let script = Script::new();
    let outer = script.unpack("outer");
    let inner = script.unpack("outer/inner");
    assert_eq!(script.commit(&outer), "unknown");
    git(&outer, &["init", "--quiet"]);
    commit_all(&outer);
    assert_eq!(script.commit(&inner), "unknown", "another project's repository");
    let given = |commit| script.run(&inner, &[("GIT_COMMIT", commit)]).commit();
    assert_eq!(given("0123456789ab"), "0123456789ab");
    assert_eq!(given(""), "unknown", "what a build argument is that nobody gives");
}

#[test]
fn the_commit_is_marked_where_what_the_program_is_built_from_was_modified() {
    let script = Script::new();
    let main = script.unpack("main");
    git(&main, &["init", "--quiet"]);
    let first = commit_all(&main);
    assert_eq!(script.commit(&main), first);
    git(&main, &["pack-refs", "--all"]);
    assert_eq!(script.commit(&main), first, "packed references");

    std::fs::write(main.join("README.md"), "changed").unwrap();
    assert_eq!(script.commit(&main), first, "it is not part of the program");
    std::fs::write(main.join("src/new.rs"), "").unwrap();
    assert_eq!(script.commit(&main), format!("{first}-dirty"), "a new file");
    let second = commit_all(&main);
    assert_eq!(script.commit(&main), second);
    std::fs::write(main.join("src/main.rs"), "fn main() { }").unwrap();
    assert_eq!(script.commit(&main), format!("{second}-dirty"));

    let linked = script.home.path().join("linked");
    git(&main, &["worktree", "add", "--quiet", linked.to_str().unwrap(), &first]);
    assert_eq!(script.commit(&linked), first, "a worktree has its own HEAD");
    let other = [("GIT_DIR", main.join(".git"))];
    let other = other.each_ref().map(|(name, path)| (*name, path.to_str().unwrap()));
    assert_eq!(script.run(&linked, &other).commit(), first, "as in a hook of another one");
}

#[test]
fn a_commit_makes_only_an_optimized_build_anew() {
    let script = Script::new();
    let main = script.unpack("main");
    git(&main, &["init", "--quiet"]);
    commit_all(&main);
    git(&main, &["pack-refs", "--all"]);
    let linked = script.home.path().join("linked");
    git(&main, &["worktree", "add", "--quiet", linked.to_str().unwrap()]);
    for folder in [&main, &linked] {
        assert_eq!(script.run(folder, &[]).watched(), Vec::<PathBuf>::new());
        let watched = script.run(folder, &[("PROFILE", "release")]).watched();
        let contents = || {
            let contents = watched.iter().map(|path| std::fs::read_to_string(path).unwrap());
            contents.collect::<String>()
        };
        let before = contents();
        std::fs::write(folder.join("src/main.rs"), "fn main() { } // more").unwrap();
        assert_eq!(contents(), before);
        commit_all(folder);
        assert_ne!(contents(), before, "{watched:?}");
    }
}

/// The sources that the image is built from are those that it is built from elsewhere.
#[test]
fn the_image_is_built_from_the_same_files() {
    let script = std::fs::read_to_string(root().join("build.rs")).unwrap();
    let ignored = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    let (_, sources) = script.split_once("const SOURCES").unwrap();
    let (sources, _) = sources.split_once("];").unwrap();
    let sources: Vec<_> = sources.split('"').skip(1).step_by(2).collect();
    assert!(sources.contains(&"src"), "{sources:?}");
    for source in sources {
        assert!(ignored.lines().any(|line| line == format!("!{source}")), "{source}");
    }
}
