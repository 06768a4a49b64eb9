//! Golden command lines, and what is refused.

use super::*;

fn place(port: u16) -> Place<'static> {
    Place { port, socket_dir: Path::new("/var/lib/cognitora/agent/run"), slot_dir: None }
}

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
    let rendering = render(&llama(&["--cache-ram", "512"]), Some(&model()), &place(18100)).unwrap();
    assert_eq!(
        rendering.args.join(" "),
        "-m /models/m.gguf --alias smollm2-135m --host 127.0.0.1 --port 18100 -np 4 -c 8192 \
         --metrics --slots --cache-ram 512"
    );
    let spec = EngineSpec { threads: 3, context_length_tokens: 0, ..llama(&[]) };
    let args = render(&spec, Some(&model()), &place(1)).unwrap().args.join(" ");
    assert!(args.ends_with("-np 4 --metrics --slots --threads 3"), "{args}");
}

#[test]
fn llama_cpp_gets_a_folder_for_its_slots_where_they_can_be_kept() {
    let folder = Path::new("/run/slots/1");
    let of = |extra: &[&str]| {
        let place = Place { slot_dir: Some(folder), ..place(1) };
        let rendering = render(&llama(extra), Some(&model()), &place).unwrap();
        (rendering.args.join(" "), rendering.slot_layout)
    };
    let (args, layout) = of(&[]);
    assert!(args.ends_with("--slots --slot-save-path /run/slots/1"), "{args}");
    assert_eq!(layout.as_deref(), Some("-np 4"));
    for unfit in [&["--lora", "a.gguf"][..], &["--slot-save-path", "/own"], &["--embeddings"]] {
        let (args, layout) = of(unfit);
        assert!(!args.contains("/run/slots"), "{args}");
        assert_eq!(layout, None);
    }
    assert_eq!(render(&llama(&[]), Some(&model()), &place(1)).unwrap().slot_layout, None);
}

#[test]
fn llama_cpp_serves_embeddings_or_text_but_not_both() {
    let of = |extra: &[&str]| {
        render(&llama(extra), Some(&model()), &place(1)).unwrap().expected.capabilities
    };
    assert_eq!(of(&[]), [Capability::Chat, Capability::Completions]);
    assert_eq!(of(&["--embeddings"]), [Capability::Embeddings]);
}

