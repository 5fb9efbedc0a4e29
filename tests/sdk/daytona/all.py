"""Daytona's SDK against the emulator: sandboxes, commands, sessions, files, terminals, previews, errors."""

import asyncio
import os
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime, timedelta

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from common import check, eventually, raises

from daytona import (
    CodeRunParams,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    Daytona,
    DaytonaError,
    DaytonaNotFoundError,
    FileDownloadRequest,
    FileUpload,
    Image,
    ListSandboxesQuery,
    SessionExecuteRequest,
)
from daytona.common.pty import PtySize

daytona = Daytona()


def state(sandbox):
    sandbox.refresh_data()
    return sandbox.state.value


def every(**filters):
    return {sandbox.id for sandbox in daytona.list(ListSandboxesQuery(**filters))}


# Sandboxes.
first = daytona.create(
    CreateSandboxFromSnapshotParams(
        name="one", labels={"fleet": "f1", "name": "grün"}, env_vars={"GREETING": "hello world"}
    )
)
check("it runs", state(first), "started")
check("its name", first.name, "one")
check("its labels", (first.labels["fleet"], first.labels["name"]), ("f1", "grün"))
second = daytona.create(CreateSandboxFromSnapshotParams(labels={"fleet": "f2"}, auto_stop_interval=0))
third = daytona.create(CreateSandboxFromSnapshotParams(labels={"fleet": "f2"}, ephemeral=True))
check("it never stops by itself", second.auto_stop_interval, 0)
check("it goes when it stops", third.auto_delete_interval, 0)
as_root = daytona.create(CreateSandboxFromSnapshotParams(os_user="root", ttl_minutes=90))
check("its user", (as_root.user, as_root.process.exec("id -un; pwd").result), ("root", "root\n/root\n"))
ends = datetime.fromisoformat(as_root.auto_destroy_at) - datetime.fromisoformat(as_root.created_at)
check("its end", ends, timedelta(minutes=90))
as_root.delete()
check("all", every(), {first.id, second.id, third.id})
check("all in pages", every(limit=1), {first.id, second.id, third.id})
check("by label", every(labels={"fleet": "f2"}), {second.id, third.id})
check("by two labels", every(labels={"fleet": "f1", "name": "grün"}), {first.id})
check("by another label", every(labels={"fleet": "f3"}), set())
check("by id", daytona.get(first.id).id, first.id)
check("by name", daytona.get("one").id, first.id)
raises("one that is not there", DaytonaNotFoundError, lambda: daytona.get("missing"))
raises("a name twice", DaytonaError, lambda: daytona.create(CreateSandboxFromSnapshotParams(name="one")))
raises("an unknown image", DaytonaError, lambda: daytona.create(CreateSandboxFromSnapshotParams(snapshot="other")))
built = Image.base("debian:12").run_commands("true")
raises("a build", DaytonaError, lambda: daytona.create(CreateSandboxFromImageParams(image=built)))
check("what is refused leaves nothing", every(), {first.id, second.id, third.id})
second.set_labels({"fleet": "f4"})
check("by its new label", every(labels={"fleet": "f4"}), {second.id})
second.set_autostop_interval(30)
check("its new idle time", daytona.get(second.id).auto_stop_interval, 30)
raises("a negative idle time", DaytonaError, lambda: second.set_autostop_interval(-1))
second.refresh_activity()
third.stop()
check("an ephemeral one is gone", every(), {first.id, second.id})

# Commands.
execute = first.process.exec
check("both outputs", execute("echo out; echo err >&2; exit 3").result, "out\nerr\n")
check("its code", execute("exit 3").exit_code, 3)
check("the environment", execute('echo "$GREETING/$B"', env={"B": "2 ' \""}).result, "hello world/2 ' \"\n")
check("the directory", execute("pwd", cwd="/tmp").result, "/tmp\n")
check("the home", execute("pwd").result.strip(), first.get_user_home_dir())
check("much", len(execute("head -c 3000000 /dev/zero | tr '\\0' x").result), 3000000)
check("unicode", execute("printf 'grün 🦀'").result, "grün 🦀")
began = time.monotonic()
raises("too long", DaytonaError, lambda: execute("sleep 60", timeout=1))
check("it ended in time", time.monotonic() - began < 20)
raises("no directory", DaytonaError, lambda: execute("pwd", cwd="/missing"))
code = "import os, sys\nprint(sys.argv[1:], os.environ['GREETING'], os.environ['C'])\nsys.exit(4)"
ran = first.process.code_run(code, CodeRunParams(argv=["a b", "'c'"], env={"C": "d"}))
check("a program as text", (ran.exit_code, ran.result), (4, "['a b', \"'c'\"] hello world d\n"))
check("what it writes on both outputs", first.process.code_run("import sys\nprint(1)\nprint(2, file=sys.stderr)").result, "1\n2\n")

