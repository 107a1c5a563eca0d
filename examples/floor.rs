//! The floor of the benchmark: an axum handler that reads the body and answers OK. Nothing is
//! checked and nothing is kept, so whatever the bridge takes beyond this is the bridge's own cost.
//!
//! `floor [ADDRESS [WORKER_THREADS]]`

use std::io::Write as _;

use anyhow::Context as _;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::serve::ListenerExt as _;
use bytes::Bytes;

const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let workers = arguments.next().map_or(Ok(2), |text| text.parse());
    let workers = workers.context("the second argument is the number of worker threads")?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?
        .block_on(async {
            // A spawned task runs on the workers; what `block_on` polls itself does not.
            tokio::spawn(serve(address)).await?
        })
}

async fn serve(address: String) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(&address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;
    let listener = listener.tap_io(|stream| {
        // Without it a refusal leaves the connection as it was, which is no reason to drop it.
        let _ = stream.set_nodelay(true);
    });
    // Any path and any method, as the platform's URL may have a path of its own.
    axum::serve(listener, Router::new().fallback(answer)).await?;
    Ok(())
}

async fn answer(body: Bytes) -> impl IntoResponse {
    // The length is looked at so that nobody can say the body was not needed.
    std::hint::black_box(body.len());
    ([(CONTENT_TYPE, "application/json")], OK)
}
