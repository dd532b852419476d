//! The catalog that a policy names, opened.

use std::sync::Arc;

use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, ConsulCatalog, EmbeddedCatalog, EmbeddedReader, Holder};
use crate::consul::Settings;
use crate::model::Inventory;
use crate::policy::{CatalogConfig, ConsulConfig};
use crate::sys::runtime;

/// For reading.
pub fn reader(config: &CatalogConfig) -> Result<Box<dyn CatalogRead>, CatalogError> {
    Ok(match config {
        CatalogConfig::Embedded { path } => Box::new(EmbeddedReader::new(path)),
        CatalogConfig::Consul(config) => Box::new(shared(config)?),
    })
}

/// For writing. The embedded one can be opened by one process at a time, and tells others what its `holder` is.
pub fn writer(config: &CatalogConfig, holder: Holder) -> Result<Arc<dyn CatalogWrite>, CatalogError> {
    Ok(match config {
        CatalogConfig::Embedded { path } => Arc::new(EmbeddedCatalog::open_as(path, holder)?),
        CatalogConfig::Consul(config) => Arc::new(shared(config)?),
    })
}

/// The one in Consul.
pub fn shared(config: &ConsulConfig) -> Result<ConsulCatalog, CatalogError> {
    ConsulCatalog::open(&Settings::new(config)?)
}

/// Everything that a catalog knows.
pub async fn inventory(config: &CatalogConfig) -> Result<Inventory, CatalogError> {
    let config = config.clone();
    runtime::blocking(move || reader(&config)?.inventory()).await
}
