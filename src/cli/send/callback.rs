//! What the platform sends: a URL that ends in its parameters, and a JSON body. The parts that stay
//! the same through a run are made once, since whatever a callback costs here is taken from the
//! receiver that is being measured.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use form_urlencoded::byte_serialize;
use hyper::Uri;
use hyper::header::HeaderValue;
use serde::Serialize;

use crate::signature;

/// Where to send: what the operator typed into the platform's console.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) tls: bool,
    /// A name or an address, one of version 6 without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) host_header: HeaderValue,
    path_and_query: String,
}

impl Target {
    pub(super) fn parse(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => bail!("{url} must begin with http:// or https://"),
        };
        let authority = uri.authority().context("the URL names no host")?;
        if authority.as_str().contains('@') {
            bail!("the URL holds a user name, which the platform cannot send");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let mut path_and_query =
            uri.path_and_query().map_or("/", |whole| whole.as_str()).to_owned();
        // `https://example.com?key=value` is a fine URL; a request line needs the path.
        if path_and_query.starts_with('?') {
            path_and_query.insert(0, '/');
        }
        Ok(Self {
            tls,
            host,
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            host_header: HeaderValue::from_str(authority.as_str())?,
            path_and_query,
        })
    }

    /// The request's path and query with these parameters after the operator's own.
    fn append(&self, parameters: &[(&str, String)]) -> String {
        let mut whole = self.path_and_query.clone();
        let has_query = whole.contains('?');
        let mut separator = match whole.ends_with(['?', '&']) {
            true => "",
            false if has_query => "&",
            false => "?",
        };
        for (name, value) in parameters {
            whole.extend([separator, name, "="]);
            whole.extend(byte_serialize(value.as_bytes()));
            separator = "&";
        }
        whole
    }
}

/// Makes the request's path and query, with a signature that is renewed once a second.
pub(super) struct Signer {
    base: String,
    token: Option<String>,
    fixed_time: Option<String>,
    second: u64,
    signed: Uri,
}

impl Signer {
    pub(super) fn new(
        target: &Target,
        parameters: &[(&str, String)],
        token: Option<String>,
        fixed_time: Option<String>,
    ) -> anyhow::Result<Self> {
        let base = target.append(parameters);
        let mut signer = Self { signed: base.parse()?, base, token, fixed_time, second: 0 };
        if signer.fixed_time.is_some() {
            signer.signed = signer.sign(0).parse().context("the URL is too long")?;
        }
        Ok(signer)
    }

    /// The path and query to send at this Unix time in seconds.
    pub(super) fn uri(&mut self, now: u64) -> Uri {
        let constant = self.token.is_none() || self.fixed_time.is_some();
        if !constant && self.second != now {
            self.second = now;
            self.signed = self.sign(now).parse().expect("hex digits after a URL that parsed");
        }
        self.signed.clone()
    }

    /// A fixed time goes out even when there is nothing to sign with, so that a receiver's answer
    /// to a time without a signature can be tried.
    fn sign(&self, now: u64) -> String {
        let time = self.fixed_time.clone().unwrap_or_else(|| now.to_string());
        let encoded: String = byte_serialize(time.as_bytes()).collect();
        match &self.token {
            Some(token) => {
                let sign = signature::sign(token, &time);
                format!("{}&Sign={sign}&RequestTime={encoded}", self.base)
            }
            None => format!("{}&RequestTime={encoded}", self.base),
        }
    }
}

/// The body's fields, by the platform's names and in its order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Fields {
    pub(super) callback_command: String,
    pub(super) group_id: String,
    pub(super) topic_id: String,
    #[serde(rename = "Operator_Account")]
    pub(super) operator_account: String,
    #[serde(rename = "Owner_Account")]
    pub(super) owner_account: String,
    #[serde(rename = "Type")]
    pub(super) group_type: String,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) user_defined_data_list: Vec<Custom>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) event_time: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Custom {
    key: String,
    value: String,
}

