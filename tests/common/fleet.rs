//! Sets up a fleet of two hosts over loopback, on pools in memory, with a catalog and configuration in files.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tempfile::TempDir;
use zsync::agent::Agent;
use zsync::catalog::Holder;
use zsync::commands::status;
use zsync::commands::status::{Status, StatusSettings};
use zsync::config::load_policy;
use zsync::director::connect::{OwnHost, dispatcher, open_catalog};
use zsync::director::{Pass, Report};
use zsync::model::HostName;
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::zfs::Zfs;
use zsync::zfs::fake::Fake;

use super::loopback::listen;
use super::{ds, local};

pub fn ago(minutes: i64) -> DateTime<Utc> {
    Utc::now() - TimeDelta::minutes(minutes) - TimeDelta::seconds(20)
}

/// alpha runs the director and has two datasets; beta receives both.
pub struct Fleet {
    pub folder: TempDir,
    pub alpha: Fake,
    pub beta: Fake,
    /// The addresses of beta's agent and slave.
    pub addresses: (String, String),
}

impl Fleet {
    pub fn new() -> Self {
        let (alpha, beta) = (Fake::new(1), Fake::new(2));
        for dataset in ["tank", "tank/one", "tank/two"] {
            alpha.create(&ds(dataset));
        }
        beta.create(&ds("pool"));
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("local.json"), r#"{ "local_datasets": [ { "name": "tank", "restore": true } ] }"#)
            .unwrap();
        let local = local(r#"{ "local_datasets": [ { "name": "pool", "slave": true } ] }"#);
        let agent = listen(Agent::new("beta".parse().unwrap(), Arc::new(beta.clone()), Arc::clone(&local)), None);
        let slave = listen(Slave::new(Arc::new(beta.clone()), local), None);
        let fleet = Self { folder, alpha, beta, addresses: (agent, slave) };
        fleet.policy();
        fleet
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn policy(&self) {
        let entry = |name: &str| {
            format!(
                r#"{{ "hostname": "alpha", "dataset": "tank/{name}", "sync": {{ "prefix": "S", "sync_policy": "asap",
                     "sync_on": "beta", "sync_dataset": "pool/{name}", "retention": ["all in last year"] }} }}"#
            )
        };
        let (agent, slave) = &self.addresses;
        let text = format!(
            r#"{{ "catalog": {{ "embedded": {{ "path": "{}" }} }}, "retry_for": "0s",
                 "hosts": {{ "beta": {{ "address": "{agent}", "receive_address": "{slave}" }} }},
                 "datasets": [ {}, {} ] }}"#,
            self.path("catalog").display(),
            entry("one"),
            entry("two")
        );
        fs::write(self.path("server.json"), text).unwrap();
    }

    /// Writes to a dataset of alpha and takes a snapshot, as if that had been `minutes` minutes and twenty seconds ago.
    /// Ages are shown in minutes, so they do not change while a test runs.
    pub fn take(&self, dataset: &str, minutes: i64) -> String {
        let at = ago(minutes);
        let name = at.format("S_%F_%T").to_string();
        self.snapshot(&self.alpha, dataset, &name, minutes);
        name
    }

    pub fn snapshot(&self, pool: &Fake, dataset: &str, name: &str, minutes: i64) {
        pool.set_now(ago(minutes));
        pool.write(&ds(dataset), 1000);
        runtime::block_on(pool.snapshot(&[ds(dataset)], &name.parse().unwrap())).unwrap();
    }

    pub fn pass(&self) -> Report {
        let policy = Arc::new(load_policy(&self.path("server.json")).unwrap());
        runtime::block_on(async {
            let alpha: HostName = "alpha".parse().unwrap();
            let zfs = Arc::new(self.alpha.clone());
            let own = OwnHost { name: &alpha, local: &self.path("local.json"), state: None };
            let dispatcher = Arc::new(dispatcher(own, &policy, None, zfs).await);
            let world = open_catalog(&policy, Holder::Pass).await.unwrap();
            Pass::new(policy, dispatcher, world, Utc::now()).run().await.unwrap()
        })
    }

    pub fn settings(&self) -> StatusSettings {
        StatusSettings {
            config: self.path("server.json"),
            local_file: self.path("local.json"),
            local: None,
            host_name: "alpha".parse().unwrap(),
            host: None,
            dataset: None,
            offline: false,
        }
    }

    pub fn status_of(&self, settings: &StatusSettings) -> Status {
        runtime::block_on(status::query(settings, Arc::new(self.alpha.clone()))).unwrap()
    }

    pub fn status(&self) -> Status {
        self.status_of(&self.settings())
    }
}
