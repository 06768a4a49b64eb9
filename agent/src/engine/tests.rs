//! Golden command lines, and what is refused.

use super::*;

fn llama(extra_args: &[&str]) -> EngineSpec {
    EngineSpec {
        model: "smollm2-135m".into(),
        kind: "llama_cpp".into(),
        model_file: "m.gguf".into(),
        slots: 4,
        context_length_tokens: 2048,
        extra_args: extra_args.iter().map(ToString::to_string).collect(),
        ..EngineSpec::default()
    }
}

fn sim(extra_args: &[&str]) -> EngineSpec {
    EngineSpec { kind: "sim".into(), ..llama(extra_args) }
}

fn model() -> Model {
    Model { path: "/models/m.gguf".into(), kv_bytes_per_token: Some(23_040) }
}

#[test]
fn llama_cpp_gets_the_context_of_all_slots_together() {
    let rendering = render(&llama(&["--cache-ram", "512"]), Some(&model()), 18100).unwrap();
    assert_eq!(
        rendering.args.join(" "),
        "-m /models/m.gguf --alias smollm2-135m --host 127.0.0.1 --port 18100 -np 4 -c 8192 \
         --metrics --slots --cache-ram 512"
    );
    let spec = EngineSpec { threads: 3, context_length_tokens: 0, ..llama(&[]) };
    let args = render(&spec, Some(&model()), 1).unwrap().args.join(" ");
    assert!(args.ends_with("-np 4 --metrics --slots --threads 3"), "{args}");
}

#[test]
fn llama_cpp_serves_embeddings_or_text_but_not_both() {
    let of =
        |extra: &[&str]| render(&llama(extra), Some(&model()), 1).unwrap().expected.capabilities;
    assert_eq!(of(&[]), [Capability::Chat, Capability::Completions]);
    assert_eq!(of(&["--embeddings"]), [Capability::Embeddings]);
}

#[test]
fn llama_cpp_counts_slots_and_the_prompt_cache_in_host_memory() {
    let facts = Facts { slots: 4, context_length_tokens: 2048 };
    let tokens = |extra: &[&str], bytes| {
        let model = Model { kv_bytes_per_token: bytes, ..model() };
        render(&llama(extra), Some(&model), 1).unwrap().expected.kv_cache_tokens(facts)
    };
    assert_eq!(tokens(&["--cache-ram", "512"], Some(23_040)), 8192 + (512 << 20) / 23_040);
    assert_eq!(tokens(&["--cache-ram=0"], Some(23_040)), 8192);
    assert_eq!(tokens(&["-cram", "-1"], Some(23_040)), 8192);
    assert_eq!(tokens(&["--cache-ram", "512"], None), 8192);
    assert_eq!(tokens(&["--cache-ram", "512", "-ctk", "q8_0"], Some(23_040)), 8192);
    assert_eq!(tokens(&[], Some(23_040)), 8192 + (8192 << 20) / 23_040);
}

#[test]
fn sim_is_what_it_mimics() {
    let rendering =
        render(&sim(&["--mimic", "vllm", "--cache-blocks=10", "--block-tokens", "8"]), None, 7)
            .unwrap();
    assert_eq!(
        rendering.args.join(" "),
        "--listen 127.0.0.1:7 --model smollm2-135m --slots 4 --context-length 2048 \
         --mimic vllm --cache-blocks=10 --block-tokens 8"
    );
    assert_eq!(rendering.expected.kind, EngineKind::Vllm);
    let facts = Facts { slots: 4, context_length_tokens: 2048 };
    assert_eq!(rendering.expected.kv_cache_tokens(facts), 80);
    let other = render(&sim(&["--mimic", "llama_cpp", "--embeddings", "off"]), None, 7).unwrap();
    assert_eq!(other.expected.kind, EngineKind::LlamaCpp);
    assert!(!other.expected.capabilities.contains(&Capability::Embeddings));
}

#[test]
fn sim_refuses_flags_it_does_not_have_before_it_is_started() {
    for extra in [&["--mimic", "gpt"][..], &["--no-such"], &["--block-tokens", "0"], &["--help"]] {
        let error = render(&sim(extra), None, 7).unwrap_err();
        assert!(matches!(error, SpecError::Value { key: "extra_args", .. }), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn an_unknown_kind_names_the_known_ones() {
    let spec = EngineSpec { kind: "vllm".into(), ..llama(&[]) };
    assert_eq!(
        render(&spec, None, 1).unwrap_err().to_string(),
        "engine kind `vllm` is not known here (known: llama_cpp, sim): change kind in the recipe"
    );
}

#[test]
fn flags_of_the_agent_are_refused_in_extra_args() {
    for flag in ["--host", "--port=1", "-np", "--ctx-size", "-m"] {
        let said = render(&llama(&[flag, "1"]), Some(&model()), 1).unwrap_err().to_string();
        assert!(said.contains("is set by the agent"), "{said}");
    }
    assert!(render(&sim(&["--listen", "0.0.0.0:1"]), None, 1).is_err());
}

#[test]
fn specs_no_engine_can_run_are_refused() {
    for spec in [
        EngineSpec { slots: 0, ..sim(&[]) },
        EngineSpec { slots: SLOTS_MAX + 1, ..sim(&[]) },
        EngineSpec { context_length_tokens: u32::MAX, ..sim(&[]) },
        EngineSpec { model: String::new(), ..sim(&[]) },
        sim(&["--seed", "a\0b"]),
        EngineSpec { extra_args: vec!["x".into(); EXTRA_ARGS_MAX + 1], ..sim(&[]) },
    ] {
        assert!(matches!(render(&spec, None, 1), Err(SpecError::Value { .. })), "{spec:?}");
    }
    assert!(render(&llama(&[]), None, 1).is_err(), "llama.cpp needs a model file");
}
