//! API keys: who is let in, what for, and what of it an engine ever sees.

use super::client::chat;
use super::engine::Engine;
use super::process::{Router, worker};
use super::tenants::{CHAT, KeyFile, bearer, get, line, post, sha256_hex, tenant, until};

#[test]
fn a_key_is_asked_for_and_only_a_good_one_lets_in() {
    let keys = KeyFile::with(&[
        line("good", "tenant=acme id=laptop"),
        line("old", "tenant=acme expires=1000000000"),
    ]);
    let engine = Engine::ok();
    let router = Router::start(
        &keys.section("required = true"),
        &(worker(&engine, 4) + &tenant("acme", "")),
    );
    let hash = sha256_hex("good");
    let wrong = [
        String::new(),
        bearer("unknown"),
        bearer("old"),
        bearer(&hash),
        bearer("GOOD"),
        "Authorization: Basic Z29vZA==\r\n".to_owned(),
        "Authorization: good\r\n".to_owned(),
        "X-Api-Key: unknown\r\n".to_owned(),
        // The first of two decides: a good one cannot be smuggled in behind it.
        bearer("unknown") + "X-Api-Key: good\r\n",
    ];
    for fields in &wrong {
        let answer = post(&router, fields, &chat("x"));
        let error = answer.error();
        assert_eq!(answer.status, 401, "{fields}: {}", answer.text());
        assert_eq!(error["type"], "authentication_error");
        assert_eq!(error["code"], "invalid_api_key");
        assert!(error["message"].as_str().unwrap().len() > 10 && error["param"].is_null());
        assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"cognitora\""));
        assert!(!answer.text().contains("unknown\""), "the key is repeated: {}", answer.text());
    }
    assert!(engine.asked().is_empty());
    for fields in
        [bearer("good"), "x-api-key: good\r\n".into(), "authorization: bearer  good\r\n".into()]
    {
        assert_eq!(post(&router, &fields, &chat("x")).status, 200, "{fields}");
    }
    assert_eq!(engine.asked().len(), 3);
}

#[test]
fn a_key_is_good_for_its_scopes_and_no_more() {
    let keys = KeyFile::with(&[
        line("embed", "tenant=acme scopes=embeddings"),
        line("all", "tenant=acme"),
        line("no-chat", "tenant=vectors"),
    ]);
    let engine = Engine::ok();
    let tenants = tenant("acme", "") + &tenant("vectors", "endpoints = [\"embeddings\"]");
    let router = Router::start(&keys.section("required = true"), &(worker(&engine, 4) + &tenants));
    let mut client = router.client();
    let embeddings = r#"{"model":"m","input":"x"}"#;
    let completions = r#"{"model":"m","prompt":"x"}"#;
    for (key, path, body, status) in [
        ("embed", "/v1/embeddings", embeddings, 200),
        ("embed", CHAT, &chat("x"), 403),
        ("embed", "/v1/completions", completions, 403),
        ("all", CHAT, &chat("x"), 200),
        ("all", "/v1/completions", completions, 200),
        ("no-chat", CHAT, &chat("x"), 403),
        ("no-chat", "/v1/embeddings", embeddings, 200),
    ] {
        let answer = client.post(path, &bearer(key), body);
        assert_eq!(answer.status, status, "{key} {path}: {}", answer.text());
        if status == 403 {
            let error = answer.error();
            assert_eq!(
                (&error["type"], &error["code"]),
                (&"permission_error".into(), &"insufficient_permissions".into())
            );
        }
    }
    assert_eq!(engine.asked().len(), 4);
    assert_eq!(get(&mut client, "/v1/models", &bearer("embed")).status, 403);
    assert_eq!(get(&mut client, "/v1/models", &bearer("all")).status, 200);
    assert_eq!(get(&mut client, "/v1/models", "").status, 401);
    assert_eq!(get(&mut client, "/healthz", "").status, 200);
}

