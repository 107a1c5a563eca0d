//! What the documents say of the configuration, against the program. Only for tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Settings;
use crate::config::Keys;

/// README.md and the pages under docs/.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.chain([root.join("README.md")]).collect()
}

/// Files that a sample names need not be there, and an app may stand in another sample.
#[test]
fn every_sample_in_the_documents_is_a_valid_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bridge.toml");
    let mut samples = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let indent: usize = block.len() - block.trim_start_matches(' ').len();
            let block = block.split("```").next().unwrap();
            let sample: Vec<_> =
                block.lines().map(|line| line.get(indent..).unwrap_or_default()).collect();
            let mut sample = sample.join("\n");
            if !sample.contains("[[apps]]") {
                sample += "\n[[apps]]\nsdk_app_id = 1\ntokens = [\"a token\"]\n";
            }
            fs::write(&file, &sample).unwrap();
            samples += 1;
            let Err(faults) = Settings::load_for_reading(Some(file.clone()), &[]) else { continue };
            let faults = faults.to_string();
            let wrong: Vec<_> = faults
                .lines()
                .skip(1)
                .filter(|fault| !fault.contains("cannot read /"))
                .filter(|fault| cfg!(feature = "otlp") || !fault.contains("--features otlp"))
                .collect();
            assert!(wrong.is_empty(), "{}: {sample}\n{faults}", page.display());
        }
    }
    assert!(samples >= 8, "only {samples} found: is the search broken?");
}

/// As docs/configuration.md writes them: `a.b`, `.c` stands for a.b and a.c, and a section for all that is in it.
fn documented() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let table = fs::read_to_string(path).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut keys = BTreeSet::new();
    for row in rows {
        let mut section = "";
        for key in row.split(" |").next().unwrap().split(", ") {
            let key = key.trim_matches('`');
            match key.strip_prefix('.') {
                Some(name) => keys.insert(format!("{section}.{name}")),
                None => {
                    section = key.rsplit_once('.').map_or("", |(section, _)| section);
                    keys.insert(key.to_owned())
                }
            };
        }
    }
    keys
}

#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq"))]
#[test]
fn the_table_of_the_keys_has_every_key_and_no_other() {
    let mut keys = Keys::defaults();
    Settings::sections(&mut keys);
    let known: BTreeSet<_> = keys.known().iter().cloned().collect();
    let documented = documented();
    let is_in = |key: &String, section: &String| key.starts_with(&format!("{section}."));
    let missing: Vec<_> = known
        .iter()
        .filter(|key| !documented.contains(*key))
        .filter(|key| !documented.contains(key.trim_end_matches("_file"))) // of a secret
        .filter(|key| !documented.iter().any(|section| is_in(key, section)))
        .collect();
    let unknown: Vec<_> = documented
        .iter()
        .filter(|key| !known.contains(*key))
        .filter(|section| !known.iter().any(|key| is_in(key, section)))
        .collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
}
