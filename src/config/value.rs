//! Readers for each type of value. Each accepts the native form and the text that a variable brings, and
//! says in words what it expected.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::value::Value;

/// The longest durations that make sense: of what somebody waits for, of what goes on in the background, and
/// of what is kept.
pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(crate) const CENTURY: Duration = Duration::from_secs(36_525 * 24 * 60 * 60);

/// The text of a secret file, without the line break that editors add at the end.
pub(crate) fn secret_file(path: &Path) -> Result<String, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// A file that can be read now.
pub(crate) fn readable(value: &Value) -> Result<PathBuf, String> {
    let path = file(value)?;
    match std::fs::File::open(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Text as it is. A number or a boolean is refused, because it may already have lost zeros.
pub(crate) fn text(value: &Value) -> Result<&str, String> {
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

pub(crate) fn filled(value: &Value) -> Result<String, String> {
    match text(value)? {
        "" => Err("is empty".into()),
        text => Ok(text.to_owned()),
    }
}

pub(crate) fn file(value: &Value) -> Result<PathBuf, String> {
    filled(value).map(PathBuf::from)
}

pub(crate) fn flag(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(_, flag) => Ok(*flag),
        other => choice(other, &[("true", true), ("false", false)]),
    }
}

pub(crate) fn choice<T: Clone>(value: &Value, choices: &[(&str, T)]) -> Result<T, String> {
    let text = text(value)?;
    let found = choices.iter().find(|(name, _)| *name == text.trim());
    found.map(|(_, choice)| choice.clone()).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("{text:?} is not one of {}", names.join(", "))
    })
}

pub(crate) fn whole(value: &Value) -> Result<u64, String> {
    let number = match value {
        // figment keeps the sign in the type, so one of the two is always `None`.
        Value::Num(_, number) => match (number.to_u128(), number.to_i128()) {
            (Some(unsigned), _) => u64::try_from(unsigned).ok(),
            (_, Some(signed)) => u64::try_from(signed).ok(),
            _ => None,
        },
        other => text(other)?.trim().parse().ok(),
    };
    number.ok_or_else(|| "is not a whole number of 0 or more".into())
}

/// A whole number from 1 to `most`: a limit of zero would stop everything.
pub(crate) fn count<T: TryFrom<u64>>(most: u64) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let number = whole(value)?;
        let in_range = (1..=most).contains(&number).then(|| T::try_from(number).ok()).flatten();
        in_range.ok_or_else(|| format!("{number} is not from 1 to {most}"))
    }
}

/// A share of a whole, from 0 to 1.
pub(crate) fn share(value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Num(_, number) => number.to_f64().or_else(|| whole(value).ok().map(|n| n as f64)),
        other => text(other)?.trim().parse().ok(),
    };
    let share = number.filter(|number| (0.0..=1.0).contains(number));
    share.ok_or_else(|| "is not a number from 0 to 1".into())
}

/// A duration of at most `longest`, because a moment too far away cannot be expressed.
pub(crate) fn duration(longest: Duration) -> impl Fn(&Value) -> Result<Duration, String> {
    move |value| {
        let duration = any_duration(value)?;
        if duration > longest {
            // Written as it came: a very long one is easier to recognize.
            let (found, longest) = (text(value)?.trim(), humantime::format_duration(longest));
            return Err(format!("{found:?} is longer than {longest}, the limit"));
        }
        Ok(duration)
    }
}

fn any_duration(value: &Value) -> Result<Duration, String> {
    let unit = |found: &str| {
        format!("{found:?} is not a valid duration: write a unit, as in \"1500ms\" or \"10m\"")
    };
    match value {
        Value::Num(_, number) => Err(unit(&number.to_i128().unwrap_or_default().to_string())),
        other => {
            let text = text(other)?.trim();
            match humantime::parse_duration(text) {
                Err(humantime::DurationError::NumberOverflow) => Ok(Duration::MAX),
                parsed => parsed.map_err(|_| unit(text)),
            }
        }
    }
}

pub(crate) fn positive_duration(longest: Duration) -> impl Fn(&Value) -> Result<Duration, String> {
    let read = duration(longest);
    move |value| match read(value)? {
        Duration::ZERO => Err("must be longer than zero".into()),
        duration => Ok(duration),
    }
}

/// A positive size of at most `most` bytes; a bare number is bytes.
pub(crate) fn size(most: u64) -> impl Fn(&Value) -> Result<u64, String> {
    move |value| match any_size(value)? {
        0 => Err("must be more than zero".into()),
        bytes if bytes > most => {
            Err(format!("{} is more than {}, the limit", shown(bytes), shown(most)))
        }
        bytes => Ok(bytes),
    }
}

fn any_size(value: &Value) -> Result<u64, String> {
    if let Value::Num(..) = value {
        return whole(value);
    }
    let text = text(value)?.trim();
    let parsed: Result<bytesize::ByteSize, _> = text.parse();
    let wrong = || format!("{text:?} is not a valid size: write it as \"64 KiB\" or \"1 GiB\"");
    parsed.map(|size| size.as_u64()).map_err(|_| wrong())
}

/// A size as it is shown to the operator.
pub(crate) fn shown(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).to_string()
}

pub(crate) fn address(value: &Value) -> Result<SocketAddr, String> {
    let text = text(value)?.trim();
    let resolved = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    resolved
        .ok_or_else(|| format!("{text:?} is not a valid address: write it as \"127.0.0.1:8080\""))
}

/// Server names: a list, or one text separated by commas.
pub(crate) fn servers(value: &Value) -> Result<Vec<String>, String> {
    let list: Vec<String> = match value {
        Value::Array(_, items) => {
            items.iter().map(|item| text(item).map(str::to_owned)).collect::<Result<_, _>>()?
        }
        other => {
            let text = text(other)?.trim();
            let text = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
            text.split(',').map(|item| item.trim().trim_matches('"').to_owned()).collect()
        }
    };
    if list.is_empty() || list.iter().any(|item| item.trim().is_empty()) {
        return Err("names no server".into());
    }
    Ok(list)
}
