//! Weights of the routing decision for all routers: set, published, kept, reset; and made-up ones refused.

use std::time::Duration;

use control::api::{self, GetRouteWeightsRequest, SetRouteWeightsRequest};
use dataplane::wire::ScoreWeights;
use serde_json::json;
use tonic::Code;

use crate::house::House;
use crate::plane::Plane;

const TYPED: &str = "kv=0.7,load=0.2,power=0.05,capacity=0.05";

fn weights() -> ScoreWeights {
    TYPED.parse().unwrap()
}

#[tokio::test]
async fn weights_reach_every_router_outlive_control_and_are_reset() {
    let mut house = House::start("").await;
    let shown = house.cgnctl(&["--output", "json", "route", "weights"]).await.json();
    assert_eq!(shown, json!({ "from": "configuration", "weights": null }));
    let mut routers =
        [Plane::dial(&house, "cgn-router").await, Plane::dial(&house, "cgn-router").await];
    for router in &mut routers {
        assert_eq!(router.see(|_| true).await.weights, None);
    }
    let set = house.cgnctl(&["--output", "json", "route", "weights", "--set", TYPED]).await.json();
    assert_eq!(set["from"], "control");
    assert_eq!(set["weights"], json!({ "kv": 0.7, "load": 0.2, "power": 0.05, "capacity": 0.05 }));
    for router in &mut routers {
        router.see(|snapshot| snapshot.weights == Some(weights())).await;
    }
    // The same again is no news.
    assert_eq!(house.cgnctl(&["route", "weights", "--set", TYPED]).await.code, 0);
    for router in &mut routers {
        assert!(router.hears_nothing(Duration::from_millis(200)).await);
    }

    house.crash_control().await;
    house.start_control().await;
    let mut router = Plane::dial(&house, "cgn-router").await;
    router.see(|snapshot| snapshot.weights == Some(weights())).await;
    let shown = house.cgnctl(&["route", "weights"]).await;
    assert_eq!(shown.stdout.trim(), format!("all routers: {TYPED}"));

    let reset = house.cgnctl(&["--output", "json", "route", "weights", "--reset"]).await.json();
    assert_eq!(reset, json!({ "from": "configuration", "weights": null }));
    router.see(|snapshot| snapshot.weights.is_none()).await;
}

#[tokio::test]
async fn weights_that_are_none_are_refused_and_change_nothing() {
    let house = House::start("").await;
    for bad in ["0.5", "kv=1,load=1,power=0,capacity=0", "kv=1"] {
        let ran = house.cgnctl(&["route", "weights", "--set", bad]).await;
        assert!(ran.code == 2 && ran.stderr.contains("kv=0.55,load=0.25"), "{ran:?}");
    }
    assert_eq!(house.cgnctl(&["route", "weights", "--set", TYPED, "--reset"]).await.code, 2);
    let mut client = house.client().await;
    for (kv, load) in [(1.0, 1.0), (f64::NAN, 1.0), (2.0, -1.0), (f64::INFINITY, 0.0)] {
        let weights = Some(api::ScoreWeights { kv, load, power: 0.0, capacity: 0.0 });
        let refused = client.set_route_weights(SetRouteWeightsRequest { weights }).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    }
    let now = client.get_route_weights(GetRouteWeightsRequest {}).await.unwrap().into_inner();
    assert_eq!(now.weights, None);
}
