//! Who may be meant by a request to a listener on a loopback address. A browser on the same host can be led there by
//! a name that an attacker's DNS points to 127.0.0.1 ("DNS rebinding"), and then sends that name.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::header::HOST;
use axum::http::uri::Authority;

/// Why a request is not meant for this host. A request without a name is: no browser sends one.
pub(super) fn check(request: &Request) -> Result<(), String> {
    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let hosts = request.headers().get_all(HOST).iter().map(|host| host.as_bytes());
    for host in target.into_iter().chain(hosts).filter(|host| !host.is_empty()) {
        if !is_local(host) {
            return Err(format!(
                "the request is for the host {:?}, and admin.listen is a loopback address, where only localhost \
                 and loopback addresses are served, so that no website can read it through a browser: ask for \
                 localhost, or set admin.listen to another address",
                String::from_utf8_lossy(host)
            ));
        }
    }
    Ok(())
}

fn is_local(host: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(host) else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host();
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    if let Ok(address) = literal.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn only_localhost_and_loopback_addresses_are_local() {
        let check = |host: &[u8], is_served: bool| {
            let request = Request::get("/events").header(HOST, host).body(Body::empty()).unwrap();
            let result = check(&request);
            assert_eq!(
                result.is_ok(),
                is_served,
                "{:?}: {result:?}",
                String::from_utf8_lossy(host)
            );
        };
        for served in [
            "",
            "localhost",
            "LocalHost:9090",
            "localhost.",
            "bridge.localhost:1",
            "127.0.0.1",
            "127.0.0.1:9090",
            "127.9.8.7:80",
            "[::1]",
            "[::1]:9090",
            "[::ffff:127.0.0.1]:9090",
        ] {
            check(served.as_bytes(), true);
        }
        for refused in [
            "attacker.example",
            "attacker.example:9090",
            "localhost.attacker.example",
            "notlocalhost",
            "10.0.0.1:9090",
            "0.0.0.0",
            "[::]:9090",
            "localhost@attacker.example",
            "attacker.example@localhost",
            "127.0.0.1 attacker.example",
            ":9090",
        ] {
            check(refused.as_bytes(), false);
        }
        check(b"\xfflocalhost", false);
    }

    #[test]
    fn no_host_may_be_hidden_behind_a_good_one() {
        let plain = Request::get("/events").body(Body::empty()).unwrap();
        assert_eq!(check(&plain), Ok(()));
        let two =
            Request::get("/events").header(HOST, "localhost").header(HOST, "attacker.example");
        assert!(check(&two.body(Body::empty()).unwrap()).is_err());
        let target = Request::get("http://attacker.example/events").header(HOST, "localhost");
        assert!(check(&target.body(Body::empty()).unwrap()).is_err());
    }
}
