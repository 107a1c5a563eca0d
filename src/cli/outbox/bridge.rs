//! A running bridge, asked over its private listener to do something with its outbox.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::Frame;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::admin::token;
use crate::outbox::{Act, OpenError, Order, Tally};

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

/// An answer is a few numbers.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Bytes of an import that are sent at a time.
const PIECE: usize = 64 << 10;

type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) struct Bridge {
    /// `http://host:port`.
    base: String,
    token_file: Option<PathBuf>,
    /// The outbox that is meant, and why it is not opened here.
    outbox: Option<(String, OpenError)>,
}

impl Bridge {
    pub(super) fn at(url: &str, token_file: Option<PathBuf>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("--admin {url:?} is not a URL"))?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let is_plain = uri.path().len() <= 1 && uri.query().is_none();
        ensure!(
            uri.scheme_str() == Some("http") && authority.is_some() && is_plain,
            "--admin {url:?} is not the address of a private listener, such as http://127.0.0.1:9090"
        );
        Ok(Bridge { base: url.trim_end_matches('/').to_owned(), token_file, outbox: None })
    }

    pub(super) fn listening(
        listen: SocketAddr,
        token_file: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        ensure!(
            listen.port() != 0,
            "admin.listen takes a free port: name the one that the bridge's log shows with --admin \
             http://127.0.0.1:PORT"
        );
        Ok(Bridge { base: format!("http://{}", reachable(listen)), token_file, outbox: None })
    }

    pub(super) fn with_outbox(self, identity: String, in_use: OpenError) -> Self {
        Bridge { outbox: Some((identity, in_use)), ..self }
    }

    pub(super) async fn perform(&self, act: Act, order: &Order) -> anyhow::Result<Tally> {
        let outbox = self.outbox.as_ref().map(|(identity, _)| identity.clone());
        let order = Order { outbox, ..order.clone() };
        let json = serde_json::to_vec(&order).expect("texts and numbers always encode");
        self.ask(&format!("/outbox/{}", act.name()), JSON, whole(json)).await
    }

    pub(super) async fn import(&self, file: File, is_rehearsal: bool) -> anyhow::Result<Tally> {
        let mut target = format!("/outbox/import?dry_run={is_rehearsal}");
        if let Some((identity, _)) = &self.outbox {
            target += &format!("&outbox={identity}");
        }
        // Whether it may is asked with nothing first: a refusal while much is being sent may not be read.
        let may_try = target.replace("dry_run=false", "dry_run=true");
        self.ask(&may_try, NDJSON, whole(Vec::new())).await?;
        self.ask(&target, NDJSON, pieces(file)).await
    }

    async fn ask(&self, target: &str, content_type: &str, body: Body) -> anyhow::Result<Tally> {
        let mut request = Request::post(format!("{}{target}", self.base));
        request = request.header(CONTENT_TYPE, content_type);
        if let Some(path) = &self.token_file {
            let token = token(path).map_err(|reason| anyhow!("admin.token_file: {reason}"))?;
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
        let response = client.request(request.body(body).context("the request")?).await;
        let response = response.map_err(anyhow::Error::from).with_context(|| {
            let reached = format!("cannot reach the private listener at {}", self.base);
            match &self.outbox {
                Some((_, in_use)) => format!(
                    "{in_use}; or let it do this over its private listener: {reached}: is that where it \
                     listens? Else name it with --admin"
                ),
                None => reached,
            }
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body =
            body.map_err(|error| anyhow!("the answer of {}: {error}", self.base))?.to_bytes();
        if status.is_success() {
            let tally = serde_json::from_slice(&body);
            return tally.with_context(|| format!("{} is not a bridge of this release", self.base));
        }
        let told: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let told = told["error"].as_str().unwrap_or("it does not say why");
        match status {
            StatusCode::NOT_FOUND => {
                bail!("the bridge at {} cannot do this: it is an older release", self.base)
            }
            _ => bail!("the bridge at {} refuses ({}): {told}", self.base, status.as_u16()),
        }
    }
}

fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// A file as it is read: on another thread, because it may be a pipe.
fn pieces(file: File) -> Body {
    let stream = stream::unfold(Some(file), async |file| {
        let mut file = file?;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let read = file.read(&mut piece);
            (
                file,
                read.map(|length| {
                    piece.truncate(length);
                    piece
                }),
            )
        });
        match read.await {
            Ok((_, Ok(piece))) if piece.is_empty() => None,
            Ok((file, Ok(piece))) => Some((Ok(Frame::data(Bytes::from(piece))), Some(file))),
            Ok((_, Err(error))) => Some((Err(error), None)),
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    });
    StreamBody::new(Box::pin(stream)).boxed_unsync()
}

/// Where to connect to for a listener on every address of its host.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
