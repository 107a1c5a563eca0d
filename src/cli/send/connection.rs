//! One keep-alive HTTP/1.1 connection of the platform: opened when a callback needs it, kept as long
//! as the receiver keeps it, with one callback on it at a time. It stands on hyper's connections and
//! not on hyper-util's pooling client, with which a callback costs nearly twice the instructions here.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::report::FailureKind::{Closed, Garbled, Refused, Timeout};
use super::report::{Failure, Outcome};
use crate::tls;

/// An answer is three short fields; whoever answers with more is not read to the end.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Opens connections to one receiver.
pub(super) struct Dialer {
    /// A name or an address, one of version 6 without its brackets.
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Dialer {
    pub(super) fn new(receiver: &Uri, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let host = receiver.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let is_https = receiver.scheme_str() == Some("https");
        ensure!(is_https || ca_file.is_none(), "--ca-file is of use with an https URL only");
        let tls = match is_https {
            true => Some((tls(ca_file)?, ServerName::try_from(host.clone())?)),
            false => None,
        };
        let port = receiver.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Ok(Self { host, port, tls })
    }

    async fn dial(&self) -> anyhow::Result<Sender> {
        let stream = TcpStream::connect((&*self.host, self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => handshake(stream).await,
            Some((connector, name)) => {
                handshake(connector.connect(name.clone(), stream).await.context("TLS failed")?)
                    .await
            }
        }
    }
}

type Sender = http1::SendRequest<Full<Bytes>>;

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<Sender> {
    // Head and body together are a few hundred bytes: copying them is cheaper than a vector.
    let (sender, connection) =
        http1::Builder::new().writev(false).handshake(TokioIo::new(stream)).await?;
    // It ends with its sender, and its errors come out there.
    tokio::spawn(connection);
    Ok(sender)
}

fn tls(ca_file: Option<&Path>) -> anyhow::Result<TlsConnector> {
    let mut config = tls::client(ca_file)?;
    // The platform speaks HTTP/1.1, so a receiver that prefers HTTP/2 must not be given the choice.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A place for one connection.
pub(super) struct Line<'a> {
    dialer: &'a Dialer,
    timeout: Duration,
    kept: Option<Sender>,
}

impl<'a> Line<'a> {
    pub(super) fn new(dialer: &'a Dialer, timeout: Duration) -> Self {
        Self { dialer, timeout, kept: None }
    }

    /// Sends one callback and reads its answer, on the connection there is or on a new one. Only an
    /// answered callback leaves its connection behind: on another a late answer may come yet.
    pub(super) async fn exchange(&mut self, mut request: Request<Full<Bytes>>) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let waited = || humantime::format_duration(self.timeout);
        loop {
            let mut kept = self.kept.take();
            if let Some(sender) = &mut kept
                && !matches!(timeout_at(deadline, sender.ready()).await, Ok(Ok(())))
            {
                kept = None;
            }
            let was_kept = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => timeout_at(deadline, self.dialer.dial())
                    .await
                    .map_err(|_| Refused.because(format!("no connection in {}", waited())))?
                    .map_err(|error| Refused.because(format!("no connection: {error:#}")))?,
            };
            let exchange = async { Ok(read(sender.try_send_request(request).await?).await) };
            match timeout_at(deadline, exchange).await {
                Ok(Ok(outcome)) => {
                    self.kept = outcome.is_ok().then_some(sender);
                    return outcome;
                }
                Ok(Err(error)) => match unsent(error)? {
                    // Not a byte of it was sent: the receiver had closed the kept connection meanwhile.
                    again if was_kept => request = again,
                    _ => return Err(Refused.because("closed before anything was sent")),
                },
                Err(_) => return Err(Timeout.because(format!("no answer in {}", waited()))),
            }
        }
    }
}

async fn read(response: Response<Incoming>) -> Outcome {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    Ok((head.status, body.map_err(failure)?.to_bytes()))
}

fn unsent(mut error: TrySendError<Request<Full<Bytes>>>) -> Result<Request<Full<Bytes>>, Failure> {
    error.take_message().ok_or_else(|| failure(error.into_error().into()))
}

fn failure(error: Box<dyn Error + Send + Sync>) -> Failure {
    if error.is::<LengthLimitError>() {
        return Garbled.because(format!("an answer of over {MAX_ANSWER_BYTES} bytes"));
    }
    let http = error.downcast_ref::<hyper::Error>();
    let kind = if http.is_some_and(hyper::Error::is_parse) { Garbled } else { Closed };
    // A hyper error leaves its cause out of its own text.
    kind.because(format!("{:#}", anyhow::Error::from_boxed(error)))
}
