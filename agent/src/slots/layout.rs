//! Which states are interchangeable: those of one model file, on engines whose cache has one layout. Each
//! such group is a namespace of the daemon, so a state of another model or layout is never even found.
//!
//! The model is known by its size and by three samples of its file. The first MiB holds the metadata, the
//! other two lie among the weights: two fine-tunes of one model often share size and metadata. Of the
//! command line counts whatever is not known to change nothing; the number of slots does, for each is a
//! stream of its own in the state.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use dataplane::kv::NAMESPACE_BYTES_MAX;

/// Bytes of each sample.
const SAMPLE_BYTES: u64 = 1 << 20;
/// Characters of the model's file name that a namespace shows: the name is for people.
const FILE_NAME_CHARS: usize = 100;

/// Flags with a value that change no byte of a state.
const HARMLESS: [&str; 12] = [
    "-cram",
    "--cache-ram",
    "-tb",
    "--threads-batch",
    "--threads-http",
    "-to",
    "--timeout",
    "--prio",
    "--prio-batch",
    "-sps",
    "--slot-prompt-similarity",
    "--log-verbosity",
];
/// Flags with which a slot's KV is not what its tokens alone make of it, or its state is not whole: adapters
/// and control vectors that a request may switch, images, shifted context, a second model's cache. And
/// those without which the agent cannot ask.
const UNFIT: [&str; 22] = [
    "--lora",
    "--lora-scaled",
    "--control-vector",
    "--control-vector-scaled",
    "-mm",
    "--mmproj",
    "-mmu",
    "--mmproj-url",
    "--context-shift",
    "--cache-reuse",
    "-md",
    "--model-draft",
    "--spec-type",
    "--embedding",
    "--embeddings",
    "--rerank",
    "--reranking",
    "--no-slots",
    "--api-key",
    "--api-key-file",
    "--ssl-key-file",
    "--slot-save-path",
];

/// The engine's command line as far as its states depend on it; none where they are not to be kept.
pub fn of_arguments(slots: u32, extra_args: &[String]) -> Option<String> {
    let name = |word: &String| word.split('=').next().unwrap_or_default().to_owned();
    if extra_args.iter().map(name).any(|name| UNFIT.contains(&name.as_str())) {
        return None;
    }
    let mut layout = format!("-np {slots}");
    let mut words = extra_args.iter();
    while let Some(word) = words.next() {
        if HARMLESS.contains(&word.as_str()) {
            words.next();
        } else if !HARMLESS.contains(&name(word).as_str()) {
            // A word may have blanks in it: its length keeps two apart from one.
            layout.push_str(&format!(" {}:{word}", word.len()));
        }
    }
    Some(layout)
}

/// The namespace of states of that model and layout.
///
/// # Errors
/// What the system says of the model's file.
pub fn namespace(model: &Path, layout: &str) -> io::Result<String> {
    let mut file = File::open(model)?;
    let bytes = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"cognitora slot states v1\0");
    hasher.update(&bytes.to_le_bytes());
    let last = bytes.saturating_sub(SAMPLE_BYTES);
    for at in [0, last / 2, last] {
        file.seek(SeekFrom::Start(at))?;
        hasher.update_reader((&mut file).take(SAMPLE_BYTES))?;
    }
    hasher.update(layout.as_bytes());
    let name = model.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().filter(char::is_ascii_graphic).take(FILE_NAME_CHARS).collect();
    let namespace = format!("llama.cpp/{name}/{}", &hasher.finalize().to_hex()[..32]);
    debug_assert!(namespace.len() <= NAMESPACE_BYTES_MAX);
    Ok(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(slots: u32, text: &str) -> Option<String> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        of_arguments(slots, &words)
    }

    #[test]
    fn what_changes_a_state_counts_and_what_does_not_does_not() {
        let plain = layout(2, "").unwrap();
        assert_eq!(layout(2, "--cache-ram 64 --threads-batch=3"), Some(plain.clone()));
        assert_ne!(layout(4, "").unwrap(), plain);
        assert_ne!(layout(2, "-ctk q8_0").unwrap(), plain);
        assert_ne!(layout(2, "-ctk q8_0"), layout(2, "-ctk f16"));
        assert_ne!(of_arguments(1, &["a b".into()]), of_arguments(1, &["a".into(), "b".into()]));
        for unfit in ["--lora x", "--mmproj=x", "--context-shift", "--no-slots", "--cache-reuse 8"]
        {
            assert_eq!(layout(2, unfit), None, "{unfit}");
        }
    }

    #[test]
    fn one_byte_of_the_weights_is_another_namespace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let mut model = vec![7u8; 5 << 20];
        let named = |model: &[u8], layout: &str| {
            std::fs::write(&path, model).unwrap();
            namespace(&path, layout).unwrap()
        };
        let one = named(&model, "a");
        assert!(one.starts_with("llama.cpp/m.gguf/") && one.len() == 17 + 32, "{one}");
        assert_eq!(named(&model, "a"), one);
        assert_ne!(named(&model, "b"), one);
        for at in [0, model.len() / 2, model.len() - 1] {
            model[at] ^= 1;
            assert_ne!(named(&model, "a"), one, "byte {at}");
            model[at] ^= 1;
        }
        assert_ne!(named(&model[1..], "a"), one);
        assert_ne!(named(b"", "a"), one);
    }
}
