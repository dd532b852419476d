//! Implements the server of agents and slaves, which listens, and holds one conversation per connection, until it is
//! asked to end.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_lite::future;
use parking_lot::RwLock;

use crate::model::expiry::Daily;
use crate::model::{PeerRole, ResponseStatus};
use crate::server::limiter::{Admitted, ConnectionLimiter, Full};
use crate::server::metrics::{CERTIFICATE_EXPIRY, Gauges, certificate_labels};
use crate::server::{Counters, http};
use crate::sys::log_limit::{Complaint, LogLimiter};
use crate::sys::service::Signals;
use crate::sys::{clock, runtime, service};
use crate::transport::tcp;
use crate::transport::tcp::{Incoming, Listener, Rejected, TransportError};
use crate::transport::tls::Tls;
use crate::wire::Response;
use crate::wire::codec::{Conn, SILENCE, WireError};

/// How long a peer may take between two steps of a conversation, because it may have to wait for its own ZFS.
pub const BETWEEN_STEPS: Duration = Duration::from_secs(900);
/// How long a peer may take for the TLS handshake, and again to send its first line.
const FIRST_LINE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often is checked whether the certificate expires soon.
const BETWEEN_REMINDERS: Duration = Duration::from_secs(3600);

/// How long interrupting the conversations may take. Their commands are killed rather than waited for.
pub const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// A role that holds conversations: the agent or the slave.
pub trait Role: Send + Sync + 'static {
    /// The name in messages.
    const NAME: &'static str;
    /// The role in certificates.
    const ROLE: PeerRole;

    /// Holds one conversation, which the peer began with `first_line`, to its end.
    fn converse(
        self: Arc<Self>,
        conn: &mut Conn,
        first_line: Vec<u8>,
    ) -> impl Future<Output = Result<(), WireError>> + Send;

    /// The counters, which stay the same when the configuration is reloaded.
    fn counters(&self) -> &Counters;
}

/// How peers are authenticated.
#[derive(Clone)]
pub enum Security {
    /// By their certificates.
    Tls(Arc<Tls>),
    /// Not at all.
    Plaintext {
        /// Whether peers on other machines are allowed.
        beyond_this_machine: bool,
    },
}

impl Security {
    /// The certificate of this host, if peers are authenticated.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        match self {
            Self::Tls(tls) => Some(Arc::clone(tls)),
            Self::Plaintext { .. } => None,
        }
    }
}

/// The role that answers new connections, and its certificates.
struct Current<R> {
    role: Arc<R>,
    tls: Option<Arc<Tls>>,
}

/// Admits connections within the limits, authenticates their peers, and hands them to the role.
pub struct Acceptor<R> {
    current: RwLock<Current<R>>,
    limiter: ConnectionLimiter,
    log: LogLimiter,
    /// How long a peer may be silent within a conversation.
    pub patience: Duration,
}

impl<R: Role> Acceptor<R> {
    /// Creates an acceptor for this role.
    #[must_use]
    pub fn new(role: Arc<R>, tls: Option<Arc<Tls>>) -> Self {
        Self {
            current: RwLock::new(Current { role, tls }),
            limiter: ConnectionLimiter::default(),
            log: LogLimiter::default(),
            patience: SILENCE,
        }
    }

    fn role(&self) -> Arc<R> {
        Arc::clone(&self.current.read().role)
    }

    fn tls(&self) -> Option<Arc<Tls>> {
        self.current.read().tls.clone()
    }

    /// Replaces the role for new connections.
    fn replace(&self, role: R, tls: Option<Arc<Tls>>) {
        *self.current.write() = Current { role: Arc::new(role), tls };
    }

    /// The metrics of the role and of its certificate.
    fn metrics(&self) -> String {
        let own = self.tls().map(|tls| tls.own());
        self.role().counters().text_with(|registry| {
            let expiry = Gauges::default();
            if let Some((host, until)) = own.and_then(|own| Some((own.identity.names.first()?.clone(), own.until?))) {
                expiry.get_or_create(&certificate_labels(&host, R::ROLE)).set(until.timestamp());
            }
            registry.register(CERTIFICATE_EXPIRY.0, CERTIFICATE_EXPIRY.1, expiry);
        })
    }

    /// Logs a warning once a day while this host's certificate expires soon or has expired. Never ends.
    async fn remind_of_expiry(&self) {
        // At the start, the same warning has been logged.
        let mut daily = Daily::since(clock::now());
        loop {
            runtime::sleep(BETWEEN_REMINDERS).await;
            let now = clock::now();
            let warnings = self.tls().map(|tls| [tls.trouble(now), tls.list_trouble(now)]);
            let warnings: Vec<String> = warnings.into_iter().flatten().flatten().collect();
            if !warnings.is_empty() && daily.is_due(now) {
                warnings.iter().for_each(|warning| log::warn!("{warning}"));
            }
        }
    }

