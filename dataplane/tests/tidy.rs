//! The house rules that a machine can check, over all files of the clone.
//!
//! What is not listed here is left to review. Each rule is a function from a file to its faults and
//! is tried on a file that breaks it.
#![expect(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use std::path::{Path, PathBuf};

/// A file of code may not be longer, without its tests.
const LINES_MAX: usize = 600;
/// File names that say nothing of what is in the file.
const BANNED_NAMES: &[&str] = &[
    "util", "utils", "common", "core", "misc", "manager", "helper", "helpers", "handler",
    "handlers", "service", "services", "mod",
];
/// The files that may hold `unsafe`; each says at its head why it must.
const UNSAFE_FILES: &[&str] = &[
    "agent/src/process.rs",
    "dataplane/src/route/index/pages.rs",
    "kvstore/client/src/capi.rs",
    "kvstore/client/src/mapping.rs",
    "kvstore/src/arena.rs",
    "kvstore/src/disk/ring.rs",
    "kvstore/src/native/ring.rs",
];
/// Markers of unfinished work, put together here so that this file holds none.
const BANNED_WORDS: &[&str] = &[concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X")];
/// Folders that hold no text of ours.
const FOREIGN: &[&str] = &["target", "node_modules", ".git", "__pycache__"];

fn code_faults(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.starts_with("//!") {
        faults.push(format!("{name}: does not open with //!"));
    }
    let lines = lines_without_tests(name, text);
    if lines > LINES_MAX {
        faults.push(format!("{name}: {lines} lines without tests, {LINES_MAX} are the most"));
    }
    let stem = Path::new(name).file_stem().unwrap().to_string_lossy();
    if BANNED_NAMES.contains(&stem.as_ref()) {
        faults.push(format!("{name}: name it after what it is about"));
    }
    if has_unsafe(text) != UNSAFE_FILES.contains(&name) {
        faults.push(format!("{name}: unsafe against the list in dataplane/tests/tidy.rs"));
    }
    faults
}

fn lines_without_tests(name: &str, text: &str) -> usize {
    let is_test = name.split('/').any(|part| part == "tests" || part == "tests.rs");
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    if is_test { 0 } else { code.lines().count() }
}

/// Whether code, not a comment or a lint's name, says `unsafe`.
fn has_unsafe(text: &str) -> bool {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).any(|line| {
        line.match_indices("unsafe").any(|(at, word)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].trim_start();
            !before.is_some_and(|c| c.is_alphanumeric() || "_\"`".contains(c))
                && ["{", "fn ", "impl", "extern"].iter().any(|next| after.starts_with(next))
        })
    })
}

fn text_faults(name: &str, text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    let banned = words.filter(|word| BANNED_WORDS.contains(word));
    banned.map(|word| format!("{name}: {word}; finish it or open an issue")).collect()
}

fn page_faults(name: &str, text: &str) -> Vec<String> {
    let mut is_code = false;
    let titles = text.lines().filter(|line| {
        is_code ^= line.starts_with("```");
        !is_code && line.starts_with("# ")
    });
    match titles.count() {
        1 => Vec::new(),
        count => vec![format!("{name}: {count} titles (`# `), one is right")],
    }
}

/// Packages of `[workspace.dependencies]`, not our own, without a row in the page.
fn undocumented(manifest: &str, page: &str) -> Vec<String> {
    let section = manifest.split("\n[workspace.dependencies]\n").nth(1).unwrap_or_default();
    section
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.contains("path = \"") && !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once('=')?.0.trim().to_owned()))
        .filter(|package| !page.contains(&format!("\n| `{package}` |")))
        .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file below the clone with one of `endings`, by its path from there, and its text.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let (root, mut found) = (root(), Vec::new());
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !FOREIGN.contains(&name.as_str()) {
                folders.push(path);
            } else if path.is_file() && endings.iter().any(|ending| name.ends_with(ending)) {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no {endings:?} below {}", root.display());
    found.sort();
    found
}

fn all_faults(endings: &[&str], rule: fn(&str, &str) -> Vec<String>) -> Vec<String> {
    files(endings).iter().flat_map(|(name, text)| rule(name, text)).collect()
}

#[test]
fn code_keeps_the_house_rules() {
    assert_eq!(all_faults(&[".rs"], code_faults), [""; 0]);
    for name in UNSAFE_FILES {
        assert!(root().join(name).is_file(), "{name} is on the list of unsafe files but is gone");
    }
}

#[test]
fn nothing_is_marked_unfinished() {
    let endings = [".rs", ".md", ".toml", ".py", ".cjs", ".proto", ".sh"];
    assert_eq!(all_faults(&endings, text_faults), [""; 0]);
}

#[test]
fn each_page_has_one_title() {
    assert_eq!(all_faults(&[".md"], page_faults), [""; 0]);
}

#[test]
fn each_dependency_is_accounted_for() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap();
    let missing = undocumented(&read("Cargo.toml"), &read("docs/DEPENDENCIES.md"));
    assert_eq!(missing, [""; 0], "these need a row in docs/DEPENDENCIES.md");
}

#[test]
fn lock_files_name_no_private_registry() {
    for (name, text) in files(&["Cargo.lock"]) {
        let sources = text.lines().filter(|line| line.starts_with("source = "));
        let wrong: Vec<&str> = sources
            .filter(|line| !line.contains("registry+https://github.com/rust-lang/crates.io-index"))
            .collect();
        assert_eq!(wrong, [""; 0], "{name}");
    }
    for (name, text) in files(&["package-lock.json"]) {
        assert!(!text.contains("\"resolved\""), "{name}: npm's default registry is enough");
    }
}

#[test]
fn broken_rules_are_found() {
    assert_eq!(code_faults("a/src/index.rs", "//! Index.\n"), [""; 0]);
    assert_eq!(code_faults("a/src/index.rs", "use x;\n").len(), 1);
    assert_eq!(code_faults("a/src/util.rs", "//! x\n").len(), 1);
    let long = format!("//! x\n{}", "line\n".repeat(LINES_MAX));
    assert_eq!(code_faults("a/src/index.rs", &long).len(), 1);
    assert_eq!(code_faults("a/tests/index.rs", &long), [""; 0]);
    let tested = format!("//! x\n\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
    assert_eq!(code_faults("a/src/index.rs", &tested), [""; 0]);
    for rest in ["{", "fn f()", "impl Send for A {}"] {
        let code = format!("    {} {rest}\n", "unsafe");
        assert!(has_unsafe(&code), "{code}");
    }
    assert!(!has_unsafe("// unsafe { }\n#![deny(unsafe_code)]\nunsafe_fn();\n"));
    assert_eq!(text_faults("x", &format!("a {} b", BANNED_WORDS[0])).len(), 1);
    assert_eq!(page_faults("x.md", "# A\n```\n# not one\n```\n"), [""; 0]);
    assert_eq!(page_faults("x.md", "# A\n# B\n").len(), 1);
    let manifest = "[workspace]\n[workspace.dependencies]\nours = { path = \"o\" }\na = \"1\"\nb = \"2\"\n\n[x]\nc = \"1\"\n";
    assert_eq!(undocumented(&format!("\n{manifest}"), "x\n| `a` | y |\n"), ["b"]);
}
