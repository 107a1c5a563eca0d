//! HTTPS for the public listener: certificate, key and client CA from PEM files, reloaded when
//! they change, so that a renewed certificate needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::metrics::Metrics;
use crate::time::Timestamp;
use crate::watched::{LOOK, Stamp};

/// Certificate chain, key, and the CA for client certificates, if those are required: PEM files.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
}

/// How long before its end a certificate is warned about, once a day.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * DAY);
const DAY: u64 = 24 * 60 * 60;

/// Loads the files, and keeps the newest valid configuration in the receiver for as long as a receiver
/// exists.
pub(crate) fn watch(
    files: TlsFiles,
    metrics: Arc<Metrics>,
) -> anyhow::Result<watch::Receiver<Arc<ServerConfig>>> {
    let seen = stamp(&files);
    let Loaded { config, validity } = load(&files)?;
    let (sender, receiver) = watch::channel(config);
    let mut watched = Watched { files, sender, metrics, seen, failure: None, validity, told: None };
    watched.tell_validity(Timestamp::now());
    tokio::spawn(async move {
        while !watched.sender.is_closed() {
            tokio::time::sleep(LOOK).await;
            let look = move || {
                watched.look(Timestamp::now());
                watched
            };
            match tokio::task::spawn_blocking(look).await {
                Ok(looked) => watched = looked,
                Err(_) => return, // the runtime is ending
            }
        }
    });
    Ok(receiver)
}

/// Whether the files can be used now.
pub(crate) fn check(files: &TlsFiles) -> anyhow::Result<()> {
    load(files).map(drop)
}

/// Loads the files once. The text is a warning: the certificate is valid no longer, not yet, or not for long.
pub(crate) fn examine(files: &TlsFiles, now: Timestamp) -> anyhow::Result<Option<String>> {
    Ok(load(files)?.validity.warning(files, now))
}

/// The files in use, and how they were found at the last look.
struct Watched {
    files: TlsFiles,
    sender: watch::Sender<Arc<ServerConfig>>,
    metrics: Arc<Metrics>,
    seen: Stamp,
    /// Why the files cannot be used. Then each look tries again: what mends it may leave no mark on the files,
    /// or one within the same tick of the file system's clock.
    failure: Option<String>,
    validity: Validity,
    told: Option<String>,
}

impl Watched {
    fn look(&mut self, now: Timestamp) {
        let seen = stamp(&self.files);
        if seen != self.seen || self.failure.is_some() {
            self.seen = seen;
            self.reload();
        }
        self.tell_validity(now);
    }

    fn reload(&mut self) {
        match load(&self.files) {
            Ok(Loaded { config, validity }) => {
                tracing::info!("reloaded the changed TLS files");
                self.sender.send_replace(config);
                (self.validity, self.failure) = (validity, None);
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.failure.as_ref() != Some(&error) {
                    tracing::error!(
                        error,
                        "the changed TLS files cannot be used: the old certificate stays in use until \
                         they are fixed"
                    );
                }
                self.failure = Some(error);
            }
        }
    }

    /// Warns about a certificate that is not valid, or not for long: once, and again when the text has
    /// another number of days.
    fn tell_validity(&mut self, now: Timestamp) {
        if let Validity::Known { until, .. } = self.validity {
            self.metrics.set_certificate_expiry(until);
        }
        let warning = self.validity.warning(&self.files, now);
        if let Some(warning) = warning.as_ref().filter(|_| warning != self.told) {
            tracing::warn!("{warning}");
        }
        self.told = warning;
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
    Stamp::of(paths.into_iter().flatten().map(PathBuf::as_path))
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Validity {
    Known { from: Timestamp, until: Timestamp },
    Unreadable,
}

impl Validity {
    fn of(certificate: &CertificateDer) -> Self {
        let Ok(certificate) = Certificate::from_der(certificate) else {
            return Validity::Unreadable;
        };
        let validity = certificate.tbs_certificate.validity;
        let [from, until] = [validity.not_before, validity.not_after]
            .map(|time| Timestamp::default() + time.to_unix_duration());
        Validity::Known { from, until }
    }

    fn warning(self, files: &TlsFiles, now: Timestamp) -> Option<String> {
        let Validity::Known { from, until } = self else {
            return Some(format!(
                "cannot read how long the certificate in {} is valid",
                files.cert.display()
            ));
        };
        let (cert, days) = (files.cert.display(), until.distance(now).as_secs() / DAY);
        if now < from {
            Some(format!(
                "the certificate in {cert} is not valid before {from}, and clients refuse it: is this \
                 host's clock right?"
            ))
        } else if now > until {
            Some(format!(
                "the certificate in {cert} has been expired for {days} days, since {until}, and clients \
                 refuse it: renew it"
            ))
        } else if until.since(now) < EXPIRES_SOON {
            Some(format!("the certificate in {cert} expires in {days} days, at {until}: renew it"))
        } else {
            None
        }
    }
}

struct Loaded {
    config: Arc<ServerConfig>,
    validity: Validity,
}

fn load(files: &TlsFiles) -> anyhow::Result<Loaded> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).with_context(|| in_file(path, "a CA certificate"))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.with_context(|| in_file(path, "the CA"))?)
        }
    };
    let chain = certificates(&files.cert)?;
    let validity = Validity::of(&chain[0]);
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| in_file(&files.key, "a private key"))?;
    let mut config = builder.with_single_cert(chain, key).with_context(|| {
        format!("{} does not fit {}", files.key.display(), files.cert.display())
    })?;
    // A client that comes back, maybe together with all others, needs no new signature. The cache that rustls has
    // of itself is for 256 sessions.
    config.ticketer = ring::Ticketer::new().context("cannot draw a key for TLS tickets")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), validity })
}

/// What a client trusts: the public authorities, and those in `ca_file`.
pub(crate) fn client(ca_file: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = ca_file {
        for certificate in certificates(path)? {
            let name = path.display();
            roots.add(certificate).with_context(|| format!("{name} holds no CA certificate"))?;
        }
    }
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("the TLS provider knows no protocol version")?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

pub(crate) fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| in_file(path, "certificates"))?;
    anyhow::ensure!(!certificates.is_empty(), "there is no certificate in {}", path.display());
    Ok(certificates)
}

fn in_file(path: &Path, what: &str) -> String {
    format!("cannot read {what} from {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_could_not_be_used_are_tried_again_though_nothing_shows_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let [cert, key] = ["crt", "key"].map(|name| folder.path().join(name));
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let files = TlsFiles { cert, key, client_ca: None };
        let Loaded { config, validity } = load(&files).unwrap();
        let (sender, mut receiver) = watch::channel(config);
        let mut watched = Watched {
            seen: stamp(&files),
            files,
            sender,
            metrics: Arc::new(Metrics::new("none")),
            failure: None,
            validity,
            told: None,
        };
        watched.look(Timestamp::now());
        assert!(!receiver.has_changed().unwrap());
        watched.failure = Some("no more descriptors".into());
        watched.look(Timestamp::now());
        assert!(receiver.has_changed().unwrap());
        receiver.mark_unchanged();
        watched.look(Timestamp::now());
        assert!(!receiver.has_changed().unwrap());
    }
}
