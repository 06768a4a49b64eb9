//! Configurations that cannot be meant: refused before anything starts, with the file and the key.

use std::process::Command;

use super::tenants::{line, tenant};

const WORKER: &str =
    "[[workers]]\nurl = \"http://127.0.0.1:9\"\nmodel = \"m\"\nkind = \"openai_compat\"\n";

/// Exit code and what was said.
fn check(text: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.toml");
    std::fs::write(&path, text).unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_cgn-router"))
        .arg("--config")
        .arg(&path)
        .arg("--check")
        .output()
        .unwrap();
    (command.status.code(), String::from_utf8(command.stderr).unwrap())
}

#[track_caller]
fn refused(text: &str, says: &[&str]) {
    let (code, said) = check(&format!("{text}\n{WORKER}"));
    assert_eq!(code, Some(2), "{text}\n{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in ["router.toml"].iter().chain(says) {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn a_good_file_is_good() {
    let text = format!("[router]\n[router.identity]\n{}{WORKER}", tenant("acme", ""));
    assert_eq!(check(&text), (Some(0), String::new()));
}

#[test]
fn identity_that_lets_nobody_in_is_refused() {
    refused("[router.identity]\nrequired = true", &["router.identity.required", "api_keys_file"]);
    // An authority for clients means nothing without TLS.
    refused(
        "[router.tls]\nclient_ca_file = \"/ca.pem\"\n[router.identity]\nrequired = true",
        &["router.tls"],
    );
    refused("[router.identity]\nreload_s = 0", &["router.identity", "reload_s"]);
    let jwt = "[router.identity.jwt]\naudience = \"a\"\njwks_url = \"https://i/keys\"\n";
    refused(jwt, &["identity.jwt", "issuer"]);
    let jwt = |more: &str| format!("{jwt}issuer = \"i\"\n{more}");
    refused(&jwt("algorithms = [\"HS256\"]"), &["HS256"]);
    refused(&jwt("algorithms = [\"none\"]"), &["none"]);
    refused(&jwt("").replace("https://", "http://"), &["jwks_url"]);
}

#[test]
fn beyond_loopback_only_with_tls_and_identity() {
    let listen = "[router]\nlisten_http = \"0.0.0.0:8080\"\n";
    let tls = "[router.tls]\ncert_file = \"/c.pem\"\nkey_file = \"/k.pem\"\n";
    let identity = "[router.identity]\nrequired = true\napi_keys_file = \"/keys\"\n";
    refused(listen, &["router.listen_http", "loopback"]);
    refused(&format!("{listen}{tls}"), &["router.listen_http"]);
    refused(&format!("{listen}{identity}"), &["router.listen_http"]);
    // Certificates cannot be required of clients without saying whose count.
    refused(&format!("{listen}{tls}client_cert_required = true\n"), &["client_ca_file"]);
    refused("[router]\nlisten_admin = \"0.0.0.0:9091\"", &["router.listen_admin", "loopback"]);
    let (code, said) = check(&format!("{listen}{tls}{identity}{WORKER}"));
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn tls_by_halves_is_refused() {
    refused("[router.tls]\ncert_file = \"/c.pem\"", &["router.tls", "key_file"]);
    refused("[router.tls]\nkey_file = \"/k.pem\"", &["router.tls", "cert_file"]);
}

#[test]
fn tenants_that_cannot_be_are_refused() {
    for (text, says) in [
        (tenant("", ""), "name"),
        (tenant("a b", ""), "a b"),
        (tenant("a", "") + &tenant("a", ""), "twice"),
        (tenant("a", "weight = 0"), "weight"),
        (tenant("a", "weight = 1001"), "weight"),
        (tenant("a", "priority = -1.0"), "priority"),
        (tenant("a", "models = [\"*x\"]"), "'*'"),
        (tenant("a", "endpoints = [\"chats\"]"), "chats"),
        (tenant("a", "default = true") + &tenant("b", "default = true"), "default"),
        (
            tenant("a", "certificates = [\"x\"]") + &tenant("b", "certificates = [\"x\"]"),
            "certificates",
        ),
    ] {
        refused(&text, &["tenants", says]);
    }
    refused(&tenant("a", "requests_per_minut = 1"), &["requests_per_minut", "nearest"]);
    refused("[router.trace]\notlp_url = \"ftp://x\"", &["router.trace.otlp_url"]);
    refused("[router.access_log]\nsample_ratio = 2.0", &["router.access_log.sample_ratio"]);
    refused("[router.queue]\nage_doubles_ms = 0", &["router.queue.age_doubles_ms"]);
}

#[test]
fn a_key_file_of_which_a_line_is_wrong_keeps_the_router_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    for (text, says) in [
        (line("k", "tenant=nobody"), "keys:1"),
        ("not a hash\n".to_owned(), "keys:1"),
        (line("k", "tenant=acme") + &line("k", "tenant=acme"), "keys:2"),
        (line("k", "tenant=acme scopes=root"), "root"),
    ] {
        std::fs::write(&path, text).unwrap();
        let output = super::process::run(&format!(
            "[router]\nlisten_http = \"127.0.0.1:0\"\nlisten_admin = \"127.0.0.1:0\"\n{}{}{WORKER}",
            super::tenants::section(&path, ""),
            tenant("acme", "")
        ));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(says), "{says} is not in: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
