//! What agent and slave have in common: listening, and a conversation for each connection.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_lite::future;
use parking_lot::RwLock;

use crate::model::ResponseStatus;
use crate::server::limiter::{Admitted, ConnectionLimiter, Full};
use crate::server::{Counters, http};
use crate::sys::service::Signals;
use crate::sys::{runtime, service};
use crate::transport::tcp;
use crate::transport::tcp::{Incoming, Listener, Rejected, TransportError};
use crate::transport::tls::Tls;
use crate::wire::Response;
use crate::wire::codec::{Conn, SILENCE, WireError};

/// How long a peer may take between two steps of a conversation: it may wait for its own ZFS.
pub const BETWEEN_STEPS: Duration = Duration::from_secs(900);
/// How long a peer may take to prove who it is, and again to say what it wants.
const FIRST_WORDS: Duration = Duration::from_secs(10);

/// How long it may take to break off: children are killed, nothing is waited for.
pub const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Something that answers connections.
pub trait Role: Send + Sync + 'static {
    /// What it is called in messages.
    const NAME: &'static str;

    /// Has one conversation, which the peer began with this line, to its end.
    fn converse(
        self: Arc<Self>,
        conn: &mut Conn,
        first_line: Vec<u8>,
    ) -> impl Future<Output = Result<(), WireError>> + Send;

    /// What it counts: the same after its configuration was read again.
    fn tally(&self) -> &Counters;
}

/// How it is known who a peer is.
#[derive(Clone)]
pub enum Security {
    /// By its certificate.
    Tls(Arc<Tls>),
    /// Not at all.
    Plaintext {
        /// Whether that is right for peers that are not on this machine.
        beyond_this_machine: bool,
    },
}

impl Security {
    /// What this host proves itself with.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        match self {
            Self::Tls(tls) => Some(Arc::clone(tls)),
            Self::Plaintext { .. } => None,
        }
    }
}

struct Inside<R> {
    role: Arc<R>,
    tls: Option<Arc<Tls>>,
}

/// Where connections come in: lets in as many as there is room for, finds out who they are and what they want.
pub struct Acceptor<R> {
    /// Who answers, and what it proves itself with: for connections from now on.
    inside: RwLock<Inside<R>>,
    gate: ConnectionLimiter,
    /// How long a peer may be silent.
    pub patience: Duration,
}

impl<R: Role> Acceptor<R> {
    /// A door to this role.
    #[must_use]
    pub fn new(role: Arc<R>, tls: Option<Arc<Tls>>) -> Self {
        Self { inside: RwLock::new(Inside { role, tls }), gate: ConnectionLimiter::default(), patience: SILENCE }
    }

    /// Who answers connections now.
    fn role(&self) -> Arc<R> {
        Arc::clone(&self.inside.read().role)
    }

    fn tls(&self) -> Option<Arc<Tls>> {
        self.inside.read().tls.clone()
    }

    /// Has another role answer the connections that come from now on.
    fn renew(&self, role: R, tls: Option<Arc<Tls>>) {
        *self.inside.write() = Inside { role: Arc::new(role), tls };
    }

    /// Has a connection answered as one of these tasks, if there is room for it.
    pub fn admit(self: &Arc<Self>, incoming: Incoming, tasks: &runtime::Tasks) {
        let from = incoming.from();
        match self.gate.enter(from.ip()) {
            Ok(admitted) => tasks.start(Arc::clone(self).answer(incoming, admitted)),
            // Turned away at once: an answer would cost what there is no room for.
            Err(full) => self.gate.complain(from.ip(), &format!("{from} is turned away: {full}")),
        }
    }

    async fn answer(self: Arc<Self>, incoming: Incoming, mut admitted: Admitted) {
        let (from, within) = (incoming.from(), FIRST_WORDS.min(self.patience));
        let mut conn = match incoming.welcome(self.tls().as_deref(), within).await {
            Ok(connection) => Conn::from(connection),
            Err(Rejected { reason, answer }) => {
                self.gate.complain(from.ip(), &reason);
                if let Some((connection, answer)) = answer {
                    Conn::from(connection).close_with(&Response::failure(None, ResponseStatus::Refused, answer)).await;
                }
                return;
            }
        };
        conn.patience = self.patience;
        let result = match conn.recv_line(within).await {
            Ok(None) => Ok(()),
            Ok(Some(line)) => match admitted.talks() {
                Ok(()) => self.role().converse(&mut conn, line).await,
                Err(full) => return self.turn_away(conn, full).await,
            },
            Err(error) => Err(error),
        };
        self.end(conn, from.ip(), result).await;
    }

    async fn turn_away(&self, conn: Conn, full: Full) {
        log::warn!("{} is turned away: {full}", conn.peer);
        let response = Response::failure(None, ResponseStatus::Busy, format!("{full}; try again later"));
        conn.close_with(&Response { temporary: true, ..response }).await;
    }

    /// Ends a conversation. A peer that talked nonsense, or nothing at all, is told so in one line; the log tells who it
    /// was.
    async fn end(&self, conn: Conn, from: IpAddr, result: Result<(), WireError>) {
        let Err(error) = result else { return conn.close().await };
        let answer = matches!(
            error,
            WireError::InvalidMessage { .. }
                | WireError::Silent { .. }
                | WireError::Damaged { .. }
                | WireError::Stalled { .. }
        );
        let temporary = error.is_temporary();
        let reason = format!("{:#}", anyhow::Error::from(error));
        self.gate.complain(from, &reason);
        if answer {
            conn.close_with(&Response { temporary, ..Response::failure(None, ResponseStatus::Refused, reason) }).await;
        } else {
            conn.close().await;
        }
    }
}

