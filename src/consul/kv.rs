//! Pairs: read, watched, and written in transactions with check-and-set.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::consul::{Ask, Consul, ConsulError};

/// How many operations a transaction may have; Consul's limit.
pub const MOST_OPS: usize = 64;
/// How many bytes the values and keys of one transaction may have, so that its JSON stays below Consul's default
/// limit of 512 KiB.
pub const MOST_BYTES: usize = 360 << 10;

/// One pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The index of its last change: what check-and-set is done with.
    pub modify_index: u64,
    /// The session that has it locked.
    pub session: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawPair<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default)]
    value: Option<Cow<'a, str>>,
    modify_index: u64,
    #[serde(borrow, default)]
    session: Option<Cow<'a, str>>,
}

impl TryFrom<RawPair<'_>> for Pair {
    type Error = String;

    fn try_from(raw: RawPair<'_>) -> Result<Self, String> {
        let value = BASE64.decode(raw.value.unwrap_or_default().as_bytes());
        Ok(Self {
            value: value.map_err(|error| format!("the value of {:?}: {error}", raw.key))?,
            key: raw.key.into_owned(),
            modify_index: raw.modify_index,
            session: raw.session.filter(|s| !s.is_empty()).map(Cow::into_owned),
        })
    }
}

/// One step of a transaction; all of them happen, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a pair that has this index; 0: that does not exist.
    Cas {
        /// The key.
        key: String,
        /// The new value.
        value: Vec<u8>,
        /// The index that it has to have.
        index: u64,
    },
    /// Writes a pair.
    Set {
        /// The key.
        key: String,
        /// The new value.
        value: Vec<u8>,
    },
    /// Deletes a pair that has this index.
    DeleteCas {
        /// The key.
        key: String,
        /// The index that it has to have.
        index: u64,
    },
    /// Makes sure that a pair has this index.
    Check {
        /// The key.
        key: String,
        /// The index that it has to have.
        index: u64,
    },
}

impl Op {
    /// How much it counts towards [`MOST_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        // Signs and words around it.
        const AROUND: usize = 100;
        AROUND
            + match self {
                Self::Cas { key, value, .. } | Self::Set { key, value } => key.len() + value.len(),
                Self::DeleteCas { key, .. } | Self::Check { key, .. } => key.len(),
            }
    }

    fn raw(&self) -> RawOp<'_> {
        let (verb, key, value, index) = match self {
            Self::Cas { key, value, index } => ("cas", key, Some(BASE64.encode(value)), Some(*index)),
            Self::Set { key, value } => ("set", key, Some(BASE64.encode(value)), None),
            Self::DeleteCas { key, index } => ("delete-cas", key, None, Some(*index)),
            Self::Check { key, index } => ("check-index", key, None, Some(*index)),
        };
        RawOp { kv: RawKv { verb, key, value, index } }
    }
}

#[derive(Serialize)]
struct RawOp<'a> {
    #[serde(rename = "KV")]
    kv: RawKv<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RawKv<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TxnAnswer<'a> {
    #[serde(borrow, default)]
    results: Option<Vec<TxnResult<'a>>>,
    #[serde(default)]
    errors: Option<Vec<TxnError>>,
}

#[derive(Deserialize)]
struct TxnResult<'a> {
    #[serde(borrow, rename = "KV", default)]
    kv: Option<RawPair<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TxnError {
    what: String,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Everything happened, with this index.
    At(u64),
    /// Something had changed meanwhile, and nothing happened.
    Conflict(String),
}

impl Consul {
    /// One pair, if it is there, and the index to watch it from.
    pub async fn get(&self, key: &str) -> Result<(Option<Pair>, u64), ConsulError> {
        self.watch(key, 0, Duration::ZERO).await
    }

