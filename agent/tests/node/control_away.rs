//! Control killed and started again while requests go on.

use crate::load::Load;
use crate::process::eventually;
use crate::recipe::{FAST, NAME, text, up};

#[test]
fn requests_and_engines_outlive_control_and_it_goes_on_where_it_was() {
    let (mut house, engines) = up(2, 4, FAST);
    let load = Load::start(house.http(), 4, 10);
    house.control.as_mut().unwrap().crash();
    house.control = None;
    let before = load.so_far().whole_sum();
    eventually("requests go on", || load.so_far().whole_sum() >= before + 200);

    house.start_control();
    eventually("the node is back", || {
        let nodes = house.ctl(&["cluster", "nodes"]);
        nodes["nodes"][0]["attached"] == true && nodes["nodes"][0]["engines_ready"] == 2
    });
    assert_eq!(house.engines(), engines, "the same processes");
    let again = house.ctl(&["recipe", "up", NAME]);
    assert_eq!(again["already_up"], true);

    // What is desired now reaches the router again.
    house.recipe(NAME, &text(3, 4, FAST));
    house.ctl(&["recipe", "up", NAME]);
    eventually("the third worker answers", || load.so_far().whole.len() == 3);
    let seen = load.end();
    assert!(seen.lost.is_empty() && seen.broken_off == 0, "{seen:#?}");
    let now = house.engines();
    assert!(engines.iter().all(|engine| now.contains(engine)), "nobody was restarted: {now:#?}");
}
