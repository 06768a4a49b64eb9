//! Which model has which tokenizer: those configured, read before anything starts, and those whose files a
//! worker's node has, read on a thread of their own when the first request asks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::Deserialize;

use super::ModelTokenizer;
use super::files::FilesError;
use super::segments::SegmentCache;
use super::side::Side;

/// Folders that workers may name; the next ones are left to the engines. A tokenizer takes 50 MB.
const FOLDERS_MAX: usize = 32;

/// One entry of `[[models]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The name clients ask for.
    pub name: String,
    /// The folder with its `tokenizer.json`, `tokenizer_config.json` and chat template.
    pub files: PathBuf,
}

/// What is known of a folder that a worker named.
enum Folder {
    Loading,
    Ready(Arc<ModelTokenizer>),
    Broken,
}

/// All tokenizers, and what they share.
pub struct Shelf {
    configured: HashMap<String, Arc<ModelTokenizer>>,
    folders: Arc<Mutex<HashMap<PathBuf, Folder>>>,
    /// Prefixes tokenized before.
    pub cache: Arc<SegmentCache>,
    /// Where long texts are tokenized.
    pub side: Side,
}

impl Shelf {
    /// Reads the files of all `models`. The cache keeps at most `cache_bytes_max`.
    ///
    /// # Errors
    /// The first folder that cannot be used.
    pub fn open(models: &[ModelConfig], cache_bytes_max: usize) -> Result<Self, FilesError> {
        let mut configured = HashMap::new();
        for model in models {
            let tokenizer = Arc::new(ModelTokenizer::load(&model.files)?);
            let cuts = tokenizer.cuts().tokens().len();
            tracing::info!(model = model.name, cuts, "prompts are tokenized here");
            configured.insert(model.name.clone(), tokenizer);
        }
        Ok(Shelf {
            configured,
            folders: Arc::default(),
            cache: Arc::new(SegmentCache::new(cache_bytes_max)),
            side: Side::start(),
        })
    }

    /// Those that were configured.
    pub fn configured(&self) -> impl Iterator<Item = (&str, &Arc<ModelTokenizer>)> {
        self.configured.iter().map(|(name, tokenizer)| (name.as_str(), tokenizer))
    }

    /// The tokenizer of `model`: the one configured, else of the first of `folders` that a worker names. One that
    /// is not read yet is none.
    pub fn of<'a>(
        &self,
        model: &str,
        mut folders: impl Iterator<Item = &'a str>,
    ) -> Option<Arc<ModelTokenizer>> {
        if let Some(tokenizer) = self.configured.get(model) {
            return Some(Arc::clone(tokenizer));
        }
        let path = Path::new(folders.next()?);
        let mut known = self.folders.lock().unwrap_or_else(|poison| poison.into_inner());
        match known.get(path) {
            Some(Folder::Ready(tokenizer)) => return Some(Arc::clone(tokenizer)),
            Some(Folder::Loading | Folder::Broken) => return None,
            None if known.len() >= FOLDERS_MAX => return None,
            None => known.insert(path.to_owned(), Folder::Loading),
        };
        let (path, folders) = (path.to_owned(), Arc::clone(&self.folders));
        let named = path.clone();
        let read = move || {
            let folder = match ModelTokenizer::load(&path) {
                Ok(tokenizer) => {
                    tracing::info!(folder = %path.display(), "prompts are tokenized here");
                    Folder::Ready(Arc::new(tokenizer))
                }
                Err(error) => {
                    tracing::warn!(%error, "the worker's model files cannot be used; its engine is asked");
                    Folder::Broken
                }
            };
            folders.lock().unwrap_or_else(|poison| poison.into_inner()).insert(path, folder);
        };
        if std::thread::Builder::new().name("tokenizer-files".to_owned()).spawn(read).is_err() {
            // No thread, no tokenizer; the engine can be asked.
            known.remove(&named);
        }
        None
    }
}
