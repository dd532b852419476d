//! How an agent carries out one order: who may give it, how often it is attempted, what is published of it.

use std::sync::Arc;
use std::time::Instant;

use crate::agent::context::{FactSink, LocalChanges, OrderContext, Success};
use crate::agent::request::{CheckedOrder, Request};
use crate::agent::service::Agent;
use crate::agent::transfer::state::RetryState;
use crate::host::error::OrderError;
use crate::host::publish::publisher::Publisher;
use crate::model::{Counter, ResponseStatus};
use crate::sys::retry::Retry;
use crate::sys::runtime;
use crate::wire::Response;
use crate::zfs::Zfs;

impl<Z: Zfs> Agent<Z> {
    /// Carries out one order. Facts go to `facts` meanwhile, and `counter` counts the bytes of a transfer.
    pub async fn carry_out(&self, order: CheckedOrder, facts: FactSink, counter: Counter) -> Response {
        let began = Instant::now();
        let _in_progress = self.counters.begin();
        let context = OrderContext::new(self.host.clone(), facts, counter);
        let result = match self.check_fence(&order).await {
            Ok(()) => self.attempt_repeatedly(&order, &context).await,
            Err(outdated) => Err(outdated),
        };
        let mut response = match result {
            Ok(Success { status, remark, estimate }) => {
                Response { estimate, ..Response::success(order.id, status, remark) }
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

    /// Checks that the order's director leads.
    async fn check_fence(&self, order: &CheckedOrder) -> Result<(), OrderError> {
        let (Some(fence), Some(fences)) = (order.fence, &self.fences) else { return Ok(()) };
        match fences.check(fence).await {
            Err(reason) if order.request.may_lose_data() => Err(OrderError::refused(reason)),
            Err(reason) => {
                // It cannot lose anything, whichever director gives it.
                log::warn!("{}: {}: {reason}", order.id, order.request.action());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Carries out the request, and repeats attempts that failed for a passing reason. Each attempt starts from what ZFS
    /// says then.
    async fn attempt_repeatedly(&self, order: &CheckedOrder, context: &OrderContext) -> Result<Success, OrderError> {
        let mut retry = Retry::within(order.retry_for);
        let mut kept = RetryState::default();
        loop {
            let bytes_before = context.counter.get();
            let error = match self.attempt(order, &mut kept, context).await {
                Err(error) if error.temporary => error,
                ended => return ended,
            };
            // Busy on the first attempt: another order has the dataset, so report it. Later, it may be our own dropped
            // connection that the slave has not noticed yet.
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
        }
    }

    /// Publishes what an order changed; `false`: the published records are out of date.
    async fn publish(&self, publisher: &Arc<Publisher>, request: &Request, context: &OrderContext) -> bool {
        match request {
            // They published everything themselves, or changed nothing.
            Request::List(_) | Request::EstimateSend(_) | Request::EstimateDestroy(_) => {
                return publisher.behind().is_none();
            }
            Request::Send(send) => send.dataset.iter().for_each(|dataset| context.record_changed(dataset)),
            Request::Take(_) | Request::Destroy(_) => {}
        }
        let LocalChanges { mut datasets, marks } = context.take_changes();
        datasets.retain(|dataset| self.local.permission_to_take(dataset).is_ok());
        publisher.publish(datasets, marks).await
    }
}
