//! The headers of `docs/HEADERS.md` and those of the source.

use std::collections::BTreeSet;

use super::source;

/// The first cells of the tables.
pub fn documented() -> BTreeSet<String> {
    let page = source::read("docs/HEADERS.md");
    let names = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    names.map(str::to_owned).collect()
}

/// Names of ours in the source, with `*` for each part that is filled in at run time.
pub fn ours() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in source::router() {
        for mark in ["x-cgn-", "x-ratelimit-"] {
            for (at, _) in text.match_indices(mark) {
                let name = name_at(&text[at..]);
                // The bare prefix is how foreign fields of ours are dropped.
                if name != mark {
                    names.insert(name.trim_end_matches('-').to_owned());
                }
            }
        }
    }
    names
}

fn name_at(text: &str) -> String {
    let mut name = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            'a'..='z' | '0'..='9' | '-' => name.push(c),
            '{' => {
                name.push('*');
                characters.by_ref().find(|&c| c == '}');
            }
            _ => break,
        }
    }
    name
}

/// Whether `name` is what `pattern` with its `*` may become.
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    (1..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(tail, &rest[at..]))
}

/// Whether the source reads or writes a header of this name.
pub fn is_in_source(name: &str, ours: &BTreeSet<String>) -> bool {
    let is_written = |text: &str| {
        ["\"", ":"].iter().any(|end| {
            let literal = format!("{name}{end}");
            text.match_indices(&literal).any(|(at, _)| {
                let before = &text[..at];
                before.ends_with(['"', ' ', '\n']) || before.ends_with("\\n")
            })
        })
    };
    ours.iter().any(|pattern| matches(pattern, name))
        || source::router().iter().any(|(_, text)| is_written(&text.to_ascii_lowercase()))
}
