//! Reads, watches and changes pairs (keys with their values) in Consul's key-value store. Changes are made in
//! transactions with check-and-set.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::consul::client::{ApiRequest, Consul, seconds};
use crate::consul::error::ConsulError;
use crate::consul::http::ANSWER_WITHIN;

/// The largest number of operations in a transaction, which is Consul's limit.
pub const MOST_OPS: usize = 64;
/// The largest total size of the keys and values in a transaction, so that its JSON stays below Consul's default limit
/// of 512 KiB.
pub const MOST_BYTES: usize = 360 << 10;

/// A key with its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The index of the last change, for check-and-set.
    pub modify_index: u64,
    /// The session that holds the pair's lock.
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

/// One operation of a transaction. Either all operations are applied, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a pair if its index is this one, or, for index 0, if the pair does not exist.
    Cas {
        /// The key.
        key: String,
        /// The new value.
        value: Vec<u8>,
        /// The required index.
        index: u64,
    },
    /// Writes a pair unconditionally.
    Set {
        /// The key.
        key: String,
        /// The new value.
        value: Vec<u8>,
    },
    /// Deletes a pair if its index is this one.
    DeleteCas {
        /// The key.
        key: String,
        /// The required index.
        index: u64,
    },
    /// Checks that the index of a pair is this one.
    Check {
        /// The key.
        key: String,
        /// The required index.
        index: u64,
    },
}

impl Op {
    /// The size in bytes that counts towards [`MOST_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        // The JSON around key and value.
        const OVERHEAD: usize = 100;
        OVERHEAD
            + match self {
                Self::Cas { key, value, .. } | Self::Set { key, value } => key.len() + value.len(),
                Self::DeleteCas { key, .. } | Self::Check { key, .. } => key.len(),
            }
    }

    /// The permission that the operation needs.
    fn permission(&self) -> String {
        match self {
            Self::Cas { key, .. } | Self::Set { key, .. } | Self::DeleteCas { key, .. } => {
                format!("key:write on {key}")
            }
            Self::Check { key, .. } => format!("key:read on {key}"),
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
struct TxnResponse<'a> {
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
    #[serde(default)]
    op_index: usize,
}

/// The result of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// All operations were applied, at this index.
    At(u64),
    /// A pair had changed meanwhile, and no operation was applied. Contains Consul's reason.
    Conflict(String),
}

impl Consul {
    /// Reads one pair, if it exists, and the index from which to watch it.
    pub async fn get(&self, key: &str) -> Result<(Option<Pair>, u64), ConsulError> {
        self.watch(key, 0, Duration::ZERO).await
    }

    /// Like [`Self::get`], but waits until the index differs from `index`, or until `wait` has passed.
    pub async fn watch(&self, key: &str, index: u64, wait: Duration) -> Result<(Option<Pair>, u64), ConsulError> {
        let path = kv_path(key);
        let mut request = ApiRequest { accepted: &[404], ..ApiRequest::get(&path).consistent() };
        if index > 0 {
            // Consul waits up to a sixteenth longer.
            request.timeout = wait + wait / 16 + ANSWER_WITHIN;
            request = request.with_query("index", index.to_string()).with_query("wait", seconds(wait));
        }
        let response = self.send(request).await?;
        if response.status == 404 {
            return Ok((None, response.index));
        }
        let pairs: Vec<RawPair<'_>> =
            serde_json::from_slice(&response.body).map_err(|error| self.invalid_response(&response, error))?;
        let pair = pairs.into_iter().next().map(Pair::try_from).transpose();
        Ok((pair.map_err(|error| self.invalid_response(&response, error))?, response.index))
    }

    /// Checks that the token may read a key. When Consul reads several pairs at once, it leaves out those that the token
    /// may not read, without saying so, and they would seem not to exist.
    async fn check_readable(&self, key: &str) -> Result<(), ConsulError> {
        self.get(key).await.map(drop)
    }

