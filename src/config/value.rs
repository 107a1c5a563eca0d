//! What a value may be. Each reader takes the native form and the text that a variable brings, and says
//! in words what it expected.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;
use tracing::level_filters::LevelFilter;

use crate::event::APP_PLACEHOLDER;

/// Text as such. A number or a flag is refused, for it may have lost zeros on the way.
pub(super) fn text(value: &Value) -> Result<&str, String> {
    let found = match value {
        Value::String(_, text) => return Ok(text),
        Value::Num(..) => "a number",
        Value::Bool(..) => "true or false",
        Value::Array(..) => "a list",
        Value::Dict(..) => "a table",
        _ => "something else",
    };
    Err(format!("found {found}, expected text: put it in quotes"))
}

pub(super) fn filled(value: &Value) -> Result<String, String> {
    match text(value)? {
        "" => Err("is empty".into()),
        text => Ok(text.to_owned()),
    }
}

pub(super) fn file(value: &Value) -> Result<PathBuf, String> {
    filled(value).map(PathBuf::from)
}

pub(super) fn flag(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(_, flag) => Ok(*flag),
        other => choice(other, &[("true", true), ("false", false)]),
    }
}

pub(super) fn choice<T: Clone>(value: &Value, choices: &[(&str, T)]) -> Result<T, String> {
    let text = text(value)?;
    let found = choices.iter().find(|(name, _)| *name == text.trim());
    found.map(|(_, choice)| choice.clone()).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("{text:?} is not one of {}", names.join(", "))
    })
}

pub(super) fn whole(value: &Value) -> Result<u64, String> {
    let number = match value {
        // figment keeps the sign in the type, so one of the two is always nothing.
        Value::Num(_, number) => match (number.to_u128(), number.to_i128()) {
            (Some(unsigned), _) => u64::try_from(unsigned).ok(),
            (_, Some(signed)) => u64::try_from(signed).ok(),
            _ => None,
        },
        other => text(other)?.trim().parse().ok(),
    };
    number.ok_or_else(|| "is not a whole number of 0 or more".into())
}

/// A whole number from 1 to a billion: a limit of nothing would stop everything.
pub(super) fn count<T: TryFrom<u64>>(value: &Value) -> Result<T, String> {
    let number = whole(value)?;
    let in_range =
        (1..=1_000_000_000).contains(&number).then(|| T::try_from(number).ok()).flatten();
    in_range.ok_or_else(|| format!("{number} is not from 1 to 1000000000"))
}

pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    let unit = |found: &str| {
        format!("{found:?} is no duration: write a unit, as in \"1500ms\" or \"10m\"")
    };
    match value {
        Value::Num(_, number) => Err(unit(&number.to_i128().unwrap_or_default().to_string())),
        other => {
            let text = text(other)?.trim();
            humantime::parse_duration(text).map_err(|_| unit(text))
        }
    }
}

pub(super) fn positive_duration(value: &Value) -> Result<Duration, String> {
    match duration(value)? {
        Duration::ZERO => Err("must be longer than nothing".into()),
        duration => Ok(duration),
    }
}

pub(super) fn whole_seconds(value: &Value) -> Result<u64, String> {
    let duration = duration(value)?;
    if duration.subsec_nanos() != 0 {
        return Err("must be whole seconds, as RequestTime is".into());
    }
    Ok(duration.as_secs())
}

/// A positive size; a bare number is bytes.
pub(super) fn size(value: &Value) -> Result<u64, String> {
    let bytes = match value {
        Value::Num(..) => whole(value)?,
        other => {
            let text = text(other)?.trim();
            let parsed: Result<bytesize::ByteSize, _> = text.parse();
            parsed
                .map_err(|_| format!("{text:?} is no size: write it as \"64 KiB\" or \"1 GiB\""))?
                .as_u64()
        }
    };
    if bytes == 0 { Err("must be more than nothing".into()) } else { Ok(bytes) }
}

pub(super) fn address(value: &Value) -> Result<SocketAddr, String> {
    let text = text(value)?.trim();
    let resolved = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    resolved.ok_or_else(|| format!("{text:?} is no address: write it as \"127.0.0.1:8080\""))
}

pub(super) fn path(value: &Value) -> Result<String, String> {
    let path = text(value)?.trim();
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"?#{}*".contains(&byte);
    if !path.starts_with('/') || !path.bytes().all(is_plain) {
        return Err(format!(
            "{path:?} is no plain URL path: it starts with / and has no ?, #, {{, }} or *"
        ));
    }
    Ok(path.to_owned())
}

pub(super) fn source(value: &Value) -> Result<String, String> {
    let source = filled(value)?;
    if source.replace(APP_PLACEHOLDER, "").contains(['{', '}']) {
        return Err(format!("{source:?} has a placeholder other than {APP_PLACEHOLDER}"));
    }
    Ok(source)
}

pub(super) fn level(value: &Value) -> Result<LevelFilter, String> {
    choice(
        value,
        &[
            ("error", LevelFilter::ERROR),
            ("warn", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("trace", LevelFilter::TRACE),
        ],
    )
}
