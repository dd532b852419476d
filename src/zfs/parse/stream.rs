//! Parses sizes of streams and the contents of resume tokens.

use crate::model::Guid;
use crate::zfs::Resumable;
use crate::zfs::parse::lines::{ParseError, lines, number};

/// Parses the output of `zfs send -nPt`: the contents of the token, then `full` or `incremental` with the current
/// names.
pub fn resumable(output: &[u8]) -> Result<Resumable, ParseError> {
    let (mut guid, mut dataset, mut raw) = (None, None, false);
    for line in lines(output)? {
        if let Some(hex) = line.trim_start().strip_prefix("toguid = 0x") {
            guid = Some(Guid(u64::from_str_radix(hex, 16).map_err(|e| format!("{e} in {line:?}"))?));
        }
        raw |= line.trim() == "rawok = 1";
        let found: Vec<&str> = line.split('\t').collect();
        if let ["full", to, _] | ["incremental", _, to, _] = found.as_slice() {
            let (name, _) = to.split_once('@').ok_or_else(|| format!("no @ in {line:?}"))?;
            dataset = Some(name.parse().map_err(|e| format!("{e} in {line:?}"))?);
        }
    }
    let whole = dataset.zip(guid).map(|(dataset, guid)| Resumable { dataset, guid, raw });
    whole.ok_or_else(|| "it does not name the snapshot of the token".to_owned())
}

/// No pool is this large. Some versions of ZFS print such numbers by mistake for sends from bookmarks.
const IMPLAUSIBLE_SIZE: u64 = 1 << 60;

/// Parses the number after `size` (`zfs send -nP`) or `reclaim` (`zfs destroy -nvp`); `None` if it is missing or
/// implausible.
pub fn size(output: &[u8], word: &str) -> Result<Option<u64>, ParseError> {
    let mut size = None;
    for line in lines(output)? {
        if let Some(bytes) = line.strip_prefix(word).and_then(|rest| rest.strip_prefix('\t')) {
            size = Some(number(line, word, bytes)?);
        }
    }
    Ok(size.filter(|size| *size < IMPLAUSIBLE_SIZE))
}

/// Whether a text can be a `receive_resume_token`. It may come from another host, and becomes an argument of `zfs`.
#[must_use]
pub fn is_token(text: &str) -> bool {
    text.len() < 64 * 1024
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_reads_the_output_of_openzfs() {
        // Output of OpenZFS 2.3.9.
        let sent = "incremental\ts1\ttank/a@s2\t2109424\nincremental\ts2\ttank/a@s3\t7792\nsize\t2117216\n";
        assert_eq!(size(sent.as_bytes(), "size"), Ok(Some(2_117_216)));
        let destroyed = "destroy\ttank/a@s1\ndestroy\ttank/a@s2\nreclaim\t5275648\n";
        assert_eq!(size(destroyed.as_bytes(), "reclaim"), Ok(Some(5_275_648)));
        assert_eq!(size(b"incremental\ttank/a#b1\ttank/a@s2\n", "size"), Ok(None), "from a bookmark, before 2.0");
        // Near 2^64, because a difference became negative.
        assert_eq!(size(b"size\t18446744073709486080\n", "size"), Ok(None));
        assert!(size(b"size\tmuch\n", "size").is_err());
    }

    #[test]
    fn resumable_returns_the_snapshot_of_a_token() {
        let full = "resume token contents:\nnvlist version: 0\n\tobject = 0x2\n\toffset = 0x9c0000\n\t\
                    toguid = 0x8b5cf572e767ea29\n\ttoname = a/d@1\n\tembedok = 1\nfull\ta/e@9\t21144744\nsize\t21144744\n";
        // The token has the name from when the stream began; the dataset was renamed since.
        let expected = Resumable { dataset: "a/e".parse().unwrap(), guid: Guid(0x8b5c_f572_e767_ea29), raw: false };
        assert_eq!(resumable(full.as_bytes()).unwrap(), expected);
        let more = full.replace("full\t", "incremental\ta/e@8\t");
        assert_eq!(resumable(more.as_bytes()).unwrap(), expected);
        let raw = full.replace("\tembedok = 1", "\tcompressok = 1\n\trawok = 1");
        assert!(resumable(raw.as_bytes()).unwrap().raw);
        assert!(resumable(b"size\t21144744\n").unwrap_err().contains("does not name"));
    }
}
