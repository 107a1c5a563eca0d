//! What a reader of a feed asks for: where to begin, in which form, and how much.

use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

use crate::callback::digits;

/// For a page: the default of `limit`, its maximum, and that of `wait`.
const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 10_000;
const MAX_WAIT: Duration = Duration::from_secs(60);

pub(super) const NDJSON: &str = "application/x-ndjson";

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum From {
    Start,
    Now,
    After(u64),
}

#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) wants_page: bool,
    pub(super) from: From,
    pub(super) limit: usize,
    pub(super) wait: Duration,
}

impl Asked {
    /// Reads the query, `Accept` and `Last-Event-ID`. A reconnecting browser sends the latter, so it takes
    /// precedence over the original query.
    pub(super) fn read(query: &str, headers: &HeaderMap) -> Result<Self, String> {
        let wants_page = headers
            .get_all(ACCEPT)
            .iter()
            .any(|accept| accept.to_str().is_ok_and(|accept| accept.contains(NDJSON)));
        let from = if wants_page { From::Start } else { From::Now };
        let mut asked = Asked { wants_page, from, limit: DEFAULT_LIMIT, wait: Duration::ZERO };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            asked.parameter(&name, &value)?;
        }
        if let Some(last) = headers.get("last-event-id").and_then(|last| last.to_str().ok()) {
            asked.from = From::After(position("Last-Event-ID", last)?);
        }
        Ok(asked)
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "after" => self.from = From::After(position("after", value)?),
            "from" => match value {
                "start" => self.from = From::Start,
                "now" => self.from = From::Now,
                _ => return Err(format!("from is {value:?}, expected \"start\" or \"now\"")),
            },
            "limit" => match digits(value).and_then(|limit| usize::try_from(limit).ok()) {
                Some(limit) if limit > 0 => self.limit = limit.min(MAX_LIMIT),
                _ => return Err(format!("limit is {value:?}, expected a number of 1 or more")),
            },
            "wait" => match humantime::parse_duration(value) {
                Ok(wait) => self.wait = wait.min(MAX_WAIT),
                Err(_) => {
                    return Err(format!("wait is {value:?}, expected a duration such as 10s"));
                }
            },
            _ => {}
        }
        Ok(())
    }
}

fn position(name: &str, value: &str) -> Result<u64, String> {
    digits(value).ok_or_else(|| format!("{name} is {value:?}, expected a position: digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_is_read_within_its_limits_or_refused_by_name() {
        crate::fuzz::each("asked", |input| {
            let text = String::from_utf8_lossy(input);
            let (query, last) = text.split_once('\n').unwrap_or((&text, ""));
            let mut headers = HeaderMap::new();
            if let Ok(last) = last.parse() {
                headers.insert("last-event-id", last);
            }
            match Asked::read(query, &headers) {
                Ok(asked) => {
                    assert!((1..=MAX_LIMIT).contains(&asked.limit) && asked.wait <= MAX_WAIT);
                }
                Err(reason) => {
                    let names = ["after is", "from is", "limit is", "wait is", "Last-Event-ID is"];
                    assert!(names.iter().any(|name| reason.starts_with(name)), "{reason}");
                }
            }
        });
    }

    #[test]
    fn what_is_asked_is_read_and_nonsense_is_named() {
        let mut headers = HeaderMap::new();
        let plain = Asked { wants_page: false, from: From::Now, limit: 1000, wait: Duration::ZERO };
        assert_eq!(Asked::read("", &headers).unwrap(), plain);
        let full = Asked::read("after=7&limit=99999&wait=10s&x=y", &headers).unwrap();
        let wait = Duration::from_secs(10);
        assert_eq!(full, Asked { wants_page: false, from: From::After(7), limit: 10_000, wait });
        assert_eq!(Asked::read("from=start", &headers).unwrap().from, From::Start);
        for wrong in ["after=x", "after=-1", "from=7", "limit=0", "limit=x", "wait=10"] {
            let name = wrong.split('=').next().unwrap();
            assert!(Asked::read(wrong, &headers).unwrap_err().starts_with(name), "{wrong}");
        }
        headers.insert("last-event-id", "9".parse().unwrap());
        assert_eq!(Asked::read("from=start", &headers).unwrap().from, From::After(9));
        headers.remove("last-event-id");
        headers.insert(ACCEPT, "text/html, application/x-ndjson;q=0.9".parse().unwrap());
        let page = Asked { wants_page: true, from: From::Start, ..plain };
        assert_eq!(Asked::read("", &headers).unwrap(), page);
    }
}