    /// Answers a connection as one of `tasks`, if the limits permit.
    pub fn admit(self: &Arc<Self>, incoming: Incoming, tasks: &runtime::Tasks) {
        let from = incoming.from();
        match self.limiter.admit(from.ip()) {
            Ok(admitted) => tasks.start(Arc::clone(self).answer(incoming, admitted)),
            // The connection is closed without an answer, because an answer would cost the resources that the limit
            // protects.
            Err(full) => {
                let text = format!("cannot accept a connection from {from}: {full}");
                self.log.warn(from.ip(), Complaint::TooMany, &text);
            }
        }
    }

    async fn answer(self: Arc<Self>, incoming: Incoming, mut admitted: Admitted) {
        let (from, within) = (incoming.from(), FIRST_LINE_TIMEOUT.min(self.patience));
        let mut conn = match incoming.welcome(self.tls().as_deref(), within).await {
            Ok(connection) => Conn::from(connection),
            Err(Rejected { reason, answer }) => {
                self.log.warn(from.ip(), Complaint::Rejected, &reason);
                if let Some((connection, answer)) = answer {
                    Conn::from(connection).close_with(&Response::failure(None, ResponseStatus::Refused, answer)).await;
                }
                return;
            }
        };
        (conn.patience, conn.log) = (self.patience, self.log.of(from.ip()));
        let result = match conn.recv_line(within).await {
            Ok(None) => Ok(()),
            Ok(Some(line)) => match admitted.begin_conversation() {
                Ok(()) => self.role().converse(&mut conn, line).await,
                Err(full) => return self.refuse(conn, full).await,
            },
            Err(error) => Err(error),
        };
        self.end(conn, result).await;
    }

    async fn refuse(&self, conn: Conn, full: Full) {
        conn.log.warn(Complaint::TooMany, &format!("cannot begin a conversation with {}: {full}", conn.peer));
        let response = Response::failure(None, ResponseStatus::Busy, format!("{full}; hint: try again later"));
        conn.close_with(&Response { temporary: true, ..response }).await;
    }

    /// Ends a conversation. A peer that violated the protocol, or was silent for too long, gets an error; the log names
    /// it.
    async fn end(&self, conn: Conn, result: Result<(), WireError>) {
        let Err(error) = result else { return conn.close().await };
        let answer = matches!(
            error,
            WireError::InvalidMessage { .. }
                | WireError::Silent { .. }
                | WireError::Damaged { .. }
                | WireError::Stalled { .. }
                | WireError::Slow { .. }
                | WireError::Fruitless { .. }
        );
        let temporary = error.is_temporary();
        let reason = format!("{:#}", anyhow::Error::from(error));
        conn.log.warn(Complaint::Failed, &reason);
        if answer {
            conn.close_with(&Response { temporary, ..Response::failure(None, ResponseStatus::Refused, reason) }).await;
        } else {
            conn.close().await;
        }
    }
}

/// Refuses to listen in plaintext on an address that other machines can reach, unless that is allowed explicitly.
async fn check_security<R: Role>(address: &str, security: &Security) -> anyhow::Result<()> {
    match security {
        Security::Tls(tls) => {
            let own = tls.own();
            log::info!("using the certificate of {} ({})", own.identity, own.identity.roles_in_words());
        }
        Security::Plaintext { .. } if tcp::is_loopback(address).await.map_err(with_hint::<R>)? => {}
        Security::Plaintext { beyond_this_machine: false } => bail!(
            "cannot listen on {address} without TLS: anyone who reaches it could destroy snapshots; hint: set \"tls\" \
             in local.json (see zsync-tls(8)), listen on 127.0.0.1, or pass --insecure-plaintext on a network that \
             you trust"
        ),
        Security::Plaintext { beyond_this_machine: true } => {
            log::warn!("{} listens on {address} in plaintext, and obeys anyone who can reach that address", R::NAME);
        }
    }
    Ok(())
}

fn with_hint<R: Role>(error: TransportError) -> anyhow::Error {
    let hint = match &error {
        TransportError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse => {
            format!("stop the {} or the program that uses the port, or choose another port with", R::NAME)
        }
        _ => "choose an address of this machine with".to_owned(),
    };
    anyhow!("{:#}; hint: {hint} --listen", anyhow::Error::from(error))
}

/// Where and how an agent or a slave listens.
#[derive(Clone)]
pub struct Listening {
    /// `host:port`.
    pub address: String,
    /// How peers are authenticated.
    pub security: Security,
    /// Where metrics are served, as `host:port`.
    pub metrics: Option<String>,
    /// How long conversations may continue after the process was asked to end.
    pub grace: Duration,
}

