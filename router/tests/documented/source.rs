//! The repository's files as these tests read them.

use std::path::{Path, PathBuf};

/// A path from the top of the repository.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name)
}

/// The text of a file, by its path from the top of the repository.
pub fn read(name: &str) -> String {
    let path = path(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The router's source without its comments and tests: name and text of each file.
pub fn router() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![path("router/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path, without_comments_and_tests(&text)));
            }
        }
    }
    assert!(files.len() > 20, "the source was not found");
    files
}

/// Test modules stand at the end of a file.
fn without_comments_and_tests(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
    let lines = lines.filter(|line| !line.trim_start().starts_with("//"));
    lines.fold(String::new(), |all, line| all + line + "\n")
}
