//! The HTTP client under surf: hyper's HTTP/1.1 over our own streams, with a deadline for everything.
//!
//! surf's own clients are outdated, and answer a body that was cut short as if it were whole. Connections are kept
//! and used again; a request is repeated on a new one only if it cannot have been carried out.

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

use crate::consul::settings::{Settings, Target};
use crate::consul::tls;
use crate::sys::runtime;
use crate::transport::dial;
use crate::transport::dial::BoxStream;
use crate::transport::tcp::TransportError;

/// How long a connection may take to come about, its TLS included.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long an answer may take, unless the request says otherwise.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// The longest answer: some million snapshots of one host.
const LONGEST_ANSWER: usize = 256 << 20;
/// How long an unused connection is kept; Consul keeps it for two minutes.
const KEEP: Duration = Duration::from_secs(60);
/// How many unused connections are kept.
const MOST_KEPT: usize = 16;

/// The deadline of one request, as its extension.
#[derive(Clone, Copy, Debug)]
pub(super) struct Within(pub Duration);

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum Fail {
    #[error("{0}")]
    Connect(String),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("the connection broke: {0}")]
    Broke(String),
    #[error("the answer is longer than {} MiB", LONGEST_ANSWER >> 20)]
    TooLong,
    #[error("the request cannot be made: {0}")]
    Request(String),
}

impl From<TransportError> for Fail {
    fn from(error: TransportError) -> Self {
        // The address is in the message around this one.
        Self::Connect(match error {
            TransportError::Resolve { source, .. } => format!("its name has no address: {source}"),
            TransportError::Connect { source, .. } | TransportError::Listen { source, .. } => source.to_string(),
            #[allow(unreachable_patterns, reason = "other transports may have errors of their own")]
            other => format!("{:#}", anyhow::Error::from(other)),
        })
    }
}

/// A connection.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// Why it ended: only the task that reads from it comes to know, of a certificate that is refused for one.
    ended: runtime::channel::Receiver<Fail>,
}

/// Speaks HTTP to one address.
pub(super) struct Http {
    target: Target,
    tls: Option<(TlsConnector, tls::ServerName)>,
    kept: Arc<Mutex<Vec<(Line, Instant)>>>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Http {
    /// For an address; certificates are read here.
    pub fn new(settings: &Settings) -> Result<Self, crate::consul::ConsulError> {
        Ok(Self { target: settings.target.clone(), tls: tls::connector(settings)?, kept: Arc::default() })
    }

    fn kept(&self) -> Option<Line> {
        let mut kept = self.kept.lock();
        kept.retain(|(line, since)| line.sender.is_ready() && since.elapsed() < KEEP);
        kept.pop().map(|(line, _)| line)
    }

    fn keep(&self, line: Line) {
        let mut kept = self.kept.lock();
        if kept.len() < MOST_KEPT {
            kept.push((line, Instant::now()));
        }
    }

    async fn connect(&self) -> Result<Line, Fail> {
        let plain = match &self.target {
            Target::Tcp(address) => dial::tcp(address, CONNECT_WITHIN).await?,
            Target::Unix(path) => dial::unix(path, CONNECT_WITHIN).await?,
        };
        let stream: BoxStream = match &self.tls {
            None => plain,
            Some((connector, name)) => match connector.connect(name.clone(), plain).await {
                Ok(stream) => Box::new(stream),
                Err(error) => return Err(Fail::Tls(error.to_string())),
            },
        };
        let (sender, connection) = http1::handshake(FuturesIo::new(stream)).await.map_err(|e| broke(&e))?;
        let (tell, ended) = runtime::channel::bounded(1);
        // It ends with the sender, or with the server.
        drop(runtime::spawn(async move {
            if let Err(error) = connection.await {
                drop(tell.try_send(broke(&error)));
            }
        }));
        Ok(Line { sender, ended })
    }

    async fn exchange(
        &self,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<(hyper::http::response::Parts, Bytes), Fail> {
        let safe = request.method() == hyper::Method::GET;
        if let Some(line) = self.kept() {
            match self.once(line, request.clone()).await {
                // The server had closed it meanwhile.
                Err(Sent { maybe, fail: Fail::Broke(_) }) if safe || !maybe => {}
                result => return result.map_err(|sent| sent.fail),
            }
        }
        let connecting = runtime::timeout(CONNECT_WITHIN, self.connect()).await;
        let line = connecting.map_err(|_| Fail::Connect(format!("no connection within {CONNECT_WITHIN:?}")))??;
        self.once(line, request).await.map_err(|sent| sent.fail)
    }

    async fn once(
        &self,
        mut line: Line,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<(hyper::http::response::Parts, Bytes), Sent> {
        let answering = async {
            let sender = &mut line.sender;
            sender.ready().await.map_err(|error| Sent { maybe: false, fail: broke(&error) })?;
            let answer = sender.send_request(request).await;
            answer.map_err(|error| Sent { maybe: !error.is_canceled(), fail: broke(&error) })
        };
        let answer = match answering.await {
            Ok(answer) => answer,
            // The reading task ends, too, and knows better.
            Err(Sent { maybe, fail }) => {
                let fail = line.ended.recv().await.unwrap_or(fail);
                return Err(Sent { maybe, fail });
            }
        };
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| {
            let fail = match error.downcast::<hyper::Error>() {
                Ok(error) => broke(&error),
                Err(_) => Fail::TooLong,
            };
            Sent { maybe: true, fail }
        })?;
        self.keep(line);
        Ok((parts, body.to_bytes()))
    }
}

/// A failure, and whether the server may have had the request all the same.
struct Sent {
    maybe: bool,
    fail: Fail,
}

/// hyper keeps the cause one or two levels below; a TLS alert is among them.
fn broke(error: &hyper::Error) -> Fail {
    let mut cause: &dyn std::error::Error = error;
    let mut words = error.to_string();
    while let Some(below) = cause.source() {
        words = below.to_string();
        let tls = below.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(inner) = tls
            && inner.is::<futures_rustls::rustls::Error>()
        {
            return Fail::Tls(words);
        }
        cause = below;
    }
    Fail::Broke(words)
}

async fn converted(request: &mut Request) -> Result<hyper::Request<Full<Bytes>>, Fail> {
    let bad = |error: &dyn std::fmt::Display| Fail::Request(error.to_string());
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
        // The length is hyper's own to say.
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
impl surf::HttpClient for Http {
    async fn send(&self, mut request: Request) -> Result<Response, Error> {
        let within = request.ext().get::<Within>().map_or(ANSWER_WITHIN, |within| within.0);
        let answering = async {
            let request = converted(&mut request).await?;
            self.exchange(request).await
        };
        let answered = runtime::timeout(within, answering).await.unwrap_or(Err(Fail::Silent(within)));
        let (parts, body) = answered.map_err(|fail| Error::new(503, fail))?;
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
