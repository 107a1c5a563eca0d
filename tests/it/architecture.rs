//! Architecture rules that the compiler cannot check: which module may mention which, and which libraries.
//! `docs/architecture.md` explains them. Tests inside `src/` are exempt.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The modules from the top down: each mentions only those below it, so there is no circle.
const MODULES: [&str; 34] = [
    "main",
    "cli",
    "app",
    "reload",
    "settings",
    "admin",
    "ingress",
    "passthrough",
    "relay",
    "sink",
    "outbox",
    "spans",
    "server",
    "tls",
    "tasks",
    "requests",
    "metrics",
    "notify",
    "schema",
    "log",
    "event",
    "routing",
    "signature",
    "answer",
    "message",
    "callback",
    "trace",
    "verdict",
    "config",
    "secret",
    "watched",
    "time",
    "version",
    "lib",
];

/// What only some files may mention: the word, and where those files begin.
const OWNERS: [(&str, &[&str]); 14] = [
    ("axum", &["ingress", "admin"]),
    ("prometheus_client", &["metrics"]),
    ("procfs", &["metrics/process.rs"]),
    ("rusqlite", &["outbox"]),
    ("rdkafka", &["sink/kafka", "log.rs"]), // the log knows how talkative they are
    ("lapin", &["sink/rabbitmq", "log.rs"]),
    ("async_nats", &["sink/nats", "log.rs"]),
    ("figment", &["config", "settings.rs"]),
    ("opentelemetry", &["spans"]),
    ("sd_notify", &["notify.rs"]),
    ("env::var", &["config"]),
    ("SystemTime::now", &["time.rs", "cli/send"]),
    ("eprintln", &[]), // it panics where nobody reads stderr
    ("static ", &[]),  // nothing is global: two bridges run in one process
];

/// Pure: the time is an argument, and nothing is waited for, drawn or told.
const PURE: [&str; 10] = [
    "answer",
    "callback",
    "event",
    "message",
    "routing",
    "schema",
    "secret",
    "signature",
    "trace",
    "verdict",
];
const IMPURE: [&str; 6] = ["tokio", "tracing", "fastrand", "SystemTime", "Instant", "std::fs"];

struct Source {
    /// Below `src`.
    path: String,
    /// Code alone: no comments, no tests.
    code: String,
}

impl Source {
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap()
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            sources.push(Source { path: name, code: code_of(&text) });
        }
    }
    let of_tests: Vec<_> = sources.iter().flat_map(|source| test_modules(source, &root)).collect();
    sources.retain(|source| !of_tests.iter().any(|of_tests| source.path.starts_with(of_tests)));
    sources
}

/// The modules that are there for tests only, as the beginnings of their paths.
fn test_modules(source: &Source, root: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(root.join(&source.path)).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let folder = match source.path.trim_end_matches(".rs").trim_end_matches("/mod") {
        "lib" => String::new(),
        folder => format!("{folder}/"),
    };
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").filter_map(|pair| {
        let name = pair[1].trim_start_matches("pub(crate) ").strip_prefix("mod ")?;
        Some(format!("{folder}{}", name.strip_suffix(';')?))
    });
    declared.collect()
}

fn code_of(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code.lines().map(|line| match line.find("//") {
        Some(at) if !line[..at].contains('"') => &line[..at],
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_module_mentions_only_those_below_it() {
    for source in sources() {
        let module = source.module();
        let floor = MODULES.iter().position(|known| *known == module);
        let floor = floor.unwrap_or_else(|| panic!("{module} is in no place of MODULES"));
        let mentioned: BTreeSet<_> = source
            .code
            .match_indices("crate::")
            .map(|(at, _)| &source.code[at + "crate::".len()..])
            .flat_map(|rest| match rest.strip_prefix('{') {
                Some(list) => list.split('}').next().unwrap().split(',').collect(),
                None => vec![rest],
            })
            .map(|rest| rest.trim().split(|char: char| !char.is_alphanumeric() && char != '_'))
            .filter_map(|mut words| words.next().filter(|word| !word.is_empty()))
            .collect();
        for other in mentioned.into_iter().filter(|other| *other != module && module != "lib") {
            let is_below = MODULES[floor..].contains(&other);
            assert!(is_below, "src/{} mentions {other}, which is above it", source.path);
        }
    }
}

#[test]
fn each_library_has_its_module() {
    let mentions = |source: &Source, word: &str| {
        source.code.match_indices(word).any(|(at, _)| {
            let before = source.code[..at].chars().next_back();
            !before.is_some_and(|char| char.is_alphanumeric() || char == '_' || char == '\'')
        })
    };
    let sources = sources();
    for (word, owners) in OWNERS {
        for source in sources.iter().filter(|source| mentions(source, word)) {
            let is_owner = owners.iter().any(|owner| source.path.starts_with(owner));
            assert!(is_owner, "src/{} mentions {word}, which is for {owners:?}", source.path);
        }
        let is_used = owners.is_empty() || sources.iter().any(|source| mentions(source, word));
        assert!(is_used, "nobody mentions {word}: is the rule out of date?");
    }
    for source in sources.iter().filter(|source| PURE.contains(&source.module())) {
        for word in IMPURE {
            assert!(!mentions(source, word), "src/{} is pure, and mentions {word}", source.path);
        }
    }
}

/// A file that is longer wants to be two, a function that is longer wants a name for its parts.
#[test]
fn files_and_functions_stay_short() {
    for folder in ["src", "tests", "benches", "examples"] {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    check_length(&path);
                }
            }
        }
    }
}

fn check_length(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() <= 450, "{} has {} lines", path.display(), lines.len());
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let is_function = line.trim_start().split(' ').take(4).any(|word| word == "fn");
        if is_function && !line.ends_with([';', '}']) {
            let end = format!("{}}}", " ".repeat(indent));
            let length = lines[at..].iter().position(|line| *line == end).unwrap_or(0) + 1;
            assert!(length <= 60, "{}: {} has {length} lines", path.display(), line.trim());
        }
    }
}
