//! What the platform sends: a URL that ends in its parameters, and a JSON body. The parts that stay
//! the same through a run are made once, since whatever a callback costs here is taken from the
//! receiver that is being measured.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use form_urlencoded::Serializer;
use hyper::Uri;
use serde::Serialize;

use crate::signature;

/// Checks what the operator would type into the platform's console.
pub(super) fn receiver(url: &str) -> anyhow::Result<Uri> {
    let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    ensure!(known, "{url} must begin with http:// or https://");
    let authority = uri.authority().context("the URL names no host")?;
    let user = authority.as_str().contains('@');
    ensure!(!user, "the URL holds a user name, which the platform cannot send");
    Ok(uri)
}

/// The request's path and query with these parameters after the operator's own.
fn append(receiver: &Uri, parameters: &[(&str, String)]) -> String {
    let start = format!("{}?", receiver.path());
    let query = receiver.query().unwrap_or_default().trim_end_matches('&');
    let mut whole = Serializer::for_suffix(format!("{start}{query}"), start.len());
    whole.extend_pairs(parameters).finish()
}

/// The Unix time in seconds.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Makes the request's path and query, with a signature that is renewed once a second.
pub(super) struct Signer {
    base: String,
    token: Option<String>,
    /// Signed and sent in place of the current time.
    fixed_time: Option<String>,
    /// Of this second.
    signed: (u64, Uri),
}

impl Signer {
    pub(super) fn new(
        receiver: &Uri,
        parameters: &[(&str, String)],
        token: Option<String>,
        fixed_time: Option<String>,
    ) -> anyhow::Result<Self> {
        let base = append(receiver, parameters);
        let mut signer = Self { signed: (0, Uri::default()), base, token, fixed_time };
        signer.signed.1 = signer.sign(0).parse().context("the URL is too long")?;
        Ok(signer)
    }

    /// Whether what is signed now is refused later.
    pub(super) fn expires(&self) -> bool {
        self.token.is_some() && self.fixed_time.is_none()
    }

    /// The path and query to send at this Unix time in seconds.
    pub(super) fn uri(&mut self, now: u64) -> Uri {
        if self.expires() && self.signed.0 != now {
            let signed = self.sign(now).parse().expect("hex digits after a URL that parsed");
            self.signed = (now, signed);
        }
        self.signed.1.clone()
    }

    /// A fixed time goes out even when there is nothing to sign with, so that a receiver's answer
    /// to a time without a signature can be tried.
    fn sign(&self, now: u64) -> String {
        let time = self.fixed_time.clone().unwrap_or_else(|| now.to_string());
        let mut url = Serializer::for_suffix(self.base.clone(), 0);
        if let Some(token) = &self.token {
            url.append_pair("Sign", &signature::sign(token, &time));
        }
        if self.token.is_some() || self.fixed_time.is_some() {
            url.append_pair("RequestTime", &time);
        }
        url.finish()
    }
}

/// The body, by the platform's names and in its order, as the command line gives it.
#[derive(Debug, clap::Args, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Fields {
    /// The callback command, in the URL and in the body
    #[arg(
        long = "command",
        value_name = "COMMAND",
        default_value = "Group.CallbackAfterCreateTopic"
    )]
    pub(super) callback_command: String,

    /// The topic's group [default: one for the whole run]
    #[arg(long, value_name = "ID")]
    pub(super) group_id: Option<String>,

    /// The topic's id; given, every callback is about the same topic [default: a new one for each]
    #[arg(long, value_name = "ID")]
    pub(super) topic_id: Option<String>,

    /// Who created the topic
    #[arg(long, value_name = "USER", default_value = "group_root")]
    #[serde(rename = "Operator_Account")]
    pub(super) operator: String,

    /// Who owns the group
    #[arg(long, value_name = "USER", default_value = "leckie")]
    #[serde(rename = "Owner_Account")]
    pub(super) owner: String,

    /// The group's type
    #[arg(long = "type", value_name = "TYPE", default_value = "Community")]
    #[serde(rename = "Type")]
    pub(super) group_type: String,

    /// The topic's name
    #[arg(long, default_value = "MyFirstTopic")]
    pub(super) name: String,

    /// A custom field; may be repeated, also with the same key
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_custom)]
    #[serde(rename = "UserDefinedDataList", skip_serializing_if = "Vec::is_empty")]
    pub(super) custom: Vec<Custom>,

    /// When it happened, in milliseconds since 1970 [default: not said, as the platform does]
    #[arg(long, value_name = "MILLISECONDS")]
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
fn parse_custom(text: &str) -> Result<Custom, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok(Custom { key: key.to_owned(), value: value.to_owned() })
        }
        _ => Err("a custom field is KEY=VALUE".to_owned()),
    }
}

