//! What the public listener answers. The platform requires all three fields in every answer. Pure.

use std::borrow::Cow;

use crate::callback::Malformed;

/// Every answer that the public listener gives.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Ok,
    UnknownApp,
    Unauthenticated(&'static str),
    Stale {
        max_skew_seconds: u64,
    },
    Malformed(Malformed),
    /// The body's transfer breaks the rules of HTTP: there is no whole body, and none to quarantine.
    Broken,
    TooLarge {
        limit: u64,
    },
    Timeout,
    NotFound,
    MethodNotAllowed,
    Overloaded(&'static str),
}

impl Answer {
    /// The HTTP status and the platform's `ErrorCode`.
    pub(crate) fn codes(&self) -> (u16, u32) {
        match self {
            Answer::Ok => (200, 0),
            Answer::UnknownApp => (403, 40301),
            Answer::Unauthenticated(_) => (401, 40101),
            Answer::Stale { .. } => (401, 40102),
            Answer::Malformed(_) | Answer::Broken => (400, 40001),
            Answer::TooLarge { .. } => (413, 41301),
            Answer::Timeout => (408, 40801),
            Answer::NotFound => (404, 40401),
            Answer::MethodNotAllowed => (405, 40501),
            Answer::Overloaded(_) => (503, 50301),
        }
    }

    /// The JSON body.
    pub(crate) fn body(&self) -> Cow<'static, str> {
        if *self == Answer::Ok {
            return Cow::Borrowed(r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#);
        }
        let (_, code) = self.codes();
        let info = serde_json::Value::from(self.info());
        Cow::Owned(format!(r#"{{"ActionStatus":"FAIL","ErrorInfo":{info},"ErrorCode":{code}}}"#))
    }

    /// `ErrorInfo`: short and useful, without secrets.
    pub(crate) fn info(&self) -> String {
        match self {
            Answer::Ok => String::new(),
            Answer::UnknownApp => "SdkAppid is missing or is not one of this bridge's apps".into(),
            Answer::Unauthenticated(reason) => (*reason).into(),
            Answer::Stale { max_skew_seconds } => {
                format!("RequestTime is more than {max_skew_seconds} s from this bridge's clock")
            }
            Answer::Malformed(reason) => reason.to_string(),
            Answer::Broken => "body is not valid HTTP: its chunks are broken".into(),
            Answer::TooLarge { limit } => format!("body is larger than the limit of {limit} bytes"),
            Answer::Timeout => "request was not complete in time".into(),
            Answer::NotFound => "no such path: see ingress.path".into(),
            Answer::MethodNotAllowed => "the method must be POST".into(),
            Answer::Overloaded(reason) => (*reason).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_json_with_the_three_fields() {
        let refusal = Answer::Malformed(Malformed("a \"quoted\" reason".into()));
        for answer in [Answer::Ok, Answer::Timeout, refusal] {
            let body: serde_json::Value = serde_json::from_str(&answer.body()).unwrap();
            assert_eq!(body["ErrorCode"], answer.codes().1);
            assert_eq!(body["ActionStatus"], if answer == Answer::Ok { "OK" } else { "FAIL" });
            assert!(body["ErrorInfo"].is_string());
        }
    }
}
