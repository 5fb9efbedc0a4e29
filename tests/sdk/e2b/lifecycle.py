"""Sandboxes: create, list, connect, time-outs, pause, resume, kill, metrics, errors."""

import os
import time

from common import check, eventually, raises

from e2b import (
    AuthenticationException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
)


def every(**options):
    pages = Sandbox.list(**options)
    found = []
    while pages.has_next:
        found.extend(pages.next_items())
    return found


first = Sandbox.create(
    timeout=120,
    metadata={"fleet": "f1", "k v": "x&y=z", "name": "grün"},
    envs={"GREETING": "hello world", "EMPTY": ""},
)
check("its id", len(first.sandbox_id) > 10)
check("it runs", first.is_running())
info = first.get_info()
check("its template", info.template_id, "base")
check("its metadata", info.metadata, {"fleet": "f1", "k v": "x&y=z", "name": "grün"})
check("its state", info.state, SandboxState.RUNNING)
check("its time", 100 < (info.end_at - info.started_at).total_seconds() < 140)
check("its environment", first.commands.run('echo "$GREETING/$EMPTY/"').stdout, "hello world//\n")
check("its domain", first.get_host(3000).startswith(f"3000-{first.sandbox_id}.localhost:"))

# Lists, with filters, in pages and in order.
second = Sandbox.create(metadata={"fleet": "f2"}, timeout=120)
third = Sandbox.create(metadata={"fleet": "f2"}, timeout=120)
mine = {first.sandbox_id, second.sandbox_id, third.sandbox_id}
check("all", {s.sandbox_id for s in every()}, mine)
of_metadata = lambda m: {s.sandbox_id for s in every(query=SandboxQuery(metadata=m))}
check("by metadata", of_metadata({"fleet": "f2"}), {second.sandbox_id, third.sandbox_id})
check("by odd metadata", of_metadata({"k v": "x&y=z", "name": "grün"}), {first.sandbox_id})
check("by other metadata", of_metadata({"fleet": "f3"}), set())
pages = Sandbox.list(limit=2)
check("a page", len(pages.next_items()), 2)
check("another page", pages.has_next)
check("the last page", len(pages.next_items()), 1)
check("no page", not pages.has_next)
ascending = [s.sandbox_id for s in every(order="asc", limit=1)]
check("in order", ascending, [first.sandbox_id, second.sandbox_id, third.sandbox_id])
check("in reverse", [s.sandbox_id for s in every(order="desc", limit=1)], ascending[::-1])

# Another program finds it by its id.
again = Sandbox.connect(first.sandbox_id)
again.files.write("/home/user/kept.txt", "kept")
check("the same disk", first.files.read("kept.txt"), "kept")

# Pause keeps the disk and the environment.
check("pause", second.pause())
check("paused already", second.pause(), False)
check("it is paused", second.get_info().state, SandboxState.PAUSED)
check("it does not run", second.is_running(), False)
by_state = lambda *states: {s.sandbox_id for s in every(query=SandboxQuery(state=list(states)))}
check("paused ones", by_state(SandboxState.PAUSED), {second.sandbox_id})
check("running ones", by_state(SandboxState.RUNNING), {first.sandbox_id, third.sandbox_id})
raises("a command in a paused one", SandboxException, lambda: second.commands.run("true"))

first.pause()
first.connect(timeout=200)
check("resumed", first.get_info().state, SandboxState.RUNNING)
check("what was written", first.files.read("/home/user/kept.txt"), "kept")
check("the environment is there again", first.commands.run("echo $GREETING").stdout, "hello world\n")

# Time.
first.set_timeout(3000)
left = first.get_info().end_at.timestamp() - time.time()
check("more time", 2900 < left < 3100)
short = Sandbox.create(timeout=1)
eventually("it ends by itself", lambda: short.sandbox_id not in {s.sandbox_id for s in every()})
raises("it is gone", SandboxNotFoundException, lambda: short.get_info())
sleeper = Sandbox.create(timeout=1, lifecycle={"on_timeout": "pause"})
eventually("it pauses by itself", lambda: sleeper.get_info().state == SandboxState.PAUSED)
sleeper.connect(timeout=60)
check("and goes on", sleeper.commands.run("echo on").stdout, "on\n")
awake = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
awake.pause()
check("a call wakes it", awake.commands.run("echo awake").stdout, "awake\n")

# One key, one sandbox.
one = Sandbox.create(timeout=60, idempotency_key="key-1")
check("the same", Sandbox.create(timeout=60, idempotency_key="key-1").sandbox_id, one.sandbox_id)

# Metrics.
samples = third.get_metrics()
check("a sample", len(samples), 1)
check("processors", samples[0].cpu_count >= 1)
check("memory", 0 < samples[0].mem_used < samples[0].mem_total)
check("disk", 0 < samples[0].disk_used <= samples[0].disk_total)

# What is not there, and what cannot be.
raises("no such sandbox", SandboxNotFoundException, lambda: Sandbox.connect("inosuchsandbox"))
check("nothing to kill", Sandbox.kill("inosuchsandbox"), False)
raises("no such template", SandboxException, lambda: Sandbox.create("no-such-template"))
raises("too long", Exception, lambda: Sandbox.create(timeout=100 * 3600))
offline = Sandbox.create(timeout=60, allow_internet_access=False)
check("it knows", offline.get_info().allow_internet_access, False)

# Killed is gone, everywhere.
background = third.commands.run("sleep 1000", background=True)
for sandbox in (first, second, third, sleeper, awake, one, offline):
    check("kill", sandbox.kill())
raises("its command has ended", Exception, background.wait)
check("gone", first.is_running(), False)
check("killed already", first.kill(), False)
check("nothing is left", every(), [])
raises("a command in a dead one", SandboxException, lambda: third.commands.run("true"))
if os.environ.get("EMULATOR_HAS_KEY"):
    raises("a wrong key", AuthenticationException, lambda: Sandbox.list(api_key="wrong").next_items())
print("ok")
