//! Values as Python writes them: `json.dumps`, `str`, `strftime`. Chat templates are written against
//! Python, and one space more or less is another token.
//!
//! Pure. What a template may do with these is in `template`.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Values nest so deep at most; what comes from a request was bounded before.
const DEPTH_MAX: usize = 160;

/// How `json.dumps` lays its text out.
#[derive(Clone, Debug)]
pub struct JsonStyle {
    /// Spaces of one level, or all on one line.
    pub indent: Option<usize>,
    /// Between two items.
    pub item_separator: String,
    /// Between key and value.
    pub key_separator: String,
    /// Anything beyond ASCII as `\uXXXX`.
    pub ascii_only: bool,
    /// Keys in order of their code points.
    pub sort_keys: bool,
}

impl JsonStyle {
    /// As the `tojson` of chat templates does unless told otherwise.
    pub fn new(indent: Option<usize>) -> Self {
        JsonStyle {
            indent,
            item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
            key_separator: ": ".to_owned(),
            ascii_only: false,
            sort_keys: false,
        }
    }
}

/// `json.dumps(value)`.
///
/// # Errors
/// What JSON cannot say: undefined values, objects that are no data.
pub fn json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(&mut out, value, style, 0)?;
    Ok(out)
}

fn write_json(
    out: &mut String,
    value: &Value,
    style: &JsonStyle,
    depth: usize,
) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "nested too deep for JSON"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => json_string(out, value.as_str().unwrap_or_default(), style.ascii_only),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut list = List::open(out, '[', ']', style, depth);
            for item in value.try_iter()? {
                list.next();
                write_json(list.out, &item, style, depth + 1)?;
            }
            list.close();
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            let mut list = List::open(out, '{', '}', style, depth);
            for key in keys {
                list.next();
                json_string(list.out, &key_text(&key), style.ascii_only);
                list.out.push_str(&style.key_separator);
                write_json(list.out, &value.get_item(&key)?, style, depth + 1)?;
            }
            list.close();
        }
        _ => return Err(Error::new(ErrorKind::InvalidOperation, "not a value of JSON")),
    }
    Ok(())
}

/// Items between brackets.
struct List<'a> {
    out: &'a mut String,
    close: char,
    style: &'a JsonStyle,
    depth: usize,
    items: usize,
}

impl<'a> List<'a> {
    fn open(
        out: &'a mut String,
        open: char,
        close: char,
        style: &'a JsonStyle,
        depth: usize,
    ) -> Self {
        out.push(open);
        List { out, close, style, depth, items: 0 }
    }

    fn next(&mut self) {
        if self.items > 0 {
            self.out.push_str(&self.style.item_separator);
        }
        self.items += 1;
        self.line(self.depth + 1);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth)));
        }
    }

    fn close(mut self) {
        if self.items > 0 {
            self.line(self.depth);
        }
        self.out.push(self.close);
    }
}

/// `json.dumps` writes keys of other types as it writes their values.
fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => key.to_string(),
        _ => number(key),
    }
}

fn json_string(out: &mut String, text: &str, ascii_only: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii_only && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn number(value: &Value) -> String {
    match value.is_integer() {
        true => value.to_string(),
        false => f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float),
    }
}

/// `repr` of a float: the shortest digits, with an exponent from 1e16 up and below 1e-4.
pub fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = format!("{number}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// `str(value)`, as `{{ value }}` prints.
pub fn write_str(out: &mut String, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => out.push_str(value.as_str().unwrap_or_default()),
        _ => write_repr(out, value, 0)?,
    }
    Ok(())
}

/// `repr(value)`.
fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "nested too deep to print"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => repr_string(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (at, item) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// Python prefers single quotes, and double ones where that saves a backslash.
fn repr_string(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `strftime` in UTC, which is what engines in containers have. `None` for a directive not known here.
pub fn strftime(format: &str, unix_s: u64) -> Option<String> {
    let days = unix_s / 86_400;
    let (year, month, day) = crate::access::date::civil(days);
    let (hour, minute, second) = (unix_s / 3_600 % 24, unix_s / 60 % 60, unix_s % 60);
    let name = MONTHS.get(month as usize - 1)?;
    let weekday = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let _ = match chars.next()? {
            'Y' => write!(out, "{year:04}"),
            'y' => write!(out, "{:02}", year % 100),
            'm' => write!(out, "{month:02}"),
            'd' => write!(out, "{day:02}"),
            'e' => write!(out, "{day:2}"),
            'B' => write!(out, "{name}"),
            'b' => write!(out, "{}", &name[..3]),
            'A' => write!(out, "{weekday}"),
            'a' => write!(out, "{}", &weekday[..3]),
            'H' => write!(out, "{hour:02}"),
            'I' => write!(out, "{:02}", (hour + 11) % 12 + 1),
            'p' => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            'M' => write!(out, "{minute:02}"),
            'S' => write!(out, "{second:02}"),
            'F' => write!(out, "{year:04}-{month:02}-{day:02}"),
            'T' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            'Z' => write!(out, "UTC"),
            '%' => write!(out, "%"),
            _ => return None,
        };
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    /// Each right side is what CPython 3.12 printed.
    #[test]
    fn json_is_pythons() {
        let style = JsonStyle::new(None);
        for (text, expected) in [
            (
                r#"{"b":1,"a":[true,null,"é\n\u0001"]}"#,
                "{\"b\": 1, \"a\": [true, null, \"é\\n\\u0001\"]}",
            ),
            ("[]", "[]"),
            ("{}", "{}"),
            (
                "[1.0,1e16,1e-5,0.1,1.2345e20,-0.0,1e22]",
                "[1.0, 1e+16, 1e-05, 0.1, 1.2345e+20, -0.0, 1e+22]",
            ),
            ("[18446744073709551615]", "[18446744073709551615]"),
        ] {
            assert_eq!(json(&value(text), &style).unwrap(), expected, "{text}");
        }
        let indented = json(&value(r#"{"b":[1,2],"a":{}}"#), &JsonStyle::new(Some(2))).unwrap();
        assert_eq!(indented, "{\n  \"b\": [\n    1,\n    2\n  ],\n  \"a\": {}\n}");
        let ascii = JsonStyle { ascii_only: true, sort_keys: true, ..JsonStyle::new(None) };
        let text = json(&value(r#"{"b":"😀","a":"é"}"#), &ascii).unwrap();
        assert_eq!(text, r#"{"a": "\u00e9", "b": "\ud83d\ude00"}"#);
    }

    #[test]
    fn printing_is_pythons() {
        let mut out = String::new();
        write_str(&mut out, &value(r#"[true,null,1.5,"it's",{"k":"a\"b"},"both'\""]"#)).unwrap();
        assert_eq!(out, r#"[True, None, 1.5, "it's", {'k': 'a"b'}, 'both\'"']"#);
    }

    #[test]
    fn dates_are_pythons() {
        // 2024-07-26 09:05:03 UTC, a Friday.
        let at = 1_721_984_703;
        let text = strftime("%d %b %Y|%A %B %e %y|%H:%M:%S %I%p|%F %T|100%%", at).unwrap();
        assert_eq!(text, "26 Jul 2024|Friday July 26 24|09:05:03 09AM|2024-07-26 09:05:03|100%");
        assert_eq!(strftime("%Q", at), None);
        assert_eq!(strftime("%", at), None);
        assert_eq!(strftime("%I%p", 0).unwrap(), "12AM");
    }
}
