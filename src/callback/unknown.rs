//! Body fields that this program does not know, on their way into an event: the very text that came, unless
//! a strict JSON reader would refuse it, and with it the whole event.

use std::borrow::Cow;

use serde_json::Value;

use super::{Malformed, malformed};

/// How deep an unknown value may be nested. Many JSON readers stop at 128 levels, and the event adds two
/// of its own around it.
const MAX_DEPTH: usize = 120;

/// The digits of the smallest whole number that no double holds.
const TOO_MANY_DIGITS: usize = 309;

/// Readers round differently near the largest double, 1.8e308, and some then refuse the number.
const TOO_LARGE: f64 = 1e308;

/// The JSON text of an unknown value as an event has it: compact, and where a strict reader could not read
/// it (half of a surrogate pair, a number that no double holds), as a string that holds that text.
pub(super) fn carried(json: &str) -> Result<Cow<'_, str>, Malformed> {
    let text = compact(json)?;
    Ok(if is_suspicious(&text) && !is_readable(&text) {
        Cow::Owned(Value::from(text).to_string())
    } else {
        text
    })
}

/// JSON text without white space between its tokens, so that an event is always one line. Everything else
/// stays exactly as it is: a 64-bit number, `1.0`, an escape.
fn compact(json: &str) -> Result<Cow<'_, str>, Malformed> {
    let (mut in_string, mut escaped, mut has_blanks) = (false, false, false);
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let mut kept = String::new();
    for (at, char) in json.char_indices() {
        let is_blank = !in_string && matches!(char, ' ' | '\t' | '\r' | '\n');
        if is_blank && !has_blanks {
            has_blanks = true;
            kept.push_str(&json[..at]);
        } else if !is_blank && has_blanks {
            kept.push(char);
        }
        match char {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            '[' | '{' if !in_string => depth += 1,
            ']' | '}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_DEPTH {
        return Err(malformed(format!("body nests {deepest} levels deep, limit is {MAX_DEPTH}")));
    }
    Ok(if has_blanks { Cow::Owned(kept) } else { Cow::Borrowed(json) })
}

/// A quick look, so that the usual value is not parsed: may be wrong about a readable one, never about
/// another.
fn is_suspicious(json: &str) -> bool {
    let bytes = json.as_bytes();
    let has_surrogate_or_exponent = bytes.windows(3).any(|window| {
        matches!(
            window,
            [b'\\', b'u', b'd' | b'D'] | [b'0'..=b'9', b'e' | b'E', b'0'..=b'9' | b'+' | b'-']
        )
    });
    let has_long_number = || {
        let mut numbers = bytes.split(|byte| !byte.is_ascii_digit());
        numbers.any(|digits| digits.len() >= TOO_MANY_DIGITS)
    };
    has_surrogate_or_exponent || (bytes.len() >= TOO_MANY_DIGITS && has_long_number())
}

fn is_readable(json: &str) -> bool {
    serde_json::from_str(json).is_ok_and(|value| has_small_numbers(&value))
}

fn has_small_numbers(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_f64().is_some_and(|number| number.abs() < TOO_LARGE),
        Value::Array(items) => items.iter().all(has_small_numbers),
        Value::Object(fields) => fields.values().all(has_small_numbers),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    /// Carried as it came, or as a string that holds what came.
    fn check(json: &str, is_text: bool) {
        let expected = if is_text { Value::from(json).to_string() } else { json.to_owned() };
        assert_eq!(carried(json).unwrap(), expected, "{json}");
    }

    #[test]
    fn what_a_strict_reader_would_refuse_is_carried_as_text() {
        let long = |digits: usize| format!("1{}", "0".repeat(digits - 1));
        for json in [
            r#""\ud800""#,
            r#""a\uDFFFb""#,
            r#""\udc00\ud800""#,
            r#""\ud800\u0041""#,
            r#"[{"a":["\ud800"]}]"#,
            r#"{"\ud800":1}"#,
            "1e400",
            "-1E+400",
            "[0,{\"a\":1e999999999999999999999}]",
            "1.7976931348623157e308",
            "1.7976931348623159e308",
            &long(309),
            &long(400),
        ] {
            check(json, true);
        }
        for json in [
            r#""\ud83c\udf75""#,
            r#""\\ud800""#,
            r#""1e400""#,
            r#""\u0000\u001b\/""#,
            "-0",
            "-0.0",
            "1E+2",
            "1e-400",
            "0e400",
            "9e307",
            "18446744073709551616",
            "1.50",
            r#"{"a":1,"a":2e1}"#,
            &long(308),
            &format!("0.{}1", "0".repeat(400)),
            &format!("{:?}", "7".repeat(400)),
        ] {
            check(json, false);
        }
        let compacted = carried("[ \"\\ud800\" , 1 ]").unwrap();
        assert_eq!(compacted, r#""[\"\\ud800\",1]""#);
    }

    /// JSON texts of all kinds, good and doubtful.
    fn json() -> impl Strategy<Value = String> {
        let text = prop_oneof![
            ".{0,6}".prop_map(|text| Value::from(text).to_string()),
            r#""(a|\\u[dD][89abcdef][0-9a-f]{2}|\\\\|\\u00[0-9a-f]{2}|1e999|\\"){0,4}""#,
        ];
        let number = prop_oneof![
            r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?",
            r"-?[1-9][0-9]{300,312}(\.[0-9])?([eE]-?[0-9]{1,2})?",
            r"1\.79769313486231[0-9]{1,4}[eE]\+?308",
        ];
        let leaf = prop_oneof![text.clone(), number, Just("null".to_owned())];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            let list = proptest::collection::vec(inner.clone(), 0..4);
            let fields = proptest::collection::vec((text.clone(), inner), 0..4);
            prop_oneof![
                list.prop_map(|items| format!("[{}]", items.join(", "))),
                fields.prop_map(|fields| {
                    let fields: Vec<_> = fields.iter().map(|(k, v)| format!("{k} :{v}")).collect();
                    format!("{{{}}}", fields.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_carried_can_be_read_and_is_what_came(json in json()) {
            prop_assert!(serde_json::from_str::<&RawValue>(&json).is_ok(), "the bridge takes it: {json}");
            let carried = carried(&json).unwrap();
            let read: Value = serde_json::from_str(&carried).unwrap();
            let came = compact(&json).unwrap();
            prop_assert!(carried == came || read.as_str() == Some(&*came), "{carried} is not {came}");
        }
    }
}
