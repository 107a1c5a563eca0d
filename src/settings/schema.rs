//! `docs/schema/config.v1.json` against the keys that the program reads, both ways: which there are, what their
//! defaults and limits are, and which words they take. Only for tests.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Settings;
use crate::config::Keys;
use crate::schema::CONFIG;

/// Every key with its own schema. The properties of librdkafka and the apps count as one key each, as they do for
/// the program.
fn keys_of(schema: &Value, at: &str, found: &mut BTreeMap<String, Value>) {
    for (name, schema) in schema["properties"].as_object().unwrap() {
        let key = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match schema.get("properties") {
            Some(_) => {
                assert_eq!(schema["additionalProperties"], json!(false), "{key}");
                keys_of(schema, &key, found);
            }
            None => drop(found.insert(key, schema.clone())),
        }
    }
}

fn schemas() -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    keys_of(&serde_json::from_str(CONFIG.text).unwrap(), "", &mut found);
    found
}

#[test]
fn the_schema_has_exactly_the_keys_that_the_program_reads() {
    let mut keys = Keys::defaults();
    Settings::sections(&mut keys);
    let known: BTreeSet<_> = keys.known().iter().cloned().collect();
    let described: BTreeSet<_> = schemas().into_keys().collect();
    assert_eq!(described, known);
}

#[test]
fn the_schema_has_exactly_the_defaults_of_the_program() {
    let defaults: Value =
        toml::from_str(include_str!("../../config/default.toml")).expect("it is TOML");
    for (key, schema) in schemas() {
        let default = key.split('.').try_fold(&defaults, |at, name| at.get(name));
        assert_eq!(schema.get("default"), default, "{key}");
        assert!(schema["description"].as_str().is_some_and(|text| text.len() > 3), "{key}");
    }
}

/// Whether the program takes this value for the key; what it says of other keys beside it does not count.
fn takes(key: &str, value: &Value) -> bool {
    let set = [
        "apps=[{sdk_app_id=1,allow_unsigned=true}]".to_owned(),
        format!("{key}={}", value.as_str().map_or(value.to_string(), str::to_owned)),
    ];
    let Err(faults) = Settings::of(&set) else { return true };
    let is_contradiction =
        |fault: &str| fault.contains("longer than") || fault.contains("not in this build");
    let about_it = |fault: &&str| fault.starts_with(&format!("{key} ("));
    !faults
        .to_string()
        .lines()
        .map(str::trim)
        .filter(about_it)
        .any(|fault| !is_contradiction(fault))
}

#[test]
fn the_words_and_limits_of_the_schema_are_those_of_the_program() {
    for (key, schema) in schemas() {
        let words: Vec<_> = schema["enum"].as_array().into_iter().flatten().collect();
        for word in &words {
            assert!(takes(&key, word), "{key} = {word}");
        }
        if let Some(word) = words.first() {
            let wrong = json!(format!("{}x", word.as_str().unwrap()));
            assert!(!takes(&key, &wrong), "{key} = {wrong}");
        }
        for (limit, step) in [("minimum", -1), ("maximum", 1)] {
            let Some(limit) = schema[limit].as_i64() else { continue };
            assert!(takes(&key, &json!(limit)), "{key} = {limit}");
            assert!(!takes(&key, &json!(limit + step)), "{key} = {}", limit + step);
        }
        if schema["minLength"] == 1 && schema.get("default").is_some() {
            assert!(!takes(&key, &json!("")), "{key} is empty");
        }
        if schema["$ref"] == "#/$defs/duration" || schema["$ref"] == "#/$defs/size" {
            assert!(!takes(&key, &json!("much")), "{key} = much");
        }
    }
}
