"""Snapshots, pauses and migration, while the guest works."""

import os
import subprocess
import time

from disk import drive, kernel, logs_in, powers_down, quiet_log, user_net
from machine import Failed, Machine, Settings
from steps import require, scenario, step


def overlay(name):
    """A disk of one's own over the image: what internal snapshots and a second QEMU need."""
    path = os.path.join(Settings.tmp, name)
    if os.path.exists(path):
        os.unlink(path)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", Settings.files + "/disk.raw", path], check=True
    )
    return path


# Writes files and their sums, and looks at all of them over and over. A file called stop ends it.
WRITER = r"""
writer() {
  mkdir -p /dev/shm/w; cd /dev/shm/w
  i=0
  while [ ! -e /dev/shm/stop ]; do
    n=$((i % 12))
    head -c 2000000 /dev/urandom >f.$n; sha256sum f.$n >s.$n
    [ $i -lt 12 ] || sha256sum -c --status s.$(((i + 5) % 12)) || echo "bad $i" >>/dev/shm/bad
    i=$((i + 1)); echo $i >/dev/shm/count.new; mv /dev/shm/count.new /dev/shm/count
  done
  for n in 0 1 2 3 4 5 6 7 8 9 10 11; do sha256sum -c --status s.$n || echo "bad end $n" >>/dev/shm/bad; done
}
"""


def writes(m):
    m.sh("cat >/dev/shm/writer <<'END'\n%sEND" % WRITER)
    m.start("(. /dev/shm/writer; writer; echo done >/dev/shm/done) </dev/null >/dev/null 2>&1 &")
    m.sh("while [ ! -e /dev/shm/count ] || [ $(cat /dev/shm/count) -lt 14 ]; do sleep 0.2; done", 120)


def wrote(m):
    m.sh("touch /dev/shm/stop; while [ ! -e /dev/shm/done ]; do sleep 0.2; done", 120)
    bad = m.sh("cat /dev/shm/bad 2>/dev/null", check=False)
    require(not bad, bad)
    return int(m.sh("cat /dev/shm/count"))


def snapshot(machine, cpus):
    file = overlay("snapshot.qcow2")
    args = ["-M", machine, "-cpu", "host", "-smp", str(cpus), "-m", "256", *kernel(), *drive(file=file), *user_net()]
    with Machine(*args) as m:
        logs_in(m, cpus)
        with step("savevm, loadvm", m) as figures:
            m.sh("state=before; echo before >/dev/shm/file; echo before >/root/file; sync")
            start = time.time()
            m.hmp("savevm one")
            require("one" in m.hmp("info snapshots"), "no snapshot is listed")
            figures.note("saved in %.1f s" % (time.time() - start))
            m.sh("state=after; echo after >/dev/shm/file; echo after >/root/file; sync")
            require(m.sh("echo $state") == "after", "the shell forgot what it was told")
            start = time.time()
            said = m.hmp("loadvm one")
            require(not said, said)
            figures.note("loaded in %.1f s" % (time.time() - start))
            got = m.sh("echo $state $(cat /dev/shm/file /root/file)")
            require(got == "before before before", "the guest says " + got)
        with step("savevm, loadvm while the guest writes", m):
            writes(m)
            for n in range(3):
                m.hmp("savevm two")
                m.drain(2)
                said = m.hmp("loadvm two")
                require(not said, said)
                m.drain(1)
            wrote(m)
        quiet_log(m, "irqchip=off" in machine)
        with step("into a new QEMU with -loadvm", m):
            m.sh("state=third")
            m.hmp("savevm three")
            m.quit()
            with Machine(*args, "-loadvm", "three") as m2:
                m2.shell_marks = m.shell_marks
                require(m2.sh("echo $state") == "third", "another state")
                m2.sh("ls -R /etc | sha256sum && sync")


@scenario("savevm, q35, 2 vCPUs")
def snapshot_q35():
    snapshot("q35", 2)


@scenario("savevm, pc, split chips, 2 vCPUs")
def snapshot_split():
    snapshot("pc,kernel-irqchip=split", 2)


@scenario("savevm, pc, chips in QEMU")
def snapshot_off():
    snapshot("pc,kernel-irqchip=off", 1)


def await_migration(source, timeout=240):
    """Until it is complete; its figures."""
    end = time.time() + timeout * Settings.slow
    patience = time.time() + 20 * Settings.slow
    while time.time() < end:
        info = source.qmp("query-migrate")
        if info["status"] == "completed":
            return info
        if info["status"] in ("failed", "cancelled"):
            raise Failed("migration: %s" % info)
        if time.time() > patience:
            # A slow host: the guest writes faster than the last round may last.
            source.qmp("migrate-set-parameters", **{"downtime-limit": 5000})
            patience = end
        source.drain(0.3)
    raise Failed("migration is not complete: %s" % info)


