//! What is checked before an engine is started: its binary, its model file.
//!
//! What fails here cannot run until something is changed, so each message says what. The checks are
//! made again every few seconds: put the thing there and the engine starts.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use control::api::EngineSpec;

use crate::config::Config;
use crate::engine::{Kind, Model, ModelForm, SpecError};
use crate::gguf;

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Cleared {
    /// The binary to run.
    pub program: PathBuf,
    /// The model to serve, for kinds that read one.
    pub model: Option<Model>,
}

/// Why an engine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The spec itself.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No such binary.
    #[error("{program} not found: set [engines] {key} in {} or put it on PATH", config.display())]
    NoProgram {
        /// As configured.
        program: String,
        /// Its key in `[engines]`.
        key: &'static str,
        /// The file to change.
        config: PathBuf,
    },
    /// The model file cannot be read.
    #[error("model file {}: {source}: fetch it, or set [agent] model_dir", path.display())]
    NoModel {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder is no model.
    #[error("{} is not a model's folder (no {FOLDER_FILE} in it): put the model there, or set [agent] model_dir", path.display())]
    NoModelFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The model file is not of the size the recipe states.
    #[error("model file {} is {} ({got} of {want} bytes): fetch it again", path.display(), size_word(*got, *want))]
    ModelSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        got: u64,
        /// The recipe's `file_bytes`.
        want: u64,
    },
    /// The model file is something else.
    #[error("model file {} is not a GGUF file (it begins with {magic:02x?}): fetch it again", path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        magic: Vec<u8>,
    },
}

fn size_word(got: u64, want: u64) -> &'static str {
    if got < want { "truncated" } else { "too long" }
}

/// Checks what `spec` needs. `config_path` is for the message only.
///
/// # Errors
/// Any [`PreflightError`].
pub fn check(
    spec: &EngineSpec,
    config: &Config,
    config_path: &Path,
) -> Result<Cleared, PreflightError> {
    let kind = Kind::of(spec)?;
    let configured = match kind {
        Kind::LlamaCpp => &config.engines.llama_cpp,
        Kind::Vllm => &config.engines.vllm,
        Kind::Sglang => &config.engines.sglang,
        Kind::Sim => &config.engines.sim,
    };
    let program = find_program(configured, kind).ok_or_else(|| PreflightError::NoProgram {
        program: configured.clone(),
        key: kind.as_str(),
        config: config_path.to_owned(),
    })?;
    let path = || config.agent.model_dir.join(&spec.model_file);
    let model = match kind.model_form() {
        _ if spec.model_file.is_empty() => None,
        ModelForm::None => None,
        ModelForm::Gguf => Some(check_model(path(), spec.model_file_bytes)?),
        ModelForm::Folder => Some(check_folder(path())?),
    };
    Ok(Cleared { program, model })
}

/// A path is taken as it is; a name is looked up beside the agent (simulated engine only), then on
/// `PATH`.
fn find_program(configured: &str, kind: Kind) -> Option<PathBuf> {
    if configured.contains('/') {
        return is_executable(Path::new(configured)).then(|| configured.into());
    }
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let beside = beside.filter(|_| kind == Kind::Sim);
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(configured))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A folder without this file is no model of the Hugging Face libraries, and they would ask a hub.
const FOLDER_FILE: &str = "config.json";

/// The engine gets the folder's whole path: relative to its own working directory it could be a name on
/// a hub. The weights are its own to check.
fn check_folder(path: PathBuf) -> Result<Model, PreflightError> {
    let path = std::path::absolute(&path)
        .map_err(|source| PreflightError::NoModel { path: path.clone(), source })?;
    match std::fs::metadata(path.join(FOLDER_FILE)) {
        Ok(metadata) if metadata.is_file() => Ok(Model { path, kv_bytes_per_token: None }),
        _ => Err(PreflightError::NoModelFolder { path }),
    }
}

