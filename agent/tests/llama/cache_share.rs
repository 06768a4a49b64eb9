use std::net::SocketAddr;
use std::time::Instant;
use crate::conversation::hold;
use crate::smollm2::{self, Size, down, up};

#[test]
fn share() {
    let Some(parts) = smollm2::find() else { return };
    let house = parts.house();
    let seeds: Vec<u64> = std::env::var("SEEDS").unwrap_or("7".into()).split(',').map(|s| s.parse().unwrap()).collect();
    let ram: u32 = std::env::var("RAM").unwrap_or("512".into()).parse().unwrap();
    let slots: u32 = std::env::var("SLOTS").unwrap_or("4".into()).parse().unwrap();
    for seed in seeds {
    let two = Size { replicas: 2, slots, cache_ram_mib: ram };
    let t = Instant::now();
    up(&house, two);
    let ours = hold(seed, |_| house.http());
    println!("ours {:?} {:.4} {:?}", ours, ours.value(), t.elapsed());
    down(&house);
    let t = Instant::now();
    let engines: Vec<SocketAddr> = up(&house, two).iter().map(|e| e.url.strip_prefix("http://").unwrap().parse().unwrap()).collect();
    let rr = hold(seed, |request| engines[request % 2]);
    println!("rr {:?} {:.4} {:?}", rr, rr.value(), t.elapsed());
    down(&house);
    let t = Instant::now();
    up(&house, Size { replicas: 1, slots: 2*slots, cache_ram_mib: 2*ram });
    let one = hold(seed, |_| house.http());
    println!("one {:?} {:.4} {:?}", one, one.value(), t.elapsed());
    down(&house);
    println!("seed {seed} RATIO {:.3} of one {:.3}", ours.value()/rr.value(), ours.value()/one.value());
    }
}
