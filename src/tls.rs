//! HTTPS for the public listener: certificate, key and client CA from PEM files, reloaded when
//! they change, so that a renewed certificate needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Certificate chain, key, and the CA for client certificates, if those are required: PEM files.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
}

/// How often the files are checked for changes.
const LOOK: Duration = Duration::from_secs(2);

/// Loads the files, and keeps the newest valid configuration in the receiver for as long as a receiver
/// exists.
pub(crate) fn watch(files: TlsFiles) -> anyhow::Result<watch::Receiver<Arc<ServerConfig>>> {
    let mut seen = changed_at(&files);
    let (sender, receiver) = watch::channel(Arc::new(load(&files)?));
    tokio::spawn(async move {
        while !sender.is_closed() {
            tokio::time::sleep(LOOK).await;
            let files = files.clone();
            let before = seen.clone();
            let look = move || {
                let now = changed_at(&files);
                let loaded = (now != before).then(|| load(&files));
                (now, loaded)
            };
            let Ok((now, loaded)) = tokio::task::spawn_blocking(look).await else {
                return; // the runtime is ending
            };
            seen = now;
            match loaded {
                None => {}
                Some(Ok(config)) => {
                    tracing::info!("reloaded the changed TLS files");
                    sender.send_replace(Arc::new(config));
                }
                Some(Err(error)) => tracing::error!(
                    error = format!("{error:#}"),
                    "the changed TLS files cannot be used: the old certificate stays in use until they \
                     are fixed"
                ),
            }
        }
    });
    Ok(receiver)
}

/// Whether the files can be used now.
pub(crate) fn check(files: &TlsFiles) -> anyhow::Result<()> {
    load(files).map(drop)
}

fn changed_at(files: &TlsFiles) -> Vec<Option<SystemTime>> {
    let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
    let changed = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    paths.into_iter().flatten().map(|path| changed(path)).collect()
}

fn load(files: &TlsFiles) -> anyhow::Result<ServerConfig> {
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
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| in_file(&files.key, "a private key"))?;
    let mut config = builder.with_single_cert(chain, key).with_context(|| {
        format!("{} does not fit {}", files.key.display(), files.cert.display())
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
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
