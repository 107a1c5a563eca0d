//! Who the bridge is to NATS: read anew for each connection, so that credentials can be changed under a
//! running bridge.

use std::fs;

use async_nats::{Auth, AuthError};
use nkeys::KeyPair;

use super::super::{Kind, Reason};
use crate::config::{self, Secret};

#[derive(Clone, Default)]
pub(super) struct Identity {
    username: Option<Secret>,
    password: Option<Secret>,
    token: Option<Secret>,
    /// Of a credentials file: the user's JWT and the seed that signs for it.
    jwt: Option<Secret>,
    seed: Option<Secret>,
}

impl Identity {
    pub(super) fn read(config: &config::Nats) -> Result<Self, Reason> {
        let unreadable = |text: String| Reason::new(Kind::Credentials, text);
        let secret = |credential: &Option<_>| -> Result<Option<Secret>, Reason> {
            let read = |credential: &config::Credential| credential.read().map_err(unreadable);
            credential.as_ref().map(read).transpose()
        };
        let mut identity = Identity {
            username: secret(&config.username)?,
            password: secret(&config.password)?,
            token: secret(&config.token)?,
            ..Identity::default()
        };
        if let Some(path) = &config.credentials {
            let shown = path.display();
            let text = fs::read_to_string(path)
                .map_err(|error| unreadable(format!("{shown}: {error}")))?;
            let part = |name: &str| {
                let part = section(&text, name).map(Secret::new);
                part.ok_or_else(|| unreadable(format!("{shown} has no part \"BEGIN {name}\"")))
            };
            identity.jwt = Some(part("NATS USER JWT")?);
            identity.seed = Some(part("USER NKEY SEED")?);
        }
        Ok(identity)
    }

    /// The answer to a server's greeting, which may hold a challenge to sign.
    pub(super) fn auth(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let text =
            |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.reveal().to_owned());
        let mut auth = Auth::new();
        auth.username = text(&self.username);
        auth.password = text(&self.password);
        auth.token = text(&self.token);
        auth.jwt = text(&self.jwt);
        if let Some(seed) = &self.seed {
            let pair = KeyPair::from_seed(seed.reveal()).map_err(AuthError::new)?;
            auth.signature = Some(pair.sign(nonce).map_err(AuthError::new)?);
        }
        Ok(auth)
    }
}

/// What stands between two lines of dashes, the first of which names it.
fn section<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains(&format!("BEGIN {name}")))?;
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "-----BEGIN NATS USER JWT-----\neyJ0.abc.def\n------END NATS USER JWT------\n\n\
        ************************* IMPORTANT *************************\n\n\
        -----BEGIN USER NKEY SEED-----\r\nSUAKEY\r\n------END USER NKEY SEED------\n";

    #[test]
    fn a_credentials_file_is_taken_apart() {
        assert_eq!(section(CREDENTIALS, "NATS USER JWT"), Some("eyJ0.abc.def"));
        assert_eq!(section(CREDENTIALS, "USER NKEY SEED"), Some("SUAKEY"));
        assert_eq!(section(CREDENTIALS, "SOMETHING ELSE"), None);
        let empty = "-----BEGIN NATS USER JWT-----\n------END NATS USER JWT------\n";
        assert_eq!(section(empty, "NATS USER JWT"), None);
    }

    #[test]
    fn a_challenge_is_signed_with_the_seed() {
        let pair = KeyPair::new_user();
        let identity = Identity { seed: Some(Secret::new(pair.seed().unwrap())), ..<_>::default() };
        let signature = identity.auth(b"challenge").unwrap().signature.unwrap();
        assert!(pair.verify(b"challenge", &signature).is_ok());
        let broken = Identity { seed: Some(Secret::new("SUAKEY")), ..<_>::default() };
        assert!(broken.auth(b"challenge").is_err());
    }
}