#[test]
fn llama_cpp_counts_slots_and_the_prompt_cache_in_host_memory() {
    let facts = Facts { slots: 4, context_length_tokens: 2048, kv_cache_tokens: 0 };
    let tokens = |extra: &[&str], bytes| {
        let model = Model { kv_bytes_per_token: bytes, ..model() };
        render(&llama(extra), Some(&model), &place(1)).unwrap().expected.kv_cache_tokens(facts)
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
    let rendering = render(
        &sim(&["--mimic", "vllm", "--cache-blocks=10", "--block-tokens", "8"]),
        None,
        &place(7),
    )
    .unwrap();
    assert_eq!(
        rendering.args.join(" "),
        "--listen 127.0.0.1:7 --model smollm2-135m --slots 4 --context-length 2048 \
         --mimic vllm --cache-blocks=10 --block-tokens 8 \
         --kv-events-endpoint ipc:///var/lib/cognitora/agent/run/7.kv \
         --kv-events-replay-endpoint ipc:///var/lib/cognitora/agent/run/7.kvr \
         --kv-events-topic kv"
    );
    assert_eq!(rendering.expected.kind, EngineKind::Vllm);
    let events = rendering.events.unwrap();
    assert_eq!(events.live, "ipc:///var/lib/cognitora/agent/run/7.kv");
    assert_eq!(events.topic, "kv");
    let facts = Facts { slots: 4, context_length_tokens: 2048, kv_cache_tokens: 0 };
    assert_eq!(rendering.expected.kv_cache_tokens(facts), 80);
    let other =
        render(&sim(&["--mimic", "llama_cpp", "--embeddings", "off"]), None, &place(7)).unwrap();
    assert_eq!(other.expected.kind, EngineKind::LlamaCpp);
    assert!(!other.expected.capabilities.contains(&Capability::Embeddings));
    assert_eq!(other.events, None, "llama.cpp has none");
}

#[test]
fn a_recipe_may_say_where_sim_publishes() {
    let spec = sim(&["--kv-events-endpoint", "tcp://127.0.0.1:5557", "--kv-events-topic=t"]);
    let rendering = render(&spec, None, &place(7)).unwrap();
    assert!(!rendering.args.iter().any(|word| word.starts_with("ipc://")));
    let events = rendering.events.unwrap();
    assert_eq!((events.live.as_str(), events.replay), ("tcp://127.0.0.1:5557", None));
    assert_eq!(events.topic, "t");
}

#[test]
fn data_parallel_ranks_are_read_off_the_command_line() {
    let ranks = |words: &[&str]| {
        data_parallel_ranks(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(ranks(&["serve"]), 1);
    assert_eq!(ranks(&["--dp-size", "4"]), 4);
    assert_eq!(ranks(&["--data-parallel-size=2"]), 2);
    assert_eq!(ranks(&["--dp", "many"]), 1);
}

#[test]
fn sim_refuses_flags_it_does_not_have_before_it_is_started() {
    for extra in [&["--mimic", "gpt"][..], &["--no-such"], &["--block-tokens", "0"], &["--help"]] {
        let error = render(&sim(extra), None, &place(7)).unwrap_err();
        assert!(matches!(error, SpecError::Value { key: "extra_args", .. }), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

fn folder() -> Model {
    Model { path: "/models/tiny".into(), kv_bytes_per_token: None }
}

fn vllm(extra_args: &[&str]) -> EngineSpec {
    EngineSpec { kind: "vllm".into(), model_file: "tiny".into(), ..llama(extra_args) }
}

fn variables(rendering: &Rendering) -> String {
    let words: Vec<String> =
        rendering.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    words.join(" ")
}

#[test]
fn vllm_caches_prefixes_and_publishes_what_it_caches() {
    let spec = EngineSpec {
        threads: 2,
        env: vec!["VLLM_CPU_KVCACHE_SPACE=1".into()],
        ..vllm(&["--block-size", "32"])
    };
    let rendering = render(&spec, Some(&folder()), &place(18100)).unwrap();
    assert_eq!(
        rendering.args.join(" "),
        "serve /models/tiny --served-model-name smollm2-135m --host 127.0.0.1 --port 18100 \
         --max-num-seqs 4 --max-model-len 2048 --enable-prefix-caching \
         --prefix-caching-hash-algo sha256_cbor --enable-prompt-tokens-details --disable-uvicorn-access-log --kv-events-config \
         {\"enable_kv_cache_events\":true,\"endpoint\":\"ipc:///var/lib/cognitora/agent/run/18100.kv\",\
         \"publisher\":\"zmq\",\"replay_endpoint\":\"ipc:///var/lib/cognitora/agent/run/18100.kvr\",\
         \"topic\":\"kv\"} --block-size 32"
    );
    assert_eq!(
        variables(&rendering),
        "HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 DO_NOT_TRACK=1 PYTHONHASHSEED=0 \
         VLLM_NO_USAGE_STATS=1 OMP_NUM_THREADS=2 VLLM_CPU_KVCACHE_SPACE=1"
    );
    assert_eq!(rendering.env_prefix_removed, Some("VLLM_"));
    let events = rendering.events.unwrap();
    assert_eq!(events.live, "ipc:///var/lib/cognitora/agent/run/18100.kv");
    assert_eq!(events.replay.unwrap(), "ipc:///var/lib/cognitora/agent/run/18100.kvr");
    assert_eq!((events.topic.as_str(), events.dialect), ("kv", events::Dialect::Vllm));
    let expected = rendering.expected;
    assert_eq!(expected.model_files.as_deref(), Some("/models/tiny"));
    assert_eq!(expected.capabilities, [Capability::Chat, Capability::Completions]);
    let facts = Facts { slots: 4, context_length_tokens: 2048, kv_cache_tokens: 2560 };
    assert_eq!(expected.kv_cache_tokens(facts), 2560);
    let pooling = render(&vllm(&["--runner=pooling"]), Some(&folder()), &place(1)).unwrap();
    assert_eq!(pooling.expected.capabilities, [Capability::Embeddings]);
}

#[test]
fn sglang_gets_pages_of_more_than_a_token() {
    let spec = |extra: &[&str]| EngineSpec { kind: "sglang".into(), ..vllm(extra) };
    let rendering = render(&spec(&[]), Some(&folder()), &place(7)).unwrap();
    assert_eq!(
        rendering.args.join(" "),
        "serve --model-path /models/tiny --served-model-name smollm2-135m --host 127.0.0.1 --port 7 \
         --max-running-requests 4 --context-length 2048 --enable-metrics --enable-cache-report \
         --page-size 16 --kv-events-config \
         {\"endpoint\":\"ipc:///var/lib/cognitora/agent/run/7.kv\",\"publisher\":\"zmq\",\
         \"replay_endpoint\":\"ipc:///var/lib/cognitora/agent/run/7.kvr\",\"topic\":\"kv\"}"
    );
    assert!(variables(&rendering).ends_with("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION=false"));
    assert_eq!(rendering.events.unwrap().dialect, events::Dialect::Sglang);
    let args = render(&spec(&["--page-size=64"]), Some(&folder()), &place(7)).unwrap().args;
    assert_eq!(args.iter().filter(|word| word.starts_with("--page-size")).count(), 1);
}

#[test]
fn a_socket_whose_path_is_too_long_or_relative_is_refused_before_the_engine_is_started() {
    let at = |socket_dir: &str| {
        let place = Place { port: 18100, socket_dir: Path::new(socket_dir), slot_dir: None };
        render(&vllm(&[]), Some(&folder()), &place).map(|rendering| rendering.args)
    };
    // "/18100.kvr" is ten bytes.
    let longest = format!("/{}", "a".repeat(events::SOCKET_PATH_BYTES_MAX - 11));
    assert!(at(&longest).is_ok());
    for socket_dir in [format!("{longest}a").as_str(), "run"] {
        let error = at(socket_dir).unwrap_err();
        assert!(matches!(error, SpecError::SocketPath { .. }), "{error}");
        assert!(error.to_string().contains("state_dir"), "{error}");
    }
}

#[test]
fn variables_of_the_agent_and_what_is_none_are_refused() {
    let refused = |word: &str| {
        let spec = EngineSpec { env: vec![word.into()], ..vllm(&[]) };
        render(&spec, Some(&folder()), &place(1)).unwrap_err()
    };
    for word in ["PYTHONHASHSEED=1", "HF_HUB_OFFLINE=0"] {
        assert!(matches!(refused(word), SpecError::OwnedVariable { .. }), "{word}");
    }
    for word in ["A", "=1", "A B=1", "A=\0"] {
        assert!(matches!(refused(word), SpecError::Value { key: "env", .. }), "{word}");
    }
    let spec = EngineSpec { env: vec!["LD_X=a=b".into()], ..llama(&[]) };
    let env = render(&spec, Some(&model()), &place(1)).unwrap().env;
    assert_eq!(env, [("LD_X".to_owned(), "a=b".to_owned())]);
}

#[test]
fn an_unknown_kind_names_the_known_ones() {
    let spec = EngineSpec { kind: "trt".into(), ..llama(&[]) };
    assert_eq!(
        render(&spec, None, &place(1)).unwrap_err().to_string(),
        "engine kind `trt` is not known here (known: llama_cpp, vllm, sglang, sim): change kind in the recipe"
    );
}

#[test]
fn flags_of_the_agent_are_refused_in_extra_args() {
    for flag in ["--host", "--port=1", "-np", "--ctx-size", "-m"] {
        let said = render(&llama(&[flag, "1"]), Some(&model()), &place(1)).unwrap_err().to_string();
        assert!(said.contains("is set by the agent"), "{said}");
    }
    assert!(render(&sim(&["--listen", "0.0.0.0:1"]), None, &place(1)).is_err());
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
        assert!(matches!(render(&spec, None, &place(1)), Err(SpecError::Value { .. })), "{spec:?}");
    }
    assert!(render(&llama(&[]), None, &place(1)).is_err(), "llama.cpp needs a model file");
    assert!(render(&vllm(&[]), None, &place(1)).is_err(), "vLLM needs a model's folder");
    for flag in ["--port=1", "--max-model-len", "-dp", "--kv-events-config"] {
        let said = render(&vllm(&[flag, "1"]), Some(&folder()), &place(1)).unwrap_err().to_string();
        assert!(said.contains("is set by the agent"), "{said}");
    }
}