# Sessions: what one command changes of the shell the next one finds.
process = first.process
process.create_session("s1")
raises("a session twice", DaytonaError, lambda: process.create_session("s1"))
run = lambda command, **more: process.execute_session_command("s1", SessionExecuteRequest(command=command, **more))
run("cd /tmp; export KEPT='a b'")
done = run('pwd; echo "$KEPT"; echo err >&2; (exit 4)')
check("a session's outputs", (done.stdout, done.stderr, done.exit_code), ("/tmp\na b\n", "err\n", 4))
check("several lines", run("for i in 1 2; do\n  echo \"  $i\"\ndone").stdout, "  1\n  2\n")
check("no end of line", run("printf abc").stdout, "abc")
asked = run("read line; echo \"got $line\"; echo bad >&2; exit_code=0", run_async=True)
check("it waits", process.get_session_command("s1", asked.cmd_id).exit_code, None)
process.send_session_command_input("s1", asked.cmd_id, "a word\n")
out, err = [], []
asyncio.run(process.get_session_command_logs_async("s1", asked.cmd_id, out.append, err.append))
check("the stream of its output", "".join(out), "got a word\n")
check("the stream of its errors", "".join(err), "bad\n")
check("it has ended", process.get_session_command("s1", asked.cmd_id).exit_code, 0)
logs = process.get_session_command_logs("s1", asked.cmd_id)
check("its logs", (logs.stdout, logs.stderr), ("got a word\n", "bad\n"))
slow = run("for i in 1 2 3; do echo $i; sleep 0.3; done", run_async=True)
times = []
asyncio.run(process.get_session_command_logs_async("s1", slow.cmd_id, lambda _: times.append(time.monotonic()), print))
check("it comes as it is written", times[-1] - times[0] > 0.3)
check("its commands", len(process.get_session("s1").commands), 6)
check("all sessions", [session.session_id for session in process.list_sessions()], ["s1"])
run("sleep 1000 & echo $! > /tmp/pid", run_async=False)
process.delete_session("s1")
raises("a deleted session", DaytonaError, lambda: process.get_session("s1"))

# Files.
files = first.fs
home = first.get_user_home_dir()
binary = bytes(range(256)) * 40000
files.upload_file(b"hello\n", "a.txt")
check("a file", files.download_file(f"{home}/a.txt"), b"hello\n")
check("whose it is", execute("stat -c %U a.txt").result, execute("id -un").result)
files.upload_file(binary, "/tmp/deep/er/b.bin")
check("a large one", files.download_file("/tmp/deep/er/b.bin"), binary)
check("its size inside", execute("stat -c %s /tmp/deep/er/b.bin").result, f"{len(binary)}\n")
files.upload_file(b"", "empty")
check("an empty one", files.download_file("empty"), b"")
odd = "/tmp/odd/grün 🦀 a'b $(x).txt"
files.upload_file("grün".encode(), odd)
check("an odd name", files.download_file(odd), "grün".encode())
files.upload_files([FileUpload(source=b"1", destination="/tmp/m/1"), FileUpload(source=b"2", destination="/tmp/m/2")])
many = files.download_files([FileDownloadRequest(source=f"/tmp/m/{name}") for name in ("1", "2", "3")])
check("many", [one.result for one in many], [b"1", b"2", None])
check("one of many is missing", many[2].error is not None)
check("a list", [entry.name for entry in files.list_files("/tmp/m")], ["1", "2"])
info = files.get_file_info("/tmp/m/1")
check("its description", (info.name, info.is_dir, info.size), ("1", False, 1))
files.create_folder("/tmp/d", "750")
check("a directory", (files.get_file_info("/tmp/d").is_dir, execute("stat -c %a /tmp/d").result), (True, "750\n"))
files.move_files("/tmp/m/2", "/tmp/d/moved")
check("moved", files.download_file("/tmp/d/moved"), b"2")
files.set_file_permissions("/tmp/d/moved", mode="600")
check("its mode", execute("stat -c %a /tmp/d/moved").result, "600\n")
check("names", files.search_files("/tmp", "mov*").files, ["/tmp/d/moved"])
files.upload_file(b"one\ntwo three\n", "/tmp/d/text")
found = files.find_files("/tmp/d", "two")
check("contents", [(m.file, m.line, m.content) for m in found], [("/tmp/d/text", 2, "two three")])
replaced = files.replace_in_files(["/tmp/d/text", "/tmp/none"], "two", "2")
check("replaced", [one.success for one in replaced], [True, False])
check("its new contents", files.download_file("/tmp/d/text"), b"one\n2 three\n")
raises("a full directory", DaytonaError, lambda: files.delete_file("/tmp/d"))
files.delete_file("/tmp/d/text")
files.delete_file("/tmp/d", recursive=True)
raises("deleted", DaytonaNotFoundError, lambda: files.get_file_info("/tmp/d"))
raises("a missing file", DaytonaNotFoundError, lambda: files.download_file("/tmp/none"))
raises("a missing directory is not an empty one", DaytonaNotFoundError, lambda: files.search_files("/tmp/none", "*"))

