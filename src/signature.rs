//! Who may call: the app check, `Sign` and `RequestTime`. [`Verified`] is the proof of that check:
//! [`verify`] is the only way to get one, and the body is only read for a verified query. Pure: the time
//! is an argument.
//!
//! A refusal has two texts: the [`Answer`] for the client, and for the operator which check failed and by how
//! much, without any token or signature.
//!
//! `Sign` is the lower-case hex of `sha256(token + RequestTime)`. It covers neither the body nor the
//! other parameters: it only proves that the sender knows the token; HTTPS protects the rest.

use ring::digest::{Context, Digest, SHA256};
use subtle::ConstantTimeEq;

use crate::answer::Answer;
use crate::callback::{Query, digits};
use crate::secret::Secret;

/// One of the operator's apps, and how its callbacks are authenticated.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) sdk_app_id: u64,
    /// More than one while a token is being replaced: any of them is accepted.
    pub(crate) tokens: Vec<Secret>,
    /// Whether a request without any `Sign` is accepted.
    pub(crate) allow_unsigned: bool,
}

/// A query whose app is known and whose signature is valid.
#[derive(Debug)]
pub(crate) struct Verified<'q> {
    pub(crate) sdk_app_id: u64,
    query: Query<'q>,
}

impl<'q> Verified<'q> {
    pub(crate) fn query(&self) -> &Query<'q> {
        &self.query
    }
}

/// A request that is not authentic.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) answer: Answer,
    /// For the operator: which check failed, and by how much.
    pub(crate) reason: String,
}

/// Checks app, signature and age, in this order. `now` and `max_skew` are in whole seconds, as
/// `RequestTime` is; a difference of exactly `max_skew` is still fresh.
pub(crate) fn verify<'q>(
    apps: &[App],
    query: Query<'q>,
    now: u64,
    max_skew: u64,
) -> Result<Verified<'q>, Refused> {
    let app = query.sdk_app_id.and_then(|id| apps.iter().find(|app| app.sdk_app_id == id));
    let app = app.ok_or_else(|| unknown_app(apps, query.sdk_app_id))?;
    let id = app.sdk_app_id;
    let verified = |query| Ok(Verified { sdk_app_id: id, query });
    let refused = |told: &'static str, reason: String| {
        Err(Refused { answer: Answer::Unauthenticated(told), reason })
    };

    let Some(sign) = &query.sign else {
        if app.allow_unsigned {
            return verified(query);
        }
        let reason = format!("Sign is missing, and app {id} has no allow_unsigned");
        return refused("Sign is missing", reason);
    };
    let Some(request_time) = &query.request_time else {
        return refused("RequestTime is missing", "RequestTime is missing".into());
    };
    let Some(seconds) = digits(request_time) else {
        let told = "RequestTime is not a Unix time in seconds";
        return refused(told, told.into());
    };
    if !is_signed_by_any(&app.tokens, request_time, sign) {
        let reason = match (app.tokens.len(), sign.len()) {
            (0, _) => format!("Sign is there, and app {id} has no token to check it with"),
            (_, 64) => format!("signed with none of the {} tokens of app {id}", app.tokens.len()),
            (_, length) => format!("Sign has {length} characters, a SHA-256 in hex has 64"),
        };
        return refused(
            "Sign is wrong",
            reason.replace("none of the 1 tokens", "another token than that"),
        );
    }
    if seconds.abs_diff(now) > max_skew {
        let side = if seconds < now { "behind" } else { "ahead of" };
        let distance = seconds.abs_diff(now);
        return Err(Refused {
            answer: Answer::Stale { max_skew_seconds: max_skew },
            reason: format!(
                "RequestTime is {distance} s {side} this host's clock, ingress.max_skew is {max_skew} s"
            ),
        });
    }
    verified(query)
}

fn unknown_app(apps: &[App], asked: Option<u64>) -> Refused {
    let known: Vec<_> = apps.iter().map(|app| app.sdk_app_id.to_string()).collect();
    let known = known.join(", ");
    let reason = match asked {
        Some(id) => format!("app {id} is not configured, only {known}"),
        None => format!("SdkAppid is missing, or not a number; configured is {known}"),
    };
    Refused { answer: Answer::UnknownApp, reason }
}

/// Takes the same time for a wrong signature as for a right one, whichever token matches.
fn is_signed_by_any(tokens: &[Secret], request_time: &str, sign: &str) -> bool {
    let mut given = [0_u8; 32];
    if hex::decode_to_slice(sign, &mut given).is_err() {
        return false; // not 64 hex digits: the format is not a secret
    }
    let mut right = subtle::Choice::from(0);
    for token in tokens {
        right |= digest(token.reveal(), request_time).as_ref().ct_eq(&given);
    }
    right.into()
}

/// The value that the platform would send as `Sign`.
pub(crate) fn sign(token: &str, request_time: &str) -> String {
    hex::encode(digest(token, request_time))
}

