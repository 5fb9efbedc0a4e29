"""Commands in all forms, standard input, background, signals, terminals."""

import threading
import time

from common import check, eventually, raises

from e2b import (
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    TimeoutException,
)

with Sandbox.create(timeout=300, envs={"SHARED": "from the sandbox"}) as sandbox:
    run = sandbox.commands.run

    result = run("echo out; echo err >&2")
    check("streams", (result.exit_code, result.stdout, result.stderr), (0, "out\n", "err\n"))
    error = raises("a failure", CommandExitException, lambda: run("echo out; echo err >&2; exit 3"))
    check("its parts", (error.exit_code, error.stdout, error.stderr), (3, "out\n", "err\n"))
    check("its words", error.error, "exit status 3")
    check("environment", run("echo $SHARED/$OWN", envs={"OWN": "own"}).stdout, "from the sandbox/own\n")
    check("a command's own environment wins", run("echo $SHARED", envs={"SHARED": "x"}).stdout, "x\n")
    check("working directory", run("pwd", cwd="/tmp").stdout, "/tmp\n")
    check("home", run("pwd; echo $HOME; id -un").stdout, "/home/user\n/home/user\nuser\n")
    check("root", run("id -u", user="root").stdout, "0\n")
    check("it is bash", run("echo ${BASH_VERSION:+bash}").stdout, "bash\n")
    raises("no such directory", InvalidArgumentException, lambda: run("true", cwd="/no/such"))
    raises("no such user", Exception, lambda: run("true", user="nobody-of-that-name"))
    check("unicode", run("echo grün 日本 🦀").stdout, "grün 日本 🦀\n")
    odd = "a'b\"c $HOME `x` \\ \n*?"
    check("quotes", run('printf %s "$ODD"', envs={"ODD": odd}).stdout, odd)
    large = run("head -c 3000000 /dev/zero | tr '\\0' 'x'; echo; seq 1 50000 >&2")
    check("much output", (len(large.stdout), large.stderr.count("\n")), (3000001, 50000))

    pieces = []
    run("for i in 1 2 3; do echo $i; sleep 0.2; done", on_stdout=lambda piece: pieces.append((time.monotonic(), piece)))
    check("streamed", "".join(piece for _, piece in pieces), "1\n2\n3\n")
    check("as it came", pieces[-1][0] - pieces[0][0] > 0.25)

    begun = time.monotonic()
    raises("time is over", TimeoutException, lambda: run("sleep 60", timeout=1))
    check("in time", time.monotonic() - begun < 20)
    eventually("and the process is gone", lambda: "sleep 60" not in run("ps -eo args").stdout)

    # In the background.
    handle = run("echo begun; sleep 1000; echo never", background=True)
    running = {p.pid: p for p in sandbox.commands.list()}
    check("it is listed", handle.pid in running)
    check("as what", (running[handle.pid].cmd, running[handle.pid].args[-1][:10]), ("/bin/bash", "echo begun"))
    check("it is there", run(f"kill -0 {handle.pid}", user="root").exit_code, 0)
    check("killed", handle.kill())
    error = raises("its end", CommandExitException, handle.wait)
    check("by a signal", (error.exit_code, error.error), (-1, "signal: killed"))
    check("not there any more", sandbox.commands.kill(handle.pid), False)
    eventually("it is not listed", lambda: handle.pid not in {p.pid for p in sandbox.commands.list()})
    eventually("its children are gone", lambda: "sleep 1000" not in run("ps -eo args").stdout)

    # Standard input.
    cat = run("cat; echo end", background=True, stdin=True)
    sandbox.commands.send_stdin(cat.pid, "one\n")
    sandbox.commands.send_stdin(cat.pid, "two é\n")
    sandbox.commands.close_stdin(cat.pid)
    check("what was sent", cat.wait().stdout, "one\ntwo é\nend\n")
    counter = run("wc -c", background=True, stdin=True)
    sandbox.commands.stream_input(counter.pid, (b"x" * 100_000 for _ in range(30)))
    counter.close_stdin()
    check("a stream of input", counter.wait().stdout.strip(), "3000000")
    check("no input", run("cat").stdout, "")
    raises("input for nobody", Exception, lambda: sandbox.commands.send_stdin(999_999, "x"))

    # Somebody else follows a command.
    ticker = run("for i in $(seq 1 200); do echo tick $i; sleep 0.05; done; exit 7", background=True)
    ticker.disconnect()
    seen = []
    follower = sandbox.commands.connect(ticker.pid)
    for stdout, _, _ in follower:
        seen.append(stdout)
        if len(seen) > 3:
            break
    check("ticks", all("tick" in piece for piece in seen))
    check("it runs on", ticker.pid in {p.pid for p in sandbox.commands.list()})
    check("killed by its id", sandbox.commands.kill(ticker.pid))
    raises("no such process", NotFoundException, lambda: sandbox.commands.connect(999_999))

    # Many at once.
    results = {}
    threads = [
        threading.Thread(target=lambda i=i: results.__setitem__(i, run(f"sleep 0.2; echo {i}").stdout))
        for i in range(12)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    check("many at once", results, {i: f"{i}\n" for i in range(12)})

    # A terminal.
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=60, envs={"MARK": "m1"}, cwd="/tmp")
    shown = bytearray()

    def read():
        try:
            for _, _, data in terminal:
                if data is not None:
                    shown.extend(data)
        except Exception:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    sandbox.pty.send_stdin(terminal.pid, b"stty size; echo $MARK-$PWD; tty\n")
    eventually("its size", lambda: b"24 80" in shown)
    eventually("its place", lambda: b"m1-/tmp" in shown)
    eventually("it is a terminal", lambda: b"/dev/pts/" in shown)
    sandbox.pty.resize(terminal.pid, PtySize(rows=40, cols=132))
    sandbox.pty.send_stdin(terminal.pid, b"stty size\n")
    eventually("its new size", lambda: b"40 132" in shown)
    check("ended", sandbox.pty.kill(terminal.pid))
    reader.join(30)
    check("its stream has ended", reader.is_alive(), False)
print("ok")