# Terminals.
screen = bytearray()
pty = process.create_pty_session("p1", cwd="/tmp", envs={"X": "1 2"}, pty_size=PtySize(rows=30, cols=100))
pty.wait_for_connection()
check("a terminal", [one.id for one in process.list_pty_sessions()], ["p1"])
process.resize_pty_session("p1", PtySize(rows=31, cols=101))
pty.send_input("stty size; echo \"$X/$PWD\"; exit 7\n")
ended = pty.wait(on_data=screen.extend)
check("how it ended", ended.exit_code, 7)
check("its size", b"31 101" in screen)
check("its environment and directory", b"1 2//tmp" in screen)
pty = process.create_pty_session("p2")
pty.wait_for_connection()
process.kill_pty_session("p2")
eventually("no terminal", lambda: process.list_pty_sessions() == [])

# Ports.
serve = "import http.server as h\nclass A(h.BaseHTTPRequestHandler):\n  def do_GET(s):\n    s.send_response(200); s.end_headers(); s.wfile.write(b'inside')\nh.HTTPServer(('', 3456), A).serve_forever()"
files.upload_file(serve.encode(), "/tmp/serve.py")
process.create_session("web")
process.execute_session_command("web", SessionExecuteRequest(command="exec python3 /tmp/serve.py", run_async=True))
link = first.get_preview_link(3456)


def fetch(token):
    request = urllib.request.Request(os.environ["DAYTONA_API_URL"] + "/", headers={"Host": link.url.split("//")[1]})
    if token:
        request.add_header("X-Daytona-Preview-Token", token)
    try:
        return urllib.request.urlopen(request, timeout=10).read()
    except urllib.error.HTTPError as error:
        return error.code


eventually("the port answers", lambda: fetch(link.token) == b"inside")
check("without the token", fetch(None), 401)
check("with another token", fetch("other"), 401)

# What it uses.
sample = first.get_metrics_latest()
check("processors", sample.cpu_count >= 1)
check("memory", 0 < sample.mem_used < sample.mem_total)
check("disk", 0 < sample.disk_used <= sample.disk_total)

# Stop and start: the disk is kept, processes are not.
first.stop()
check("stopped", state(first), "stopped")
check("by state", every(states=["stopped"]), {first.id})
raises("a command in a stopped one", DaytonaError, lambda: execute("true"))
first.start()
check("started", state(first), "started")
check("its file", files.download_file("a.txt"), b"hello\n")
check("its environment is kept", execute('echo "$GREETING"').result, "hello world\n")
check("no session is left", process.list_sessions(), [])

# Errors in the vendor's form.
def ask(method, path, key="local"):
    request = urllib.request.Request(os.environ["DAYTONA_API_URL"] + path, method=method)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


check("no key", ask("GET", "/sandbox", None), 401)
check("below /api too", ask("GET", "/api/sandbox"), 200)
check("what is not served", ask("POST", f"/sandbox/{first.id}/archive"), 501)
check("what is not served inside", ask("GET", f"/toolbox/{first.id}/lsp/start"), 501)
check("a filter that is not known", ask("GET", "/sandbox?regionIds=us"), 400)

first.delete()
second.delete()
raises("a deleted one", DaytonaNotFoundError, lambda: daytona.get(first.id))
check("nothing is left", every(), set())
print("ok")
