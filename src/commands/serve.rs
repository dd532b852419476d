//! What agent and slave have in common: listening, and a conversation for each connection.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_lite::future;
use futures_lite::stream::StreamExt;

use crate::runtime;
use crate::transport::tcp::{self, Listener};
use crate::wire::codec::Conn;

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

/// Listens, and serves until SIGTERM or SIGINT.
pub async fn serve<R: Role>(role: R, address: &str, plaintext_allowed: bool) -> anyhow::Result<()> {
    if !tcp::is_loopback(address).await? {
        if !plaintext_allowed {
            bail!(
                "will not listen on {address}: whoever reaches it could order snapshots destroyed; listen on \
                 127.0.0.1, or say --insecure-plaintext on a network that you trust"
            );
        }
        log::warn!("listens on {address} in plaintext: whoever reaches it is obeyed");
    }
    let listener = Listener::bind(address).await.with_context(|| {
        format!("another {} or another program may use the port; name another one with --listen", R::NAME)
    })?;
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
    future::or(accepting, stopped()).await
}

/// Ends when the process is asked to.
pub async fn stopped() -> anyhow::Result<()> {
    use async_signal::Signal;
    let mut signals = async_signal::Signals::new([Signal::Term, Signal::Int]).context("cannot listen for signals")?;
    if let Some(Ok(signal)) = signals.next().await {
        log::info!("ends on {signal:?}");
    }
    Ok(())
}
