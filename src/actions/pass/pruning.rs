//! Decides which snapshots are pruned: in a source, in its destinations, and what other policies have left there.

use crate::actions::common::{PolicySnapshot, policy_snapshots};
use crate::actions::delete::{self, DeleteTerms, Peer};
use crate::actions::index::{Claim, IncomingSend};
use crate::actions::notice::NoticeKind;
use crate::actions::pass::{GovernedDataset, Pass};
use crate::actions::prune::{self, Doomed, PruneVerdict};
use crate::actions::verdict::{Side, Subject};
use crate::model::{DatasetInventory, Place, Prefix};

impl<'a> Pass<'a> {
    /// Prunes snapshots of the dataset's other policies on the destination. `zfs send -I` carries them along with this
    /// policy's. If such a policy is not sent there itself, nothing else would ever prune its snapshots there; they
    /// stay as long as on the source.
    pub(super) fn prune_carried_along(
        &mut self,
        governed: &GovernedDataset<'a>,
        to: &Place,
        there: &'a DatasetInventory,
        incoming: &[IncomingSend],
    ) {
        let is_other = |i: &IncomingSend| i.claim != governed.claim || i.source != governed.place();
        if self.sender(to, incoming, |_| true).is_none_or(is_other) {
            return;
        }
        let mut snapshots = Vec::new();
        for (policy_index, policy) in governed.entry.policies.iter().enumerate() {
            let prefix = &policy.prefix;
            let claim = Claim { policy: policy_index, ..governed.claim };
            let sent = incoming.iter().any(|i| self.index.snapshot_policy(i.claim).prefix == *prefix);
            let elsewhere = self.index.governing(&to.host, &to.dataset, prefix).is_some();
            let governs = self.index.governing(governed.host, governed.name, prefix) == Some(claim);
            let others = policy_snapshots(there, prefix, &mut snapshots);
            if sent || elsewhere || !governs || snapshots.is_empty() {
                continue;
            }
            let mut terms = self.terms(prefix, Some(claim), &[]);
            terms.prune_unsent = true;
            let peers = self.peers(&to.host, &to.dataset, prefix, incoming);
            let subject = GovernedDataset { claim, policy, ..*governed }.subject_at(&to.host, &to.dataset);
            let verdict = self.prune(subject, Side::Destination, there, &snapshots, others, &terms, peers);
            self.plan.prunes.push(verdict);
        }
    }

    pub(super) fn prune_source(
        &mut self,
        governed: &GovernedDataset<'a>,
        snapshots: &[PolicySnapshot],
        others: usize,
        incoming: &[IncomingSend],
    ) {
        let terms = self.terms(&governed.policy.prefix, Some(governed.claim), incoming);
        let peers = self.peers(governed.host, governed.name, &governed.policy.prefix, incoming);
        let verdict = self.prune(governed.subject(), Side::Source, governed.dataset, snapshots, others, &terms, peers);
        self.plan.prunes.push(verdict);
    }

    /// Prunes a destination of a policy, unless another verdict covers this dataset: that of the policy whose source it
    /// is, or that of another policy that sends to it. Such a verdict applies the rules of all these policies.
    pub(super) fn prune_destination(
        &mut self,
        governed: &GovernedDataset<'a>,
        to: &Place,
        there: &'a DatasetInventory,
        incoming: &[IncomingSend],
    ) {
        let prefix = &governed.policy.prefix;
        let of_prefix = |i: &IncomingSend| self.index.snapshot_policy(i.claim).prefix == *prefix;
        let first = self.sender(to, incoming, of_prefix);
        let elsewhere = self.index.governing(&to.host, &to.dataset, prefix).is_some();
        if elsewhere || first.is_none_or(|i| i.claim != governed.claim || i.source != governed.place()) {
            return;
        }
        let mut snapshots = Vec::new();
        let others = policy_snapshots(there, prefix, &mut snapshots);
        let terms = self.terms(prefix, None, incoming);
        let peers = self.peers(&to.host, &to.dataset, prefix, incoming);
        let subject = governed.subject_at(&to.host, &to.dataset);
        let verdict = self.prune(subject, Side::Destination, there, &snapshots, others, &terms, peers);
        if !snapshots.is_empty() && verdict.has_nothing_in_common() && !self.have_common(&governed.place(), to) {
            let copy_of = self.source_of_copy(governed.host, there);
            let kind = NoticeKind::NothingInCommon { with: governed.place(), copy_of };
            self.note(governed.claim.entry, &to.host, Some(&to.dataset), kind);
        }
        self.plan.prunes.push(verdict);
    }

