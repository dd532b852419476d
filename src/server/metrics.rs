//! Defines what the metrics of all roles have in common. They use the text format of Prometheus (OpenMetrics 1.0).
//!
//! Every name begins with `zsync_`. Units are seconds and bytes. Points in time are Unix times, so that an age that is
//! computed from them is correct even if the scrape or the file is old.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::model::{HostName, PeerRole};

/// The labels of a metric: names with their values.
pub(crate) type Labels = Vec<(&'static str, String)>;
/// A gauge per set of labels.
pub(crate) type Gauges = Family<Labels, Gauge>;

/// The name and the description of the metric about certificates.
pub(crate) const CERTIFICATE_EXPIRY: (&str, &str) = (
    "zsync_certificate_expiry_timestamp_seconds",
    "When the certificate with which a host acts in a role expires; absent without TLS",
);

/// The labels of the metric about certificates.
pub(crate) fn certificate_labels(host: &HostName, role: PeerRole) -> Labels {
    vec![("host", host.to_string()), ("role", role.to_string())]
}

/// Creates a registry that already has the version of zsync.
#[must_use]
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    let build = Gauges::default();
    build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
    registry.register("zsync_build_info", "Always 1, with the version of zsync in the label version", build);
    registry
}

/// The contents of a registry as text.
#[must_use]
pub(crate) fn text(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, registry);
    text
}

/// A count as the value of a gauge.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The value of the label `result`.
pub(crate) fn result(success: bool) -> &'static str {
    if success { "ok" } else { "failed" }
}
