//! Holds an agent's conversation with a director over a socket.

use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;

use crate::agent::dedup::{Admission, RunningOrder};
use crate::agent::request::{CheckedOrder, OrderKey};
use crate::agent::service::Agent;
use crate::host::error::OrderError;
use crate::model::{Action, Counter, OrderId, PeerRole};
use crate::server::{Counters, acceptor};
use crate::sys::log_limit::{Complaint, PeerLog};
use crate::sys::runtime;
use crate::wire::codec::{Conn, WireError};
use crate::wire::files::AskFiles;
use crate::wire::{AgentLine, AskBack, DirectorsOrder, Progress, Response};
use crate::zfs::Zfs;

/// How often a director gets the progress of an order that reports nothing else.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// How many facts are queued for a director that reads slowly.
const QUEUED_FACTS: usize = 16;

/// The description of an order in the log.
struct OrderLabel {
    /// Who gave the order.
    peer: String,
    id: OrderId,
    action: Action,
    dataset: String,
}

impl<Z: Zfs> Agent<Z> {
    async fn converse(&self, conn: &mut Conn, line: &[u8]) -> Result<(), WireError> {
        if let Ok(AskBack { send_back }) = conn.parse(line) {
            return self.send_back(conn, send_back).await;
        }
        if let Ok(AskFiles { read_files }) = conn.parse(line) {
            return self.read_files(conn, read_files).await;
        }
        let order: DirectorsOrder = conn.parse(line)?;
        let id = order.order_uuid;
        log::debug!("{id}: {} from {}", order.action, conn.peer);
        if let Err(denied) = self.local.permission_to_order(conn.identity.as_ref()) {
            let error = OrderError::from(denied);
            conn.log.warn(Complaint::Forbidden, &format!("{}: {}", conn.peer, error.message()));
            return conn.send(&AgentLine::Response(error.response(id))).await;
        }
        match self.dedup.begin(OrderKey::from(&order)).await {
            Admission::New(running) => self.answer(conn, order, running).await,
            Admission::Answered(response) => {
                log::info!("{id}: the order arrived again; repeating its answer");
                conn.send(&AgentLine::Response(*response)).await
            }
            Admission::Running(answer, counter) => {
                log::info!("{id}: the order arrived again while it is being carried out");
                loop {
                    match runtime::timeout(PROGRESS_INTERVAL, answer.recv()).await {
                        Ok(Ok(response)) => return conn.send(&AgentLine::Response(response)).await,
                        Ok(Err(_)) => return Ok(()),
                        Err(runtime::Elapsed) => send_progress(conn, &counter).await?,
                    }
                }
            }
            Admission::Conflict => {
                let error = OrderError::refused("another order had this OrderUUID")
                    .with_hint("give each order its own OrderUUID, as uuidgen(1) prints one");
                conn.send(&AgentLine::Response(error.response(id))).await
            }
        }
    }

    /// Carries out a new order, reports facts and progress meanwhile, and answers it.
    async fn answer(&self, conn: &mut Conn, order: DirectorsOrder, running: RunningOrder) -> Result<(), WireError> {
        let label = OrderLabel {
            peer: conn.peer.clone(),
            id: order.order_uuid,
            action: order.action,
            dataset: order.dest_dataset.clone(),
        };
        let (sender, facts) = runtime::channel::bounded(QUEUED_FACTS);
        let director = self.local.director(conn.identity.as_ref()).cloned();
        let counter = running.counter.clone();
        let (progress, writer) = (counter.clone(), &mut *conn);
        // This future owns the receiving end of the channel. When the director disconnects, the future ends, which
        // closes the channel. So facts never block the order.
        let reporting = async move {
            loop {
                match runtime::timeout(PROGRESS_INTERVAL, facts.recv()).await {
                    Ok(Ok(facts)) => writer.send(&AgentLine::Facts { facts: Box::new(facts) }).await?,
                    Ok(Err(_)) => return Ok::<_, WireError>(()),
                    Err(runtime::Elapsed) => send_progress(writer, &progress).await?,
                }
            }
        };
        // At its end the order drops the sender, which ends the reporting. If the director disconnects, the order
        // continues, and the next listing shows what it did.
        let working = async {
            let response = match CheckedOrder::try_from(order) {
                Ok(order) => self.carry_out(order.given_by(director.as_ref()), sender, counter).await,
                Err(error) => {
                    drop(sender);
                    self.refuse(&label, &error)
                }
            };
            // The answer is remembered before it is sent, so that a director that has received it can rely on that.
            running.ended(&response).await;
            response
        };
        let (response, reported) = future::zip(working, reporting).await;
        label.log_end(&response, &conn.log);
        reported?;
        conn.send(&AgentLine::Response(response)).await
    }

    /// Counts an invalid order as failed, and returns its response.
    fn refuse(&self, label: &OrderLabel, error: &OrderError) -> Response {
        self.counters.ended(&label.action.to_string(), false, 0);
        Response { unpublished: self.is_behind(), ..error.response(label.id) }
    }
}

async fn send_progress(conn: &mut Conn, counter: &Counter) -> Result<(), WireError> {
    let progress = Progress { bytes: counter.get(), expected: counter.expected(), waits_for: counter.waits_for() };
    conn.send(&AgentLine::Progress { progress }).await
}

impl OrderLabel {
    /// Logs how the order ended. If the director runs in the same process, it logs its orders itself.
    fn log_end(&self, response: &Response, peer: &PeerLog) {
        let order = format!("{} {} {}", self.id, self.action, self.dataset);
        let text = format!("{}: {}: {:?} {}", self.peer, order.trim_end(), response.status, response.message());
        if !response.is_success {
            return peer.warn(Complaint::Order, &text);
        }
        let level = match self.action {
            // The director asks for listings in every pass.
            Action::KvResync | Action::EstimateSend | Action::EstimateDestroy => log::Level::Debug,
            _ => log::Level::Info,
        };
        log::log!(level, "{text}");
    }
}

impl<Z: Zfs> acceptor::Role for Agent<Z> {
    const NAME: &'static str = "agent";
    const ROLE: PeerRole = PeerRole::Agent;

    async fn converse(self: Arc<Self>, conn: &mut Conn, first_line: Vec<u8>) -> Result<(), WireError> {
        Agent::converse(&self, conn, &first_line).await
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
