//! The mechanism of the configuration: layers (embedded defaults, the user's file, environment, flags) →
//! [`Keys`], from which each module reads its own keys → checked values. Nothing else reads the
//! environment. All faults are reported at once, each with its origin; a secret is never shown.

mod keys;
mod layers;
pub(crate) mod value;

pub(crate) use figment::value::{Dict, Value};
pub(crate) use keys::{Keys, suggest};

const DEFAULTS: &str = include_str!("../config/default.toml");

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} fault{}:\n  {}", .0.len(), if .0.len() == 1 { "" } else { "s" }, .0.join("\n  "))]
pub struct Faults(Vec<String>);

impl Faults {
    pub(crate) fn one(fault: String) -> Self {
        Faults(vec![fault])
    }
}
