//! What was declared is in place inside: environment, files, presets and volumes, to the byte and the mode.

use crate::scenarios::world::World;

#[test]
fn contents() {
    let world = World::scenario("contents");
    world.apply();
    world.assert_converged();

    // environment: the file, over it the manifest, every byte of it
    assert_eq!(
        world.sh("box", "echo \"$FROM_FILE $COLOUR $WEIRD\"; pwd"),
        "yes green a'b\"c $HOME `x` \\ é\n/srv"
    );
    // files: modes, templates, directories with links and names of any language
    assert_eq!(
        world.sh(
            "box",
            "cat plain templated site/übung.txt; stat -c %a plain site/sub/run.sh; readlink site/link; site/link"
        ),
        "plain\ncolour green of contents\nü\n600\n755\nsub/run.sh\nran"
    );
    // presets: variables, conditions, an allowed failure; once
    assert_eq!(world.sh("box", "cat /root/hello"), "hello moon");
    world.sh("box", "rm /root/hello");
    world.apply();
    assert_eq!(world.sh("box", "cat /root/hello 2>/dev/null || echo not again"), "not again");
    // a changed variable makes it another step
    world.edit("pocketenv.yaml", "WHO: moon", "WHO: sun");
    world.apply();
    assert_eq!(world.sh("box", "cat /root/hello"), "hello sun");
    // volumes: shared, and read-only where it says so
    world.sh("box", "echo shared > /shared/file");
    assert_eq!(
        world.sh("reader", "cat /shared/file; { echo x > /shared/mine; } 2>/dev/null || echo refused"),
        "shared\nrefused"
    );
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
