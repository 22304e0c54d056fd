"""The Debian disk under systemd on every machine type, and what one does with a running machine."""

import functools
import hashlib
import http.server
import os
import re
import threading
import time

from machine import Machine, Settings
from steps import require, scenario, step

APPEND = "root=/dev/vda1 console=ttyS0"


def kernel(append=APPEND):
    return [
        "-kernel", Settings.files + "/vmlinuz", "-initrd", Settings.files + "/initrd.img", "-append", append,
    ]  # fmt: skip


def drive(device="virtio-blk-pci", file=None):
    """The disk; what is written goes to a file that goes with QEMU, or to an overlay `file`."""
    if file:
        return ["-drive", "if=none,id=disk,format=qcow2,file=" + file, "-device", device + ",drive=disk"]
    return [
        "-drive", "if=none,id=disk,format=raw,snapshot=on,file=%s/disk.raw" % Settings.files,
        "-device", device + ",drive=disk",
    ]  # fmt: skip


def user_net(device="virtio-net-pci", netdev="user,id=net"):
    return ["-netdev", netdev, "-device", device + ",netdev=net"]


def pci(memory="512"):
    """What the machines with PCI have in common."""
    return kernel() + drive() + user_net() + ["-device", "virtio-rng-pci", "-m", memory]


def mmio():
    """Of microvm. Linux restarts it, under TCG too, by a jump to the firmware's entry, not by a reset. The firmware (qboot)
    sets SP there and uses ESP: the upper half is that of the kernel's stack, random with KASLR. A stack in free memory
    boots again; one where the kernel's file is read to returns into that file's bytes, one outside RAM to address 0: a
    triple fault, a walk through memory, an internal error. A triple fault is a reset."""
    return (
        kernel(APPEND + " reboot=t")
        + drive("virtio-blk-device")
        + user_net("virtio-net-device")
        + ["-device", "virtio-rng-device", "-m", "512"]
    )


class Server:
    """Serves 30 MB of chance on the loopback."""

    size = 30 * 1024 * 1024
    made = None

    @classmethod
    def get(cls):
        if not cls.made:
            cls.made = cls()
        return cls.made

    def __init__(self):
        folder = os.path.join(Settings.tmp, "www")
        os.mkdir(folder)
        data = os.urandom(self.size)
        self.sum = hashlib.sha256(data).hexdigest()
        with open(os.path.join(folder, "file"), "wb") as f:
            f.write(data)

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()


def logs_in(m, cpus, what="to the login prompt"):
    with step(what, m) as figures:
        figures.note("prompt after %.1f s" % m.login())
        got = m.sh("nproc")
        require(got == str(cpus), "the guest sees %s processors, not %d" % (got, cpus))
    with step("no unit failed", m):
        state = m.sh("systemctl is-system-running --wait", 90, check=False)
        units = m.sh("systemctl --failed --no-legend --plain")
        require(not units and state == "running", "%s: %s" % (state, units))


def network(m):
    with step("ping", m):
        # The address may take a moment to come.
        m.sh("for i in $(seq 60); do ip -4 route | grep -q ^default && break; sleep 0.5; done")
        m.sh("ping -c 3 -i 0.2 -W 5 10.0.2.2")
    server = Server.get()
    with step("30 MB over HTTP", m) as figures:
        start = time.time()
        got = m.sh("curl -s http://10.0.2.2:%d/file | sha256sum" % server.port, 240).split()[0]
        require(got == server.sum, "another SHA-256")
        figures.note("%.1f MB/s with its sum" % (server.size / 1e6 / (time.time() - start)))


def rng(m):
    with step("virtio-rng", m):
        name = m.sh("cat /sys/class/misc/hw_random/rng_current")
        require(name.startswith("virtio_rng"), "the source is " + name)
        got = m.sh("head -c 65536 /dev/hwrng | gzip -9 | wc -c", 120)
        require(int(got) > 65000, "64 KiB of it fit into " + got)


