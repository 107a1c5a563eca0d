//! `[otlp]`.

use url::Url;

use crate::config::value::{filled, share, text};
use crate::config::{Keys, Value};

#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "read and checked all the same"))]
pub(crate) struct Config {
    /// Where OTLP over HTTP is taken, without the path of a signal.
    pub(super) endpoint: Option<Url>,
    /// Of the traces that begin here; the rest follows who began them.
    pub(super) sample_ratio: f64,
    pub(super) service_name: String,
}

impl Config {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        Config {
            endpoint: keys.read("otlp.endpoint", endpoint),
            sample_ratio: keys.read("otlp.sample_ratio", share),
            service_name: keys.read("otlp.service_name", filled),
        }
    }
}

fn endpoint(value: &Value) -> Result<Option<Url>, String> {
    let text = text(value)?.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if !cfg!(feature = "otlp") {
        return Err(
            "spans are not in this build: build with --features otlp, or leave it empty".into()
        );
    }
    let example = "write it as \"http://127.0.0.1:4318\"";
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}): {example}"))?;
    if !["http", "https"].contains(&url.scheme()) {
        return Err(format!(
            "begins with {}:, which is not OTLP over HTTP: {example}",
            url.scheme()
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The environment is not shown by `check`.
        return Err("holds a user or a password: put them into OTEL_EXPORTER_OTLP_HEADERS".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("has a query or a fragment: {example}"));
    }
    Ok(Some(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_the_address_of_a_collector_or_nothing() {
        assert_eq!(endpoint(&Value::from("")).unwrap(), None);
        let check = |text: &str| endpoint(&Value::from(text)).map(|url| url.unwrap().to_string());
        if !cfg!(feature = "otlp") {
            assert!(check("http://127.0.0.1:4318").unwrap_err().contains("--features otlp"));
            return;
        }
        assert_eq!(check("http://127.0.0.1:4318").unwrap(), "http://127.0.0.1:4318/");
        assert_eq!(check("https://otlp.example/tenant").unwrap(), "https://otlp.example/tenant");
        for (text, expected) in [
            ("127.0.0.1:4318", "is not a URL"),
            ("collector:4317", "begins with collector:"),
            ("http://user:secret@h:4318", "holds a user or a password"),
            ("http://h:4318/?key=secret", "has a query"),
        ] {
            let reason = check(text).unwrap_err();
            assert!(reason.starts_with(expected) && !reason.contains("secret"), "{text}: {reason}");
        }
    }
}
