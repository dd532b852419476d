//! Implements the HTTP client beneath surf: hyper's HTTP/1.1 on the transport's streams, with a timeout for every wait.
//!
//! surf's own clients are outdated, and return a truncated body as if it were complete. Connections are kept and
//! reused. A request is repeated on a new connection only if the server cannot have executed it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_rustls::TlsConnector;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use parking_lot::Mutex;
use smol_hyper::rt::FuturesIo;
use surf::http::{Error, Request, Response, headers};
use surf::utils::async_trait;
use thiserror::Error;

use crate::consul::error::ConsulError;
use crate::consul::settings::{ConsulSettings, Target};
use crate::consul::tls;
use crate::sys::runtime;
use crate::transport::dial;
use crate::transport::dial::BoxStream;
use crate::transport::tcp::TransportError;

/// How long connecting may take, including the TLS handshake.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long a response may take, unless the request sets another [`Deadline`].
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// The largest response, in bytes: a few million snapshots of one host.
const LARGEST_RESPONSE: usize = 256 << 20;
/// How long an idle connection is kept. Consul closes it after two minutes.
const KEEP_IDLE: Duration = Duration::from_secs(60);
/// How many idle connections are kept.
const MOST_IDLE: usize = 16;

/// How long the response to a request may take. Attached to the request as an extension.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub Duration);

/// Why a request got no response.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    #[error("{0}")]
    Connect(String),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no response within {0:?}")]
    Timeout(Duration),
    #[error("the connection failed: {0}")]
    Broken(String),
    #[error("the response is larger than {} MiB", LARGEST_RESPONSE >> 20)]
    TooLarge,
    #[error("cannot build the request: {0}")]
    Request(String),
}

impl From<TransportError> for HttpError {
    fn from(error: TransportError) -> Self {
        // The message that contains this one names the address.
        Self::Connect(match error {
            TransportError::Resolve { source, .. } => format!("cannot resolve its name: {source}"),
            TransportError::Connect { source, .. } | TransportError::Listen { source, .. } => source.to_string(),
            #[allow(unreachable_patterns, reason = "other transports may have errors of their own")]
            other => format!("{:#}", anyhow::Error::from(other)),
        })
    }
}

/// A connection that carries one request at a time.
struct HttpConnection {
    sender: SendRequest<Full<Bytes>>,
    /// Why the connection ended, for example because the server refused the certificate. Only the task that reads from
    /// the connection learns this.
    ended: runtime::channel::Receiver<HttpError>,
}

/// An HTTP client for one address.
pub(super) struct HttpClient {
    target: Target,
    tls: Option<(TlsConnector, tls::ServerName)>,
    /// Idle connections, and since when they have been idle.
    idle: Arc<Mutex<Vec<(HttpConnection, Instant)>>>,
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").field("target", &self.target).finish_non_exhaustive()
    }
}

impl HttpClient {
    /// Creates a client, and reads the certificate files. Does not connect yet.
    pub fn new(settings: &ConsulSettings) -> Result<Self, ConsulError> {
        Ok(Self { target: settings.target.clone(), tls: tls::connector(settings)?, idle: Arc::default() })
    }

    fn take_idle(&self) -> Option<HttpConnection> {
        let mut idle = self.idle.lock();
        idle.retain(|(connection, since)| connection.sender.is_ready() && since.elapsed() < KEEP_IDLE);
        idle.pop().map(|(connection, _)| connection)
    }

    fn keep_idle(&self, connection: HttpConnection) {
        let mut idle = self.idle.lock();
        if idle.len() < MOST_IDLE {
            idle.push((connection, Instant::now()));
        }
    }

    async fn connect(&self) -> Result<HttpConnection, HttpError> {
        let plain = match &self.target {
            Target::Tcp(address) => dial::tcp(address, CONNECT_WITHIN).await?,
            Target::Unix(path) => dial::unix(path, CONNECT_WITHIN).await?,
        };
        let stream: BoxStream = match &self.tls {
            None => plain,
            Some((connector, name)) => match connector.connect(name.clone(), plain).await {
                Ok(stream) => Box::new(stream),
                Err(error) => return Err(HttpError::Tls(error.to_string())),
            },
        };
        let (sender, connection) = http1::handshake(FuturesIo::new(stream)).await.map_err(|e| broken(&e))?;
        let (report, ended) = runtime::channel::bounded(1);
        // The task ends when the sender is dropped, or when the server closes the connection.
        drop(runtime::spawn(async move {
            if let Err(error) = connection.await {
                drop(report.try_send(broken(&error)));
            }
        }));
        Ok(HttpConnection { sender, ended })
    }

