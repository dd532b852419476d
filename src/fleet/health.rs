//! What Consul's service catalog says of the hosts: where they are, and whether their records can be relied on.

use std::collections::{BTreeMap, BTreeSet};

use crate::consul::{Consul, ConsulError, Health, Instance};
use crate::host::publish::presence::{AGENTS, SLAVES};
use crate::model::HostName;
use crate::policy::{HostAddress, Policy};

/// How the hosts of a policy stand.
#[derive(Clone, Debug, Default)]
pub struct ServiceHealth {
    /// Hosts whose records are not current by their own word: they have to be asked.
    pub ask: BTreeSet<HostName>,
    /// Hosts that cannot be reached, with the reason.
    pub absent: BTreeMap<HostName, String>,
}

/// Asks Consul.
pub async fn services(consul: &Consul) -> Result<(Vec<Instance>, Vec<Instance>), ConsulError> {
    Ok((consul.instances(AGENTS).await?, consul.instances(SLAVES).await?))
}

/// The best of several registrations of one host: an older one may be left of a machine that it was on before.
fn of<'i>(instances: &'i [Instance], host: &HostName) -> Option<&'i Instance> {
    instances.iter().filter(|one| one.host == host.as_str()).min_by_key(|one| one.health)
}

/// Adds to the policy's addresses what the services tell; what the policy says wins. `own`: the host whose orders
/// are carried out in this process.
pub fn assess(policy: &mut Policy, agents: &[Instance], slaves: &[Instance], own: Option<&HostName>) -> ServiceHealth {
    let mut standing = ServiceHealth::default();
    for host in policy.hosts_named() {
        let (agent, slave) = (of(agents, &host), of(slaves, &host));
        let entry = policy.hosts.get(&host).cloned().unwrap_or_default();
        let well = |one: Option<&Instance>| one.is_none_or(|one| one.health == Health::Passing);
        let alive = |one: &&Instance| one.health < Health::Critical;
        let mut found = HostAddress {
            address: agent.filter(alive).map(|agent| agent.address.clone()),
            receive_address: slave.filter(alive).map(|slave| slave.address.clone()),
        };
        if own == Some(&host) {
            // Its records are published by this process, which knows whether they are.
            found.address = None;
        } else if entry.address.is_none()
            && let Some(agent) = agent.filter(|agent| agent.health == Health::Critical)
        {
            let reason = format!(
                "its agent at {} says nothing to Consul any more ({}); look there whether zsync agent runs and reaches Consul",
                agent.address,
                agent.output.trim()
            );
            standing.absent.insert(host.clone(), reason);
        } else if agent.is_none() || !well(agent) || !well(slave) {
            standing.ask.insert(host.clone());
        }
        let address = HostAddress {
            address: entry.address.or(found.address),
            receive_address: entry.receive_address.or(found.receive_address),
        };
        if address != HostAddress::default() {
            policy.hosts.insert(host, address);
        }
    }
    standing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn instance(host: &str, port: u16, health: Health) -> Instance {
        Instance { host: host.into(), address: format!("10.0.0.9:{port}"), health, output: "TTL expired".into() }
    }

    fn policy(hosts: &str) -> Policy {
        let text = format!(
            r#"{{ "hosts": {{ {hosts} }}, "datasets": [ {{ "hostname": "alpha", "dataset": "tank",
                "backup": {{ "prefix": "B", "creation": "@daily", "sync_on": ["beta", "gamma"], "sync_dataset": "p/c" }} }} ] }}"#
        );
        crate::config::parse_policy("server.json", &text).unwrap()
    }

    #[test]
    fn services_give_addresses_where_the_policy_has_none() {
        use Health::{Critical, Passing, Warning};
        let mut policy = policy(r#""gamma": { "address": "10.0.0.3" }"#);
        let agents = [
            instance("beta", 1, Critical),
            instance("beta", 2, Passing),
            instance("gamma", 3, Critical),
            instance("alpha", 4, Passing),
        ];
        let slaves = [instance("beta", 5, Warning), instance("nobody", 6, Passing)];
        let standing = assess(&mut policy, &agents, &slaves, None);
        let beta = &policy.hosts[&host("beta")];
        assert_eq!(beta.address.as_deref(), Some("10.0.0.9:2"), "the one that is well");
        assert_eq!(beta.receive_address.as_deref(), Some("10.0.0.9:5"));
        assert_eq!(policy.hosts[&host("gamma")].address.as_deref(), Some("10.0.0.3:7711"), "what is written wins");
        assert!(standing.absent.is_empty(), "{standing:?}");
        let ask: Vec<String> = standing.ask.iter().map(ToString::to_string).collect();
        assert_eq!(ask, ["beta", "gamma"], "what beta received is not published yet, and gamma says nothing");
    }

    #[test]
    fn a_silent_agent_is_not_reached_at_all() {
        let mut policy = policy("");
        let agents = [instance("beta", 1, Health::Critical), instance("alpha", 2, Health::Passing)];
        let standing = assess(&mut policy, &agents, &[], Some(&host("alpha")));
        assert!(standing.absent[&host("beta")].contains("TTL expired"), "{standing:?}");
        assert_eq!(policy.hosts.get(&host("beta")), None);
        assert_eq!(policy.hosts.get(&host("alpha")), None, "this process is its agent");
        assert!(standing.ask.contains(&host("gamma")), "it is not registered: by its name, then");
    }
}
