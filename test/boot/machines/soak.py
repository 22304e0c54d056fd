"""Two processors that compress for a long time."""

import re
import time

from disk import logs_in, pci, powers_down, quiet_log
from machine import Machine
from steps import require, say, step

WORK = r"""
seq 1 200000 >/tmp/text; dmesg >>/tmp/text
gzip -c /tmp/text | sha256sum >/tmp/right
work() {
  n=0
  while [ ! -e /tmp/stop ]; do
    gzip -c /tmp/text | sha256sum | cmp -s - /tmp/right || echo "wrong $1 $n" >>/tmp/wrong
    n=$((n + 1)); echo $n >/tmp/new.$1; mv /tmp/new.$1 /tmp/count.$1
  done
}
work 1 & work 2 &
"""


def offset(m):
    """The guest's uptime against our clock, in seconds; as good as its answer is quick."""
    before = time.time()
    uptime = float(m.sh("cut -d' ' -f1 /proc/uptime", 120))
    return uptime - (before + time.time()) / 2


def soak(minutes):
    with Machine("-M", "q35", "-cpu", "host", "-smp", "2", *pci()) as m:
        logs_in(m, 2)
        with step("%g minutes of compressing" % minutes, m) as figures:
            m.sh("cat >/tmp/work <<'END'\n%sEND" % WORK)
            m.start(". /tmp/work")
            first = offset(m)
            begin, last, longest = time.time(), 0, 0.0
            while time.time() < begin + 60 * minutes:
                m.drain(20)
                asked = time.time()
                said = m.sh("cat /tmp/count.1 /tmp/count.2; cat /tmp/wrong 2>/dev/null", 120, check=False)
                longest = max(longest, time.time() - asked)
                require("wrong" not in said, said)
                done = sum(map(int, re.findall(r"^\d+$", said, re.M)))
                require(done > last, "no round done in 20 s")
                if int((time.time() - begin) / 60) != int((asked - 20 - begin) / 60):
                    say("%d rounds" % done)
                last = done
            drift = offset(m) - first
            require(abs(drift) < 2, "the guest's clock is off by %.1f s" % drift)
            m.sh("touch /tmp/stop; wait", 120)
            figures.note("%d rounds, 0 wrong, longest answer %.1f s, clock %+.2f s" % (last, longest, drift))
        quiet_log(m)
        powers_down(m)
