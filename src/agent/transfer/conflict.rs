//! A destination that cannot take the next stream: what the order allows is done, or an administrator is told both
//! sides and the way out.

use crate::actions::divergence::{Remedy, Trouble, remedy};
use crate::actions::steps::{Conflict, Point};
use crate::agent::transfer::course::{SendRequest, TransferState};
use crate::agent::transfer::peer::{Ended, Found, Receiver};
use crate::agent::{Agent, Failure};
use crate::model::tags;
use crate::model::{DatasetInventory, DatasetName, Guid, Origin, Place, ResponseStatus};
use crate::slave::receive::StepError;
use crate::wire::DirectorsOrder;
use crate::zfs::{Depth, Zfs};

impl<Z: Zfs> Agent<Z> {
    /// Whether a destination without snapshots is received over.
    pub(crate) fn may_replace(&self, job: &SendRequest) -> bool {
        remedy(&Trouble::Bare, job.allowed) == Remedy::Replace
    }

    /// Does about it what the order allows, once; what is there then is planned from anew.
    pub(crate) async fn resolve(
        &self,
        job: &SendRequest,
        receiver: &mut Receiver<Z>,
        theirs: &Found,
        trouble: &Trouble,
        course: &mut TransferState,
    ) -> Result<Ended, Failure> {
        // Renamed, or rolled back, more is another one than this dataset.
        self.held.doubt();
        let (result, now) = match remedy(trouble, job.allowed) {
            Remedy::Rollback { to, destroys } if !course.rolled_back => {
                course.rolled_back = true;
                let lost = destroys.len();
                let (result, now) = receiver.rollback(to, destroys).await?;
                if result.is_ok() {
                    course.remarks.push(match lost {
                        0 => "the destination was rolled back first".to_owned(),
                        _ => format!("the destination was rolled back first, which destroyed {lost} snapshots there"),
                    });
                }
                (result, now)
            }
            Remedy::SetAside if !course.set_aside => {
                course.set_aside = true;
                let newest = theirs.as_ref().and_then(DatasetInventory::newest).map(|s| s.guid);
                let (result, now) = receiver.set_aside(newest).await?;
                let result = result.map(|name| {
                    course.remarks.push(format!("what was there before is {}:{name} now: {trouble}", job.to.host));
                });
                (result, now)
            }
            Remedy::Stop | Remedy::Replace | Remedy::Rollback { .. } | Remedy::SetAside => {
                return Err(stuck(job, trouble));
            }
        };
        // What was tried and did not help comes after what is wrong.
        let result = result.map_err(|error| {
            let reason = format!("{}; {}", stuck(job, trouble).reason, error.reason);
            StepError { reason, ..error }
        });
        Ok((result, now))
    }

    /// The snapshot that a dataset is a clone of, where the order says what the destination has of its dataset.
    pub(crate) async fn origin(
        &self,
        ours: &DatasetInventory,
        there: Option<&DatasetName>,
    ) -> Result<Option<(Origin, Guid)>, Failure> {
        let (Some(origin), Some(_)) = (&ours.origin, there) else { return Ok(None) };
        let listed = self.zfs.list(std::slice::from_ref(&origin.dataset), Depth::Only).await?;
        let snapshots = listed.into_iter().flat_map(|(_, inventory)| inventory.snapshots);
        let guid = snapshots.filter(|s| s.name == origin.name).map(|s| s.guid).next();
        Ok(guid.map(|guid| (origin.clone(), guid)))
    }

    /// Has the copy renamed as its source was, where the order says how both were called, and that is so.
    pub(crate) async fn follow(
        &self,
        order: &DirectorsOrder,
        job: &SendRequest,
        receiver: &mut Receiver<Z>,
        ours: &DatasetInventory,
        course: &mut TransferState,
    ) -> Result<Found, Failure> {
        let Some(from) = &order.renamed_from else { return Ok(None) };
        let known =
            |of: &DatasetInventory| of.by_guid(from.guid).is_some() || of.bookmarks.iter().any(|b| b.guid == from.guid);
        let listed = self.zfs.list(std::slice::from_ref(&from.source_dataset), Depth::Only).await?;
        if !known(ours) || listed.iter().any(|(_, inventory)| known(inventory)) {
            log::info!("{}: it was not renamed from {} after all", job.dataset, from.source_dataset);
            return Ok(None);
        }
        let old = Place { host: job.to.host.clone(), dataset: from.dataset.clone() };
        if !tags::was_sent(ours, &old) {
            let why = format!("no bookmark here tells that it was sent to {}:{}", old.host, old.dataset);
            course.remarks.push(format!("it is copied anew: {why}"));
            return Ok(None);
        }
        self.held.doubt();
        let (result, now) = receiver.follow().await?;
        course.remarks.push(match result {
            Ok(()) => format!("{}:{} was renamed as its source was", job.to.host, from.dataset),
            Err(error) => format!("it is copied anew: {}", error.reason),
        });
        Ok(now)
    }
}

/// What is wrong, both sides, and the way out.
fn stuck(job: &SendRequest, trouble: &Trouble) -> Failure {
    let (dataset, to) = (&job.dataset, &job.to);
    let anew = format!(
        "rename it there (zfs rename) and {dataset} will be copied anew, which on_divergence \"set_aside\" has done"
    );
    let (status, text) = match trouble {
        Trouble::Conflict(conflict @ Conflict::NoSuchSnapshot { .. }) => {
            return Failure::refused(format!("{dataset}: {conflict}"));
        }
        Trouble::Conflict(conflict @ Conflict::Diverged { common, ours, theirs, .. }) => {
            let back = if job.allowed.rollback && job.allowed.may_destroy {
                String::new()
            } else {
                format!(
                    ", or set rollback_if_needed and rollback_may_destroy to have it rolled back to {} and what is only \
                     there destroyed",
                    common.name
                )
            };
            let sides = format!("only there: {}; only here: {}", listed(theirs), listed(ours));
            (ResponseStatus::WasWritten, format!("{conflict} ({sides}); {anew}{back}"))
        }
        Trouble::Conflict(conflict @ Conflict::NotEmpty { ours, theirs }) => {
            let sides = format!("there: {}; here: {}", listed(theirs), listed(ours));
            (ResponseStatus::NotEmpty, format!("{conflict} ({sides}); {anew}, or destroy there what may go"))
        }
        Trouble::Written { newest, .. } => {
            let there = to.dataset.at(&newest.name);
            let out = format!(
                "copy what was written there elsewhere, then roll it back (zfs rollback {there}), or set rollback_if_needed \
                 to have that done; to keep it, {anew}"
            );
            (ResponseStatus::WasWritten, format!("{trouble}; {out}"))
        }
        Trouble::Bare => {
            let out = "destroy or rename it there, and it will be created; or set rollback_if_needed to have it replaced, or \
                       on_divergence \"set_aside\" to have it renamed";
            (ResponseStatus::NotEmpty, format!("{trouble}: {out}"))
        }
        Trouble::Flags(_) => (ResponseStatus::NotEmpty, format!("{trouble}; {anew}")),
    };
    Failure { status, reason: format!("{}:{}: {text}", to.host, to.dataset), temporary: false }
}

/// Snapshots by name, not more of them than people read.
fn listed(points: &[Point]) -> String {
    let shown: Vec<&str> = points.iter().take(5).map(|p| p.name.as_str()).collect();
    match points.len() {
        0 => "nothing".into(),
        n if n > shown.len() => format!("{} and {} more", shown.join(", "), n - shown.len()),
        _ => shown.join(", "),
    }
}
