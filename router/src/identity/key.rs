//! API keys: the file they stand in, hashed, and the lookup by hash.
//!
//! One key a line: `<sha256 hex> tenant=<name> [scopes=chat,...] [id=<short name>]
//! [expires=<unix seconds>]`, or the older `<sha256 hex> scope,scope`, whose tenant is `default`.
//! `#` begins a comment. A line that is not understood refuses the whole file: half a key file would
//! lock callers out in silence. Messages never repeat the first word of a line, since whoever got
//! the form wrong may have put the key itself there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use crate::identity::scope::Scopes;
use crate::tenant;

/// Keys in one file; a table of them takes about 20 MiB.
pub const KEYS_MAX: usize = 100_000;
/// Bytes of a key file: room for that many lines.
pub const KEY_FILE_BYTES_MAX: u64 = 32 << 20;
const ID_BYTES_MAX: usize = 64;

/// The SHA-256 of a key. Random by nature, so a table of them needs no defence of its own.
pub type KeyHash = [u8; 32];

/// The SHA-256 of a key or token.
///
/// Looking a hash up takes a time that depends on the hash, but that tells nothing of use: to learn
/// a stored hash byte by byte one would have to choose the bytes of hashes, and a hash that is known
/// still is no key.
pub fn hash_key(key: &str) -> KeyHash {
    hash_parts(&[key.as_bytes()])
}

/// The SHA-256 of several parts, one after the other.
pub fn hash_parts(parts: &[&[u8]]) -> KeyHash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// One line of a key file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyLine {
    /// The key, hashed.
    pub hash: KeyHash,
    /// Whose it is.
    pub tenant: String,
    /// What it may be used for.
    pub scopes: Scopes,
    /// What logs call it: `id=`, or the first 8 digits of its hash.
    pub id: String,
    /// From this time on it is refused, in Unix seconds.
    pub expires_s: Option<u64>,
    /// Its line, from 1.
    pub line: usize,
}

/// A key file that was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFile {
    /// Where it came from, for messages.
    pub path: PathBuf,
    /// Its keys, in order.
    pub lines: Vec<KeyLine>,
}

/// Why a key file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {what}", path.display())]
pub struct KeyFileError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub what: String,
}

impl KeyFile {
    /// Reads the text of a key file.
    ///
    /// # Errors
    /// The first line that is not a key, and what to do about it.
    pub fn parse(path: &Path, text: &str) -> Result<KeyFile, KeyFileError> {
        let mut file = KeyFile { path: path.to_owned(), lines: Vec::new() };
        let mut seen: HashMap<KeyHash, usize> = HashMap::new();
        for (number, text) in (1..).zip(text.lines()) {
            // Only at the start of a word, so that an id may contain '#'.
            let words: Vec<&str> =
                text.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
            let Some((hash, fields)) = words.split_first() else { continue };
            let line = parse_line(number, hash, fields).map_err(|what| file.error(number, what))?;
            if let Some(first) = seen.insert(line.hash, number) {
                let what = format!("this key stands in line {first} too; remove one of the two");
                return Err(file.error(number, what));
            }
            if file.lines.len() == KEYS_MAX {
                return Err(file.error(number, format!("more than {KEYS_MAX} keys")));
            }
            file.lines.push(line);
        }
        Ok(file)
    }

    /// An error at a line of this file.
    pub fn error(&self, line: usize, what: String) -> KeyFileError {
        KeyFileError { path: self.path.clone(), line, what }
    }
}

fn parse_line(number: usize, hash: &str, fields: &[&str]) -> Result<KeyLine, String> {
    let hash_text = hash;
    let hash = parse_hex(hash).ok_or_else(|| {
        "a line begins with the SHA-256 of the key in 64 hex digits, not with the key itself; \
         `printf %s KEY | sha256sum` prints it"
            .to_owned()
    })?;
    let mut line = KeyLine {
        hash,
        tenant: String::new(),
        scopes: Scopes::INFERENCE,
        id: hash_text[..8].to_ascii_lowercase(),
        expires_s: None,
        line: number,
    };
    match fields {
        [] => return Err(format!("say whose key it is: tenant=<name> ({FORM})")),
        [scopes] if !scopes.contains('=') => {
            tenant::DEFAULT.clone_into(&mut line.tenant);
            line.scopes = parse_scopes(scopes)?;
        }
        fields => parse_fields(fields, &mut line)?,
    }
    Ok(line)
}

const FORM: &str =
    "a line is: <sha256 hex> tenant=<name> [scopes=a,b] [id=<name>] [expires=<unix seconds>]";

