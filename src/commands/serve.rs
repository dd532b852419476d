//! What agent and slave have in common: listening, and a conversation for each connection.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_lite::future;

use crate::model::ResponseStatus;
use crate::runtime;
use crate::service::{self, Signals};
use crate::transport::tcp::{self, Listener, TransportError};
use crate::wire::Response;
use crate::wire::codec::{Conn, WireError};

/// How long a peer may take between two steps of a conversation: it may wait for its own ZFS.
pub const BETWEEN_STEPS: Duration = Duration::from_secs(900);

/// How many conversations run at once; further connections wait to be accepted.
const MOST_CONVERSATIONS: usize = 256;

/// How long it may take to break off: children are killed, nothing is waited for.
pub const TO_BREAK_OFF: Duration = Duration::from_secs(5);

/// Something that answers connections.
pub trait Role: Send + Sync + 'static {
    /// What it is called in messages.
    const NAME: &'static str;

    /// Has one conversation, to its end.
    fn converse(self: Arc<Self>, conn: Conn) -> impl Future<Output = ()> + Send;
}

/// Ends a conversation. A peer that talked nonsense, or nothing at all, is told so in one line; the log tells who it
/// was.
pub async fn end(conn: Conn, result: Result<(), WireError>) {
    let Err(error) = result else { return conn.close().await };
    let answer = matches!(error, WireError::Nonsense { .. } | WireError::Silent { .. });
    let reason = format!("{:#}", anyhow::Error::from(error));
    log::warn!("{reason}");
    if answer {
        conn.part(&Response::failure(None, ResponseStatus::Refused, reason)).await;
    } else {
        conn.close().await;
    }
}

/// Where and how an agent or a slave listens.
#[derive(Clone, Debug)]
pub struct Listening {
    /// `host:port`.
    pub address: String,
    /// Whether it may do so in plaintext beyond this machine.
    pub plaintext: bool,
    /// How long conversations may go on once the process is asked to end.
    pub grace: Duration,
}

impl Listening {
    /// Opens the socket, or takes over the one that the service manager listens on.
    async fn open<R: Role>(&self, inherited: Option<TcpListener>) -> anyhow::Result<Listener> {
        let way_out = |error: TransportError| {
            let way_out = match &error {
                TransportError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse => {
                    format!("another {} or another program uses the port: stop it, or name another port with", R::NAME)
                }
                _ => "name an address of this machine with".to_owned(),
            };
            anyhow!("{:#}; {way_out} --listen", anyhow::Error::from(error))
        };
        let (handed, address) = match inherited {
            Some(socket) => {
                let address = socket.local_addr().context("the socket that was handed over has no address")?;
                (Some(socket), address.to_string())
            }
            None => (None, self.address.clone()),
        };
        if !tcp::is_loopback(&address).await.map_err(way_out)? {
            if !self.plaintext {
                bail!(
                    "will not listen on {address}: whoever reaches it could order snapshots destroyed; listen on \
                     127.0.0.1, or say --insecure-plaintext on a network that you trust"
                );
            }
            log::warn!("listens on {address} in plaintext: whoever reaches it is obeyed");
        }
        match handed {
            Some(socket) => Ok(Listener::from(socket)),
            None => Listener::bind(&address).await.map_err(way_out),
        }
    }
}

/// Listens, and serves until SIGTERM or SIGINT. `reload` makes the role anew from the one before, on SIGHUP; where it
/// fails, that one goes on.
pub async fn serve<R: Role>(
    role: R,
    inherited: Option<TcpListener>,
    listening: &Listening,
    reload: impl Fn(&R) -> anyhow::Result<R>,
) -> anyhow::Result<()> {
    let mut signals = Signals::of_service()?;
    let listener = listening.open::<R>(inherited).await?;
    let shown = listener.address().map_or_else(|| listening.address.clone(), |a| a.to_string());
    let mut state = format!("listens on {shown}");
    log::info!("{} {state}", R::NAME);
    service::ready(&state);
    drop(runtime::spawn(service::watchdog()));
    let (mut role, slots) = (Arc::new(role), Arc::new(async_lock::Semaphore::new(MOST_CONVERSATIONS)));
    let mut conversations = runtime::Tasks::default();
    while signals.end().is_none() {
        let connection = async {
            let slot = slots.acquire_arc().await;
            match listener.accept().await {
                Ok(conn) => Some((conn, slot)),
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
        if let Some((conn, slot)) = future::or(signal, connection).await {
            let role = Arc::clone(&role);
            conversations.start(async move {
                role.converse(conn).await;
                drop(slot);
            });
        }
        if signals.take_reload() {
            service::reloading();
            state = match reload(&role) {
                Ok(now) => {
                    role = Arc::new(now);
                    log::info!("its configuration was read again; conversations under way go on with the one before");
                    format!("listens on {shown}")
                }
                Err(error) => {
                    log::error!("the configuration is wrong, the one before it stays in force: {error:#}");
                    format!("listens on {shown}; the configuration that it was to reload is wrong: {error:#}")
                }
            };
            service::ready(&state);
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
    if runtime::timeout(TO_BREAK_OFF, conversations.interrupt()).await.is_err() {
        log::warn!("conversations that could not be broken off: {}", conversations.count());
    }
}
