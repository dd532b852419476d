//! `GET /metrics`, and nothing else of HTTP.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_lite::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::sys::runtime;
use crate::transport::tcp::{Incoming, Listener};

/// How long a request may take to come, and again an answer to go.
const WITHIN: Duration = Duration::from_secs(5);
/// How long the head of a request may be.
const LONGEST_HEAD: usize = 8 * 1024;
/// How many are answered at once: Prometheus comes alone.
const AT_ONCE: usize = 16;

/// What is told, made anew for each request.
pub type Text = Arc<dyn Fn() -> String + Send + Sync>;

/// Answers requests on `host:port` from now on; gives the address.
pub async fn serve(address: &str, text: Text) -> anyhow::Result<String> {
    let listener = Listener::bind(address).await;
    let listener = listener.with_context(|| format!("no metrics on {address}: name another address with --metrics"))?;
    let shown = listener.address().map_or_else(|| address.to_owned(), |address| address.to_string());
    log::info!("tells its metrics at http://{shown}/metrics");
    drop(runtime::spawn(async move {
        let tasks = runtime::Tasks::default();
        loop {
            match listener.accept().await {
                // Who has to wait for longer than that is better off without an answer.
                Ok(_) if tasks.count() >= AT_ONCE => {}
                Ok(incoming) => tasks.start(answer(incoming, Arc::clone(&text))),
                Err(error) => {
                    log::debug!("cannot accept a connection for metrics: {error}");
                    runtime::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }));
    Ok(shown)
}

async fn answer(incoming: Incoming, text: Text) {
    let from = incoming.from();
    let mut stream = incoming.bytes();
    let reply = match runtime::timeout(WITHIN, head(&mut stream)).await {
        Ok(Ok(Some(head))) => reply(&head, &text),
        Ok(Ok(None)) => return,
        Ok(Err(reason)) => refusal("400 Bad Request", &format!("{reason}\n"), ""),
        Err(runtime::Elapsed) => return,
    };
    match runtime::timeout(WITHIN, stream.write_all(reply.as_bytes())).await {
        Ok(Ok(())) => drop(stream.close().await),
        ended => log::debug!("{from} did not take the metrics: {ended:?}"),
    }
}

/// Method and path.
struct Head {
    method: String,
    path: String,
}

/// Reads the head of a request; `None` of one that says nothing.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Option<Head>> {
    let mut read = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 && read.is_empty() {
            return Ok(None);
        }
        if count == 0 {
            return Err(anyhow!("the request ends in the middle"));
        }
        read.extend_from_slice(&piece[..count]);
        if read.len() > LONGEST_HEAD {
            return Err(anyhow!("the head of the request is longer than {LONGEST_HEAD} bytes"));
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        if request.parse(&read).map_err(|error| anyhow!("this is no request of HTTP: {error}"))?.is_complete() {
            let path = request.path.unwrap_or_default();
            let path = path.split('?').next().unwrap_or_default().to_owned();
            return Ok(Some(Head { method: request.method.unwrap_or_default().to_owned(), path }));
        }
    }
}

fn reply(Head { method, path }: &Head, text: &Text) -> String {
    match (method.as_str(), path.as_str()) {
        ("GET" | "HEAD", "/metrics") => {
            let body = text();
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            let shown = if method == "HEAD" { "" } else { &body };
            format!("HTTP/1.1 200 OK\r\n{}{shown}", headers(kind, body.len(), ""))
        }
        ("GET" | "HEAD", _) => refusal("404 Not Found", "the metrics are at /metrics\n", ""),
        _ => refusal("405 Method Not Allowed", "only GET and HEAD\n", "Allow: GET, HEAD\r\n"),
    }
}

fn refusal(status: &str, body: &str, more: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{}{body}", headers("text/plain; charset=utf-8", body.len(), more))
}

fn headers(kind: &str, length: usize, more: &str) -> String {
    format!("Content-Type: {kind}\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n")
}