def quiet_log(m, own_apic=False):
    """Nothing in the kernel's log that tells of a lost interrupt or a clock gone wrong. With QEMU's APIC the guest's WRMSR
    of the vector of async page faults fails, as on Linux' KVM, and it shows a call trace. With the interpreter, or where
    other processes keep QEMU waiting, a tick of the RTC may be late by more than a tick (16 ms), and loops that the kernel
    counts between two ticks may come out unequal."""
    bad = [
        "rcu.*stall", "lockup", "lost .*(irq|interrupt)", "nobody cared", "skew is too large", "blocked for more", "BUG:",
        "BIOS bug", r"\bOops\b", "general protection", "hardware error", r"calibrate_delay_direct\(\) (failed|dropping)",
    ] + ([] if own_apic else ["Call Trace"])  # fmt: skip
    late = "hpet: Lost . RTC|calibrate_delay_direct"
    with step("kernel log", m):
        excused = Settings.engine == "interp" or m.kept_waiting()
        found = m.sh("dmesg | grep -iE '%s' | head -50" % "|".join(bad), check=False).split("\n")
        found = [line for line in found if line and not (excused and re.search(late, line))]
        require(not found, "\n".join(found[:5]))


def reboots(m, cpus):
    with step("reboot", m):
        m.start("reboot")
        m.event("RESET", 120)
        m.login()
    with step("system_reset", m):
        m.qmp("system_reset")
        m.login()


def powers_down(m):
    with step("system_powerdown", m):
        m.qmp("system_powerdown")
        m.event("POWERDOWN")
        m.ends(120)


def powers_off(m):
    with step("poweroff", m):
        m.start("poweroff")
        m.ends(120)


def whole(args, cpus, end):
    with Machine(*args, "-smp", str(cpus)) as m:
        logs_in(m, cpus)
        network(m)
        rng(m)
        quiet_log(m)
        reboots(m, cpus)
        end(m)


@scenario("pc, host, 2 vCPUs", both=True)
def pc():
    whole(["-M", "pc", "-cpu", "host"] + pci(), 2, powers_down)


@scenario("q35, max, 2 vCPUs")
def q35():
    whole(["-M", "q35", "-cpu", "max"] + pci(), 2, powers_down)


@scenario("microvm, host, 2 vCPUs")
def microvm():
    whole(["-M", "microvm", "-cpu", "host"] + mmio(), 2, powers_off)


@scenario("pc, qemu64, 1 vCPU")
def qemu64():
    with Machine("-M", "pc", "-cpu", "qemu64", *pci()) as m:
        logs_in(m, 1)
        network(m)
        powers_off(m)


@scenario("q35, split chips, 2 vCPUs")
def split():
    with Machine("-M", "q35,kernel-irqchip=split", "-cpu", "host", "-smp", "2", *pci()) as m:
        logs_in(m, 2)
        network(m)
        quiet_log(m)
        powers_down(m)


@scenario("pc, chips in QEMU", both=True)
def off():
    with Machine("-M", "pc,kernel-irqchip=off", "-cpu", "host", *pci()) as m:
        logs_in(m, 1)
        network(m)
        quiet_log(m, own_apic=True)
        powers_down(m)


@scenario("pc, 4 vCPUs, 6 GiB")
def large():
    with Machine("-M", "pc", "-cpu", "host", "-smp", "4", *pci("6G")) as m:
        logs_in(m, 4)
        with step("memory above 4 GiB", m):
            # More than fits below: written, summed twice.
            m.sh("mount -t tmpfs -o size=5G none /mnt")
            fill = "head -c 1100M /dev/zero | tr '\\0' $i"
            m.sh("for i in 1 2 3 4; do %s >/mnt/$i & done; wait" % fill, 300)
            m.sh("for i in 1 2 3 4; do %s | cmp - /mnt/$i || echo other >/tmp/other & done; wait; [ ! -e /tmp/other ]" % fill, 300)
            m.sh("umount /mnt")
        quiet_log(m)
        powers_down(m)


@scenario("q35, 8 vCPUs")
def many():
    with Machine("-M", "q35", "-cpu", "host", "-smp", "8", *pci("1G")) as m:
        logs_in(m, 8)
        network(m)
        quiet_log(m)
        powers_down(m)