fn check_model(path: PathBuf, want: u64) -> Result<Model, PreflightError> {
    let unreadable = |source| PreflightError::NoModel { path: path.clone(), source };
    let mut file = File::open(&path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(std::io::Error::other("not a file")));
    }
    let got = metadata.len();
    if want > 0 && got != want {
        return Err(PreflightError::ModelSize { path, got, want });
    }
    let mut magic = Vec::new();
    file.by_ref().take(gguf::MAGIC.len() as u64).read_to_end(&mut magic).map_err(unreadable)?;
    if magic != gguf::MAGIC {
        return Err(PreflightError::NotGguf { path, magic });
    }
    file.rewind().map_err(unreadable)?;
    let kv_bytes_per_token = gguf::kv_bytes_per_token(BufReader::with_capacity(1 << 16, file));
    Ok(Model { path, kv_bytes_per_token })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(bytes: u64) -> EngineSpec {
        EngineSpec {
            model: "m".into(),
            kind: "llama_cpp".into(),
            model_file: "m.gguf".into(),
            model_file_bytes: bytes,
            slots: 1,
            ..EngineSpec::default()
        }
    }

    fn said(content: Option<&[u8]>, program: &str, bytes: u64) -> String {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.agent.model_dir = directory.path().to_owned();
        config.engines.llama_cpp = program.to_owned();
        if let Some(content) = content {
            std::fs::write(directory.path().join("m.gguf"), content).unwrap();
        }
        match check(&spec(bytes), &config, Path::new("a.toml")) {
            Ok(_) => "ok".to_owned(),
            Err(error) => {
                error.to_string().replace(&format!("{}/", directory.path().display()), "")
            }
        }
    }

    #[test]
    fn a_missing_binary_names_the_key_and_the_file() {
        assert_eq!(
            said(Some(b"GGUF"), "no-such-llama-server", 0),
            "no-such-llama-server not found: set [engines] llama_cpp in a.toml or put it on PATH"
        );
        let plain = tempfile::NamedTempFile::new().unwrap();
        let said = said(Some(b"GGUF"), plain.path().to_str().unwrap(), 0);
        assert!(said.contains("not found"), "not executable: {said}");
    }

    #[test]
    fn a_bad_model_file_says_to_fetch_it_again() {
        assert_eq!(said(Some(b"GGUF1234"), "sh", 8), "ok");
        assert_eq!(said(Some(b"GGUF1234"), "sh", 0), "ok");
        assert_eq!(
            said(Some(b"GGUF12"), "sh", 8),
            "model file m.gguf is truncated (6 of 8 bytes): fetch it again"
        );
        assert!(said(Some(b"GGUF123456"), "sh", 8).contains("too long (10 of 8 bytes)"));
        assert!(said(Some(b"<htm"), "sh", 0).contains("not a GGUF file"));
        assert!(said(Some(b""), "sh", 0).contains("not a GGUF file"));
        assert!(said(None, "sh", 0).contains("fetch it, or set [agent] model_dir"));
    }

    #[test]
    fn a_folder_is_a_model_only_with_its_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.agent.model_dir = directory.path().to_owned();
        config.engines.vllm = "sh".to_owned();
        let spec = EngineSpec { kind: "vllm".into(), model_file: "tiny".into(), ..spec(0) };
        let checked = |config: &Config| check(&spec, config, Path::new("a.toml"));
        let said = checked(&config).unwrap_err().to_string();
        assert!(said.contains("tiny is not a model's folder (no config.json in it)"), "{said}");
        let folder = directory.path().join("tiny");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), "{}").unwrap();
        let cleared = checked(&config).unwrap();
        assert_eq!(cleared.model, Some(Model { path: folder, kv_bytes_per_token: None }));
        config.engines.vllm = "no-such-vllm".to_owned();
        assert!(checked(&config).unwrap_err().to_string().contains("[engines] vllm in a.toml"));
    }

    #[test]
    fn an_unknown_kind_is_refused_before_anything_is_looked_for() {
        let spec = EngineSpec { kind: "trt".into(), ..spec(0) };
        let error = check(&spec, &Config::default(), Path::new("a.toml")).unwrap_err();
        assert!(error.to_string().contains("known: llama_cpp, vllm, sglang, sim"), "{error}");
    }
}
