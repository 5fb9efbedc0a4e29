"""What the programs of this directory share: a difference ends them with a line that says which."""

import os
import sys
import time


def check(what, found, wanted=True):
    """Ends the program unless what was found is what was wanted."""
    if found != wanted:
        print(f"FAILED: {what}: found {found!r}, wanted {wanted!r}", file=sys.stderr)
        sys.exit(1)


def raises(what, kind, call):
    """Ends the program unless the call raises this kind of exception, which is returned."""
    try:
        result = call()
    except kind as error:
        return error
    print(f"FAILED: {what}: no {kind.__name__}, but {result!r}", file=sys.stderr)
    sys.exit(1)


def eventually(what, test, seconds=30):
    """Waits until the test is true, or ends the program."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if test():
            return
        time.sleep(0.05)
    check(f"{what} within {seconds} s", False)


def url():
    """Where the emulator is."""
    return os.environ["E2B_API_URL"]
