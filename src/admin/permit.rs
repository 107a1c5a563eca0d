//! Who may change something over the private listener: whoever is on this host, if the listener is on a loopback
//! address, or whoever has the token of `admin.token_file`; never a website through somebody's browser.

use std::path::{Path, PathBuf};

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use subtle::ConstantTimeEq as _;

use crate::config::value::secret_file;

/// Why a request may not change anything.
pub(super) type Refused = (StatusCode, String);

pub(super) struct Permit {
    pub(super) token_file: Option<PathBuf>,
    pub(super) is_loopback: bool,
}

impl Permit {
    /// The file is read each time, so that a new token counts at once.
    pub(super) fn check(&self, headers: &HeaderMap, content_type: &str) -> Result<(), Refused> {
        // A browser sends this type to another site only after asking, which nobody here answers.
        let found = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let found = found.and_then(|found| found.split(';').next()).unwrap_or_default().trim();
        if headers.contains_key(ORIGIN) {
            let error = "the request has an Origin, so it comes from a browser: nothing is changed for those";
            return Err((StatusCode::FORBIDDEN, error.into()));
        }
        match &self.token_file {
            Some(path) => has_token(headers, path)?,
            None if self.is_loopback => {}
            None => {
                let error = "admin.listen is not a loopback address, and there is no admin.token_file: set it, \
                             or run the command on the bridge's host with admin.listen on 127.0.0.1";
                return Err((StatusCode::FORBIDDEN, error.into()));
            }
        }
        if !found.eq_ignore_ascii_case(content_type) {
            let error = format!("the Content-Type is {found:?}, expected {content_type:?}");
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
        }
        Ok(())
    }
}

fn has_token(headers: &HeaderMap, path: &Path) -> Result<(), Refused> {
    let token = token(path).map_err(|reason| {
        let error = format!("admin.token_file: {reason}: nobody is let in until it is mended");
        tracing::error!("{error}");
        (StatusCode::FORBIDDEN, error)
    })?;
    let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let given = given.split_at_checked("Bearer ".len());
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "));
    let given = given.map(|(_, given)| given.trim_ascii()).unwrap_or_default();
    if bool::from(token.as_bytes().ct_eq(given)) {
        return Ok(());
    }
    let error = match given.is_empty() {
        true => "there is an admin.token_file: send its token as \"Authorization: Bearer …\"",
        false => "the token is not that of admin.token_file",
    };
    Err((StatusCode::UNAUTHORIZED, error.into()))
}

/// The token in the file, which must not be empty.
pub(crate) fn token(path: &Path) -> Result<String, String> {
    let token = secret_file(path)?.trim().to_owned();
    if token.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("the token in {} has blanks or is not ASCII", path.display()));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = "application/json";

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| {
            (name.parse::<axum::http::HeaderName>().unwrap(), value.parse().unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn only_this_host_or_the_token_may_change_anything() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "correct horse\n").unwrap();
        let check = |is_loopback, has_file: bool, given: &[(&str, &str)], code: Option<u16>| {
            let permit = Permit { token_file: has_file.then(|| file.clone()), is_loopback };
            let given = headers(&[given, &[("content-type", JSON)]].concat());
            let found = permit.check(&given, JSON).err();
            assert_eq!(found.as_ref().map(|(code, _)| code.as_u16()), code, "{given:?} {found:?}");
        };
        check(true, false, &[], None);
        check(false, false, &[], Some(403));
        check(true, false, &[("origin", "http://localhost:9090")], Some(403));
        check(true, false, &[("origin", "null")], Some(403));
        check(true, true, &[("authorization", "Bearer correcthorse")], Some(403)); // it has a blank
        std::fs::write(&file, "correct-horse\n").unwrap();
        for is_loopback in [true, false] {
            check(is_loopback, true, &[], Some(401));
            check(is_loopback, true, &[("authorization", "Bearer correct-horse")], None);
            check(is_loopback, true, &[("authorization", "bearer correct-horse")], None);
            for wrong in ["Bearer ", "Bearer correct-hors", "Basic correct-horse", "correct-horse"]
            {
                check(is_loopback, true, &[("authorization", wrong)], Some(401));
            }
            let both = [("authorization", "Bearer correct-horse"), ("origin", "http://x")];
            check(is_loopback, true, &both, Some(403));
        }
        std::fs::write(&file, "new\n").unwrap();
        check(true, true, &[("authorization", "Bearer correct-horse")], Some(401));
        check(true, true, &[("authorization", "Bearer new")], None);
        std::fs::write(&file, "\n").unwrap();
        check(true, true, &[("authorization", "Bearer ")], Some(403));
        std::fs::remove_file(&file).unwrap();
        check(true, true, &[("authorization", "Bearer new")], Some(403));
    }

    #[test]
    fn a_form_is_no_order() {
        let permit = Permit { token_file: None, is_loopback: true };
        for (found, is_good) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("text/plain; application/json", false),
            ("", false),
        ] {
            let result = permit.check(&headers(&[("content-type", found)]), JSON);
            assert_eq!(result.is_ok(), is_good, "{found}: {result:?}");
        }
        assert!(permit.check(&HeaderMap::new(), JSON).is_err());
    }
}
