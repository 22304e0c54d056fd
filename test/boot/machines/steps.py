"""Scenarios and their steps: one line each, a count at the end."""

import contextlib
import re
import sys
import time

from machine import Failed

scenarios = []  # (name, function, for both engines)
passed = 0
failed = 0
current = ""
begun = time.time()


class Abandoned(Exception):
    """A step failed that the rest of its scenario needs."""


def scenario(name, both=False):
    """Registers a function; `both`: also worth its time with the interpreter."""

    def register(function):
        scenarios.append((name, function, both))
        return function

    return register


def say(text):
    print("[%4d s] %s" % (time.time() - begun, text), flush=True)


class Figures:
    def __init__(self):
        self.text = ""

    def note(self, text):
        self.text += (", " if self.text else "") + text


@contextlib.contextmanager
def step(name, machine=None):
    """Counts what is inside as one test. A failure ends the scenario."""
    global passed, failed
    start = time.time()
    figures = Figures()
    try:
        yield figures
    except (Failed, OSError, ValueError) as e:
        failed += 1
        print("FAILED %s: %s: %s" % (current, name, e), flush=True)
        if machine:
            for m in machine if isinstance(machine, (list, tuple)) else [machine]:
                print("\n".join("    | " + line for line in m.tail().split("\n")[-25:]), flush=True)
                said = m.messages()
                if said:
                    print("    QEMU: " + said, flush=True)
        raise Abandoned()
    passed += 1
    more = " (%s)" % figures.text if figures.text else ""
    print("ok %s: %s, %.1f s%s" % (current, name, time.time() - start, more), flush=True)


def require(condition, text):
    if not condition:
        raise Failed(text)


def run(only, without, interp):
    """Runs what matches. True if nothing failed."""
    global current, failed
    for name, function, both in scenarios:
        if only and not any(re.search(o, name) for o in only):
            continue
        if any(re.search(w, name) for w in without):
            continue
        if interp and not both and not only:
            continue
        current = name
        say("-- " + name)
        try:
            function()
        except Abandoned:
            pass
        except Failed as e:
            failed += 1
            print("FAILED %s: %s" % (name, e), flush=True)
        except Exception as e:  # a mistake of ours must not hide the other results
            failed += 1
            print("FAILED %s: %s: %s" % (name, type(e).__name__, e), flush=True)
            import traceback

            traceback.print_exc(file=sys.stdout)
    print("%d passed, %d failed" % (passed, failed), flush=True)
    return failed == 0 and passed > 0
