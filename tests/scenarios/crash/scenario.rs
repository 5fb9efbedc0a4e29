//! The program is killed at any moment, or its record is lost: the next apply takes over what is there and makes nothing twice.

use std::fs;
use std::time::{Duration, Instant};

use crate::scenarios::world::World;

#[track_caller]
fn assert_whole(world: &World) {
    world.assert_converged();
    assert_eq!(world.box_count(), 6, "six sandboxes, none twice");
    for number in 1..=6 {
        let name = format!("box-{number}");
        assert_eq!(world.sh(&name, "cat /root/number"), number.to_string());
        world.process(&name, "sleep 700001");
    }
}

#[test]
fn killed_while_it_applies() {
    let world = World::scenario("crash");
    // Later and later: before the store is there, among creations, among steps inside. A run that ends first ends the series.
    for attempt in 1_u32..=40 {
        let mut apply = world.start(&["apply", "--yes"]);
        let deadline = Instant::now() + Duration::from_millis(20) * attempt;
        let ended = loop {
            if apply.child.try_wait().unwrap().is_some() {
                break true;
            }
            if Instant::now() > deadline {
                apply.child.kill().unwrap();
                break false;
            }
            std::thread::yield_now();
        };
        let run = world.finish(apply);
        if ended {
            run.ends(0);
            break;
        }
        assert_eq!(run.code, 137);
        assert!(world.box_count() <= 6, "{} sandboxes after {attempt} kills", world.box_count());
    }
    world.apply();
    assert_whole(&world);
    for number in 1..=6 {
        let ran = world.sh(&format!("box-{number}"), "cat /root/ran");
        assert!(ran.lines().all(|line| line == "ran"), "{ran}");
    }

    // and while it destroys
    for attempt in 1_u32..=40 {
        let mut destroy = world.start(&["destroy", "--yes"]);
        let deadline = Instant::now() + Duration::from_millis(20) * attempt;
        while destroy.child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let _ = destroy.child.kill();
        if world.finish(destroy).code == 0 {
            break;
        }
    }
    world.destroy_and_see_nothing_left(&[]);
}

#[test]
fn the_record_is_lost() {
    let world = World::scenario("crash");
    world.apply();
    let before: Vec<_> =
        (1..=6).map(|number| world.process(&format!("box-{number}"), "sleep 700001")).collect();
    world.sh("box-1", "echo kept > /data/file");

    fs::remove_dir_all(world.home().join("state")).unwrap();
    world.apply();
    assert_whole(&world);
    let after: Vec<_> =
        (1..=6).map(|number| world.process(&format!("box-{number}"), "sleep 700001")).collect();
    assert_eq!(before, after, "what ran was taken over and left alone");
    assert_eq!(world.sh("box-6", "cat /data/file"), "kept");
    world.destroy_and_see_nothing_left(&[]);
}
