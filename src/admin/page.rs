//! `GET /`: a page for whoever wants to see the bridge at work. It is one file without a library, knows no other
//! address than this listener's, and changes nothing. What it shows comes from strangers, so a browser is told to run
//! and draw only what is in the file itself: its script and its style are named by their hashes.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

const PAGE: &str = include_str!("page.html");

/// The answer's `Content-Security-Policy`.
pub(super) fn policy() -> String {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style"),
    )
}

pub(super) fn page(policy: &str) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, policy),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

/// Of all that is between the page's only two tags of this name.
fn hash_of(name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let text = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    let (text, _) = text.expect("the page has one script and one style, without attributes");
    format!("sha256-{}", STANDARD.encode(digest(&SHA256, text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_nothing_inline() {
        for tag in ["<script", "</script>", "<style", "</style>"] {
            assert_eq!(PAGE.matches(tag).count(), 1, "{tag}");
        }
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!PAGE.contains(word), "{word}");
        }
    }
}