def migrate(args, times, accel="kvm", capabilities=(), parameters=None, postcopy=False, cpus=2):
    file = overlay("migrate.qcow2")
    args = [
        "-cpu", "host", "-smp", str(cpus), "-m", "512", *kernel(), *drive(file=file), *user_net(),
        "-device", "virtio-rng-pci", *args,
    ]  # fmt: skip
    here = Machine(*args, accel=accel)
    there = None
    try:
        logs_in(here, cpus)
        with step("the guest begins to write", here):
            writes(here)
        for n in range(times):
            with step("migration %d" % (n + 1), here) as figures:
                path = os.path.join(Settings.tmp, "migration%d" % Machine.count)
                there = Machine(*args, "-incoming", "defer", accel=accel)
                for m in (here, there):
                    m.qmp(
                        "migrate-set-capabilities",
                        capabilities=[{"capability": c, "state": True} for c in capabilities],
                    )
                    m.qmp("migrate-set-parameters", **dict({"max-bandwidth": 50 * 10**6}, **(parameters or {})))
                there.qmp("migrate-incoming", uri="unix:" + path)
                before = int(here.sh("cat /dev/shm/count"))
                here.qmp("migrate", uri="unix:" + path)
                if postcopy:
                    here.drain(1)
                    here.qmp("migrate-start-postcopy")
                info = await_migration(here)
                there.event("RESUME")
                there.shell_marks = here.shell_marks
                here.quit()
                here.close()
                here = there
                after = int(here.sh("cat /dev/shm/count", 120))
                require(after >= before, "the guest's count went from %d to %d" % (before, after))
                figures.note(
                    "%d rounds written meanwhile, %d MiB moved, down for %d ms"
                    % (after - before, info["ram"]["transferred"] >> 20, info.get("downtime", -1))
                )
                here.sh("while [ $(cat /dev/shm/count) -lt %d ]; do sleep 0.1; done" % (after + 3), 120)
        with step("all it wrote is right", here) as figures:
            figures.note("%d files" % wrote(here))
            here.sh("ls -R /etc | sha256sum && ping -c 1 -W 5 10.0.2.2")
        quiet_log(here, "irqchip=off" in " ".join(args))
        powers_down(here)
    finally:
        for m in (here, there):
            if m:
                m.close()


@scenario("migration, q35, 2 vCPUs, five times")
def migrate_q35():
    migrate(["-M", "q35"], 5)


@scenario("migration, pc, split chips, 2 vCPUs")
def migrate_split():
    migrate(["-M", "pc,kernel-irqchip=split"], 2)


@scenario("migration, pc, chips in QEMU")
def migrate_off():
    migrate(["-M", "pc,kernel-irqchip=off"], 2, cpus=1)


@scenario("migration with the dirty ring")
def migrate_ring():
    migrate(["-M", "q35"], 2, accel="kvm,dirty-ring-size=4096")


@scenario("migration over several channels, of shared memory")
def migrate_multifd():
    memory = ["-object", "memory-backend-memfd,id=ram,share=on,size=512M", "-M", "q35,memory-backend=ram"]
    migrate(memory, 2, capabilities=["multifd"], parameters={"multifd-channels": 3})


@scenario("migration, post-copy")
def migrate_postcopy():
    migrate(["-M", "q35"], 2, capabilities=["postcopy-ram"], postcopy=True)


@scenario("stop and cont under load")
def pauses():
    with Machine("-M", "q35", "-cpu", "host", "-smp", "2", "-m", "512", *kernel(), *drive(), *user_net()) as m:
        logs_in(m, 2)
        writes(m)
        with step("ten short pauses, one of 6 s", m) as figures:
            guest = float(m.sh("cut -d' ' -f1 /proc/uptime"))
            start = time.time()
            paused = 0
            for seconds in [0.1, 0.2, 0.3, 0.4, 0.5] * 2 + [6]:
                m.qmp("stop")
                begin = time.time()
                time.sleep(seconds)
                paused += time.time() - begin
                m.qmp("cont")
                m.drain(0.3)
            guest = float(m.sh("cut -d' ' -f1 /proc/uptime")) - guest
            off = guest - (time.time() - start - paused)
            figures.note("the guest's clock against ours: %+.2f s" % off)
            require(abs(off) < 1.5, "the guest's clock is off by %.2f s" % off)
            wrote(m)
        quiet_log(m)
        powers_down(m)
