"""Snapshots, forks, volumes, and networks with exceptions."""

from common import check, raises

from e2b import (
    ALL_TRAFFIC,
    CommandExitException,
    Sandbox,
    SandboxException,
    Volume,
    VolumeException,
    VolumeNotFoundException,
)


def snapshots(**options):
    pages = Sandbox.list_snapshots(**options)
    found = []
    while pages.has_next:
        found.extend(pages.next_items())
    return [snapshot.snapshot_id for snapshot in found]


def told(sandbox, url):
    """What the way out answers: 403 is a refusal, 502 a name that is let out and that nobody knows."""
    answer = sandbox.commands.run(
        f"curl -s -o /dev/null -m 20 -w '%{{http_code}}' --proxy http://127.0.0.1:61080 {url} || true"
    )
    return answer.stdout


# Snapshots: the files of a sandbox, and what is made from them.
first = Sandbox.create(timeout=300, metadata={"app": "shop"}, envs={"GREETING": "hello"})
first.files.write("/home/user/kept.txt", "one")
first.commands.run("sleep 4000 &")
check("there are none", snapshots(), [])
named = first.create_snapshot(name="before-upgrade")
check("its name", named.names, [named.snapshot_id])
check("the name stands in its id", "before-upgrade:default" in named.snapshot_id)
first.files.write("/home/user/kept.txt", "two")
plain = first.create_snapshot(mode="filesystem")
check("without a name", plain.names, [])
check("the newest first", snapshots(), [plain.snapshot_id, named.snapshot_id])
check("in pages", snapshots(limit=1), [plain.snapshot_id, named.snapshot_id])
check("by name", snapshots(name="before-upgrade"), [named.snapshot_id])
check("by sandbox", snapshots(sandbox_id="inosuch"), [])
check("of this one", len(first.list_snapshots().next_items()), 2)

second = Sandbox.create(named.snapshot_id, timeout=300)
check("as it was", second.files.read("/home/user/kept.txt"), "one")
check("nothing runs there", "sleep 4000" in second.commands.run("ps axww || true").stdout, False)
third = Sandbox.create("before-upgrade", timeout=300)
check("by the bare name", third.files.read("/home/user/kept.txt"), "one")
fourth = Sandbox.create(plain.snapshot_id, timeout=300)
check("the later one", fourth.files.read("/home/user/kept.txt"), "two")
second.files.write("/home/user/kept.txt", "other")
check("apart from each other", third.files.read("/home/user/kept.txt"), "one")
raises("one that is in use", SandboxException, lambda: Sandbox.delete_snapshot(plain.snapshot_id))
fourth.kill()
check("and then goes", Sandbox.delete_snapshot(plain.snapshot_id))
check("gone already", Sandbox.delete_snapshot(plain.snapshot_id), False)
check("no image is deleted", Sandbox.delete_snapshot("base"), False)
raises("a bad name", SandboxException, lambda: first.create_snapshot(name="a b"))

# Forks.
forks = first.fork(timeout=300, count=2)
check("two", [type(fork) for fork in forks], [Sandbox, Sandbox])
check("its files", [fork.files.read("/home/user/kept.txt") for fork in forks], ["two", "two"])
check("its environment", forks[0].commands.run("echo $GREETING").stdout, "hello\n")
check("its metadata", forks[1].get_info().metadata, {"app": "shop"})
check("what they lie on is not shown", snapshots(), [named.snapshot_id])
forks[0].files.write("/home/user/kept.txt", "forked")
check("apart", forks[1].files.read("/home/user/kept.txt"), "two")
for sandbox in (second, third, *forks):
    sandbox.kill()

# Volumes outlive sandboxes, and are shared.
data = Volume.create("data-1")
check("its name", (data.name, Volume.get_info(data.volume_id).name), ("data-1", "data-1"))
raises("a name twice", VolumeException, lambda: Volume.create("data-1"))
raises("a bad name", VolumeException, lambda: Volume.create("a/b"))
raises("none", VolumeNotFoundException, lambda: Volume.get_info("inosuch"))
check("listed", [volume.name for volume in Volume.list()], ["data-1"])
with_data = Sandbox.create(timeout=300, volume_mounts={"/mnt/data": data})
mounts = with_data.get_info().volume_mounts
check("it knows its volumes", [(mount["name"], mount["path"]) for mount in mounts], [("data-1", "/mnt/data")])
with_data.commands.run("echo shared > /mnt/data/file")
other = Sandbox.create(timeout=300, volume_mounts={"/elsewhere": "data-1"})
check("shared", other.files.read("/elsewhere/file"), "shared\n")
with_data.kill()
other.kill()
again = Sandbox.create(timeout=300, volume_mounts={"/mnt/data": data})
check("it outlives them", again.files.read("/mnt/data/file"), "shared\n")
raises("one that is mounted", VolumeException, lambda: Volume.destroy(data.volume_id))
again.kill()
raises("one that is not there", SandboxException, lambda: Sandbox.create(volume_mounts={"/mnt": "vol"}))
check("destroyed", Volume.destroy(data.volume_id))
check("destroyed already", Volume.destroy(data.volume_id), False)

# Networks with exceptions.
confined = Sandbox.create(
    timeout=300, network={"allow_out": ["*.example.invalid", "192.0.2.0/24"], "deny_out": [ALL_TRAFFIC]}
)
info = confined.get_info()
check("it knows", info.allow_internet_access, False)
check("its exceptions", info.network["allow_out"], ["*.example.invalid", "192.0.2.0/24"])
check("a name that is allowed", told(confined, "http://api.example.invalid/"), "502")
check("another name", told(confined, "http://elsewhere.invalid/"), "403")
check("another address", told(confined, "http://198.51.100.7/"), "403")
confined.update_network({"allow_out": ["elsewhere.invalid"], "allow_internet_access": False})
check("allowed now", told(confined, "http://elsewhere.invalid/"), "502")
check("and no more", told(confined, "http://api.example.invalid/"), "403")
confined.update_network({"deny_out": [ALL_TRAFFIC]})
check("nothing at all", told(confined, "http://elsewhere.invalid/"), "403")
confined.update_network({})
check("everything", told(confined, "http://elsewhere.invalid/"), "502")
check("and it knows", confined.get_info().allow_internet_access, True)
raises("some alone denied", SandboxException, lambda: confined.update_network({"deny_out": ["192.0.2.0/24"]}))
raises("no address, no name", SandboxException, lambda: Sandbox.create(network={"allow_out": ["a b"], "deny_out": [ALL_TRAFFIC]}))
confined.kill()
raises("it has ended", (CommandExitException, SandboxException), lambda: told(confined, "http://x.invalid/"))

# The rest is left to the emulator's end: a sandbox, and the snapshot under it.
left = Sandbox.create(named.snapshot_id, timeout=300)
check("left", left.create_snapshot(name="on-another").names != [])
print("ok")