    /// The rules for one prefix in one dataset: those of the policy whose source the dataset is, and those of all
    /// policies that send to it. A snapshot stays if any of them keeps it.
    fn terms(&self, prefix: &'a Prefix, source: Option<Claim>, incoming: &[IncomingSend]) -> DeleteTerms<'a> {
        let mut terms = DeleteTerms {
            prefix,
            rules: Vec::new(),
            keep_all: false,
            prune_unsent: true,
            skip_if_renamed: false,
            skip_if_cloned: false,
        };
        let as_source = source.map(|claim| (claim, Side::Source));
        let as_destination = incoming.iter().map(|i| (i.claim, Side::Destination));
        for (claim, side) in as_source.into_iter().chain(as_destination) {
            let policy = self.index.snapshot_policy(claim);
            if policy.prefix != *prefix {
                continue;
            }
            let entry = &self.policy.datasets[claim.entry];
            let retention = match side {
                Side::Source => &policy.retention,
                Side::Destination => &policy.sync_retention,
            };
            match retention {
                Some(retention) => terms.rules.extend(retention.rules()),
                None => terms.keep_all = true,
            }
            terms.prune_unsent &= side == Side::Destination || policy.prune_unsent;
            terms.skip_if_renamed |= entry.skip_if_renamed;
            terms.skip_if_cloned |= entry.skip_if_cloned;
        }
        terms
    }

    #[allow(clippy::too_many_arguments, reason = "a verdict has this many parts")]
    fn prune(
        &mut self,
        subject: Subject,
        side: Side,
        dataset: &'a DatasetInventory,
        snapshots: &[PolicySnapshot],
        others: usize,
        terms: &DeleteTerms<'a>,
        peers: Vec<Peer<'a>>,
    ) -> PruneVerdict {
        let verdicts = delete::decide(dataset, snapshots, terms, &peers, &mut self.tally);
        let kept_by_host = verdicts.iter().filter(|v| v.is_kept_only_by_host()).count();
        if kept_by_host > 0 {
            let kind = NoticeKind::AppendOnly { snapshots: kept_by_host };
            self.note(subject.entry, &subject.host, Some(&subject.dataset), kind);
        }
        if let Some(kind) = prune::out_of_order(&verdicts, dataset, self.now) {
            self.note(subject.entry, &subject.host, Some(&subject.dataset), kind);
        }
        let going = verdicts.iter().filter(|v| !v.keep());
        let destroy: Vec<Doomed> = going
            .filter_map(|v| dataset.snapshots.get(v.index as usize))
            .map(|s| {
                let trashed = dataset.trashed(s.guid);
                let used = trashed.map_or(s.used, |trashed| trashed.used);
                Doomed { guid: s.guid, name: s.name.clone(), used, in_trash: trashed.is_some() }
            })
            .collect();
        PruneVerdict {
            subject,
            side,
            destroy_after: dataset.destroy_after.filter(|after| *after > 0),
            held_back: None,
            kept: verdicts.len() - destroy.len(),
            destroy,
            others,
            rules: terms.rules.iter().map(ToString::to_string).collect(),
            peers: peers.into_iter().map(|p| p.place).collect(),
            skip_if_renamed: terms.skip_if_renamed,
            skip_if_cloned: terms.skip_if_cloned,
            snapshots: verdicts,
        }
    }
}
