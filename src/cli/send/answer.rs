//! What came back for one callback: the receiver's answer, read and counted by what it says, or the
//! kind of failure; and the line of JSON that tells it.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::connection::Failure;

/// How much of an answer that cannot be read is shown.
const EXCERPT_CHARS: usize = 80;

pub(super) type Outcome = Result<(StatusCode, Bytes), Failure>;

/// An answer as the receiver meant it; one that cannot be read has an excerpt for its text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) action_status: Option<String>,
    pub(super) error_code: Option<i64>,
    pub(super) error_info: String,
}

impl Answer {
    /// The platform wants all three fields in every answer.
    pub(super) fn parse(status: StatusCode, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Raw {
            action_status: String,
            error_code: i64,
            error_info: String,
        }
        let status = status.as_u16();
        match serde_json::from_slice::<Raw>(body) {
            Ok(raw) => Self {
                status,
                action_status: Some(raw.action_status),
                error_code: Some(raw.error_code),
                error_info: raw.error_info,
            },
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let excerpt: String = text.chars().take(EXCERPT_CHARS).collect();
                let error_info = format!("not an answer to a callback: {excerpt:?}");
                Self { status, action_status: None, error_code: None, error_info }
            }
        }
    }

    pub(super) fn is_ok(&self) -> bool {
        self.status == 200
            && self.action_status.as_deref() == Some("OK")
            && self.error_code == Some(0)
    }
}

/// What became of one callback.
#[derive(Debug)]
pub(super) enum Settled<'a> {
    Answered(&'a Answer),
    Failed(&'static str),
}

impl Settled<'_> {
    /// A line of JSON, with its line break.
    pub(super) fn line(&self, topic_id: Option<&str>, latency: Duration) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            topic_id: Option<&'a str>,
            #[serde(flatten)]
            answer: Option<&'a Answer>,
            #[serde(skip_serializing_if = "Option::is_none")]
            failure: Option<&'static str>,
            micros: u64,
        }
        let (answer, failure) = match self {
            Self::Answered(answer) => (Some(*answer), None),
            Self::Failed(kind) => (None, Some(*kind)),
        };
        json(&Line { topic_id, answer, failure, micros: micros(latency) }) + "\n"
    }
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("text and numbers are always JSON")
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, status: u16, ok: bool, error_info: &str) {
        let answer = Answer::parse(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        assert_eq!((answer.is_ok(), answer.error_info.as_str()), (ok, error_info), "{body}");
    }

    #[test]
    fn only_200_with_ok_and_0_is_ok() {
        let ok = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;
        check(ok, 200, true, "");
        check(ok, 503, false, "");
        check(r#"{"ErrorCode":0,"ErrorInfo":"hi","ActionStatus":"OK","More":1}"#, 200, true, "hi");
        check(r#"{"ActionStatus":"FAIL","ErrorInfo":"","ErrorCode":0}"#, 200, false, "");
        check(r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":1}"#, 200, false, "");
    }

    #[test]
    fn an_answer_without_all_three_fields_is_shown_as_it_came() {
        for body in [
            "",
            "<html>",
            r#"{"ActionStatus":"OK","ErrorCode":0}"#,
            r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":"0"}"#,
        ] {
            check(body, 200, false, &format!("not an answer to a callback: {body:?}"));
        }
        let long = "x".repeat(1000);
        let shown = "x".repeat(EXCERPT_CHARS);
        check(&long, 200, false, &format!("not an answer to a callback: {shown:?}"));
    }

    #[test]
    fn a_line_says_what_became_of_its_topic() {
        let answer = Answer {
            status: 200,
            action_status: Some("OK".to_owned()),
            error_code: Some(0),
            error_info: String::new(),
        };
        assert_eq!(
            Settled::Answered(&answer).line(Some("t1"), Duration::from_micros(1500)),
            "{\"topic_id\":\"t1\",\"status\":200,\"action_status\":\"OK\",\"error_code\":0,\
             \"error_info\":\"\",\"micros\":1500}\n"
        );
        assert_eq!(
            Settled::Failed("timeout").line(None, Duration::from_secs(2)),
            "{\"topic_id\":null,\"failure\":\"timeout\",\"micros\":2000000}\n"
        );
    }
}
