//! Which headers go along: the end-to-end ones, as RFC 9110 (7.6.1) tells them from those of one connection.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Those of one connection; the ones that `Connection` names belong to them.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    PROXY_CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The headers of a callback on its way to the backend. `Host` becomes that of the backend's URL, and `Expect`
/// has been answered already.
pub(super) fn to_backend(headers: &HeaderMap, peer: Option<IpAddr>, length: usize) -> HeaderMap {
    let mut forwarded = end_to_end(headers);
    forwarded.remove(HOST); // the client writes its own
    forwarded.remove(EXPECT);
    forwarded.insert(CONTENT_LENGTH, length.into());
    if let Some(peer) = peer {
        let before = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<_> =
            before.map(str::to_owned).chain([peer.to_canonical().to_string()]).collect();
        if let Ok(value) = HeaderValue::try_from(all.join(", ")) {
            forwarded.insert(FORWARDED_FOR, value);
        }
    }
    forwarded
}

/// The headers of the backend's answer on its way back.
pub(super) fn to_platform(headers: &HeaderMap) -> HeaderMap {
    let mut forwarded = end_to_end(headers);
    forwarded.remove(CONTENT_LENGTH); // the body is whole, and its length is known
    forwarded
}

fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<_> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let is_of_the_connection = |name: &HeaderName| {
        HOP_BY_HOP.contains(name) || named.iter().any(|other| other == name.as_str())
    };
    let kept = headers.iter().filter(|(name, _)| !is_of_the_connection(name));
    // `append`, because a header may be repeated.
    let mut forwarded = HeaderMap::with_capacity(headers.len());
    for (name, value) in kept {
        forwarded.append(name.clone(), value.clone());
    }
    forwarded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in list.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn only_end_to_end_headers_go_along() {
        let sent = headers(&[
            ("host", "bridge"),
            ("connection", "keep-alive, X-Hop"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("expect", "100-continue"),
            ("content-type", "application/json"),
            ("x-twice", "a"),
            ("x-twice", "b"),
            ("x-forwarded-for", "10.0.0.1"),
        ]);
        let expected = headers(&[
            ("content-type", "application/json"),
            ("x-twice", "a"),
            ("x-twice", "b"),
            ("content-length", "7"),
            ("x-forwarded-for", "10.0.0.1, 192.0.2.7"),
        ]);
        let peer = Some("::ffff:192.0.2.7".parse().unwrap());
        assert_eq!(to_backend(&sent, peer, 7), expected);
        let answered =
            headers(&[("content-length", "7"), ("connection", "close"), ("server", "x")]);
        assert_eq!(to_platform(&answered), headers(&[("server", "x")]));
    }
}
