//! What Consul's service catalog knows about hosts: their addresses, and whether their published records are current.

use std::collections::{BTreeMap, BTreeSet};

use crate::consul::{Consul, ConsulError, Health, Instance};
use crate::host::publish::presence::{AGENTS, SLAVES};
use crate::model::HostName;
use crate::policy::{HostAddress, Policy};

/// The health of a policy's hosts.
#[derive(Clone, Debug, Default)]
pub struct ServiceHealth {
    /// Hosts that report that their records are not current, or that are not registered. They have to be polled.
    pub ask: BTreeSet<HostName>,
    /// Hosts that are unreachable, with the reason.
    pub absent: BTreeMap<HostName, String>,
}

/// The registered agents and slaves.
pub async fn services(consul: &Consul) -> Result<(Vec<Instance>, Vec<Instance>), ConsulError> {
    Ok((consul.instances(AGENTS).await?, consul.instances(SLAVES).await?))
}

/// The healthiest registration of a host. A host that was moved to another machine may still have an older one.
fn healthiest<'i>(instances: &'i [Instance], host: &HostName) -> Option<&'i Instance> {
    instances.iter().filter(|instance| instance.host == host.as_str()).min_by_key(|instance| instance.health)
}

/// Adds to the policy the addresses of registered services, except where the policy has an address itself. `own` is the
/// host whose orders are carried out in this process.
pub fn assess(policy: &mut Policy, agents: &[Instance], slaves: &[Instance], own: Option<&HostName>) -> ServiceHealth {
    let mut health = ServiceHealth::default();
    for host in policy.hosts_named() {
        let (agent, slave) = (healthiest(agents, &host), healthiest(slaves, &host));
        let entry = policy.hosts.get(&host).cloned().unwrap_or_default();
        let is_passing = |service: Option<&Instance>| service.is_none_or(|service| service.health == Health::Passing);
        let is_alive = |service: &&Instance| service.health < Health::Critical;
        let mut registered = HostAddress {
            address: agent.filter(is_alive).map(|agent| agent.address.clone()),
            receive_address: slave.filter(is_alive).map(|slave| slave.address.clone()),
        };
        if own == Some(&host) {
            // This process publishes the records of the host, and knows itself whether they are current.
            registered.address = None;
        } else if entry.address.is_none()
            && let Some(agent) = agent.filter(|agent| agent.health == Health::Critical)
        {
            let reason = format!(
                "its agent at {} no longer reports to Consul ({}); hint: check that zsync agent is running there and can reach Consul",
                agent.address,
                agent.output.trim()
            );
            health.absent.insert(host.clone(), reason);
        } else if agent.is_none() || !is_passing(agent) || !is_passing(slave) {
            health.ask.insert(host.clone());
        }
        let address = HostAddress {
            address: entry.address.or(registered.address),
            receive_address: entry.receive_address.or(registered.receive_address),
        };
        if address != HostAddress::default() {
            policy.hosts.insert(host, address);
        }
    }
    health
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
    fn assess_adds_addresses_only_where_the_policy_has_none() {
        use Health::{Critical, Passing, Warning};
        let mut policy = policy(r#""gamma": { "address": "10.0.0.3" }"#);
        let agents = [
            instance("beta", 1, Critical),
            instance("beta", 2, Passing),
            instance("gamma", 3, Critical),
            instance("alpha", 4, Passing),
        ];
        let slaves = [instance("beta", 5, Warning), instance("nobody", 6, Passing)];
        let health = assess(&mut policy, &agents, &slaves, None);
        let beta = &policy.hosts[&host("beta")];
        assert_eq!(beta.address.as_deref(), Some("10.0.0.9:2"), "the healthy one");
        assert_eq!(beta.receive_address.as_deref(), Some("10.0.0.9:5"));
        assert_eq!(
            policy.hosts[&host("gamma")].address.as_deref(),
            Some("10.0.0.3:7711"),
            "the address in the policy takes precedence"
        );
        assert!(health.absent.is_empty(), "{health:?}");
        let ask: Vec<String> = health.ask.iter().map(ToString::to_string).collect();
        assert_eq!(ask, ["beta", "gamma"], "beta has not published what it received, and gamma does not report");
    }

    #[test]
    fn assess_reports_a_silent_agent_as_absent() {
        let mut policy = policy("");
        let agents = [instance("beta", 1, Health::Critical), instance("alpha", 2, Health::Passing)];
        let health = assess(&mut policy, &agents, &[], Some(&host("alpha")));
        assert!(health.absent[&host("beta")].contains("TTL expired"), "{health:?}");
        assert_eq!(policy.hosts.get(&host("beta")), None);
        assert_eq!(policy.hosts.get(&host("alpha")), None, "this process is its agent");
        assert!(health.ask.contains(&host("gamma")), "it is not registered, so it is polled under its own name");
    }
}
