//! A model's files: the folder with `tokenizer.json`, `tokenizer_config.json` and the chat template.
//!
//! Reads and checks; every error names the file and says what to do. What is made of them is in
//! [`super::ModelTokenizer`].

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::cuts::Added;
use super::template::{Template, TemplateError};

/// A `tokenizer.json`. The largest known has 33 MB.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
/// Any other file.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file is missing, too large or not readable.
    #[error("{}: {message}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A file is not what its name says.
    #[error("{}: {message}; copy the model's own file there again", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The template does not compile or does not end.
    #[error("{}: {error}", path.display())]
    Template {
        /// The file it stands in.
        path: PathBuf,
        /// What is wrong.
        error: TemplateError,
    },
}

/// What was read.
pub struct Files {
    /// `tokenizer.json`, parsed as JSON.
    pub file: Value,
    /// Names the content of `tokenizer.json`.
    pub identity: [u8; 32],
    /// The tokenizer, without truncation and padding.
    pub tokenizer: Tokenizer,
    /// Its added tokens.
    pub added: Vec<Added>,
    /// For conversations without tools, and all others if there is no second one.
    pub template: Option<Template>,
    /// For conversations with tools.
    pub template_tools: Option<Template>,
    /// `bos_token` and the like, for the template.
    pub special: Vec<(String, Value)>,
}

impl Files {
    /// Reads `folder`.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn read(folder: &Path) -> Result<Self, FilesError> {
        let path = folder.join("tokenizer.json");
        let bytes = read(&path, TOKENIZER_BYTES_MAX)?;
        let file: Value = parse(&path, &bytes)?;
        let content = |message: String| FilesError::Content { path: path.clone(), message };
        let mut tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|error| content(format!("not a tokenizer that can be loaded: {error}")))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| content(error.to_string()))?;
        tokenizer.set_encode_special_tokens(false);
        let path = folder.join("tokenizer_config.json");
        let config = match path.exists() {
            true => parse(&path, &read(&path, FILE_BYTES_MAX)?)?,
            false => Value::Null,
        };
        add_tokens(&mut tokenizer, &config)
            .map_err(|message| FilesError::Content { path: path.clone(), message })?;
        let special = special(folder, &config)?;
        begin_as_llama(&mut tokenizer, &config, &special)
            .map_err(|message| FilesError::Content { path: path.clone(), message })?;
        let (template, template_tools) = templates(folder, &path, &config)?;
        let added = tokenizer.get_added_tokens_decoder();
        let added = added.values().map(|token| Added {
            content: token.content.clone(),
            normalized: token.normalized,
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
        });
        let added: Vec<Added> = added.collect();
        let identity = *blake3::hash(&bytes).as_bytes();
        Ok(Files { file, identity, added, tokenizer, template, template_tools, special })
    }
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FilesError> {
    let refuse = |message: String| FilesError::Read { path: path.to_owned(), message };
    let metadata = std::fs::metadata(path).map_err(|error| {
        refuse(format!("{error}; point `files` at a folder with the model's tokenizer.json"))
    })?;
    if !metadata.is_file() || metadata.len() > bytes_max {
        return Err(refuse(format!(
            "not a file of at most {bytes_max} bytes; is it the right one?"
        )));
    }
    std::fs::read(path).map_err(|error| refuse(format!("{error}; let the router read it")))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Value, FilesError> {
    let message = match crate::parse::is_too_deep(bytes) {
        true => "nested too deep".to_owned(),
        false => match serde_json::from_slice::<Value>(bytes) {
            Ok(value) if value.is_object() => return Ok(value),
            Ok(_) => "not a JSON object".to_owned(),
            Err(error) => format!("not JSON: {error}"),
        },
    };
    Err(FilesError::Content { path: path.to_owned(), message })
}

/// The text of a token that is given as a string or as an object.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// Tokens that only `tokenizer_config.json` knows are added, in the order of their ids, as Hugging Face does.
fn add_tokens(tokenizer: &mut Tokenizer, config: &Value) -> Result<(), String> {
    let Some(decoder) = config["added_tokens_decoder"].as_object() else { return Ok(()) };
    let mut tokens: Vec<(u32, &Value)> = Vec::new();
    for (id, token) in decoder {
        let id = id.parse().map_err(|_| format!("added_tokens_decoder: {id} is no token id"))?;
        tokens.push((id, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    for (id, token) in tokens {
        let Some(text) = content(token).filter(|text| !text.is_empty()) else { continue };
        if tokenizer.token_to_id(text).is_some() {
            continue;
        }
        let flag = |name: &str, default: bool| token[name].as_bool().unwrap_or(default);
        let is_special = flag("special", false);
        let added = AddedToken::from(text, is_special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !is_special));
        tokenizer.add_tokens(&[added]);
        if tokenizer.token_to_id(text) != Some(id) {
            return Err(format!("added_tokens_decoder: {text} is not {id} in tokenizer.json"));
        }
    }
    Ok(())
}

/// Names of special tokens that templates know, from both files that may say.
fn special(folder: &Path, config: &Value) -> Result<Vec<(String, Value)>, FilesError> {
    let path = folder.join("special_tokens_map.json");
    let map = match path.exists() {
        true => parse(&path, &read(&path, FILE_BYTES_MAX)?)?,
        false => Value::Null,
    };
    let names = [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
    ];
    let found = |name: &str| content(&config[name]).or_else(|| content(&map[name]));
    let mut special: Vec<(String, Value)> = names
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), Value::from(found(name)?))))
        .collect();
    let more = [&config["additional_special_tokens"], &map["additional_special_tokens"]];
    if let Some(list) = more.into_iter().find_map(Value::as_array).filter(|list| !list.is_empty()) {
        let list: Vec<Value> = list.iter().filter_map(content).map(Value::from).collect();
        special.push(("additional_special_tokens".to_owned(), Value::from(list)));
    }
    Ok(special)
}