fn parse_fields(fields: &[&str], line: &mut KeyLine) -> Result<(), String> {
    let mut seen: Vec<&str> = Vec::with_capacity(fields.len());
    for field in fields {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("{field:?} is not of the form key=value; {FORM}"))?;
        if value.is_empty() {
            return Err(format!("{key}= has no value; leave it out or give one"));
        }
        if seen.contains(&key) {
            return Err(format!("{key}= is given twice"));
        }
        seen.push(key);
        match key {
            "tenant" => value.clone_into(&mut line.tenant),
            "scopes" => line.scopes = parse_scopes(value)?,
            "id" if value.len() <= ID_BYTES_MAX && value.bytes().all(|b| b.is_ascii_graphic()) => {
                value.clone_into(&mut line.id);
            }
            "id" => return Err(format!("id= has 1 to {ID_BYTES_MAX} printable ASCII characters")),
            "expires" => {
                line.expires_s = Some(value.parse().map_err(|_| {
                    format!("expires={value} is not a time in Unix seconds, such as 1767225600")
                })?);
            }
            _ => return Err(format!("unknown key {key:?}; {FORM}")),
        }
    }
    if line.tenant.is_empty() {
        return Err(format!("say whose key it is: tenant=<name> ({FORM})"));
    }
    Ok(())
}

fn parse_scopes(list: &str) -> Result<Scopes, String> {
    Scopes::of_all(list.split(','))
        .map_err(|name| format!("unknown scope {name:?}; known are {}", Scopes::EVERY))
}

fn parse_hex(text: &str) -> Option<KeyHash> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::scope::Scope;

    /// `printf %s cgn-0123456789abcdef0123456789abcdef | sha256sum`
    const KEY: &str = "cgn-0123456789abcdef0123456789abcdef";

    fn hex(hash: KeyHash) -> String {
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn parse(text: &str) -> Result<KeyFile, KeyFileError> {
        KeyFile::parse(Path::new("keys"), text)
    }

    #[test]
    fn hashes_are_sha256() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(hash_key("abc")), abc);
        assert_eq!(parse_hex(&abc.to_uppercase()), Some(hash_key("abc")));
    }

    #[test]
    fn both_forms_are_read() {
        let (a, b, c) = (hex(hash_key(KEY)), hex(hash_key("b")), hex(hash_key("c")));
        let file = parse(&format!(
            "# keys of the house\n\n{a} tenant=acme scopes=chat,admin id=ci#1 expires=1767225600 # x\n\
             {b} chat,embeddings\n  {c}\ttenant=acme  #\r\n"
        ))
        .unwrap();
        let first = KeyLine {
            hash: hash_key(KEY),
            tenant: "acme".into(),
            scopes: Scopes::NONE.with(Scope::Chat).with(Scope::Admin),
            id: "ci#1".into(),
            expires_s: Some(1_767_225_600),
            line: 3,
        };
        assert_eq!(file.lines[0], first);
        assert_eq!(file.lines[1].tenant, "default");
        assert_eq!(file.lines[1].scopes.to_string(), "chat,embeddings");
        assert_eq!((file.lines[1].id.as_str(), file.lines[1].line), (&b[..8], 4));
        assert_eq!(file.lines[2].scopes, Scopes::INFERENCE);
        assert_eq!(file.lines.len(), 3);
        assert_eq!(parse("").unwrap().lines, []);
    }

    #[test]
    fn mistakes_name_the_line_and_never_the_key() {
        let hash = hex(hash_key(KEY));
        for (rest, message) in [
            ("", "say whose key it is"),
            ("  -", "unknown scope \"-\""),
            ("chat,cat", "unknown scope \"cat\"; known are chat,completions"),
            ("scopes=chat", "say whose key it is"),
            ("tenant=", "tenant= has no value"),
            ("tenant=a tenant=b", "tenant= is given twice"),
            ("tenant=a chat", "\"chat\" is not of the form key=value"),
            ("tenant=a scope=chat", "unknown key \"scope\""),
            ("tenant=a expires=tomorrow", "not a time in Unix seconds"),
            ("tenant=a expires=-1", "not a time in Unix seconds"),
            ("tenant=a id=\u{e9}", "printable ASCII"),
        ] {
            let error = parse(&format!("#\n{hash} {rest}\n")).unwrap_err();
            assert_eq!(error.line, 2);
            let text = error.to_string();
            assert!(text.starts_with("keys:2: ") && text.contains(message), "{text}");
        }
        for raw in [KEY, &format!("{KEY} tenant=a"), &hash[..63], &hash.replace('a', "\u{e9}")] {
            let text = parse(raw).unwrap_err().to_string();
            assert!(text.contains("sha256sum") && !text.contains(KEY), "{text}");
        }
        let twice = parse(&format!("{hash} chat\n{hash} tenant=a")).unwrap_err().to_string();
        assert!(twice.starts_with("keys:2: ") && twice.contains("line 1"), "{twice}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[ \\PC\n]{0,200}") {
            let _ = parse(&text);
            let _ = parse(&format!("{} {text}", hex(hash_key("x"))));
        }
    }
}
