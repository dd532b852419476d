//! The catalog in Consul: one compact pair per dataset, and one small generation pair per host that shows whether
//! anything changed.
//!
//! Every host writes its own records, after each order and after each listing of the whole host. The director reads the
//! generations, and then only the hosts whose generation changed. Writes are check-and-set on the generation and on
//! every pair, in transactions that Consul applies completely or not at all; after a conflict, a write starts over with
//! a fresh read. Reads use Consul's `consistent` mode, and return one host as of one instant.
//!
//! `keys` names the pairs, `codec` encodes their values, `record` assembles the pairs of a host, `write` changes them,
//! and `history` stores destroyed snapshots and outcomes.

mod catalog;
mod codec;
mod history;
mod keys;
mod record;
mod write;

pub use catalog::ConsulCatalog;

#[cfg(test)]
mod tests;