    /// The same once its index is no longer `index`, or after `wait`.
    pub async fn watch(&self, key: &str, index: u64, wait: Duration) -> Result<(Option<Pair>, u64), ConsulError> {
        let path = kv_path(key);
        let mut ask = Ask { also: &[404], ..Ask::get(&path).consistent() };
        if index > 0 {
            // Consul adds up to a sixteenth of it.
            ask.within = wait + wait / 16 + crate::consul::http::ANSWER_WITHIN;
            ask = ask.with("index", index.to_string()).with("wait", crate::consul::seconds(wait));
        }
        let answer = self.ask(ask).await?;
        if answer.status == 404 {
            return Ok((None, answer.index));
        }
        let pairs: Vec<RawPair<'_>> =
            serde_json::from_slice(&answer.body).map_err(|error| self.nonsense(&answer, error))?;
        let pair = pairs.into_iter().next().map(Pair::try_from).transpose();
        Ok((pair.map_err(|error| self.nonsense(&answer, error))?, answer.index))
    }

    /// All pairs whose keys begin with `prefix`, as they are at one instant.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Pair>, ConsulError> {
        let path = kv_path(prefix);
        let answer = self.ask(Ask { also: &[404], ..Ask::get(&path).with("recurse", "").consistent() }).await?;
        if answer.status == 404 {
            return Ok(Vec::new());
        }
        let pairs: Vec<RawPair<'_>> =
            serde_json::from_slice(&answer.body).map_err(|error| self.nonsense(&answer, error))?;
        pairs.into_iter().map(|raw| Pair::try_from(raw).map_err(|error| self.nonsense(&answer, error))).collect()
    }

    /// All pairs below several prefixes, as they are at one instant.
    pub async fn read_trees(&self, prefixes: &[&str]) -> Result<Vec<Pair>, ConsulError> {
        let ops: Vec<RawOp<'_>> = prefixes
            .iter()
            .map(|key| RawOp { kv: RawKv { verb: "get-tree", key, value: None, index: None } })
            .collect();
        let ask = Ask::put(&["v1", "txn"], self.json(&ops)?).consistent();
        let answer = self.ask(ask).await?;
        let parsed: TxnAnswer<'_> =
            serde_json::from_slice(&answer.body).map_err(|error| self.nonsense(&answer, error))?;
        let pairs = parsed.results.unwrap_or_default().into_iter().filter_map(|result| result.kv);
        pairs.map(|raw| Pair::try_from(raw).map_err(|error| self.nonsense(&answer, error))).collect()
    }

    /// Carries out a transaction.
    pub async fn commit(&self, ops: &[Op]) -> Result<Committed, ConsulError> {
        let raw: Vec<RawOp<'_>> = ops.iter().map(Op::raw).collect();
        let answer = self.ask(Ask { also: &[409], ..Ask::put(&["v1", "txn"], self.json(&raw)?) }).await?;
        let parsed: TxnAnswer<'_> =
            serde_json::from_slice(&answer.body).map_err(|error| self.nonsense(&answer, error))?;
        if answer.status == 409 {
            let what = parsed.errors.unwrap_or_default().into_iter().next().map(|error| error.what).unwrap_or_default();
            // The same status for what was changed meanwhile and for what is not allowed.
            if ["denied", "ACL"].iter().any(|word| what.contains(word)) {
                let (address, endpoint) = (self.address().to_owned(), answer.endpoint);
                return Err(ConsulError::Refused { address, endpoint, status: 403, text: what });
            }
            return Ok(Committed::Conflict(what));
        }
        let indices = parsed.results.unwrap_or_default().into_iter().filter_map(|r| r.kv).map(|kv| kv.modify_index);
        Ok(Committed::At(indices.max().unwrap_or(0)))
    }

    /// Deletes everything below a prefix.
    pub async fn delete_tree(&self, prefix: &str) -> Result<(), ConsulError> {
        let path = kv_path(prefix);
        self.ask(Ask::new(surf::http::Method::Delete, &path).with("recurse", "")).await.map(drop)
    }

    pub(super) fn json(&self, value: &impl Serialize) -> Result<Vec<u8>, ConsulError> {
        serde_json::to_vec(value).map_err(|error| ConsulError::Setup(format!("a request cannot be written: {error}")))
    }
}

/// The path of a key; each of its segments is encoded by itself.
pub(super) fn kv_path(key: &str) -> Vec<&str> {
    ["v1", "kv"].into_iter().chain(key.split('/')).collect()
}
