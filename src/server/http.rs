//! Serves metrics over HTTP/1.1: `GET /metrics`, and nothing else.
//!
//! hyper parses the requests. Every connection is answered once and then closed, so that nobody can occupy the few
//! connections that are served at a time.

use std::convert::Infallible;
use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use futures_lite::io::{AsyncRead, AsyncReadExt};
use http_body_util::Full;
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use smol_hyper::rt::FuturesIo;

use crate::sys::runtime;
use crate::transport::tcp::{Incoming, Listener};

/// How long a request may take to arrive. With its answer, a connection may take twice as long.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the head of a request may be, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// How many connections are served at a time: usually, Prometheus is the only client.
const MAX_CONNECTIONS: usize = 16;
/// How many unread bytes are discarded before a connection is closed.
const MAX_DISCARDED: usize = 64 * 1024;

/// Makes the text to serve, once per request.
pub type Text = Arc<dyn Fn() -> String + Send + Sync>;

/// Starts to serve metrics on `host:port` until the program ends; returns the address in use. Fails if that address
/// cannot be listened on.
pub async fn serve(address: &str, text: Text) -> anyhow::Result<String> {
    let listener = Listener::bind(address).await.map_err(|error| {
        let cause = anyhow::Error::from(error);
        anyhow!("cannot serve metrics on {address}: {cause:#}; hint: choose another address with --metrics")
    })?;
    let bound = listener.address().map_or_else(|| address.to_owned(), |address| address.to_string());
    log::info!("serving metrics at http://{bound}/metrics");
    drop(runtime::spawn(async move {
        let tasks = runtime::Tasks::default();
        loop {
            match listener.accept().await {
                // The connection is closed at once, because no answer is better for a client than a long wait.
                Ok(_) if tasks.count() >= MAX_CONNECTIONS => {}
                Ok(incoming) => tasks.start(converse(incoming, Arc::clone(&text))),
                Err(error) => {
                    log::debug!("cannot accept a connection for metrics: {error}");
                    runtime::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }));
    Ok(bound)
}

/// Answers the request of one connection.
async fn converse(incoming: Incoming, text: Text) {
    let from = incoming.from();
    let has_request = AtomicBool::new(false);
    let service = service_fn(|request| {
        has_request.store(true, Ordering::Relaxed);
        future::ready(Ok::<_, Infallible>(respond(&request, &text)))
    });
    let mut connection = http1::Builder::new()
        .keep_alive(false)
        // Some clients close their half as soon as they have sent the request.
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .title_case_headers(true)
        .auto_date_header(false)
        .serve_connection(FuturesIo::new(incoming.bytes()), service);
    let served = async {
        let served = future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
        discard(&mut connection.into_parts().io.into_inner()).await;
        served.map_err(anyhow::Error::from)
    };
    let too_slow = async {
        runtime::sleep(TIMEOUT).await;
        if has_request.load(Ordering::Relaxed) {
            runtime::sleep(TIMEOUT).await;
        }
        Err(anyhow!("the client is too slow"))
    };
    if let Err(error) = futures_lite::future::or(served, too_slow).await {
        log::debug!("cannot serve metrics to {from}: {error}");
    }
}

/// Discards what has arrived already, but will not be read: a socket that is closed with unread bytes resets the
/// connection, and the client may lose the answer.
async fn discard(stream: &mut (impl AsyncRead + Unpin)) {
    let mut piece = [0; 1024];
    for _ in 0..MAX_DISCARDED / piece.len() {
        let read = futures_lite::future::poll_once(stream.read(&mut piece)).await;
        if !matches!(read, Some(Ok(1..))) {
            break;
        }
    }
}

fn respond<B: Body>(request: &Request<B>, text: &Text) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if request.uri().path() != "/metrics" {
        return refusal(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response(StatusCode::OK, kind, Bytes::from(text()))
}

fn refusal(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

/// A response. If the request was HEAD, hyper leaves out the body, but keeps its length.
fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let length = body.len();
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_LENGTH, length.into());
    response
}