#[test]
fn models_of_others_do_not_exist() {
    let keys = KeyFile::with(&[
        line("one", "tenant=one"),
        line("two", "tenant=two"),
        line("all", "tenant=all"),
    ]);
    let engines = [Engine::ok(), Engine::ok(), Engine::ok()];
    let names = ["m", "team-a", "team-b"];
    let workers: String = engines
        .iter()
        .zip(names)
        .map(|(engine, name)| {
            worker(engine, 4).replace("model = \"m\"", &format!("model = \"{name}\""))
        })
        .collect();
    let tenants = tenant("one", "models = [\"m\"]")
        + &tenant("two", "models = [\"team-*\"]")
        + &tenant("all", "");
    let router = Router::start(&keys.section("required = true"), &(workers + &tenants));
    let mut client = router.client();
    for (key, sees) in [("one", &["m"][..]), ("two", &["team-a", "team-b"]), ("all", &names)] {
        let list = get(&mut client, "/v1/models", &bearer(key));
        let list: serde_json::Value = serde_json::from_slice(&list.body).unwrap();
        let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
        assert_eq!(ids, *sees, "{key}");
        for name in names {
            let status = if sees.contains(&name) { 200 } else { 404 };
            let model = get(&mut client, &format!("/v1/models/{name}"), &bearer(key));
            assert_eq!(model.status, status, "{key} {name}");
            let body = chat("x").replace("\"m\"", &format!("\"{name}\""));
            let answer = client.post(CHAT, &bearer(key), &body);
            assert_eq!(answer.status, status, "{key} {name}");
        }
    }
    // Nothing tells a model of others from one that nobody has.
    let refused = |client: &mut super::client::Client, name: &str| {
        let body = chat("x").replace("\"m\"", &format!("\"{name}\""));
        let answer = client.post(CHAT, &bearer("one"), &body);
        assert_eq!(answer.error()["code"], "model_not_found");
        answer.text().replace(name, "")
    };
    assert_eq!(refused(&mut client, "team-a"), refused(&mut client, "nobody-has-it"));
    assert_eq!(engines.iter().map(|engine| engine.asked().len()).sum::<usize>(), 6);
}

#[test]
fn a_changed_key_file_is_in_force_without_a_restart() {
    let keys = KeyFile::with(&[line("first", "tenant=acme")]);
    let engine = Engine::ok();
    let router = Router::start(
        &keys.section("required = true\nreload_s = 1"),
        &(worker(&engine, 4) + &tenant("acme", "")),
    );
    let mut client = router.client();
    let mut status = |key: &str| client.post(CHAT, &bearer(key), &chat("x")).status;
    assert_eq!((status("first"), status("second")), (200, 401));
    keys.write(&line("second", "tenant=acme"));
    until("the new key is known", || status("second") == 200);
    assert_eq!(status("first"), 401, "withdrawn, on a connection that stood");
    // A file that is broken, or names a tenant that is not there, changes nothing.
    for bad in ["nonsense\n".to_owned(), line("third", "tenant=nobody")] {
        keys.write(&bad);
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        assert_eq!((status("second"), status("third")), (200, 401));
    }
}

#[test]
fn what_a_client_says_of_itself_reaches_no_engine_and_changes_nothing() {
    let keys = KeyFile::with(&[line("key-a", "tenant=a")]);
    let engine = Engine::ok();
    let tenants = tenant("a", "requests_per_minute = 2") + &tenant("b", "");
    let router = Router::start(&keys.section("required = true"), &(worker(&engine, 4) + &tenants));
    // Limits of a tenant cannot be left by claiming another address or another name.
    let claims = |i: usize| {
        format!(
            "{}X-Forwarded-For: 10.0.0.{i}\r\nForwarded: for=10.0.0.{i}\r\nX-Real-IP: 127.0.0.{i}\r\n\
             x-cgn-tenant: b\r\nX-CGN-Subject: admin\r\nx-cgn-scopes: admin\r\nX-Api-Key: key-b\r\n",
            bearer("key-a")
        )
    };
    let statuses: Vec<u16> = (0..4).map(|i| post(&router, &claims(i), &chat("x")).status).collect();
    assert_eq!(statuses, [200, 200, 429, 429]);
    for asked in engine.asked() {
        let head = asked.head.to_ascii_lowercase();
        for name in ["x-cgn-", "authorization", "x-api-key"] {
            assert!(!head.contains(name), "{head}");
        }
        assert!(!head.contains("key-a"), "{head}");
        assert!(asked.field("x-forwarded-for").is_some(), "others pass");
    }
    // Nor does a claim to be here let anybody in.
    let here = "X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: ::1\r\nx-cgn-tenant: local\r\n";
    assert_eq!(post(&router, here, &chat("x")).status, 401);
}

#[test]
fn without_identity_the_clients_authorization_is_the_engines_business() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 4));
    let fields = bearer("for-the-engine") + "X-Api-Key: too\r\nx-cgn-tenant: forged\r\n";
    assert_eq!(post(&router, &fields, &chat("x")).status, 200);
    let asked = &engine.asked()[0];
    assert_eq!(asked.field("authorization"), Some("Bearer for-the-engine"));
    assert_eq!((asked.field("x-api-key"), asked.field("x-cgn-tenant")), (Some("too"), None));
}