fn digest(token: &str, request_time: &str) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(token.as_bytes());
    context.update(request_time.as_bytes());
    context.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_669_872_112;

    fn check(query: &str, now: u64, expected: Result<u64, (u16, u32)>) {
        let app = |sdk_app_id, tokens: &[&str], allow_unsigned| App {
            sdk_app_id,
            tokens: tokens.iter().map(|token| Secret::new(*token)).collect(),
            allow_unsigned,
        };
        let apps = [
            app(1, &["xxxxyyyy", "123456A"], false),
            app(2, &[], true),
            app(3, &["123456A"], true),
        ];
        let found = verify(&apps, Query::parse(query), now, 60)
            .map(|verified| verified.sdk_app_id)
            .map_err(|refused| refused.answer.codes());
        assert_eq!(found, expected, "{query}");
    }

    const XXXXYYYY: &str = "17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061";
    const A_2112: &str = "fb1561b2e2daf6e98d4fcaf7a26d1ed02608f9f9669721f7ead1ff0f7b4f32ca";
    const A_5895: &str = "a990654049bdb6caa85f3763098570d25f02e49dfc9e7f04960367bca54f7615";

    #[test]
    fn the_platforms_vectors_check_out() {
        for (token, time, expected) in [
            ("xxxxyyyy", "1669872112", XXXXYYYY),
            ("123456A", "1669872112", A_2112),
            ("123456A", "1697075895", A_5895),
        ] {
            assert_eq!(sign(token, time), expected);
        }
    }

    #[test]
    fn app_then_signature_then_age_decide() {
        let signed = |app: u64, time: u64, sign: &str| {
            format!("SdkAppid={app}&RequestTime={time}&Sign={sign}")
        };
        check("", NOW, Err((403, 40301)));
        check(&signed(9, NOW, XXXXYYYY), NOW, Err((403, 40301)));
        check("SdkAppid=1", NOW, Err((401, 40101)));
        check(&format!("SdkAppid=1&Sign={XXXXYYYY}"), NOW, Err((401, 40101)));
        check(&format!("SdkAppid=1&RequestTime={NOW}"), NOW, Err((401, 40101)));
        check(&signed(1, NOW + 1, XXXXYYYY), NOW, Err((401, 40101)));
        check(&signed(1, NOW, "00"), NOW, Err((401, 40101)));
        check(&signed(1, NOW, ""), NOW, Err((401, 40101)));
        check(&format!("SdkAppid=1&RequestTime=%2B{NOW}&Sign={XXXXYYYY}"), NOW, Err((401, 40101)));
        check(&signed(1, NOW, XXXXYYYY), NOW, Ok(1));
        check(&signed(1, NOW, &XXXXYYYY.to_uppercase()), NOW, Ok(1));
        check(&signed(1, NOW, A_2112), NOW, Ok(1));
        check(&signed(1, 1_697_075_895, A_5895), 1_697_075_895, Ok(1));
        check(&signed(1, NOW, XXXXYYYY), NOW + 60, Ok(1));
        check(&signed(1, NOW, XXXXYYYY), NOW - 60, Ok(1));
        check(&signed(1, NOW, XXXXYYYY), NOW + 61, Err((401, 40102)));
        check(&signed(1, NOW, XXXXYYYY), NOW - 61, Err((401, 40102)));
        check(&signed(1, NOW, A_5895), NOW + 61, Err((401, 40101)));
    }

    #[test]
    fn a_reason_says_by_how_much_and_never_with_what() {
        let token = |text: &str| Secret::new(text);
        let apps = [
            App {
                sdk_app_id: 1,
                tokens: vec![token("xxxxyyyy"), token("b")],
                allow_unsigned: false,
            },
            App { sdk_app_id: 2, tokens: vec![token("b")], allow_unsigned: false },
            App { sdk_app_id: 3, tokens: vec![], allow_unsigned: true },
        ];
        let check = |query: &str, now: u64, expected: &str| {
            let refused = verify(&apps, Query::parse(query), now, 60).unwrap_err();
            assert_eq!(refused.reason, expected, "{query}");
        };
        let signed = |app: u64, sign: &str| format!("SdkAppid={app}&RequestTime={NOW}&Sign={sign}");
        check("", NOW, "SdkAppid is missing, or not a number; configured is 1, 2, 3");
        check("SdkAppid=9", NOW, "app 9 is not configured, only 1, 2, 3");
        check("SdkAppid=1", NOW, "Sign is missing, and app 1 has no allow_unsigned");
        check("SdkAppid=1&Sign=x", NOW, "RequestTime is missing");
        check(&signed(1, A_2112), NOW, "signed with none of the 2 tokens of app 1");
        check(&signed(2, A_2112), NOW, "signed with another token than that of app 2");
        check(&signed(3, A_2112), NOW, "Sign is there, and app 3 has no token to check it with");
        check(&signed(1, "abc"), NOW, "Sign has 3 characters, a SHA-256 in hex has 64");
        let good = signed(1, XXXXYYYY);
        let text = "RequestTime is 75 s behind this host's clock, ingress.max_skew is 60 s";
        check(&good, NOW + 75, text);
        let text = "RequestTime is 61 s ahead of this host's clock, ingress.max_skew is 60 s";
        check(&good, NOW - 61, text);
    }

    #[test]
    fn unsigned_is_taken_only_where_allowed_and_only_without_a_sign() {
        check("SdkAppid=2", NOW, Ok(2));
        check("SdkAppid=3&RequestTime=1", NOW, Ok(3));
        check(&format!("SdkAppid=2&RequestTime={NOW}&Sign={A_2112}"), NOW, Err((401, 40101)));
        check(&format!("SdkAppid=3&RequestTime={NOW}&Sign={XXXXYYYY}"), NOW, Err((401, 40101)));
        check(&format!("SdkAppid=3&RequestTime={NOW}&Sign={A_2112}"), NOW, Ok(3));
    }
}
