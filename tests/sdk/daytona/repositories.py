"""Git of Daytona's SDK against the emulator: everything that a program does with a repository, at a remote in the sandbox."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from common import check, eventually, raises

from daytona import CreateSandboxFromSnapshotParams, Daytona, DaytonaError, SessionExecuteRequest
from daytona.common.errors import (
    DaytonaGitAuthFailedError,
    DaytonaGitBranchExistsError,
    DaytonaGitBranchNotFoundError,
    DaytonaGitDirtyWorktreeError,
    DaytonaGitPushRejectedError,
    DaytonaGitRepoNotFoundError,
)

daytona = Daytona()
sandbox = daytona.create(CreateSandboxFromSnapshotParams())
git, files = sandbox.git, sandbox.fs


def sh(command):
    answer = sandbox.process.exec(command)
    check(command, answer.exit_code, 0)
    return answer.result


def write(path, text):
    files.upload_file(text.encode(), path)


def seen(path):
    return {f.name: (f.staging.value, f.worktree.value) for f in git.status(path).file_status}


# A remote of one branch.
git.init("origin.git", bare=True, initial_branch="main")
git.init("work", initial_branch="main")
git.remote_add("work", "origin", "/home/user/origin.git")
write("work/a b.txt", "one\n")
write("work/-odd", "x\n")
check("nothing is staged", seen("work"), {"a b.txt": ("Untracked", "Untracked"), "-odd": ("Untracked", "Untracked")})
git.add("work", ["a b.txt", "-odd"])
check("both are staged", seen("work"), {"a b.txt": ("Added", "Unmodified"), "-odd": ("Added", "Unmodified")})
first = git.commit("work", "First\n\nWith more to say: $HOME `id`", "Ann", "ann@example.com").sha
check("its own words for the commit", sh("git -C work rev-parse HEAD").strip(), first)
told = sh("git -C work log -1 --format='%an %ae %cn %B'").strip()
check("who and what", told, "Ann ann@example.com Ann First\n\nWith more to say: $HOME `id`")
raises("nothing to commit", DaytonaError, lambda: git.commit("work", "No", "Ann", "ann@example.com"))
empty = git.commit("work", "Empty", "Ann", "ann@example.com", allow_empty=True).sha
status = git.status("work")
check("a branch that is nowhere else", (status.current_branch, status.detached, status.ahead), ("main", False, 0))
git.push("work", set_upstream=True)
status = git.status("work")
check("it is published", (status.branch_published, status.upstream, status.ahead), (True, "origin/main", 0))

# Branches.
git.create_branch("work", "next")
branches = git.branches("work")
check("both branches", (sorted(branches.branches), branches.current), (["main", "next"], "next"))
raises("a branch twice", DaytonaGitBranchExistsError, lambda: git.create_branch("work", "main"))
raises("a branch that is none", DaytonaGitBranchNotFoundError, lambda: git.checkout_branch("work", "missing"))
raises("an option for a branch", DaytonaError, lambda: git.create_branch("work", "--orphan"))
write("work/a b.txt", "two\n")
check("it was changed", seen("work"), {"a b.txt": ("Unmodified", "Modified")})
git.add("work", ["."])
second = git.commit("work", "Second", "Bob", "bob@example.com").sha
write("work/a b.txt", "three\n")
raises("work in the way", DaytonaGitDirtyWorktreeError, lambda: git.checkout_branch("work", "main"))
git.restore("work", ["a b.txt"])
check("it is as it was", files.download_file("work/a b.txt"), b"two\n")
git.checkout_branch("work", "main")
check("the other branch", files.download_file("work/a b.txt"), b"one\n")
git.delete_branch("work", "next")
check("one branch", git.branches("work").branches, ["main"])
raises("it is gone", DaytonaGitBranchNotFoundError, lambda: git.delete_branch("work", "next"))
git.checkout_branch("work", first)
status = git.status("work")
check("no branch", (status.current_branch, status.detached), ("HEAD", True))
git.checkout_branch("work", "main")

# Another copy, a pull and what is rejected.
git.clone("/home/user/origin.git", "other", branch="main", commit_id=first)
check("at the commit", sh("git -C other rev-parse HEAD").strip(), first)
git.checkout_branch("other", "main")
write("work/new", "new\n")
git.add("work", ["new"])
third = git.commit("work", "Third", "Ann", "ann@example.com").sha
git.push("work")
git.pull("other")
check("it came", (files.download_file("other/new"), sh("git -C other rev-parse HEAD").strip()), (b"new\n", third))
git.commit("other", "Theirs", "Bob", "bob@example.com", allow_empty=True)
git.commit("work", "Ours", "Ann", "ann@example.com", allow_empty=True)
git.push("other")
raises("a push behind the other's", DaytonaGitPushRejectedError, lambda: git.push("work"))
raises("two that have parted", DaytonaError, lambda: git.pull("work"))
git.reset("work", mode="hard", target=empty)
git.pull("work")
history = sh("git -C work log --format=%s").split()
check("the history", history, ["Theirs", "Third", "Empty", "First"])
git.clone("file:///home/user/origin.git", "shallow", depth=1)
check("one commit", sh("git -C shallow rev-list --count HEAD").strip(), "1")

# Staged and not, remotes, settings.
write("work/new", "changed\n")
git.add("work", ["new"])
git.reset("work", files=["new"])
check("it is not staged", seen("work"), {"new": ("Unmodified", "Modified")})
git.remote_add("work", "spare", "/home/user/origin.git", fetch=True)
git.remote_add("work", "spare", "/home/user/elsewhere.git", overwrite=True)
remotes = {remote.name: remote.url for remote in git.remotes("work").remotes}
check("the remotes", remotes, {"origin": "/home/user/origin.git", "spare": "/home/user/elsewhere.git"})
check("one of them", git.remote_get("work", "spare"), "/home/user/elsewhere.git")
check("a setting that is not there", git.get_config("user.name"), None)
git.configure_user("Cy", "cy@example.com")
git.set_config("core.abbrev", "12", scope="local", path="work")
check("settings", (git.get_config("user.name"), git.get_config("core.abbrev", scope="local", path="work")), ("Cy", "12"))
raises("what is no repository", DaytonaGitRepoNotFoundError, lambda: git.status("/tmp"))
raises("a remote that is not there", DaytonaGitRepoNotFoundError, lambda: git.clone("/home/user/missing.git", "no"))

# Credentials reach the remote that asks for them, and are kept nowhere.
serve = """
import http.server as h
class A(h.BaseHTTPRequestHandler):
    def do_GET(s):
        with open('/tmp/asked', 'a') as f: f.write(str(s.headers.get('Authorization')) + '\\n')
        s.send_response(401); s.send_header('WWW-Authenticate', 'Basic realm=it'); s.end_headers()
    def log_message(s, *a): pass
