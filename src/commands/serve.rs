//! What agent and slave have in common: listening, and a conversation for each connection.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_lite::future;
use futures_lite::stream::StreamExt;

use super::gate::{Admitted, Full, Gate};
use crate::model::ResponseStatus;
use crate::runtime;
use crate::transport::tcp::{self, Incoming, Listener, TransportError, Unwelcome};
use crate::transport::tls::Tls;
use crate::wire::Response;
use crate::wire::codec::{Conn, SILENCE, WireError};

/// How long a peer may take between two steps of a conversation: it may wait for its own ZFS.
pub const BETWEEN_STEPS: Duration = Duration::from_secs(900);
/// How long a peer may take to prove who it is, and again to say what it wants.
const FIRST_WORDS: Duration = Duration::from_secs(10);

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

/// Where connections come in: lets in as many as there is room for, finds out who they are and what they want.
pub struct Door<R> {
    role: Arc<R>,
    tls: Option<Arc<Tls>>,
    gate: Gate,
    /// How long a peer may be silent.
    pub patience: Duration,
}

impl<R: Role> Door<R> {
    /// A door to this role.
    #[must_use]
    pub fn new(role: Arc<R>, tls: Option<Arc<Tls>>) -> Self {
        Self { role, tls, gate: Gate::default(), patience: SILENCE }
    }

    /// Has a connection answered, if there is room for it.
    pub fn admit(self: &Arc<Self>, incoming: Incoming) {
        let from = incoming.from();
        match self.gate.enter(from.ip()) {
            // The task ends with its conversation; nobody waits for it.
            Ok(admitted) => drop(runtime::spawn(Arc::clone(self).answer(incoming, admitted))),
            // Turned away at once: an answer would cost what there is no room for.
            Err(full) => self.gate.complain(from.ip(), &format!("{from} is turned away: {full}")),
        }
    }

    async fn answer(self: Arc<Self>, incoming: Incoming, mut admitted: Admitted) {
        let (from, within) = (incoming.from(), FIRST_WORDS.min(self.patience));
        let mut conn = match incoming.welcome(self.tls.as_deref(), within).await {
            Ok(conn) => conn,
            Err(Unwelcome { reason, answer }) => {
                self.gate.complain(from.ip(), &reason);
                if let Some((conn, answer)) = answer {
                    conn.part(&Response::failure(None, ResponseStatus::Refused, answer)).await;
                }
                return;
            }
        };
        conn.patience = self.patience;
        let result = match conn.hear_line(within).await {
            Ok(None) => Ok(()),
            Ok(Some(line)) => match admitted.talks() {
                Ok(()) => Arc::clone(&self.role).converse(&mut conn, line).await,
                Err(full) => return self.turn_away(conn, full).await,
            },
            Err(error) => Err(error),
        };
        self.end(conn, from.ip(), result).await;
    }

    async fn turn_away(&self, conn: Conn, full: Full) {
        log::warn!("{} is turned away: {full}", conn.peer);
        let response = Response::failure(None, ResponseStatus::Busy, format!("{full}; try again later"));
        conn.part(&Response { temporary: true, ..response }).await;
    }

    /// Ends a conversation. A peer that talked nonsense, or nothing at all, is told so in one line; the log tells who it
    /// was.
    async fn end(&self, conn: Conn, from: IpAddr, result: Result<(), WireError>) {
        let Err(error) = result else { return conn.close().await };
        let answer = matches!(error, WireError::Nonsense { .. } | WireError::Silent { .. });
        let reason = format!("{:#}", anyhow::Error::from(error));
        self.gate.complain(from, &reason);
        if answer {
            conn.part(&Response::failure(None, ResponseStatus::Refused, reason)).await;
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

/// Listens, and serves until SIGTERM or SIGINT. SIGHUP has the TLS files read anew.
pub async fn serve<R: Role>(role: R, address: &str, security: Security) -> anyhow::Result<()> {
    let stop = Stop::new()?;
    secure::<R>(address, &security).await?;
    let tls = security.tls();
    let reloading = reload_on_hangup(tls.clone())?;
    let listener = Listener::bind(address).await.map_err(way_out::<R>)?;
    let shown = listener.address().map_or_else(|| address.to_owned(), |a| a.to_string());
    log::info!("{} listens on {shown}", R::NAME);
    let door = Arc::new(Door::new(Arc::new(role), tls));
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok(incoming) => door.admit(incoming),
                Err(error) => {
                    // Out of file descriptors, usually: a short rest instead of a busy loop.
                    log::warn!("cannot accept a connection: {error}");
                    runtime::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    };
    future::or(accepting, future::or(reloading, stop.asked())).await
}

/// Reads the TLS files anew at each SIGHUP. What is under way goes on with what it began with.
fn reload_on_hangup(tls: Option<Arc<Tls>>) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    use async_signal::{Signal, Signals};
    let mut hangups = Signals::new([Signal::Hup]).context("cannot listen for signals")?;
    Ok(async move {
        while hangups.next().await.is_some() {
            let Some(tls) = &tls else { continue };
            match tls.reload() {
                Ok(()) => log::info!("read the TLS files anew"),
                Err(error) => log::error!("{error}; what was read before stays in force"),
            }
        }
        future::pending().await
    })
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
