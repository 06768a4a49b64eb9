//! What a deployment may ask for. One set of limits for recipes and for the control port.
//!
//! Whether the engine can run it (the binary, the model file) is the agent's to find out.

use crate::api::Deployment;

/// Longest name of a deployment, a model or a node.
pub const NAME_BYTES_MAX: usize = 200;
/// Most replicas of one deployment.
pub const REPLICAS_MAX: u32 = 256;
/// Most requests one engine works on at once.
pub const SLOTS_MAX: u32 = 4096;
/// Longest context of one slot.
pub const CONTEXT_LENGTH_TOKENS_MAX: u32 = 16 << 20;
/// Most threads of one engine.
pub const THREADS_MAX: u32 = 1024;
/// Longest time to wait for an engine to get ready, or to finish what it has.
pub const TIMEOUT_S_MAX: u32 = 86_400;
/// Most extra arguments of an engine.
pub const EXTRA_ARGS_MAX: usize = 128;
/// Most environment variables of an engine.
pub const ENV_MAX: usize = 128;
/// Longest extra argument.
pub const EXTRA_ARG_BYTES_MAX: usize = 4096;

/// A value that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct Fault {
    /// The key as a recipe spells it.
    pub key: &'static str,
    /// The fault and its cure.
    pub message: String,
}

/// Whether `deployment` is within all limits.
///
/// # Errors
/// The first [`Fault`].
pub fn check(deployment: &Deployment) -> Result<(), Fault> {
    let fault = |key, message| Err(Fault { key, message });
    if !is_name(&deployment.name) {
        return fault("name", name_rule(&deployment.name));
    }
    let Some(spec) = &deployment.spec else {
        return fault("engine", "missing; say how to run one replica".to_owned());
    };
    if spec.model.is_empty() || spec.model.len() > NAME_BYTES_MAX || !is_line(&spec.model) {
        let message = format!("must be one line of 1 to {NAME_BYTES_MAX} bytes");
        return fault("model.name", message);
    }
    match spec.kind.as_str() {
        "llama_cpp" if spec.model_file.is_empty() => {
            return fault("model.file", "missing; name the GGUF file below model_dir".to_owned());
        }
        "llama_cpp" => {}
        "vllm" | "sglang" if spec.model_file.is_empty() => {
            return fault(
                "model.file",
                "missing; name the model's folder below model_dir".to_owned(),
            );
        }
        "vllm" | "sglang" if spec.model_file_bytes != 0 => {
            return fault("model.file_bytes", "a folder has no length; remove it".to_owned());
        }
        "vllm" | "sglang" => {}
        "sim" if !spec.model_file.is_empty() => {
            return fault("model.file", "a simulated engine has no model; remove it".to_owned());
        }
        "sim" => {}
        other => {
            let message = format!("unknown kind `{other}`; use llama_cpp, vllm, sglang or sim");
            return fault("engine.kind", message);
        }
    }
    let ranges = [
        ("engine.replicas", deployment.replicas, 1, REPLICAS_MAX),
        ("engine.slots", spec.slots, 1, SLOTS_MAX),
        ("engine.context_length_tokens", spec.context_length_tokens, 1, CONTEXT_LENGTH_TOKENS_MAX),
        ("engine.threads", spec.threads, 0, THREADS_MAX),
        ("engine.startup_timeout_s", spec.startup_timeout_s, 1, TIMEOUT_S_MAX),
        ("engine.drain_timeout_s", spec.drain_timeout_s, 0, TIMEOUT_S_MAX),
    ];
    for (key, value, least, most) in ranges {
        if !(least..=most).contains(&value) {
            return fault(key, format!("{value} is out of range; use {least} to {most}"));
        }
    }
    if spec.env.len() > ENV_MAX || spec.env.iter().any(|word| !is_variable(word)) {
        let message = format!(
            "at most {ENV_MAX} of NAME=value, of at most {EXTRA_ARG_BYTES_MAX} bytes, without NUL"
        );
        return fault("engine.env", message);
    }
    let args = &spec.extra_args;
    if args.len() > EXTRA_ARGS_MAX || args.iter().any(|arg| !is_argument(arg)) {
        let message = format!(
            "at most {EXTRA_ARGS_MAX} arguments of at most {EXTRA_ARG_BYTES_MAX} bytes, without NUL"
        );
        return fault("engine.extra_args", message);
    }
    Ok(())
}

