//! Where an event goes: templates of subjects and routing keys. Pure.
//!
//! A template starts with fixed text and has placeholders for an event's fields, as in
//! `topic.created.{sdk_app_id}`. Ids may contain `.`, `*`, `>` or blanks, which brokers interpret as
//! structure, so a field's value is escaped: see [`escape`].

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::message::Envelope;

/// A subject or routing key with placeholders for fields.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    /// Pieces of fixed text, each followed by a field.
    parts: Vec<(String, Field)>,
    /// The fixed text after the last field.
    end: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Field {
    SdkAppId,
    GroupId,
    TopicId,
    Platform,
}

const FIELDS: [(&str, Field); 4] = [
    ("sdk_app_id", Field::SdkAppId),
    ("group_id", Field::GroupId),
    ("topic_id", Field::TopicId),
    ("platform", Field::Platform),
];

impl Template {
    /// Fixed text must come first and must not contain blanks or wildcards, and no word between dots may
    /// be empty.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((fixed, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("has a { without its }")?;
            let field = FIELDS.iter().find(|(known, _)| *known == name);
            let Some((_, field)) = field else {
                let known = FIELDS.map(|(known, _)| format!("{{{known}}}")).join(", ");
                return Err(format!("has the unknown placeholder {{{name}}}: there are {known}"));
            };
            parts.push((fixed.to_owned(), *field));
            rest = after;
        }
        let template = Template { parts, end: rest.to_owned() };
        let sample = template.render_with(|_| "x".into());
        let is_plain = |char: char| char.is_ascii_graphic() && !"{}*>#%".contains(char);
        if template.prefix().is_empty() {
            Err("must begin with fixed text".into())
        } else if !sample.chars().all(is_plain) {
            Err("has a space, a non-ASCII character, or one of { } * > # %".into())
        } else if sample.split('.').any(str::is_empty) {
            Err("has an empty word before, after or between dots".into())
        } else {
            Ok(template)
        }
    }

    pub(crate) fn render(&self, event: &Envelope) -> String {
        self.render_with(|field| match field {
            Field::SdkAppId => event.sdk_app_id.to_string(),
            Field::GroupId => escape(&event.group_id),
            Field::TopicId => escape(&event.topic_id),
            Field::Platform => event.platform.as_deref().map_or_else(|| ABSENT.into(), escape),
        })
    }

    /// As it is written in the configuration, if it has placeholders.
    pub(crate) fn text(&self) -> Option<String> {
        let name =
            |field| FIELDS.iter().find(|(_, known)| *known == field).map_or("", |(name, _)| name);
        (!self.parts.is_empty()).then(|| self.render_with(|field| format!("{{{}}}", name(field))))
    }

    /// Everything that the template can produce, as a pattern: `*` for each word that contains a
    /// placeholder.
    pub(crate) fn pattern(&self) -> String {
        let marked = self.render_with(|_| "\0".into());
        let words = marked.split('.').map(|word| if word.contains('\0') { "*" } else { word });
        words.collect::<Vec<_>>().join(".")
    }

    /// The fixed text that every subject begins with.
    fn prefix(&self) -> &str {
        self.parts.first().map_or(&self.end, |(fixed, _)| fixed)
    }

    fn render_with(&self, value: impl Fn(Field) -> String) -> String {
        let mut text = String::with_capacity(64);
        for (fixed, field) in &self.parts {
            text.push_str(fixed);
            text.push_str(&value(*field));
        }
        text + &self.end
    }
}

/// Represents a field that the callback did not have.
const ABSENT: &str = "-";

/// A value as one word of a subject or routing key. `.`, `*`, `>`, `%`, blanks, control characters and
/// non-ASCII become `%XX` for each byte. So do the words with a special meaning: `#` alone, and `-`
/// alone, which represents an absent value. Percent-decoding restores the value.
fn escape(value: &str) -> String {
    let is_special_word = value == ABSENT || value == "#";
    let escaped = if is_special_word { NON_ALPHANUMERIC } else { &STRUCTURE };
    utf8_percent_encode(value, escaped).to_string()
}

/// Escaped in addition to non-ASCII.
const STRUCTURE: AsciiSet = CONTROLS.add(b' ').add(b'.').add(b'*').add(b'>').add(b'%');

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_escaped_value_is_one_word_and_can_be_read_back(value in "\\PC+|[.*># %-]+") {
            let escaped = escape(&value);
            prop_assert!(escaped.bytes().all(|b| b.is_ascii_graphic() && !b".*>".contains(&b)), "{escaped}");
            prop_assert!(escaped != "-" && escaped != "#");
            prop_assert_eq!(percent_decode_str(&escaped).decode_utf8().unwrap(), value);
        }
    }

    #[test]
    fn ids_of_the_platform_stay_readable() {
        assert_eq!(
            escape("@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_@TOPIC#cRTE3HIM62C5").matches('%').count(),
            0
        );
        assert_eq!(escape("a.b *>%é"), "a%2Eb%20%2A%3E%25%C3%A9");
        assert_eq!(escape("-"), "%2D");
    }

    #[test]
    fn a_template_says_what_is_wrong_with_it() {
        for (text, reason) in [
            ("", "must begin with fixed text"),
            ("{group_id}.x", "must begin with fixed text"),
            ("a.{group}", "has the unknown placeholder {group}: there are {sdk_app_id}"),
            ("a.{group_id", "has a { without its }"),
            ("a b", "has a space"),
            ("a.*", "has a space"),
            ("a}b", "has a space"),
            ("a..b", "has an empty word before, after or between dots"),
            (".a", "has an empty word before"),
            ("a.", "has an empty word before"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.starts_with(reason), "{text}: {error}");
        }
        let template = Template::parse("a.{sdk_app_id}.b-{topic_id}").unwrap();
        assert_eq!(template.pattern(), "a.*.*");
    }
}
