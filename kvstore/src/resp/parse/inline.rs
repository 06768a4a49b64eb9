//! One line typed by hand to arguments: words, and quoted words with the escapes redis knows.

use super::Arguments;

/// Splits `line`. `None` when a quote does not close, or closes in the middle of a word.
pub(super) fn split(line: &[u8], arguments: &mut Arguments) -> Option<()> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        let Some(first) = rest.first() else {
            return Some(());
        };
        arguments.push();
        rest = match first {
            b'"' => double(&rest[1..], arguments)?,
            b'\'' => single(&rest[1..], arguments)?,
            _ => {
                let end = rest.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'"');
                let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
                arguments.extend(word);
                after
            }
        };
    }
}

fn double<'a>(mut rest: &'a [u8], arguments: &mut Arguments) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'"', after @ ..] => return ends(after),
            [b'\\', b'x', high, low, after @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                arguments.extend(&[nibble(*high) << 4 | nibble(*low)]);
                after
            }
            [b'\\', escaped, after @ ..] => {
                arguments.extend(&[meant(*escaped)]);
                after
            }
            [byte, after @ ..] => {
                arguments.extend(&[*byte]);
                after
            }
            [] => return None,
        };
    }
}

fn single<'a>(mut rest: &'a [u8], arguments: &mut Arguments) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'\\', b'\'', after @ ..] => {
                arguments.extend(b"'");
                after
            }
            [b'\'', after @ ..] => return ends(after),
            [byte, after @ ..] => {
                arguments.extend(&[*byte]);
                after
            }
            [] => return None,
        };
    }
}

/// After a closing quote the word is over.
fn ends(after: &[u8]) -> Option<&[u8]> {
    after.first().is_none_or(u8::is_ascii_whitespace).then_some(after)
}

fn meant(escaped: u8) -> u8 {
    match escaped {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

/// The value of a hexadecimal digit; 0 for other bytes, which do not come here.
fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 0,
    }
}
