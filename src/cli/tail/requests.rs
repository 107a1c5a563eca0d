//! What arrives at the public listener, read from the private one of a running bridge.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;

use crate::cli::reachable;

/// Sends each request as one line of JSON. Ends when `lines` is closed, or with an error.
pub(super) async fn follow(
    listen: SocketAddr,
    from_start: bool,
    lines: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    let address = reachable(listen)?;
    let from = if from_start { "start" } else { "now" };
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let url = format!("http://{address}/requests?from={from}").parse().context("admin.listen")?;
    let response = client.get(url).await;
    let response = response.map_err(anyhow::Error::from).with_context(|| {
        format!("cannot reach the private listener at {address}: does the bridge run with this configuration?")
    })?;
    ensure!(response.status().is_success(), "{address} answered {}", response.status());
    tracing::info!(since = from, "reading");
    let mut body = response.into_body();
    let (mut unread, mut is_request) = (Vec::new(), true);
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the connection to the bridge was lost")?;
        unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            // How many are missing is an event of another type.
            is_request = line == "\n" || is_request && !line.starts_with("event: ");
            let Some(json) = line.trim_end().strip_prefix("data: ").filter(|_| is_request) else {
                continue;
            };
            if lines.send(json.to_owned()).await.is_err() {
                return Ok(());
            }
        }
    }
    bail!("the bridge has ended the stream: it is stopping")
}
