//! `topic-bridge check --ready`: asks the running bridge, for health checks in images that have no shell and no HTTP
//! client.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::cli::{print, reachable, say};

/// Shorter than the three seconds that health checks usually wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the bridge must be able to do.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
pub(super) enum Ready {
    /// It accepts callbacks durably; its broker may be away.
    Accepting,
    /// It delivers, too.
    Delivering,
}

pub(super) fn run(listen: SocketAddr, wanted: Ready) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let (status, readiness) = runtime.block_on(ask(reachable(listen)?))?;
    print(&readiness)?;
    let fault = judge(status, &readiness, wanted);
    Ok(fault.map_or(ExitCode::SUCCESS, |fault| {
        say(format_args!("topic-bridge: {fault}"));
        ExitCode::FAILURE
    }))
}

async fn ask(address: SocketAddr) -> anyhow::Result<(StatusCode, String)> {
    let answer = async {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let url = format!("http://{address}/readyz").parse().context("admin.listen")?;
        let response = client.get(url).await.map_err(anyhow::Error::from).with_context(|| {
            format!("cannot reach the private listener at {address}: does the bridge run with this configuration?")
        })?;
        let status = response.status();
        let body = response.into_body().collect().await.context("the answer was cut off")?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    let answer = timeout(PATIENCE, answer).await;
    answer.with_context(|| format!("the private listener at {address} has not answered in 2 s"))?
}

/// What is missing, with the reason of each part that says one.
fn judge(status: StatusCode, readiness: &str, wanted: Ready) -> Option<String> {
    let readiness: Value = serde_json::from_str(readiness).unwrap_or_default();
    let state = readiness["status"].as_str().unwrap_or("unknown");
    let is_ready = match wanted {
        Ready::Accepting => status == StatusCode::OK,
        Ready::Delivering => status == StatusCode::OK && state == "ready",
    };
    if is_ready {
        return None;
    }
    let parts = readiness.as_object().into_iter().flatten();
    let reasons: Vec<_> = parts
        .filter_map(|(part, it)| Some(format!("{part}: {}", it["reason"].as_str()?)))
        .collect();
    let reasons = if reasons.is_empty() { "no reason given".into() } else { reasons.join("; ") };
    Some(format!("/readyz says {state} ({}): {reasons}", status.as_u16()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_broker_matters_only_to_who_wants_delivery() {
        let degraded = r#"{"status":"degraded","sink":{"state":"degraded","reason":"refused"}}"#;
        let full = r#"{"status":"not_ready","outbox":{"state":"not_ready","reason":"full"}}"#;
        let rows = [
            (200, r#"{"status":"ready"}"#, None, None),
            (200, degraded, None, Some("/readyz says degraded (200): sink: refused")),
            (
                503,
                full,
                Some("/readyz says not_ready (503): outbox: full"),
                Some("/readyz says not_ready (503): outbox: full"),
            ),
            (
                404,
                "not ours",
                Some("/readyz says unknown (404): no reason given"),
                Some("/readyz says unknown (404): no reason given"),
            ),
            (200, "not ours", None, Some("/readyz says unknown (200): no reason given")),
        ];
        for (status, readiness, accepting, delivering) in rows {
            let status = StatusCode::from_u16(status).unwrap();
            let judge = |wanted| judge(status, readiness, wanted);
            assert_eq!(judge(Ready::Accepting).as_deref(), accepting, "{readiness}");
            assert_eq!(judge(Ready::Delivering).as_deref(), delivering, "{readiness}");
        }
    }
}
