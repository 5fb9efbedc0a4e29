"""Files: write, read, list, stat, move, remove, watch; binary, large, unicode; signed addresses; ports."""

import datetime
import hashlib
import io
import os
import random
import urllib.error
import urllib.request

from common import check, eventually, raises, url

from e2b import FileType, InvalidArgumentException, NotFoundException, Sandbox
from e2b.exceptions import FileNotFoundException, TemplateException

with Sandbox.create(timeout=300) as sandbox:
    files, run = sandbox.files, sandbox.commands.run

    written = files.write("dir/a.txt", "hello\n")
    check("where", (written.path, written.name), ("/home/user/dir/a.txt", "a.txt"))
    check("text", files.read("dir/a.txt"), "hello\n")
    check("from home", files.read("~/dir/a.txt"), "hello\n")
    check("absolute", files.read("/home/user/dir/../dir/a.txt"), "hello\n")
    check("whose", run("stat -c '%U %a' dir dir/a.txt").stdout, "user 755\nuser 644\n")
    files.write("dir/a.txt", "shorter")
    check("overwritten", run("cat dir/a.txt").stdout, "shorter")
    files.write("/etc/by-root", "r", user="root")
    check("root's", run("stat -c %U /etc/by-root").stdout, "root\n")

    every = bytes(range(256)) * 4
    files.write("binary", every)
    check("binary", bytes(files.read("binary", format="bytes")), every)
    check("empty", (files.write("empty", b""), files.read("empty"))[1], "")
    name = "grün 日本 🦀 'q' \"d\" $x\tt"
    files.write(name, "odd")
    check("an odd name", files.read(name), "odd")
    check("listed as it is", name in [entry.name for entry in files.list(".")])
    multiline = "two\nlines"
    files.write(multiline, "m")
    check("a name of two lines", multiline in [entry.name for entry in files.list("/home/user")])

    large = random.Random(7).randbytes(20 << 20)
    files.write("large", large)
    check("20 MiB in", run("sha256sum <large").stdout.split()[0], hashlib.sha256(large).hexdigest())
    check("20 MiB out", hashlib.sha256(files.read("large", format="bytes")).digest(), hashlib.sha256(large).digest())
    pieces = hashlib.sha256()
    for piece in files.read("large", format="stream"):
        pieces.update(piece)
    check("20 MiB streamed", pieces.digest(), hashlib.sha256(large).digest())
    files.write("streamed", io.BytesIO(large))
    check("20 MiB streamed in", files.get_info("streamed").size, len(large))
    files.write("packed", b"z" * 1_000_000, gzip=True)
    check("compressed in", run("wc -c <packed").stdout.strip(), "1000000")
    check("compressed out", len(files.read("packed", gzip=True)), 1_000_000)
    many = files.write_files([{"path": f"many/{i}", "data": f"{i}"} for i in range(20)])
    check("many at once", [entry.name for entry in many], [str(i) for i in range(20)])
    check("their contents", run("cat many/7 many/19").stdout, "719")

    # What is where.
    check("exists", (files.exists("dir"), files.exists("dir/a.txt"), files.exists("no")), (True, True, False))
    run("mkdir -p tree/a/b tree/c && echo x >tree/a/f && echo yy >tree/a/b/g && ln -s a/f tree/link && ln -s nowhere tree/dangling && chmod 750 tree/c")
    one = files.list("tree")
    # A link that leads nowhere is of no kind that the SDK shows.
    check("one level", [entry.name for entry in one], ["a", "c", "link"])
    kinds = {entry.name: entry.type for entry in one}
    check("kinds", (kinds["a"], kinds["link"]), (FileType.DIR, FileType.FILE))
    check("all levels", [e.path for e in files.list("/home/user/tree", depth=5)], [
        "/home/user/tree/a", "/home/user/tree/a/b", "/home/user/tree/a/b/g", "/home/user/tree/a/f",
        "/home/user/tree/c", "/home/user/tree/link",
    ])
    info = files.get_info("tree/a/b/g")
    check("size and mode", (info.size, info.mode, info.permissions), (3, 0o644, "-rw-r--r--"))
    check("owner", (info.owner, info.group), ("user", "user"))
    age = datetime.datetime.now(datetime.timezone.utc) - info.modified_time.replace(tzinfo=datetime.timezone.utc)
    check("age", abs(age.total_seconds()) < 60)
    check("a directory's mode", files.get_info("tree/c").permissions, "drwxr-x---")
    check("a link", files.get_info("tree/link").symlink_target, "/home/user/tree/a/f")
    check("make", files.make_dir("new/deep/er"), True)
    check("made already", files.make_dir("new/deep/er"), False)
    moved = files.rename("dir/a.txt", "elsewhere/b.txt")
    check("moved", (moved.path, files.exists("dir/a.txt")), ("/home/user/elsewhere/b.txt", False))
    files.remove("tree")
    check("removed", run("ls").stdout.split().count("tree"), 0)
    files.remove("tree")

    # What is wrong.
    raises("no such file", FileNotFoundException, lambda: files.read("no"))
    raises("a directory is no file", InvalidArgumentException, lambda: files.read("new"))
    raises("nor to be written", InvalidArgumentException, lambda: files.write("new", "x"))
    raises("no such directory", FileNotFoundException, lambda: files.list("no"))
    raises("a file is no directory", InvalidArgumentException, lambda: files.list("binary"))
    raises("nothing to look at", FileNotFoundException, lambda: files.get_info("no"))
    raises("nothing to move", FileNotFoundException, lambda: files.rename("no", "where"))
    raises("a file is in the way", Exception, lambda: files.make_dir("binary"))
    raises("metadata of files is not kept", TemplateException, lambda: files.write("m", "x", metadata={"a": "b"}))
    raises("no such user", Exception, lambda: files.read("binary", user="nobody-of-that-name"))

    # What happens.
    files.make_dir("watched/sub")
    watch = files.watch_dir("watched", recursive=True)
    files.write("watched/new.txt", "1")
    seen = []
    has = lambda kind, name: (seen.extend((e.type.value, e.name) for e in watch.get_new_events()), (kind, name) in seen)[1]
    eventually("created", lambda: has("create", "new.txt"))
    eventually("written", lambda: has("write", "new.txt"))
    run("echo more >>watched/new.txt; touch watched/sub/below")
    eventually("below", lambda: has("create", "sub/below"))
    run("chmod 600 watched/new.txt")
    eventually("changed", lambda: has("chmod", "new.txt"))
    run("mv watched/new.txt watched/other.txt")
    eventually("moved away", lambda: has("rename", "new.txt"))
    eventually("moved here", lambda: has("create", "other.txt"))
    run("rm watched/other.txt")
    eventually("removed", lambda: has("remove", "other.txt"))
    watch.stop()
    raises("it is stopped", Exception, watch.get_new_events)
    raises("nothing to watch", FileNotFoundException, lambda: files.watch_dir("no"))
    eventually("nothing is left of it", lambda: "pocketenv-files" not in run("ps -eo args", user="root").stdout)

    # Addresses for those who have no SDK.
    get = lambda address: urllib.request.urlopen(urllib.request.Request(address), timeout=30).read()
    files.write("shared +&é.txt", "shared")
    check("signed", get(sandbox.download_url("/home/user/shared +&é.txt")), b"shared")
    check("signed for a time", get(sandbox.download_url("shared +&é.txt", use_signature_expiration=100)), b"shared")
    late = raises("too late", urllib.error.HTTPError, lambda: get(sandbox.download_url("shared +&é.txt", use_signature_expiration=-10)))
    check("refused", late.code, 401)
    forged = sandbox.download_url("/etc/passwd").replace("signature=v1_", "signature=v1_x")
    check("forged", raises("forged", urllib.error.HTTPError, lambda: get(forged)).code in (401, 404))
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="up.txt"\r\n\r\nuploaded\r\n--b--\r\n'
    upload = urllib.request.Request(
        sandbox.upload_url("up/loaded.txt"), body, {"Content-Type": "multipart/form-data; boundary=b"}
    )
    urllib.request.urlopen(upload, timeout=30).read()
    check("uploaded", files.read("up/loaded.txt"), "uploaded")

    # A port inside.
    server = run("cd many && exec python3 -m http.server 8123", background=True, timeout=0)
    port = url().rsplit(":", 1)[1]
    asked = urllib.request.Request(f"{url()}/7", headers={"Host": f"8123-{sandbox.sandbox_id}.localhost:{port}"})

    def served():
        try:
            return urllib.request.urlopen(asked, timeout=10).read() == b"7"
        except urllib.error.HTTPError:
            return False

    eventually("a port inside", served)
    server.kill()
    check("a closed port", raises("closed", urllib.error.HTTPError, lambda: [urllib.request.urlopen(
        urllib.request.Request(f"{url()}/", headers={"Host": f"9-{sandbox.sandbox_id}.localhost:{port}"}), timeout=10)]).code, 502)
print("ok")
