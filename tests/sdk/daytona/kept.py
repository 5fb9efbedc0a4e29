"""Snapshots, forks, volumes, images with resources, and networks with exceptions."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from common import check, raises

from daytona import (
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    CreateSnapshotParams,
    Daytona,
    DaytonaError,
    DaytonaNotFoundError,
    Resources,
    VolumeMount,
)

daytona = Daytona()


def create(**options):
    return daytona.create(CreateSandboxFromSnapshotParams(**options))


def told(sandbox, url):
    """What the way out answers: 403 is a refusal, 502 a name that is let out and that nobody knows."""
    proxy = "--proxy http://127.0.0.1:61080"
    return sandbox.process.exec(f"curl -s -o /dev/null -m 20 -w '%{{http_code}}' {proxy} {url} || true").result


# Snapshots: the files of a sandbox, and what is made from them.
first = create(name="first", labels={"app": "shop"}, env_vars={"GREETING": "hello"})
first.fs.upload_file(b"one", "/tmp/kept")
check("there are none", daytona.snapshot.list().items, [])
first.create_snapshot("before upgrade/1")
first.fs.upload_file(b"two", "/tmp/kept")
raises("a name twice", DaytonaError, lambda: first.create_snapshot("before upgrade/1"))
first.create_snapshot("later")
page = daytona.snapshot.list(page=2, limit=1)
check("in pages", ([s.name for s in page.items], page.total, page.total_pages), (["before upgrade/1"], 2, 2))
check("by name", daytona.snapshot.get("later").name, "later")
raises("one that is not there", DaytonaNotFoundError, lambda: daytona.snapshot.get("missing"))
second = create(snapshot="before upgrade/1")
check("as it was", second.fs.download_file("/tmp/kept"), b"one")
check("what it is made from", second.snapshot, "before upgrade/1")
raises("one that is in use", DaytonaError, lambda: daytona.snapshot.delete(page.items[0]))
second.delete()
daytona.snapshot.delete(page.items[0])
daytona.snapshot.delete(daytona.snapshot.get("later"))
check("both are gone", daytona.snapshot.list().items, [])
raises("an image by name", DaytonaError, lambda: daytona.snapshot.create(CreateSnapshotParams(name="s", image="debian:12")))

# A fork.
fork = first.fork(name="forked")
check("its files", fork.fs.download_file("/tmp/kept"), b"two")
check("its environment", fork.process.exec("echo $GREETING").result, "hello\n")
check("its name and labels", (fork.name, fork.labels["app"]), ("forked", "shop"))
raises("the name twice", DaytonaError, lambda: first.fork(name="forked"))
check("what it lies on is not shown", daytona.snapshot.list().items, [])
fork.delete()

# Volumes outlive sandboxes.
data = daytona.volume.create("data 1")
check("it is ready", (data.name, data.state.value), ("data 1", "ready"))
raises("a name twice", DaytonaError, lambda: daytona.volume.create("data 1"))
check("by name", daytona.volume.get("data 1").id, data.id)
raises("none", DaytonaNotFoundError, lambda: daytona.volume.get("other"))
mounted = create(volumes=[VolumeMount(volume_id=data.id, mount_path="/data")])
mounted.process.exec("echo kept > /data/file")
raises("one that is mounted", DaytonaError, lambda: daytona.volume.delete(data))
mounted.delete()
mounted = create(volumes=[VolumeMount(volume_id="data 1", mount_path="/elsewhere")])
check("it outlives it", mounted.fs.download_file("/elsewhere/file"), b"kept\n")
mounted.delete()
raises("a part of it", DaytonaError, lambda: create(volumes=[VolumeMount(volume_id=data.id, mount_path="/d", subpath="a")]))
raises("no such volume", DaytonaError, lambda: create(volumes=[VolumeMount(volume_id="none", mount_path="/d")]))
daytona.volume.delete(data)
check("none is left", daytona.volume.list(), [])

# An image, with limits that hold.
limited = daytona.create(CreateSandboxFromImageParams(image="debian:12", resources=Resources(cpu=1, memory=1)))
check("what is set aside", (limited.cpu, limited.memory), (1, 1))
greedy = limited.process.exec("python3 -c 'print(len(b\"x\" * (1536 << 20)))'")
check("no more memory than that", "1610612736" in greedy.result, False)
limited.resize(Resources(memory=3))
limited.refresh_data()
check("resized", (limited.cpu, limited.memory), (1, 3))
enough = limited.process.exec("python3 -c 'print(len(b\"x\" * (1536 << 20)))'")
check("enough now", enough.result, "1610612736\n")
limited.delete()
bounded = daytona.create(CreateSandboxFromImageParams(image="debian:12", resources=Resources(disk=1)))
check("a disk", bounded.disk, 1)
full = bounded.process.exec("dd if=/dev/zero of=$HOME/zeros bs=1M count=2048 2>&1; rm -f $HOME/zeros")
check("a full disk", "No space left on device" in full.result)
bounded.delete()

# Networks with exceptions.
confined = create(network_allow_list="192.0.2.0/24", domain_allow_list="*.example.invalid")
check("it knows", (confined.network_allow_list, confined.domain_allow_list, confined.network_block_all),
      ("192.0.2.0/24", "*.example.invalid", False))
check("a name that is allowed", told(confined, "http://api.example.invalid/"), "502")
check("another name", told(confined, "http://elsewhere.invalid/"), "403")
check("another address", told(confined, "http://198.51.100.7/"), "403")
confined.update_network_settings(domain_allow_list="elsewhere.invalid")
check("allowed now", told(confined, "http://elsewhere.invalid/"), "502")
check("and no more", told(confined, "http://api.example.invalid/"), "403")
confined.update_network_settings(network_block_all=True)
check("nothing at all", told(confined, "http://elsewhere.invalid/"), "403")
check("and it knows", confined.network_block_all, True)
confined.update_network_settings(network_block_all=False)
check("everything", told(confined, "http://elsewhere.invalid/"), "502")
raises("no address, no name", DaytonaError, lambda: create(domain_allow_list="a b"))
confined.delete()

# The rest is left to the emulator's end: a sandbox, and the snapshot under it.
first.create_snapshot("left")
first.delete()
create(snapshot="left")
print("ok")