h.HTTPServer(('127.0.0.1', 3457), A).serve_forever()
"""
write("/tmp/serve.py", serve)
sandbox.process.create_session("web")
sandbox.process.execute_session_command("web", SessionExecuteRequest(command="exec python3 /tmp/serve.py", run_async=True))
eventually("it serves", lambda: sandbox.process.exec("curl -s -o /dev/null --noproxy '*' http://127.0.0.1:3457/").exit_code == 0)
sh("git config --global http.proxy ''; rm /tmp/asked")
url = "http://127.0.0.1:3457/r.git"
raises("without credentials", DaytonaGitAuthFailedError, lambda: git.clone(url, "asked"))
check("nobody was named", sh("cat /tmp/asked"), "None\n")
raises("with wrong ones", DaytonaGitAuthFailedError, lambda: git.clone(url, "asked", username="ann", password="s3cr3t"))
check("who was named", "Basic YW5uOnMzY3IzdA==" in sh("cat /tmp/asked"))
check("they are kept nowhere", sh("grep -rl s3cr3t /home/user /tmp/asked || echo nowhere"), "nowhere\n")
git.dangerously_authenticate("ann", "s3cr3t", host="127.0.0.1:3457", protocol="http")
check("unless that is asked for", "http://ann:s3cr3t@127.0.0.1" in sh("cat ~/.git-credentials"))

sandbox.delete()
print("ok")
