//! What agent and slave have in common: listening, and a conversation for each connection.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_lite::future;
use futures_lite::stream::StreamExt;

use crate::model::ResponseStatus;
use crate::runtime;
use crate::transport::tcp::{self, Listener, TransportError};
use crate::wire::Response;
use crate::wire::codec::{Conn, WireError};

/// How long a peer may take between two steps of a conversation: it may wait for its own ZFS.
pub const BETWEEN_STEPS: Duration = Duration::from_secs(900);

/// How many conversations run at once; further connections wait to be accepted.
const MOST_CONVERSATIONS: usize = 256;

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
    let answer = matches!(
        error,
        WireError::Nonsense { .. } | WireError::Silent { .. } | WireError::Damaged { .. } | WireError::Stalled { .. }
    );
    let temporary = error.is_temporary();
    let reason = format!("{:#}", anyhow::Error::from(error));
    log::warn!("{reason}");
    if answer {
        conn.part(&Response { temporary, ..Response::failure(None, ResponseStatus::Refused, reason) }).await;
    } else {
        conn.close().await;
    }
}

/// Listens, and serves until SIGTERM or SIGINT.
pub async fn serve<R: Role>(role: R, address: &str, plaintext_allowed: bool) -> anyhow::Result<()> {
    let stop = Stop::new()?;
    let way_out = |error: TransportError| {
        let way_out = match &error {
            TransportError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse => {
                format!("another {} or another program uses the port: stop it, or name another port with", R::NAME)
            }
            _ => "name an address of this machine with".to_owned(),
        };
        anyhow!("{:#}; {way_out} --listen", anyhow::Error::from(error))
    };
    if !tcp::is_loopback(address).await.map_err(way_out)? {
        if !plaintext_allowed {
            bail!(
                "will not listen on {address}: whoever reaches it could order snapshots destroyed; listen on \
                 127.0.0.1, or say --insecure-plaintext on a network that you trust"
            );
        }
        log::warn!("listens on {address} in plaintext: whoever reaches it is obeyed");
    }
    let listener = Listener::bind(address).await.map_err(way_out)?;
    let shown = listener.address().map_or_else(|| address.to_owned(), |a| a.to_string());
    log::info!("{} listens on {shown}", R::NAME);
    let (role, slots) = (Arc::new(role), Arc::new(async_lock::Semaphore::new(MOST_CONVERSATIONS)));
    let accepting = async {
        loop {
            let slot = slots.acquire_arc().await;
            match listener.accept().await {
                Ok(conn) => {
                    let role = Arc::clone(&role);
                    // The task ends with its conversation; nobody waits for it.
                    drop(runtime::spawn(async move {
                        role.converse(conn).await;
                        drop(slot);
                    }));
                }
                Err(error) => {
                    // Out of file descriptors, usually: a short rest instead of a busy loop.
                    log::warn!("cannot accept a connection: {error}");
                    runtime::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    };
    future::or(accepting, stop.asked()).await
}

/// Hears that the process is asked to end.
pub struct Stop(async_signal::Signals);

impl Stop {
    /// From now on.
    pub fn new() -> anyhow::Result<Self> {
        use async_signal::Signal;
        let signals = async_signal::Signals::new([Signal::Term, Signal::Int]).context("cannot listen for signals")?;
        Ok(Self(signals))
    }

    /// Waits until it is.
    pub async fn asked(mut self) -> anyhow::Result<()> {
        if let Some(Ok(signal)) = self.0.next().await {
            log::info!("ends on {signal:?}");
        }
        Ok(())
    }
}
