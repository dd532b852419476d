//! Takes snapshots back from the trash by order, and empties the trash without one.
//!
//! A director may order to take snapshots back, because that destroys nothing. Nobody can order to empty the trash
//! before its time: that is done on the host itself, by `zsync trash --empty`, which calls this module directly.

use std::collections::BTreeMap;

use crate::agent::context::{OrderContext, Success};
use crate::agent::destroy::Tally;
use crate::agent::request::UndeleteRequest;
use crate::agent::service::Agent;
use crate::host::error::OrderError;
use crate::host::floor::Floor;
use crate::host::trash;
use crate::model::tags::{UNDELETED, doomed_since, held_by, set_holds};
use crate::model::{DatasetInventory, DatasetName, Guid, ResponseStatus, SnapName, Snapshot};
use crate::sys::clock;
use crate::wire::{Facts, Listing};
use crate::zfs::{Depth, Fate, Named, Zfs, ZfsError};

impl<Z: Zfs> Agent<Z> {
    /// Takes snapshots back from the trash. Each gets another hold first, so that nothing can destroy it in between, and
    /// no order moves it to the trash again. A dataset in trouble does not stop the others.
    pub(crate) async fn undelete(
        &self,
        request: &UndeleteRequest,
        context: &OrderContext,
    ) -> Result<Success, OrderError> {
        let (mut done, mut failed) = (0, Vec::new());
        for (dataset, wanted) in &request.snapshots {
            let ids: Vec<_> = wanted.iter().map(|wanted| wanted.id).collect();
            match self.take_back(dataset, |snapshot| ids.contains(&snapshot.guid.uuid()), context).await {
                Ok(taken) if taken == ids.len() => done += taken,
                Ok(taken) => {
                    done += taken;
                    let reason = format!("{dataset}: {} of the snapshots are not in the trash", ids.len() - taken);
                    failed.push(OrderError::refused(reason));
                }
                Err(error) => failed.push(error.context(dataset.to_string())),
            }
        }
        let remark = format!("taken back from the trash: {done}");
        let mut failed = failed.into_iter();
        if let Some(first) = failed.next() {
            return Err(failed.fold(first, OrderError::followed_by).context(remark));
        }
        let status = if done == 0 { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        Ok(Success::new(status, remark))
    }

    /// Takes the wanted snapshots of a dataset back, and returns how many there were.
    async fn take_back(
        &self,
        dataset: &DatasetName,
        is_wanted: impl Fn(&Snapshot) -> bool,
        context: &OrderContext,
    ) -> Result<usize, OrderError> {
        self.local.permission_to_list(dataset)?;
        self.cache.invalidate(dataset);
        let Some((mut found, mut holds)) = self.with_trash(dataset).await? else {
            return Err(OrderError::refused(format!("{dataset} does not exist")));
        };
        let names: Vec<SnapName> = found
            .snapshots
            .iter()
            .filter(|snapshot| is_wanted(snapshot) && found.trashed(snapshot.guid).is_some())
            .map(|snapshot| snapshot.name.clone())
            .collect();
        if names.is_empty() {
            return Ok(0);
        }
        trash::hold(&*self.zfs, UNDELETED, dataset, &names).await?;
        let released = trash::by_tag(&holds, |name| names.contains(name));
        trash::release(&*self.zfs, dataset, &released).await?;
        self.cache.list_again(dataset);
        holds.retain(|(name, tag)| !(names.contains(name) && doomed_since(tag).is_some()));
        set_holds(&mut found, holds);
        let mut listed = vec![(dataset.clone(), found)];
        self.local.restrict(&mut listed);
        for (dataset, inventory) in listed {
            for listing in Listing::parts(&self.host, &dataset, inventory) {
                context.report(Facts { listing: Some(listing), ..Facts::default() }).await;
            }
        }
        Ok(names.len())
    }

    /// Lists a dataset with what is in its trash, and the holds on its snapshots; `None` if it does not exist.
    async fn with_trash(
        &self,
        dataset: &DatasetName,
    ) -> Result<Option<(DatasetInventory, Vec<(SnapName, String)>)>, ZfsError> {
        let listed = self.zfs.list(std::slice::from_ref(dataset), Depth::Only).await?;
        let Some((_, mut found)) = listed.into_iter().find(|(name, _)| name == dataset) else { return Ok(None) };
        let holds = self.zfs.holds(dataset, &found.held()).await?;
        set_holds(&mut found, holds.clone());
        Ok(Some((found, holds)))
    }

    /// Destroys these snapshots, which are in the trash of this host, although their time has not passed. Returns what
    /// was done in words, and what went wrong. No order can ask for this.
    pub async fn empty_trash(&self, snapshots: &BTreeMap<DatasetName, Vec<Guid>>) -> (String, Vec<String>) {
        let (mut tally, mut problems) = (Tally::default(), Vec::new());
        for (dataset, guids) in snapshots {
            if let Err(error) = self.empty_trash_of(dataset, guids, &mut tally).await {
                problems.push(format!("{dataset}: {}", error.message()));
            }
        }
        let remark = match tally.finish() {
            Ok(success) => success.remark,
            Err(error) => {
                problems.push(error.message());
                String::new()
            }
        };
        (remark, problems)
    }

    async fn empty_trash_of(&self, dataset: &DatasetName, guids: &[Guid], tally: &mut Tally) -> Result<(), OrderError> {
        self.local.permission_to_list(dataset)?;
        let Some((found, holds)) = self.with_trash(dataset).await? else { return Ok(()) };
        let floor = Floor::of(&*self.zfs, &self.local, dataset, &found, clock::now()).await?;
        let mut victims = Vec::new();
        let wanted = found.snapshots.iter().filter(|s| guids.contains(&s.guid) && found.trashed(s.guid).is_some());
        for snapshot in wanted {
            let others = || holds.iter().filter(|(name, tag)| *name == snapshot.name && doomed_since(tag).is_none());
            let objection = if found.newest().is_some_and(|newest| newest.guid == snapshot.guid) {
                Some("it is the newest of its dataset".to_owned())
            } else if others().next().is_some() {
                Some(held_by(&others().map(|(_, tag)| tag.clone()).collect::<Vec<_>>()))
            } else {
                floor.kept.get(&snapshot.guid).cloned()
            };
            match objection {
                Some(reason) => tally.kept.push(format!("{} stays: {reason}", dataset.at(&snapshot.name))),
                None => victims.push(Named { name: snapshot.name.clone(), guid: snapshot.guid }),
            }
        }
        if victims.is_empty() {
            return Ok(());
        }
        let fates: Vec<Fate> = self.destroy_trashed(dataset, &victims, &[], &holds).await?;
        tally.count(dataset, victims, fates, &BTreeMap::new());
        Ok(())
    }
}