/// Checks that nobody is let in who should not be, before anything is listened on.
async fn secure<R: Role>(address: &str, security: &Security) -> anyhow::Result<()> {
    match security {
        Security::Tls(tls) => {
            let own = tls.own();
            log::info!("proves itself as {} ({})", own.identity, own.identity.roles_in_words());
        }
        Security::Plaintext { .. } if tcp::is_loopback(address).await.map_err(way_out::<R>)? => {}
        Security::Plaintext { beyond_this_machine: false } => bail!(
            "will not listen on {address}: whoever reaches it could order snapshots destroyed; set \"tls\" in \
             local.json (see zsync-tls(8)), listen on 127.0.0.1, or say --insecure-plaintext on a network that you trust"
        ),
        Security::Plaintext { beyond_this_machine: true } => {
            log::warn!("listens on {address} in plaintext: whoever reaches it is obeyed");
        }
    }
    Ok(())
}

fn way_out<R: Role>(error: TransportError) -> anyhow::Error {
    let way_out = match &error {
        TransportError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse => {
            format!("another {} or another program uses the port: stop it, or name another port with", R::NAME)
        }
        _ => "name an address of this machine with".to_owned(),
    };
    anyhow!("{:#}; {way_out} --listen", anyhow::Error::from(error))
}

/// Where and how an agent or a slave listens.
#[derive(Clone)]
pub struct Listening {
    /// `host:port`.
    pub address: String,
    /// How it is known who a peer is.
    pub security: Security,
    /// Where metrics are told, as `host:port`.
    pub metrics: Option<String>,
    /// How long conversations may go on once the process is asked to end.
    pub grace: Duration,
}

/// Opens the socket, or takes over the one that the service manager listens on; gives its address, too.
async fn open<R: Role>(listening: &Listening, inherited: Option<TcpListener>) -> anyhow::Result<(Listener, String)> {
    let Some(socket) = inherited else {
        secure::<R>(&listening.address, &listening.security).await?;
        let listener = Listener::bind(&listening.address).await.map_err(way_out::<R>)?;
        let shown = listener.address().map_or_else(|| listening.address.clone(), |a| a.to_string());
        return Ok((listener, shown));
    };
    let shown = socket.local_addr().context("the socket that was handed over has no address")?.to_string();
    secure::<R>(&shown, &listening.security).await?;
    Ok((Listener::from(socket), shown))
}

/// Listens, and serves until SIGTERM or SIGINT. `reload` makes the role anew from the one before, and reads the TLS
/// files, on SIGHUP; where it fails, what was read before stays in force.
pub async fn serve<R: Role>(
    role: R,
    inherited: Option<TcpListener>,
    listening: &Listening,
    reload: impl Fn(&R) -> anyhow::Result<(R, Security)>,
) -> anyhow::Result<()> {
    let mut signals = Signals::of_service()?;
    let (listener, shown) = open::<R>(listening, inherited).await?;
    if let Some(address) = &listening.metrics {
        let tally = role.tally().clone();
        http::serve(address, Arc::new(move || tally.text())).await?;
    }
    let state = format!("listens on {shown}");
    log::info!("{} {state}", R::NAME);
    service::ready(&state);
    drop(runtime::spawn(service::watchdog()));
    let door = Arc::new(Acceptor::new(Arc::new(role), listening.security.tls()));
    let mut conversations = runtime::Tasks::default();
    while signals.end().is_none() {
        let connection = async {
            match listener.accept().await {
                Ok(incoming) => Some(incoming),
                Err(error) => {
                    // Out of file descriptors, usually: a short rest instead of a busy loop.
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
            door.admit(incoming, &conversations);
        }
        if signals.take_reload() {
            service::reloading();
            let renewed = match reload(&door.role()) {
                // What was listened on by TLS is not left to everybody because a key was forgotten.
                Ok((role, security)) => secure::<R>(&shown, &security).await.map(|()| door.renew(role, security.tls())),
                Err(error) => Err(error),
            };
            match renewed {
                Ok(()) => {
                    log::info!(
                        "its configuration was read again; limits of bandwidth count at once, the rest for conversations to come"
                    );
                    service::ready(&state);
                }
                Err(error) => {
                    log::error!("the configuration is wrong, the one before it stays in force: {error:#}");
                    service::ready(&format!("{state}; the configuration that it was to reload is wrong: {error:#}"));
                }
            }
        }
    }
    // Nobody else gets in; with a socket of the service manager's they wait for the next process.
    drop(listener);
    end_conversations(&mut conversations, &mut signals, listening.grace).await;
    Ok(())
}

/// Lets conversations end, and breaks off those that take too long: what they had received can be gone on with.
async fn end_conversations(conversations: &mut runtime::Tasks, signals: &mut Signals, grace: Duration) {
    let why = signals.end().unwrap_or("the end");
    let shown = humantime::format_duration(grace);
    match conversations.count() {
        0 => log::info!("ends on {why}"),
        n => log::info!("ends on {why}: conversations under way, {n}, have {shown} to end"),
    }
    service::stopping("ends; lets what is under way end");
    if signals.grace(grace, conversations.ended()).await.is_some() {
        return;
    }
    log::warn!("breaks off the conversations that are left, {}", conversations.count());
    if runtime::timeout(ABORT_TIMEOUT, conversations.interrupt()).await.is_err() {
        log::warn!("conversations that could not be broken off: {}", conversations.count());
    }
}
