//! Lists datasets, whatever somebody has written into their user properties.
//!
//! Usually one command is enough. If a value makes its output ambiguous (it contains a tab, a newline, or a whole faked
//! line), the datasets are listed without these values, and the values are listed separately. Then a value can only
//! affect its own dataset.

use std::collections::BTreeMap;

use crate::model::tags::{EXCLUDE, FLAGS};
use crate::model::{DatasetInventory, DatasetName, counted};
use crate::zfs::parse::{DatasetRow, UserProperties};
use crate::zfs::system::runner::Runner;
use crate::zfs::{DatasetColumns, Depth, ErrorKind, ZfsError, argv, parse};

/// How many datasets of a listing may have to be queried one by one for their properties. A value has at most 8 KiB, so
/// it cannot fake lines of many datasets.
const MAX_SINGLE: usize = 200;

impl Runner {
    /// Lists filesystems and volumes, with the times when their snapshots last changed if `changed` is set.
    pub(super) async fn datasets(
        &self,
        roots: &[DatasetName],
        depth: Depth,
        changed: bool,
    ) -> Result<Vec<DatasetRow>, ZfsError> {
        let columns = DatasetColumns { changed, user: true };
        let output = self.run_listing(&argv::list_datasets(roots, depth, columns)).await?;
        match parse::datasets(&output, columns) {
            Ok(rows) => Ok(rows),
            Err(reason) => {
                log::debug!("listing the user properties separately: {reason}");
                let columns = DatasetColumns { user: false, ..columns };
                let listed = self.datasets_and_values(roots, depth, columns).await;
                // If the output cannot be parsed without these values either, the first error is reported.
                listed.map_err(|error| match error.kind {
                    ErrorKind::Output => ZfsError { stderr: reason, ..error },
                    _ => error,
                })
            }
        }
    }

    async fn datasets_and_values(
        &self,
        roots: &[DatasetName],
        depth: Depth,
        columns: DatasetColumns,
    ) -> Result<Vec<DatasetRow>, ZfsError> {
        let argv = argv::list_datasets(roots, depth, columns);
        let output = self.run_listing(&argv).await?;
        let mut rows = parse::datasets(&output, columns).map_err(|reason| self.unreadable(&argv, reason))?;
        let output = self.run_listing(&argv::list_user_properties(roots, depth)).await?;
        let found = parse::user_properties(&output);
        let (mut asked, mut senseless, mut unclear) = (0, Vec::new(), Vec::new());
        for ((name, inventory), _) in &mut rows {
            let is_clear = match found.get(name) {
                Some(UserProperties::Clear(exclude, flags)) => parse::apply_user_properties(inventory, exclude, flags),
                Some(UserProperties::Ambiguous) if asked < MAX_SINGLE => {
                    asked += 1;
                    self.ask_values(name, inventory).await?
                }
                Some(UserProperties::Ambiguous) | None => {
                    senseless.push(name.clone());
                    continue;
                }
            };
            if !is_clear {
                unclear.push(name.clone());
            }
        }
        self.warn_of_values(
            &senseless,
            &format!("{EXCLUDE} and {FLAGS}"),
            "a value contains tabs or newlines, or is not UTF-8; hint: zfs inherit removes it",
        );
        self.warn_of_values(&unclear, EXCLUDE, "its value is neither on nor off; hint: set it to one of these");
        Ok(rows)
    }

    /// Asks for the user properties of one dataset. Returns whether the value of `zsync:exclude` has a meaning.
    async fn ask_values(&self, name: &DatasetName, inventory: &mut DatasetInventory) -> Result<bool, ZfsError> {
        let mut values = BTreeMap::new();
        for property in [EXCLUDE, FLAGS] {
            let output = self.run(&argv::user_property(name, property)).await?;
            // A value that is not UTF-8 or has several lines has no meaning either way.
            values.insert(property, String::from_utf8_lossy(&output).trim_end_matches('\n').to_owned());
        }
        Ok(parse::apply_user_properties(inventory, &values[EXCLUDE], &values[FLAGS]))
    }

    /// The properties that were set on a dataset itself, or received with it, whatever they contain.
    pub(super) async fn properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, String>, ZfsError> {
        let argv = argv::properties(dataset);
        let names = match parse::properties(&self.run(&argv).await?) {
            Ok(properties) => return Ok(properties),
            Err(names) => names,
        };
        // Some value has several lines, or is not UTF-8. One by one, nothing can be mistaken for a property.
        let mut properties = BTreeMap::new();
        for name in names {
            let output = self.run(&argv::own_property(dataset, &name)).await;
            // The beginning of a line within a value may look like the name of a property.
            let Ok(output) = output else { continue };
            match String::from_utf8(output) {
                Ok(value) if value.is_empty() => {}
                Ok(value) => drop(properties.insert(name, value.strip_suffix('\n').unwrap_or(&value).to_owned())),
                Err(_) => log::warn!("ignoring the property {name} of {dataset}: its value is not UTF-8"),
            }
        }
        Ok(properties)
    }

    /// Warns, once for each dataset and each reason, of values that have no meaning.
    fn warn_of_values(&self, datasets: &[DatasetName], what: &str, why: &str) {
        /// How many datasets are named at most.
        const NAMED: usize = 5;
        let mut warned = self.warned.lock();
        let new: Vec<&DatasetName> =
            datasets.iter().filter(|name| warned.insert(((*name).clone(), what.to_owned()))).collect();
        if new.is_empty() {
            return;
        }
        let mut names = new.iter().take(NAMED).map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(others @ 1..) = new.len().checked_sub(NAMED) {
            names += &format!(" and {}", counted(others, "other dataset"));
        }
        log::warn!("ignoring {what} of {names}: {why}");
    }
}
