//! One keep-alive HTTP/1.1 connection of the platform: opened when a callback needs it, kept as long
//! as the receiver keeps it, with one callback on it at a time.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::callback::Target;

/// An answer is three short fields; whoever answers with more is not read to the end.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why a callback has no answer, each with a text for the operator.
#[derive(Debug)]
pub(super) enum Failure {
    /// It never got onto a connection: the receiver cannot have seen it.
    Refused(String),
    /// The connection ended after it was sent: the receiver may have taken it.
    Closed(String),
    /// Sent, and not answered in time: the receiver may have taken it.
    Timeout(String),
    /// Answered with something that is not HTTP, or far too long.
    Garbled(String),
}

/// Opens connections to one receiver.
#[derive(Clone)]
pub(super) struct Dialer {
    host: Arc<str>,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Dialer {
    pub(super) fn new(target: &Target, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        ensure!(target.tls || ca_file.is_none(), "--ca-file is of use with an https URL only");
        let tls = match target.tls {
            true => Some((tls_connector(ca_file)?, ServerName::try_from(target.host.clone())?)),
            false => None,
        };
        Ok(Self { host: target.host.as_str().into(), port: target.port, tls })
    }

    async fn dial(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect((&*self.host, self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Connection::over(stream).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await.context("TLS failed")?;
                Connection::over(stream).await
            }
        }
    }
}

fn tls_connector(ca_file: Option<&Path>) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = ca_file {
        let name = path.display();
        let certificates = CertificateDer::pem_file_iter(path)
            .with_context(|| format!("cannot read the certificates in {name}"))?;
        let before = roots.len();
        for certificate in certificates {
            let certificate = certificate.with_context(|| format!("{name} is not PEM"))?;
            roots.add(certificate).with_context(|| format!("{name} holds no CA certificate"))?;
        }
        ensure!(roots.len() > before, "{name} holds no certificate");
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("the TLS provider knows no protocol version")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // The platform speaks HTTP/1.1, so a receiver that prefers HTTP/2 must not be given the choice.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Does the reading and writing. It is polled beside each wait of its one user, not as a task of
    /// its own: handing each callback from task to task and back costs a tenth of it.
    driver: Option<Driver>,
}

impl Connection {
    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> anyhow::Result<Self> {
        // Head and body together are a few hundred bytes: copying them is cheaper than a vector.
        let (sender, driver) =
            http1::Builder::new().writev(false).handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, driver: Some(Box::pin(driver)) })
    }
}

/// Waits for something that the connection brings about.
async fn beside<T>(driver: &mut Option<Driver>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        loop {
            if let Poll::Ready(output) = work.as_mut().poll(context) {
                return Poll::Ready(output);
            }
            match driver.as_mut().map(|driver| driver.as_mut().poll(context)) {
                Some(Poll::Pending) | None => return Poll::Pending,
                // The end of the connection is told to the sender too; the error comes out there.
                Some(Poll::Ready(_)) => *driver = None,
            }
        }
    })
    .await
}

/// A place for one connection, and what became of the last one.
pub(super) struct Line {
    dialer: Dialer,
    connection: Option<Connection>,
    /// Whether the callback under way may have been sent, for whoever stops waiting for it.
    sent: bool,
}

impl Line {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self { dialer, connection: None, sent: false }
    }

    /// Sends one callback and reads its answer, on the connection there is or on a new one.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let outcome = self.attempt(request).await;
        if outcome.is_err() {
            self.connection = None;
        }
        outcome
    }

    async fn attempt(
        &mut self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        self.sent = false;
        loop {
            let kept = self.connection.is_some();
            let Connection { sender, driver } = self.usable().await?;
            let mut error = match beside(driver, sender.try_send_request(request)).await {
                Ok(response) => return beside(driver, read(response)).await,
                Err(error) => error,
            };
            match error.take_message() {
                // Not a byte of it was sent: the receiver had closed the kept connection meanwhile.
                Some(unsent) if kept => {
                    (self.sent, self.connection) = (false, None);
                    request = unsent;
                }
                Some(_) => return Err(Failure::Refused("closed before anything was sent".into())),
                None => return Err(failure(&error.into_error())),
            }
        }
    }

    /// Gives up on the callback under way, and on its connection, where a late answer may come yet.
    pub(super) fn give_up(&mut self, waited: std::time::Duration) -> Failure {
        self.connection = None;
        match self.sent {
            true => {
                Failure::Timeout(format!("no answer in {}", humantime::format_duration(waited)))
            }
            false => {
                let waited = humantime::format_duration(waited);
                Failure::Refused(format!("no connection in {waited}"))
            }
        }
    }

    /// The kept connection, or a new one where the receiver has closed that.
    async fn usable(&mut self) -> Result<&mut Connection, Failure> {
        if let Some(Connection { sender, driver }) = &mut self.connection
            && beside(driver, sender.ready()).await.is_err()
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            // In a box, since it is large and rare, and would be moved about with each callback.
            let dialed = Box::pin(self.dialer.dial()).await;
            let refused = |error| Failure::Refused(format!("no connection: {error:#}"));
            self.connection = Some(dialed.map_err(refused)?);
        }
        self.sent = true;
        Ok(self.connection.as_mut().expect("dialed where there was none"))
    }
}

async fn read(response: Response<Incoming>) -> Result<(StatusCode, Bytes), Failure> {
    let status = response.status();
    let mut incoming = response.into_body();
    let mut body = Bytes::new();
    while !incoming.is_end_stream() {
        let Some(frame) = incoming.frame().await else {
            break;
        };
        let frame = frame.map_err(|error| failure(&error))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if body.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(Failure::Garbled(format!("an answer of over {MAX_ANSWER_BYTES} bytes")));
        }
        // Nearly always the first piece is all of it.
        body = if body.is_empty() { data } else { [body, data].concat().into() };
    }
    Ok((status, body))
}

fn failure(error: &hyper::Error) -> Failure {
    // A hyper error leaves its cause out of its own text.
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    let text = format!("{error}{}", cause.unwrap_or_default());
    if error.is_parse() { Failure::Garbled(text) } else { Failure::Closed(text) }
}
