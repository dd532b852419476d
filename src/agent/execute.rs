//! Carries out one order: checks that its director leads, retries temporary failures, and publishes what the order
//! changed.

use std::sync::Arc;
use std::time::Instant;

use crate::agent::context::{FactSink, LocalChanges, OrderContext, Success};
use crate::agent::request::{CheckedOrder, Request};
use crate::agent::service::Agent;
use crate::agent::transfer::state::RetryState;
use crate::host::error::OrderError;
use crate::host::publish::publisher::Publisher;
use crate::model::{Counter, HostName, ResponseStatus};
use crate::sys::retry::Retry;
use crate::sys::{clock, runtime};
use crate::wire::Response;
use crate::zfs::Zfs;

impl<Z: Zfs> Agent<Z> {
    /// Carries out one order and returns its response. Meanwhile, facts are sent to `facts`, and `counter` counts the
    /// bytes of a transfer.
    pub async fn carry_out(&self, order: CheckedOrder, facts: FactSink, counter: Counter) -> Response {
        let began = Instant::now();
        let _in_progress = self.counters.begin();
        let context = OrderContext::new(self.host.clone(), facts, counter);
        let result = match self.check_fence(&order).await {
            Ok(()) => self.attempt_repeatedly(&order, &context).await,
            Err(outdated) => Err(outdated),
        };
        let clock = matches!(order.request, Request::List(_)).then(clock::now);
        let mut response = match result {
            Ok(Success { status, remark, estimate, datasets, recorded, joins }) => {
                let recorded = recorded.map(Box::new);
                Response { estimate, datasets, clock, recorded, joins, ..Response::success(order.id, status, remark) }
            }
            Err(error) => error.response(order.id),
        };
        if let Some(publisher) = &self.publisher {
            response.unpublished = !self.publish(publisher, &order.request, &context).await;
        }
        response.bytes = context.counter.get();
        self.counters.ended(&order.request.action().to_string(), response.is_success, response.bytes);
        response.millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        response
    }

    /// Checks that the order comes from the director that leads.
    async fn check_fence(&self, order: &CheckedOrder) -> Result<(), OrderError> {
        let Some(fences) = &self.fences else { return Ok(()) };
        if order.fence.is_none() && !order.request.needs_fence() {
            return Ok(());
        }
        let is_director = |host: &HostName| self.local.directors.is_empty() || self.local.directors.contains(host);
        match fences.check(order.fence.as_ref(), &is_director).await {
            Err(refusal) if order.request.may_lose_data() => {
                let error = OrderError::refused(refusal.to_string());
                Err(refusal.hint(&self.host).into_iter().fold(error, OrderError::with_hint))
            }
            Err(refusal) => {
                // This order cannot lose data, so it is carried out whichever director gave it.
                log::warn!("{}: {} is carried out nevertheless: {refusal}", order.id, order.request.action());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Carries out the request, and retries after temporary failures. Each attempt starts from the state of ZFS at that
    /// time.
    async fn attempt_repeatedly(&self, order: &CheckedOrder, context: &OrderContext) -> Result<Success, OrderError> {
        let mut retry = Retry::within(order.retry_for);
        let mut kept = RetryState::default();
        loop {
            let bytes_before = context.counter.get();
            let error = match self.attempt(order, &mut kept, context).await {
                Err(error) if error.temporary => error,
                ended => return ended,
            };
            // If the dataset is busy at the first attempt, another order is using it, and this order fails at once. At
            // a later attempt, perhaps the slave has not noticed yet that this order's own connection was lost.
            if error.status == ResponseStatus::Busy && retry.is_first() {
                return Err(error);
            }
            if context.counter.get() > bytes_before {
                retry.moved();
            }
            // The number of attempts is not reported: directors report a failure only when its text changes.
            let Some(pause) = retry.pause() else { return Err(error) };
            log::info!("{}: trying again in {pause:.1?}: {}", order.id, error.message());
            runtime::sleep(pause).await;
        }
    }

    async fn attempt(
        &self,
        order: &CheckedOrder,
        kept: &mut RetryState,
        context: &OrderContext,
    ) -> Result<Success, OrderError> {
        match &order.request {
            Request::Take(request) => self.take(order.id, request, context).await,
            Request::Send(request) => self.send(order.id, request, kept, context).await,
            Request::Destroy(request) => self.destroy(request, context).await,
            Request::List(request) => self.list(request, context).await,
            Request::EstimateSend(request) => self.estimate_send(request).await,
            Request::EstimateDestroy(request) => self.estimate_destroy(request).await,
            Request::Forget(request) => self.forget(request, context).await,
            Request::Undelete(request) => self.undelete(request, context).await,
            Request::Restore(request) => self.restore(order.id, request, kept, context).await,
            Request::JoinKeys(request) => self.join_keys(request, context).await,
        }
    }

    /// Publishes what an order changed. Returns `false` if the published records are out of date.
    async fn publish(&self, publisher: &Arc<Publisher>, request: &Request, context: &OrderContext) -> bool {
        match request {
            // A listing publishes everything itself, and an estimate changes nothing.
            Request::List(_) | Request::EstimateSend(_) | Request::EstimateDestroy(_) => {
                return publisher.behind().is_none();
            }
            Request::Send(send) => send.dataset.iter().for_each(|dataset| context.record_changed(dataset)),
            Request::Restore(restore) => context.record_changed(&restore.to),
            Request::Take(_)
            | Request::Destroy(_)
            | Request::Forget(_)
            | Request::Undelete(_)
            | Request::JoinKeys(_) => {}
        }
        let LocalChanges { mut datasets, marks } = context.take_changes();
        datasets.retain(|dataset| self.local.permission_to_list(dataset).is_ok());
        publisher.publish(datasets, marks).await
    }
}
