//! What is for the operator alone.

use super::client::Client;
use super::engine::Engine;
use super::process::{Router, worker};
use super::tenants::{KeyFile, bearer, get, line, tenant};

#[test]
fn metrics_and_page_are_for_admins_and_health_is_for_everybody() {
    let keys = KeyFile::with(&[
        line("boss", "tenant=ops scopes=admin"),
        line("user", "tenant=ops"),
        // The key says admin, its tenant does not.
        line("half", "tenant=acme scopes=admin"),
    ]);
    let tenants = tenant("ops", "admin = true") + &tenant("acme", "");
    let router =
        Router::start(&keys.section("required = true"), &(worker(&Engine::ok(), 1) + &tenants));
    let mut admin = Client::connect(router.admin);
    for path in ["/metrics", "/status.json", "/"] {
        for (fields, status) in [
            (String::new(), 401),
            (bearer("nobody"), 401),
            (bearer("user"), 403),
            (bearer("half"), 403),
            (bearer("boss"), 200),
        ] {
            let answer = get(&mut admin, path, &fields);
            assert_eq!(answer.status, status, "{path} {fields}");
            if status != 200 {
                assert!(answer.error()["message"].is_string());
                assert!(!answer.text().contains("cgn_router_"));
            }
        }
    }
    let status = get(&mut admin, "/status.json", &bearer("boss"));
    assert!(serde_json::from_slice::<serde_json::Value>(&status.body).unwrap().is_object());
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(&mut admin, path, "").status, 200, "{path}");
    }
    // Where clients come in there is no page at all, and the same metrics for the same people.
    let mut client = router.client();
    for (path, fields, status) in [
        ("/status.json", bearer("boss"), 404),
        ("/", bearer("boss"), 404),
        ("/metrics", bearer("boss"), 200),
        ("/metrics", bearer("user"), 403),
        ("/metrics", String::new(), 401),
        ("/healthz", String::new(), 200),
    ] {
        assert_eq!(get(&mut client, path, &fields).status, status, "{path} {fields}");
    }
    // An admin's key is for that alone.
    let body = super::client::chat("x");
    assert_eq!(client.post(super::tenants::CHAT, &bearer("boss"), &body).status, 403);
}