/// `KEY=VALUE`; the value may hold further equals signs, and may be empty.
pub(super) fn parse_custom(text: &str) -> Result<Custom, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok(Custom { key: key.to_owned(), value: value.to_owned() })
        }
        _ => Err("a custom field is KEY=VALUE".to_owned()),
    }
}

/// The bodies of a run.
#[derive(Debug)]
pub(super) enum Bodies {
    /// One body for all callbacks, and the topic it is about where it says so.
    Same { body: Bytes, topic_id: Option<Arc<str>> },
    /// Bodies that differ in the number at the end of the topic's id.
    Numbered { before: Vec<u8>, after: Vec<u8>, topic_id: String },
}

impl Bodies {
    pub(super) fn verbatim(body: Vec<u8>) -> Self {
        let json: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        let topic_id = json.as_ref().and_then(|json| json.get("TopicId")?.as_str());
        Self::Same { topic_id: topic_id.map(Arc::from), body: body.into() }
    }

    pub(super) fn same(fields: &Fields) -> Self {
        Self::Same { body: json(fields).into(), topic_id: Some(fields.topic_id.as_str().into()) }
    }

    /// Puts each callback's number at the end of the topic id, which must hold nothing that JSON
    /// escapes and must not be found elsewhere in the fields.
    pub(super) fn numbered(fields: &Fields) -> Self {
        let whole = json(fields);
        let stem = fields.topic_id.as_bytes();
        let start = whole.windows(stem.len()).position(|window| window == stem);
        let end = start.expect("the body holds its own topic id") + stem.len();
        Self::Numbered {
            before: whole[..end].to_vec(),
            after: whole[end..].to_vec(),
            topic_id: fields.topic_id.clone(),
        }
    }

    pub(super) fn body(&self, number: u64) -> Bytes {
        match self {
            Self::Same { body, .. } => body.clone(),
            Self::Numbered { before, after, .. } => {
                // Filled to the byte, the vector becomes `Bytes` without another allocation.
                let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
                let mut body = Vec::with_capacity(before.len() + digits + after.len());
                body.extend_from_slice(before);
                write!(body, "{number}").expect("a vector takes every write");
                body.extend_from_slice(after);
                body.into()
            }
        }
    }

    pub(super) fn topic_id(&self, number: u64) -> Option<Arc<str>> {
        match self {
            Self::Same { topic_id, .. } => topic_id.clone(),
            Self::Numbered { topic_id, .. } => Some(format!("{topic_id}{number}").into()),
        }
    }
}

