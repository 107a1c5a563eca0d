//! The floor: an axum handler that reads the body and answers OK. Nothing is checked and nothing is
//! kept, so whatever the bridge takes beyond this is the bridge's own cost.

use std::io::Write as _;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use serde_json::json;

const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

/// Runs until it is killed, and says where as the bridge does.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    for message in ["listening for callbacks", "private listener ready"] {
        let line = json!({"fields": {"message": message, "address": address}});
        writeln!(std::io::stdout(), "{line}")?;
    }
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