/// The bodies of a run.
#[derive(Debug)]
pub(super) struct Bodies {
    body: Bytes,
    /// The topic it is about, where it says so.
    topic_id: Option<String>,
    /// The end of the topic's id in the body, where each callback's number goes; none where all
    /// callbacks are about the same topic.
    number_at: Option<usize>,
}

impl Bodies {
    pub(super) fn verbatim(body: Vec<u8>) -> Self {
        let json: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        let topic_id = json.as_ref().and_then(|json| json.get("TopicId")?.as_str());
        Self { topic_id: topic_id.map(str::to_owned), body: body.into(), number_at: None }
    }

    /// About the topic that is given, or a new one for each callback.
    pub(super) fn new(mut fields: Fields) -> Self {
        let numbered = fields.topic_id.is_none();
        let group = format!("@TGS#_@TGS#c{:012x}", fastrand::u64(..1 << 48));
        let topic_id = fields.topic_id.get_or_insert(format!("{group}@TOPIC#_@TOPIC#c")).clone();
        fields.group_id.get_or_insert(group);
        let body = serde_json::to_string(&fields).expect("strings and numbers are always JSON");
        // A new one holds nothing that JSON escapes, and is too random to stand elsewhere in the body.
        let topic_at = if numbered { body.find(&topic_id) } else { None };
        let number_at = topic_at.map(|start| start + topic_id.len());
        Self { body: body.into(), topic_id: Some(topic_id), number_at }
    }

    pub(super) fn body(&self, number: u64) -> Bytes {
        match self.number_at {
            None => self.body.clone(),
            Some(at) => {
                let (before, after) = self.body.split_at(at);
                [before, number.to_string().as_bytes(), after].concat().into()
            }
        }
    }

    pub(super) fn topic_id(&self, number: u64) -> Option<String> {
        let topic_id = self.topic_id.clone()?;
        Some(if self.number_at.is_some() { format!("{topic_id}{number}") } else { topic_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(topic_id: Option<&str>) -> Fields {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            fields: Fields,
        }
        let line = ["send", "--name", "say \"hi\" \\ \u{1}🍵", "--custom", "color=blue"];
        let topic_id = topic_id.map(|id| ["--topic-id", id]);
        let line = line.into_iter().chain(topic_id.into_iter().flatten());
        <Command as clap::Parser>::parse_from(line).fields
    }

    #[test]
    fn the_platforms_parameters_come_after_the_operators_own() {
        let check = |url: &str, expected: &str| {
            let parameters = [("SdkAppid", "1".to_owned()), ("ClientIP", "a b&c".to_owned())];
            assert_eq!(append(&receiver(url).unwrap(), &parameters), expected, "{url}");
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
    fn a_url_is_http_or_https_and_names_a_host_alone() {
        for url in ["http://127.0.0.1:8080/", "https://www.example.com?x=1", "http://[::1]:81/"] {
            assert!(receiver(url).is_ok(), "{url}");
        }
        for url in ["", "/path", "localhost:8080", "ftp://a/", "http://me@a/", "http:///"] {
            assert!(receiver(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_signature_goes_at_the_end_and_is_renewed_each_second() {
        let signer = |token: Option<&str>, fixed_time: Option<&str>| {
            let parameters = [("SdkAppid", "1".to_owned())];
            let owned = |text: Option<&str>| text.map(str::to_owned);
            let receiver = receiver("http://a/").unwrap();
            Signer::new(&receiver, &parameters, owned(token), owned(fixed_time)).unwrap()
        };
        let (token, time) = (Some("xxxxyyyy"), Some("1669872112"));
        let mut renewed = signer(token, None);
        let at_first = renewed.uri(1_669_872_112);
        let sign = "17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061";
        let expected = format!("/?SdkAppid=1&Sign={sign}&RequestTime=1669872112");
        assert_eq!(at_first, expected.as_str());
        assert_eq!(renewed.uri(1_669_872_112), at_first);
        assert_ne!(renewed.uri(1_669_872_113), at_first);

        assert_eq!(signer(token, time).uri(5), at_first);
        assert_eq!(signer(None, None).uri(5), "/?SdkAppid=1");
        assert_eq!(signer(None, time).uri(5), "/?SdkAppid=1&RequestTime=1669872112");
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
        let numbered = Bodies::new(fields(None));
        let stem = numbered.topic_id(0).unwrap();
        for number in [0, 9, 10, 99_999, u64::MAX] {
            check(&numbered, number, &format!("{}{number}", &stem[..stem.len() - 1]));
        }
        let same = Bodies::new(fields(Some("a \"topic\"")));
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
