//! `POST /outbox/retry`, `/drop`, `/replay` and `/import`: an operator's acts beside a running bridge. One at a time;
//! an act that has begun goes on to its end, whether or not somebody waits for it, and is logged with who and how
//! many.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use http_body_util::BodyExt as _;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::ask::NDJSON;
use super::permit::{Permit, Refused};
use super::{Admin, refuse};
use crate::event;
use crate::outbox::{Act, Import, Order, Outbox, Tally};
use crate::server::Peer;

const JSON: &str = "application/json";

/// An order is a few short texts.
const MAX_ORDER_BYTES: usize = 64 << 10;

/// How long an order, or the next piece of an import, may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the acts need in addition to the outbox.
pub(crate) struct Acts {
    pub(super) permit: Permit,
    naming: event::Config,
    is_embedded: bool,
    /// Whose act is being carried out.
    turn: Arc<Mutex<()>>,
}

impl Acts {
    pub(crate) fn new(config: &super::Config, naming: event::Config, is_embedded: bool) -> Self {
        let (token_file, is_loopback) =
            (config.token_file.clone(), config.listen.ip().is_loopback());
        let permit = Permit { token_file, is_loopback };
        Acts { permit, naming, is_embedded, turn: Arc::default() }
    }
}

pub(super) fn routes() -> Router<Arc<Admin>> {
    let act = |act: Act| {
        post(async move |State(admin): State<Arc<Admin>>, request: Request| {
            carry_out(admin, act, request).await.unwrap_or_else(refused)
        })
    };
    Router::new()
        .route("/outbox/retry", act(Act::Retry))
        .route("/outbox/drop", act(Act::Drop))
        .route("/outbox/replay", act(Act::Replay))
        .route(
            "/outbox/import",
            post(async |State(admin): State<Arc<Admin>>, request: Request| {
                import(admin, request).await.unwrap_or_else(refused)
            }),
        )
}

fn refused((status, error): Refused) -> Response {
    let mut response = refuse(status, &error);
    if status == StatusCode::UNAUTHORIZED {
        let bearer = axum::http::HeaderValue::from_static("Bearer");
        response.headers_mut().insert(WWW_AUTHENTICATE, bearer);
    }
    response
}

fn bad(error: impl ToString) -> Refused {
    (StatusCode::BAD_REQUEST, error.to_string())
}

async fn carry_out(admin: Arc<Admin>, act: Act, request: Request) -> Result<Response, Refused> {
    admin.acts.permit.check(request.headers(), JSON)?;
    let by = peer(&request);
    let body = timeout(PATIENCE, to_bytes(request.into_body(), MAX_ORDER_BYTES)).await;
    let body = body.map_err(|_| bad("the order did not arrive in time"))?.map_err(bad)?;
    let order: Order = serde_json::from_slice(&body).map_err(bad)?;
    check_outbox(&admin.outbox, order.outbox.as_deref())?;
    if let Some(fault) = order.fault(act, admin.acts.is_embedded) {
        return Err(bad(fault));
    }
    let turn = admin.acts.turn.clone().lock_owned().await;
    let carried_out = tokio::spawn(async move {
        let _turn = turn;
        let tally = admin.outbox.perform(act, &order, &admin.acts.naming).await;
        if !order.dry_run {
            tally.log(act.name(), order.of, &order.filter, &by);
        }
        tally
    });
    answer(carried_out.await)
}

async fn import(admin: Arc<Admin>, request: Request) -> Result<Response, Refused> {
    admin.acts.permit.check(request.headers(), NDJSON)?;
    let by = peer(&request);
    let query = request.uri().query().unwrap_or_default().to_owned();
    let (mut is_rehearsal, mut meant) = (false, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "dry_run" => is_rehearsal = value == "true",
            "outbox" => meant = Some(value),
            _ => return Err(bad(format!("{name:?} is not a parameter of an import"))),
        }
    }
    check_outbox(&admin.outbox, meant.as_deref())?;
    let turn = admin.acts.turn.clone().lock_owned().await;
    let carried_out = tokio::spawn(async move {
        let _turn = turn;
        let tally = match Import::into(&admin.outbox, is_rehearsal).await {
            Ok(import) => take_in(import, request.into_body()).await,
            Err(stopped) => Tally { stopped: Some(stopped), ..Tally::default() },
        };
        if !is_rehearsal {
            tally.log("import", None, &Default::default(), &by);
        }
        tally
    });
    answer(carried_out.await)
}

/// What has arrived counts, even if the rest never comes.
async fn take_in(mut import: Import, mut body: Body) -> Tally {
    loop {
        let result = match timeout(PATIENCE, body.frame()).await {
            Ok(Some(Ok(frame))) => match frame.data_ref() {
                Some(bytes) => import.push(bytes).await,
                None => Ok(()),
            },
            Ok(None) => return import.end(Ok(())).await,
            Ok(Some(Err(error))) => Err(format!("the connection was lost: {error}")),
            Err(_) => Err(format!("nothing more arrived for {} s", PATIENCE.as_secs())),
        };
        if let Err(stopped) = result {
            return import.end(Err(stopped)).await;
        }
    }
}

/// A command that has found an outbox in use asks a bridge that it believes to be the one that uses it.
fn check_outbox(outbox: &Outbox, meant: Option<&str>) -> Result<(), Refused> {
    let path = outbox.path();
    if meant.is_none_or(|meant| crate::outbox::identity(path).as_deref() == Some(meant)) {
        return Ok(());
    }
    let error = format!(
        "this bridge has another outbox, {}: name the private listener of the one that is meant with --admin",
        path.display()
    );
    Err((StatusCode::CONFLICT, error))
}

fn peer(request: &Request) -> String {
    let peer = request.extensions().get::<Peer>();
    peer.map_or("unknown".to_owned(), |Peer(address)| address.to_string())
}

fn answer(tally: Result<Tally, tokio::task::JoinError>) -> Result<Response, Refused> {
    let tally = tally.map_err(|_| {
        (StatusCode::SERVICE_UNAVAILABLE, "the bridge is stopping; part of it may be done".into())
    })?;
    let body = serde_json::to_string(&tally).expect("texts and numbers always encode");
    Ok(([(CONTENT_TYPE, JSON)], body + "\n").into_response())
}