    async fn exchange(
        &self,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<(hyper::http::response::Parts, Bytes), HttpError> {
        let repeatable = request.method() == hyper::Method::GET;
        if let Some(connection) = self.take_idle() {
            match self.exchange_on(connection, request.clone()).await {
                // The server had closed the idle connection.
                Err(ExchangeError { maybe_sent, cause: HttpError::Broken(_) }) if repeatable || !maybe_sent => {}
                result => return result.map_err(|error| error.cause),
            }
        }
        let connecting = runtime::timeout(CONNECT_WITHIN, self.connect()).await;
        let connection =
            connecting.map_err(|_| HttpError::Connect(format!("no connection within {CONNECT_WITHIN:?}")))??;
        self.exchange_on(connection, request).await.map_err(|error| error.cause)
    }

    async fn exchange_on(
        &self,
        mut connection: HttpConnection,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<(hyper::http::response::Parts, Bytes), ExchangeError> {
        let answering = async {
            let sender = &mut connection.sender;
            sender.ready().await.map_err(|error| ExchangeError { maybe_sent: false, cause: broken(&error) })?;
            let response = sender.send_request(request).await;
            response.map_err(|error| ExchangeError { maybe_sent: !error.is_canceled(), cause: broken(&error) })
        };
        let response = match answering.await {
            Ok(response) => response,
            // The reading task ends as well, and knows the cause better.
            Err(ExchangeError { maybe_sent, cause }) => {
                let cause = connection.ended.recv().await.unwrap_or(cause);
                return Err(ExchangeError { maybe_sent, cause });
            }
        };
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, LARGEST_RESPONSE).collect().await.map_err(|error| {
            let cause = match error.downcast::<hyper::Error>() {
                Ok(error) => broken(&error),
                Err(_) => HttpError::TooLarge,
            };
            ExchangeError { maybe_sent: true, cause }
        })?;
        self.keep_idle(connection);
        Ok((parts, body.to_bytes()))
    }
}

/// A failed exchange.
struct ExchangeError {
    /// Whether the server may have received the request nevertheless.
    maybe_sent: bool,
    cause: HttpError,
}

/// Finds the cause of an error, which hyper keeps one or two levels deeper. It may be a TLS alert.
fn broken(error: &hyper::Error) -> HttpError {
    let mut cause: &dyn std::error::Error = error;
    let mut text = error.to_string();
    while let Some(below) = cause.source() {
        text = below.to_string();
        let tls = below.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(inner) = tls
            && inner.is::<futures_rustls::rustls::Error>()
        {
            return HttpError::Tls(text);
        }
        cause = below;
    }
    HttpError::Broken(text)
}

/// Converts surf's request into hyper's.
async fn converted(request: &mut Request) -> Result<hyper::Request<Full<Bytes>>, HttpError> {
    let bad = |error: &dyn std::fmt::Display| HttpError::Request(error.to_string());
    let body = request.body_bytes().await.map_err(|e| bad(&e))?;
    let url = request.url();
    let mut path = url.path().to_owned();
    if let Some(query) = url.query() {
        path = format!("{path}?{query}");
    }
    let host = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    };
    let mut built =
        hyper::Request::builder().method(request.method().to_string().as_str()).uri(path).header("host", host);
    for (name, values) in request.iter() {
        // hyper sets these headers itself.
        if *name == headers::CONTENT_LENGTH || *name == headers::HOST {
            continue;
        }
        for value in values {
            built = built.header(name.as_str(), value.as_str());
        }
    }
    built.body(Full::new(Bytes::from(body))).map_err(|e| bad(&e))
}

#[async_trait]
impl surf::HttpClient for HttpClient {
    async fn send(&self, mut request: Request) -> Result<Response, Error> {
        let limit = request.ext().get::<Deadline>().map_or(ANSWER_WITHIN, |deadline| deadline.0);
        let answering = async {
            let request = converted(&mut request).await?;
            self.exchange(request).await
        };
        let answered = runtime::timeout(limit, answering).await.unwrap_or(Err(HttpError::Timeout(limit)));
        let (parts, body) = answered.map_err(|error| Error::new(503, error))?;
        let mut response = Response::new(parts.status.as_u16());
        for (name, value) in &parts.headers {
            if let Ok(value) = value.to_str() {
                response.append_header(name.as_str(), value);
            }
        }
        response.set_body(body.to_vec());
        Ok(response)
    }
}
