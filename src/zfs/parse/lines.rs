//! Splits output into lines and columns.

/// Why output cannot be parsed; shows the line.
pub type ParseError = String;

pub(super) fn columns<const N: usize>(line: &str) -> Result<[&str; N], ParseError> {
    let found: Vec<&str> = line.split('\t').collect();
    <[&str; N]>::try_from(found).map_err(|found| format!("{} columns instead of {N} in {line:?}", found.len()))
}

pub(super) fn number(line: &str, column: &str, text: &str) -> Result<u64, ParseError> {
    text.parse().map_err(|_| format!("{column} {text:?} is not a number in {line:?}"))
}

pub(super) fn text(output: &[u8]) -> Result<&str, ParseError> {
    std::str::from_utf8(output).map_err(|e| format!("it is not UTF-8: {e}"))
}

/// The lines that are not empty.
pub(crate) fn lines(output: &[u8]) -> Result<impl Iterator<Item = &str>, ParseError> {
    Ok(text(output)?.lines().filter(|line| !line.is_empty()))
}
