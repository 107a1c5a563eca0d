//! `GET /schema/…` and `/asyncapi.yaml`: the contracts of [`crate::schema`]. A schema is served by its file's name and
//! by its URN, so that whoever has an event's `dataschema` only needs to put it behind `/schema/`.

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::refuse;
use crate::schema::{ALL, ASYNCAPI, Document, find};

pub(super) fn routes<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .route("/schema", get(async || list()))
        .route("/schema/", get(async || list()))
        .route("/schema/{name}", get(schema))
        .route("/asyncapi.yaml", get(async || serve(&ASYNCAPI)))
}

fn list() -> Response {
    let body = serde_json::json!({ "schemas": ALL.map(|document| format!("/{}", document.path)) });
    ([(CONTENT_TYPE, "application/json")], body.to_string() + "\n").into_response()
}

async fn schema(Path(name): Path<String>) -> Response {
    match find(&name) {
        Some(document) => serve(&document),
        None => {
            let paths = ALL.map(|document| format!("/{}", document.path)).join(", ");
            refuse(StatusCode::NOT_FOUND, &format!("no schema has this name: there are {paths}"))
        }
    }
}

fn serve(document: &Document) -> Response {
    ([(CONTENT_TYPE, document.content_type)], document.text).into_response()
}
