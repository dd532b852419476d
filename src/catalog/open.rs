//! Opens the catalog that a policy names.

use std::sync::Arc;

use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, ConsulCatalog, EmbeddedCatalog, EmbeddedReader, Holder};
use crate::consul::ConsulSettings;
use crate::model::Inventory;
use crate::policy::{CatalogConfig, ConsulConfig};
use crate::sys::runtime;

/// Opens the catalog for reading.
pub fn reader(config: &CatalogConfig) -> Result<Box<dyn CatalogRead>, CatalogError> {
    Ok(match config {
        CatalogConfig::Embedded { path } => Box::new(EmbeddedReader::new(path)),
        CatalogConfig::Consul(config) => Box::new(shared(config)?),
    })
}

/// Opens the catalog for writing. Only one process at a time can do so with an embedded catalog; others get an error
/// that names the `holder`.
pub fn writer(config: &CatalogConfig, holder: Holder) -> Result<Arc<dyn CatalogWrite>, CatalogError> {
    Ok(match config {
        CatalogConfig::Embedded { path } => Arc::new(EmbeddedCatalog::open_as(path, holder)?),
        CatalogConfig::Consul(config) => Arc::new(shared(config)?),
    })
}

/// Opens the catalog as [`writer`] does, for a pass. While there is no room for an embedded catalog on the disk, it is
/// kept in memory.
pub fn writer_for_pass(config: &CatalogConfig, holder: Holder) -> Result<Arc<dyn CatalogWrite>, CatalogError> {
    match config {
        CatalogConfig::Embedded { path } => Ok(Arc::new(EmbeddedCatalog::open_with_spare(path, holder)?)),
        CatalogConfig::Consul(_) => writer(config, holder),
    }
}

/// Opens the catalog in Consul.
pub fn shared(config: &ConsulConfig) -> Result<ConsulCatalog, CatalogError> {
    ConsulCatalog::open(&ConsulSettings::new(config)?)
}

/// Reads everything that the catalog knows.
pub async fn inventory(config: &CatalogConfig) -> Result<Inventory, CatalogError> {
    let config = config.clone();
    runtime::blocking(move || reader(&config)?.inventory()).await
}