/// `LlamaTokenizerFast` puts its first token before a text whatever `tokenizer.json` says.
fn begin_as_llama(
    tokenizer: &mut Tokenizer,
    config: &Value,
    special: &[(String, Value)],
) -> Result<(), String> {
    let is_llama =
        config["tokenizer_class"].as_str().is_some_and(|c| c.starts_with("LlamaTokenizer"));
    if !is_llama || !config["add_bos_token"].as_bool().unwrap_or(true) {
        return Ok(());
    }
    let found = special.iter().find(|(name, _)| name == "bos_token");
    let Some(bos) = found.and_then(|(_, text)| text.as_str()) else { return Ok(()) };
    let id = tokenizer.token_to_id(bos).ok_or_else(|| format!("bos_token {bos} is no token"))?;
    let post = TemplateProcessing::builder()
        .try_single(vec![bos, "$A"])?
        .special_tokens(vec![(bos.to_owned(), id)])
        .build()
        .map_err(|error| error.to_string())?;
    tokenizer.with_post_processor(Some(post));
    Ok(())
}

/// `chat_template.jinja` goes over `chat_template` of the configuration: a string, or a list of names.
fn templates(
    folder: &Path,
    config_path: &Path,
    config: &Value,
) -> Result<(Option<Template>, Option<Template>), FilesError> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let bytes = read(&path, FILE_BYTES_MAX)?;
        let source = String::from_utf8(bytes).map_err(|_| FilesError::Content {
            path: path.clone(),
            message: "not UTF-8".to_owned(),
        })?;
        return Ok((Some(compile(&path, &source)?), None));
    }
    let compile = |source: &str| compile(config_path, source);
    let given = &config["chat_template"];
    if let Some(source) = given.as_str() {
        return Ok((Some(compile(source)?), None));
    }
    let named = |name: &str| {
        let list = given.as_array()?.iter();
        list.filter(|entry| entry["name"] == name).find_map(|entry| entry["template"].as_str())
    };
    let default = named("default").map(compile).transpose()?;
    Ok((default, named("tool_use").map(compile).transpose()?))
}

fn compile(path: &Path, source: &str) -> Result<Template, FilesError> {
    let template = Template::new(source);
    let checked = template.and_then(|template| {
        template.try_out(super::PROMPT_BYTES_MAX)?;
        Ok(template)
    });
    checked.map_err(|error| FilesError::Template { path: path.to_owned(), error })
}