/// Opens the socket, or takes over that of the service manager; also returns its address.
async fn open<R: Role>(listening: &Listening, inherited: Option<TcpListener>) -> anyhow::Result<(Listener, String)> {
    let Some(socket) = inherited else {
        check_security::<R>(&listening.address, &listening.security).await?;
        let listener = Listener::bind(&listening.address).await.map_err(with_hint::<R>)?;
        let bound = listener.address().map_or_else(|| listening.address.clone(), |a| a.to_string());
        return Ok((listener, bound));
    };
    let bound = socket.local_addr().context("cannot get the address of the socket of the service manager")?.to_string();
    check_security::<R>(&bound, &listening.security).await?;
    Ok((Listener::from(socket), bound))
}

/// Listens and serves until SIGTERM or SIGINT. On SIGHUP, `reload` makes a new role from the current one and reads the
/// TLS files again. If it fails, the current role stays in force. Fails if it cannot listen on its address or on that
/// of the metrics, or may not listen there without TLS.
pub async fn serve<R: Role>(
    role: R,
    inherited: Option<TcpListener>,
    listening: &Listening,
    reload: impl Fn(&R) -> anyhow::Result<(R, Security)>,
) -> anyhow::Result<()> {
    let signals = Signals::of_service()?;
    let (listener, address) = open::<R>(listening, inherited).await?;
    let acceptor = Arc::new(Acceptor::new(Arc::new(role), listening.security.tls()));
    if let Some(metrics) = &listening.metrics {
        let acceptor = Arc::clone(&acceptor);
        http::serve(metrics, Arc::new(move || acceptor.metrics())).await?;
    }
    let status = format!("listens on {address}");
    log::info!("{} {status}", R::NAME);
    service::ready(&status);
    let reload = async || match reload_into(&acceptor, &address, &reload).await {
        Ok(()) => status.clone(),
        Err(error) => format!("{status}; cannot reload the configuration: {error:#}"),
    };
    let accepting = accept(&acceptor, listener, signals, listening.grace, reload);
    service::watched(future::or(accepting, acceptor.remind_of_expiry()), || true).await;
    Ok(())
}

/// Serves each connection until SIGTERM or SIGINT. On SIGHUP, `reload` returns the new status.
async fn accept<R: Role>(
    acceptor: &Arc<Acceptor<R>>,
    listener: Listener,
    mut signals: Signals,
    grace: Duration,
    reload: impl AsyncFn() -> String,
) {
    let mut conversations = runtime::Tasks::default();
    while signals.end().is_none() {
        let connection = async {
            match listener.accept().await {
                Ok(incoming) => Some(incoming),
                Err(error) => {
                    // Usually, the file descriptors are exhausted. A pause avoids a busy loop.
                    log::warn!("cannot accept a connection: {error}");
                    runtime::sleep(Duration::from_secs(1)).await;
                    None
                }
            }
        };
        let signal = async {
            signals.next().await;
            None
        };
        if let Some(incoming) = future::or(signal, connection).await {
            acceptor.admit(incoming, &conversations);
        }
        if signals.take_reload() {
            service::reloading();
            service::ready(&reload().await);
        }
    }
    // New connections are refused. On a socket of the service manager, they wait for the next process.
    drop(listener);
    end_conversations(&mut conversations, &mut signals, grace).await;
}

/// Replaces the role of an acceptor with a reloaded one.
async fn reload_into<R: Role>(
    acceptor: &Acceptor<R>,
    address: &str,
    reload: impl Fn(&R) -> anyhow::Result<(R, Security)>,
) -> anyhow::Result<()> {
    let reloaded = match reload(&acceptor.role()) {
        // A port that required TLS must not become open to everybody because a key was forgotten.
        Ok((role, security)) => {
            check_security::<R>(address, &security).await.map(|()| acceptor.replace(role, security.tls()))
        }
        Err(error) => Err(error),
    };
    match &reloaded {
        Ok(()) => {
            log::info!("reloaded the configuration; bandwidth limits apply now, everything else to new connections");
        }
        Err(error) => {
            log::error!("cannot reload the configuration, so the previous one stays in force: {error:#}");
        }
    }
    reloaded
}

/// Waits for the running conversations, and interrupts those that take too long. Interrupted transfers can be resumed.
async fn end_conversations(conversations: &mut runtime::Tasks, signals: &mut Signals, grace: Duration) {
    let signal = signals.end().unwrap_or("request");
    let limit = humantime::format_duration(grace);
    match conversations.count() {
        0 => log::info!("stopping on {signal}"),
        n => log::info!("stopping on {signal}; running conversations ({n}) have {limit} to end"),
    }
    service::stopping("stopping; waiting for running conversations to end");
    if signals.grace(grace, conversations.ended()).await.is_some() {
        return;
    }
    log::warn!("interrupting the remaining conversations ({})", conversations.count());
    if runtime::timeout(ABORT_TIMEOUT, conversations.interrupt()).await.is_err() {
        log::warn!("cannot interrupt {} conversations: they do not end", conversations.count());
    }
}
