//! Who may call: the app check, `Sign` and `RequestTime`. [`Verified`] is the proof of that check:
//! [`verify`] is the only way to get one, and the body is only read for a verified query. Pure: the time
//! is an argument.
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

/// Checks app, signature and age, in this order. `now` and `max_skew` are in whole seconds, as
/// `RequestTime` is; a difference of exactly `max_skew` is still fresh.
pub(crate) fn verify<'q>(
    apps: &[App],
    query: Query<'q>,
    now: u64,
    max_skew: u64,
) -> Result<Verified<'q>, Answer> {
    let app = query
        .sdk_app_id
        .and_then(|id| apps.iter().find(|app| app.sdk_app_id == id))
        .ok_or(Answer::UnknownApp)?;
    let verified = |query| Ok(Verified { sdk_app_id: app.sdk_app_id, query });

    let Some(sign) = &query.sign else {
        if app.allow_unsigned {
            return verified(query);
        }
        return Err(Answer::Unauthenticated("Sign is missing"));
    };
    let Some(request_time) = &query.request_time else {
        return Err(Answer::Unauthenticated("RequestTime is missing"));
    };
    let Some(seconds) = digits(request_time) else {
        return Err(Answer::Unauthenticated("RequestTime is not a Unix time in seconds"));
    };
    if !is_signed_by_any(&app.tokens, request_time, sign) {
        return Err(Answer::Unauthenticated("Sign is wrong"));
    }
    if seconds.abs_diff(now) > max_skew {
        return Err(Answer::Stale { max_skew_seconds: max_skew });
    }
    verified(query)
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
            .map_err(|answer| answer.codes());
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
    fn unsigned_is_taken_only_where_allowed_and_only_without_a_sign() {
        check("SdkAppid=2", NOW, Ok(2));
        check("SdkAppid=3&RequestTime=1", NOW, Ok(3));
        check(&format!("SdkAppid=2&RequestTime={NOW}&Sign={A_2112}"), NOW, Err((401, 40101)));
        check(&format!("SdkAppid=3&RequestTime={NOW}&Sign={XXXXYYYY}"), NOW, Err((401, 40101)));
        check(&format!("SdkAppid=3&RequestTime={NOW}&Sign={A_2112}"), NOW, Ok(3));
    }
}