    /// Reads all pairs whose keys begin with `prefix`, as of one instant.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Pair>, ConsulError> {
        self.check_readable(prefix).await?;
        let path = kv_path(prefix);
        let request = ApiRequest { accepted: &[404], ..ApiRequest::get(&path).with_query("recurse", "").consistent() };
        let response = self.send(request).await?;
        if response.status == 404 {
            return Ok(Vec::new());
        }
        let pairs: Vec<RawPair<'_>> =
            serde_json::from_slice(&response.body).map_err(|error| self.invalid_response(&response, error))?;
        pairs
            .into_iter()
            .map(|raw| Pair::try_from(raw).map_err(|error| self.invalid_response(&response, error)))
            .collect()
    }

    /// Reads all pairs below several prefixes, as of one instant.
    pub async fn read_trees(&self, prefixes: &[&str]) -> Result<Vec<Pair>, ConsulError> {
        let ops: Vec<RawOp<'_>> = prefixes
            .iter()
            .map(|key| RawOp { kv: RawKv { verb: "get-tree", key, value: None, index: None } })
            .collect();
        let request = ApiRequest::put(&["v1", "txn"], self.json(&ops)?).consistent();
        let response = self.send(request).await?;
        let parsed: TxnResponse<'_> =
            serde_json::from_slice(&response.body).map_err(|error| self.invalid_response(&response, error))?;
        let pairs = parsed.results.unwrap_or_default().into_iter().filter_map(|result| result.kv);
        let pairs = pairs.map(|raw| Pair::try_from(raw).map_err(|error| self.invalid_response(&response, error)));
        let pairs = pairs.collect::<Result<Vec<Pair>, _>>()?;
        for prefix in prefixes.iter().filter(|prefix| !pairs.iter().any(|pair| pair.key.starts_with(**prefix))) {
            self.check_readable(prefix).await?;
        }
        Ok(pairs)
    }

    /// Commits a transaction. If a check-and-set fails, the result is [`Committed::Conflict`], not an error.
    pub async fn commit(&self, ops: &[Op]) -> Result<Committed, ConsulError> {
        let raw: Vec<RawOp<'_>> = ops.iter().map(Op::raw).collect();
        let request = ApiRequest { accepted: &[409], ..ApiRequest::put(&["v1", "txn"], self.json(&raw)?) };
        let response = self.send(request).await?;
        let parsed: TxnResponse<'_> =
            serde_json::from_slice(&response.body).map_err(|error| self.invalid_response(&response, error))?;
        if response.status == 409 {
            let error = parsed.errors.unwrap_or_default().into_iter().next();
            let (reason, position) = error.map_or_else(Default::default, |error| (error.what, error.op_index));
            // Consul uses the same status for conflicts and for missing permissions.
            if ["denied", "ACL"].iter().any(|word| reason.contains(word)) {
                let (address, endpoint) = (self.address().to_owned(), response.endpoint);
                let permission = ops.get(position).map(Op::permission);
                return Err(ConsulError::Refused { address, endpoint, status: 403, text: reason, permission });
            }
            return Ok(Committed::Conflict(reason));
        }
        let indices = parsed.results.unwrap_or_default().into_iter().filter_map(|r| r.kv).map(|kv| kv.modify_index);
        Ok(Committed::At(indices.max().unwrap_or(0)))
    }

    /// Deletes all pairs whose keys begin with `prefix`.
    pub async fn delete_tree(&self, prefix: &str) -> Result<(), ConsulError> {
        let path = kv_path(prefix);
        self.send(ApiRequest::new(surf::http::Method::Delete, &path).with_query("recurse", "")).await.map(drop)
    }

    pub(super) fn json(&self, value: &impl Serialize) -> Result<Vec<u8>, ConsulError> {
        serde_json::to_vec(value).map_err(|error| ConsulError::Setup(format!("a request cannot be encoded: {error}")))
    }
}

/// The path of a key, as segments that are percent-encoded separately.
pub(super) fn kv_path(key: &str) -> Vec<&str> {
    ["v1", "kv"].into_iter().chain(key.split('/')).collect()
}