fn json(fields: &Fields) -> Vec<u8> {
    serde_json::to_vec(fields).expect("strings and numbers are always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(topic_id: &str) -> Fields {
        Fields {
            callback_command: "Group.CallbackAfterCreateTopic".to_owned(),
            group_id: "@TGS#1".to_owned(),
            topic_id: topic_id.to_owned(),
            operator_account: "group_root".to_owned(),
            owner_account: "leckie".to_owned(),
            group_type: "Community".to_owned(),
            name: "say \"hi\" \\ \u{1}🍵".to_owned(),
            user_defined_data_list: vec![parse_custom("color=blue").unwrap()],
            event_time: None,
        }
    }

    #[test]
    fn the_platforms_parameters_come_after_the_operators_own() {
        let check = |url: &str, expected: &str| {
            let parameters = [("SdkAppid", "1".to_owned()), ("ClientIP", "a b&c".to_owned())];
            assert_eq!(Target::parse(url).unwrap().append(&parameters), expected, "{url}");
        };
        check("http://a", "/?SdkAppid=1&ClientIP=a+b%26c");
        check("http://a/", "/?SdkAppid=1&ClientIP=a+b%26c");
        check("http://a?x=1", "/?x=1&SdkAppid=1&ClientIP=a+b%26c");
        check("http://a?", "/?SdkAppid=1&ClientIP=a+b%26c");
        check("http://a/im/hook", "/im/hook?SdkAppid=1&ClientIP=a+b%26c");
        check("https://a/hook?key=%20x", "/hook?key=%20x&SdkAppid=1&ClientIP=a+b%26c");
        check("https://a/hook?key=x&", "/hook?key=x&SdkAppid=1&ClientIP=a+b%26c");
    }

    #[test]
    fn a_url_says_whom_to_connect_to() {
        let check = |url: &str, tls: bool, host: &str, port: u16, header: &str| {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.tls, target.host.as_str(), target.port), (tls, host, port), "{url}");
            assert_eq!(target.host_header, header, "{url}");
        };
        check("http://127.0.0.1:8080/", false, "127.0.0.1", 8080, "127.0.0.1:8080");
        check("https://www.example.com?x=1", true, "www.example.com", 443, "www.example.com");
        check("http://[::1]:81/", false, "::1", 81, "[::1]:81");
        for url in ["", "/path", "localhost:8080", "ftp://a/", "http://me@a/", "http:///"] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_signature_goes_at_the_end_and_is_renewed_each_second() {
        let target = Target::parse("http://a/").unwrap();
        let parameters = [("SdkAppid", "1".to_owned())];
        let token = || Some("xxxxyyyy".to_owned());
        let mut signer = Signer::new(&target, &parameters, token(), None).unwrap();
        let at_first = signer.uri(1_669_872_112);
        let sign = "17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061";
        assert_eq!(at_first, format!("/?SdkAppid=1&Sign={sign}&RequestTime=1669872112").as_str());
        assert_eq!(signer.uri(1_669_872_112), at_first);
        assert_ne!(signer.uri(1_669_872_113), at_first);

        let fixed = || Some("1669872112".to_owned());
        let mut fixed_signer = Signer::new(&target, &parameters, token(), fixed()).unwrap();
        assert_eq!(fixed_signer.uri(5), at_first);
        let mut unsigned = Signer::new(&target, &parameters, None, None).unwrap();
        assert_eq!(unsigned.uri(5), "/?SdkAppid=1");
        let mut unsigned_in_time = Signer::new(&target, &parameters, None, fixed()).unwrap();
        assert_eq!(unsigned_in_time.uri(5), "/?SdkAppid=1&RequestTime=1669872112");
    }

    #[test]
    fn every_body_is_json_with_its_text_intact() {
        let check = |bodies: &Bodies, number: u64, topic_id: &str| {
            let json: serde_json::Value = serde_json::from_slice(&bodies.body(number)).unwrap();
            assert_eq!(json["TopicId"], topic_id);
            assert_eq!(bodies.topic_id(number).as_deref(), Some(topic_id));
            assert_eq!(json["Name"], "say \"hi\" \\ \u{1}🍵");
            assert_eq!(json["Operator_Account"], "group_root");
            assert_eq!(json["UserDefinedDataList"][0]["Value"], "blue");
            assert_eq!(json.get("EventTime"), None);
        };
        let numbered = Bodies::numbered(&fields("@TOPIC#c"));
        for number in [0, 9, 10, 99_999, u64::MAX] {
            check(&numbered, number, &format!("@TOPIC#c{number}"));
        }
        let same = Bodies::same(&fields("a \"topic\""));
        check(&same, 3, "a \"topic\"");
        check(&Bodies::verbatim(same.body(0).to_vec()), 3, "a \"topic\"");
    }

    #[test]
    fn a_file_is_sent_as_it_is_json_or_not() {
        let bodies = Bodies::verbatim(b"\xff not json".to_vec());
        assert_eq!(bodies.body(1), &b"\xff not json"[..]);
        assert_eq!(bodies.topic_id(1), None);
    }

    #[test]
    fn a_custom_field_is_split_at_its_first_equals_sign() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let custom = parse_custom(text).ok();
            let pair = custom.as_ref().map(|custom| (custom.key.as_str(), custom.value.as_str()));
            assert_eq!(pair, expected, "{text}");
        };
        check("color=blue", Some(("color", "blue")));
        check("sum=1+1=2", Some(("sum", "1+1=2")));
        check("empty=", Some(("empty", "")));
        check("=blue", None);
        check("blue", None);
    }
}