/// Whether `name` can name a deployment: parts of `a-z A-Z 0-9 . _ -` with `/` between, none of
/// them `.` or `..`.
pub fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX && name.split('/').all(is_name_part)
}

/// Whether `name` can name a node: one part of a name.
pub fn is_name_part(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !matches!(name, "" | "." | "..") && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain)
}

fn name_rule(name: &str) -> String {
    format!(
        "{name:?} cannot be a name; use at most {NAME_BYTES_MAX} of a-z A-Z 0-9 . _ - with / between parts"
    )
}

fn is_line(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn is_variable(word: &str) -> bool {
    let Some((name, _)) = word.split_once('=') else { return false };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && name.bytes().all(is_plain) && is_argument(word)
}

fn is_argument(arg: &str) -> bool {
    arg.len() <= EXTRA_ARG_BYTES_MAX && !arg.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EngineSpec;

    fn sim() -> Deployment {
        Deployment {
            name: "sim/sim/cpu".into(),
            replicas: 3,
            spec: Some(EngineSpec {
                model: "sim".into(),
                kind: "sim".into(),
                slots: 4,
                context_length_tokens: 2048,
                startup_timeout_s: 10,
                ..EngineSpec::default()
            }),
        }
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        for bad in ["", "/", "a//b", "../a", "a/..", "a/./b", "/a", "a/", "a b", "a\n", "ä"] {
            assert!(!is_name(bad), "{bad:?}");
        }
        for good in ["a", "smollm2-135m/llama-cpp/cpu", "A_b.c/1"] {
            assert!(is_name(good), "{good:?}");
        }
        assert!(!is_name_part("a/b"));
    }

    #[test]
    fn each_limit_names_its_key() {
        check(&sim()).unwrap();
        let key = |change: fn(&mut Deployment)| {
            let mut deployment = sim();
            change(&mut deployment);
            check(&deployment).unwrap_err().key
        };
        fn spec(deployment: &mut Deployment) -> &mut EngineSpec {
            deployment.spec.as_mut().unwrap()
        }
        assert_eq!(key(|d| d.name.clear()), "name");
        assert_eq!(key(|d| d.spec = None), "engine");
        assert_eq!(key(|d| d.replicas = 0), "engine.replicas");
        assert_eq!(key(|d| spec(d).model.clear()), "model.name");
        assert_eq!(key(|d| spec(d).kind = "vlm".into()), "engine.kind");
        assert_eq!(key(|d| spec(d).kind = "llama_cpp".into()), "model.file");
        assert_eq!(key(|d| spec(d).model_file = "x.gguf".into()), "model.file");
        assert_eq!(key(|d| spec(d).kind = "vllm".into()), "model.file");
        assert_eq!(
            key(|d| {
                let vllm =
                    EngineSpec { kind: "vllm".into(), model_file: "m".into(), ..spec(d).clone() };
                check(&Deployment { spec: Some(vllm.clone()), ..d.clone() }).unwrap();
                *spec(d) = EngineSpec { model_file_bytes: 1, ..vllm };
            }),
            "model.file_bytes"
        );
        assert_eq!(key(|d| spec(d).slots = 0), "engine.slots");
        assert_eq!(key(|d| spec(d).env = vec!["A B=c".into()]), "engine.env");
        assert_eq!(key(|d| spec(d).env = vec!["AB".into()]), "engine.env");
        assert_eq!(key(|d| spec(d).startup_timeout_s = 0), "engine.startup_timeout_s");
        assert_eq!(key(|d| spec(d).extra_args = vec!["\0".into()]), "engine.extra_args");
    }
}
