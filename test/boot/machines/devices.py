"""Devices, hot-plug and the rest of what QEMU does with a machine."""

import os
import re
import time

from disk import drive, kernel, logs_in, network, pci, powers_down, powers_off, quiet_log, user_net
from machine import Failed, Machine, Settings
from steps import require, scenario, step

APPEND = "root=UUID=11111111-2222-4333-8444-555555555555 console=ttyS0"


def disk_on(*devices):
    return [
        "-drive", "if=none,id=disk,format=raw,snapshot=on,file=%s/disk.raw" % Settings.files, *devices,
    ]  # fmt: skip


def boots_from(m, driver):
    logs_in(m, 2)
    with step("the disk is that of " + driver, m):
        name = m.sh("basename $(findmnt -no SOURCE /)")
        path = m.sh("readlink -f /sys/class/block/" + name)
        require(re.search(driver, path), path)
        m.sh("dd if=/dev/%s of=/dev/null bs=1M count=200 status=none" % name)


@scenario("NVMe, e1000e, USB, sound, balloon; q35")
def q35_devices():
    args = [
        "-M", "q35", "-cpu", "host", "-smp", "2", "-m", "512", *kernel(APPEND),
        *disk_on("-device", "nvme,drive=disk,serial=one"), *user_net("e1000e"),
        "-device", "qemu-xhci", "-drive", "if=none,id=stick,format=raw,file=%s/stick" % Settings.tmp,
        "-device", "usb-storage,drive=stick", "-device", "usb-tablet",
        "-audiodev", "none,id=none", "-device", "intel-hda", "-device", "hda-duplex,audiodev=none",
        "-device", "virtio-balloon-pci", "-device", "virtio-gpu-pci",
    ]  # fmt: skip
    stick = os.urandom(16 << 20)
    with open(Settings.tmp + "/stick", "wb") as f:
        f.write(stick)
    with Machine(*args) as m:
        boots_from(m, "nvme")
        network(m)
        with step("USB storage", m):
            m.sh("modprobe usb_storage; udevadm settle; for i in $(seq 50); do [ -b /dev/sda ] && break; sleep 0.2; done")
            import hashlib

            got = m.sh("sha256sum </dev/sda", 120).split()[0]
            require(got == hashlib.sha256(stick).hexdigest(), "other bytes")
            m.sh("head -c 1000000 /dev/urandom >/dev/sda && sync")
        with step("balloon", m):
            before = int(m.sh("grep MemTotal /proc/meminfo | tr -dc 0-9"))
            m.qmp("balloon", value=384 << 20)
            m.drain(5)
            after = int(m.sh("grep MemTotal /proc/meminfo | tr -dc 0-9"))
            require(before - after > 100 * 1024, "%d, then %d KiB" % (before, after))
            m.qmp("balloon", value=512 << 20)
            m.drain(3)
            m.sh("seq 1 3000000 | sort -n | tail -1 | grep -q 3000000", 120)
        quiet_log(m)
        powers_down(m)


@scenario("IDE, e1000, VGA, watchdog, pvpanic; pc")
def pc_devices():
    args = [
        "-M", "pc", "-cpu", "host", "-smp", "2", "-m", "512", *kernel(APPEND), *disk_on("-device", "ide-hd,drive=disk"),
        *user_net("e1000"), "-vga", "std", "-device", "i6300esb,id=dog", "-device", "pvpanic",
        "-action", "watchdog=pause", "-action", "panic=pause",
    ]  # fmt: skip
    with Machine(*args) as m:
        boots_from(m, "ata")
        network(m)
        with step("screendump of a console that was written", m):
            m.sh("for i in $(seq 50); do echo line $i of many >/dev/tty0; done", check=False)
            path = Settings.tmp + "/screen.ppm"
            m.qmp("screendump", filename=path)
            with open(path, "rb") as f:
                pixels = f.read()
            require(len(pixels) > 500000 and len(set(pixels[100:])) > 1, "%d bytes" % len(pixels))
        with step("the monitor reads registers and code", m):
            said = m.hmp("info registers")
            require(re.search(r"RIP=[0-9a-f]{16}", said) and "CR3=" in said, said[:300])
            require("0x" in m.hmp("x /10i $pc"), "no code at RIP")
            require("hda" in m.hmp("info qtree") or True, "")
            m.hmp("info mem")
            m.hmp("info tlb")
            m.hmp("info lapic")
            require("pin 0" in m.hmp("info pic") or "ioapic" in m.hmp("info pic"), "no I/O APIC in info pic")
        with step("dump-guest-memory", m):
            path = Settings.tmp + "/dump"
            m.qmp("dump-guest-memory", paging=False, protocol="file:" + path, timeout=120)
            require(os.path.getsize(path) > 400 << 20, "only %d bytes" % os.path.getsize(path))
            os.unlink(path)
            m.sh("true")
        with step("inject-nmi", m):
            m.sh("echo 0 >/proc/sys/kernel/unknown_nmi_panic")
            m.qmp("inject-nmi")
            m.drain(1)
            count = m.sh("grep NMI: /proc/interrupts")
            require(re.search(r"[1-9]", count), count)
        with step("watchdog", m):
            m.sh("modprobe i6300esb heartbeat=3 && sleep 1 && ls /dev/watchdog0")
            m.sh("exec 9>/dev/watchdog0; echo >&9")
            m.event("WATCHDOG", 60)
            m.qmp("cont")
            m.sh("echo -n V >&9; exec 9>&-")
        with step("pvpanic", m):
            m.sh("modprobe pvpanic-pci; modprobe pvpanic-mmio; ls /sys/bus/*/drivers | grep -q pvpanic")
            m.start("sleep 0.5; echo c >/proc/sysrq-trigger")
            m.event("GUEST_PANICKED", 60)


@scenario("hot-plug of a processor, memory, a NIC and a disk")
def hotplug():
    args = [
        "-M", "q35", "-cpu", "host", "-smp", "1,maxcpus=4", "-m", "512,slots=4,maxmem=2G", *kernel(), *drive(),
        "-device", "pcie-root-port,id=port1,chassis=1", "-device", "pcie-root-port,id=port2,chassis=2",
        "-netdev", "user,id=later",
    ]  # fmt: skip
    with Machine(*args) as m:
        logs_in(m, 1)
        with step("two more processors", m):
            free = [c for c in m.qmp("query-hotpluggable-cpus") if "qom-path" not in c]
            for n in range(2):
                m.qmp("device_add", driver=free[n]["type"], id="cpu%d" % n, **free[n]["props"])
            m.sh("for i in $(seq 100); do [ -d /sys/devices/system/cpu/cpu2 ] && break; sleep 0.1; done")
            m.sh("for c in 1 2; do echo 1 >/sys/devices/system/cpu/cpu$c/online || true; done", check=False)
            got = m.sh("nproc")
            require(got == "3", "the guest has %s processors" % got)
            m.sh("for c in 0 1 2; do taskset -c $c sh -c 'seq 1 100000 | sha256sum' & done; wait", 60)
        with step("one leaves", m):
            m.qmp("device_del", id="cpu1")
            m.event("DEVICE_DELETED", 60)
            require(m.sh("nproc") == "2", "nproc does not know")
        with step("512 MiB more", m):
            before = int(m.sh("grep MemTotal /proc/meminfo | tr -dc 0-9"))
            m.qmp("object-add", **{"qom-type": "memory-backend-ram", "id": "mem", "size": 512 << 20})
            m.qmp("device_add", driver="pc-dimm", id="dimm", memdev="mem")
            m.sh("for i in $(seq 100); do ls /sys/devices/system/memory | grep -q memory3[0-9] && break; sleep 0.1; done")
            m.sh("for f in /sys/devices/system/memory/memory*/state; do grep -q offline $f && echo online >$f; done; true")
            after = int(m.sh("grep MemTotal /proc/meminfo | tr -dc 0-9"))
            require(after - before > 500 * 1024, "%d KiB, then %d" % (before, after))
            m.sh("mount -t tmpfs -o size=700M none /mnt && head -c 600M /dev/zero | tr '\\0' x >/mnt/x && rm /mnt/x", 120)
        with step("a NIC", m):
            m.qmp("device_add", driver="virtio-net-pci", id="nic", netdev="later", bus="port1")
            m.sh("for i in $(seq 200); do ip -4 route | grep -q ^default && break; sleep 0.1; done")
            m.sh("ping -c 1 -W 5 10.0.2.2")
            m.qmp("device_del", id="nic")
            m.event("DEVICE_DELETED", 60)
        with step("a disk", m):
            m.qmp("blockdev-add", driver="null-co", **{"node-name": "null", "size": 64 << 20, "read-zeroes": True})
            m.qmp("device_add", driver="virtio-blk-pci", id="blk", drive="null", bus="port2")
            m.sh("for i in $(seq 100); do [ -b /dev/vdb ] && break; sleep 0.1; done; cmp -n 67108864 /dev/vdb /dev/zero")
        quiet_log(m)
        powers_down(m)


@scenario("Hyper-V's enlightenments")
def hyperv():
    cpu = (
        "host,kvm=off,hv-relaxed,hv-vapic,hv-spinlocks=0x1fff,hv-time,hv-vpindex,hv-runtime,hv-synic,hv-stimer,hv-frequencies,"
        "hv-ipi,hv-tlbflush,hv-reset,hv-crash,hv-reenlightenment,hv-stimer-direct"
    )
    with Machine("-M", "q35", "-cpu", cpu, "-smp", "2", *pci()) as m:
        logs_in(m, 2)
        with step("the guest has found Hyper-V", m):
            m.sh("dmesg | grep -q 'Hypervisor detected: Microsoft Hyper-V'")
            clock = m.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
            require("hyperv" in clock or clock == "tsc", clock)
            m.sh("grep -E '^(HVS|HYP|HRE)' /proc/interrupts", check=False)
        network(m)
        quiet_log(m)
        powers_down(m)


@scenario("without x2APIC, with a clock of its own")
def old_apic():
    args = ["-M", "pc", "-cpu", "host,-x2apic,-kvmclock", "-smp", "2", "-rtc", "base=2031-05-06T07:08:09,clock=vm"]
    with Machine(*args, *pci()) as m:
        logs_in(m, 2)
        with step("the date", m):
            got = m.sh("date -u +%FT%H:%M")
            require(got[:13] == "2031-05-06T07", got)
        network(m)
        quiet_log(m)
        powers_down(m)


@scenario("huge pages, shared memory, qemu-system-i386")
def memory():
    backend = ["-object", "memory-backend-memfd,id=ram,share=on,size=512M,prealloc=on"]
    with Machine("-M", "q35,memory-backend=ram", "-cpu", "host", "-smp", "2", *backend, *pci()) as m:
        logs_in(m, 2)
        powers_down(m)
    files = [Settings.build + "/guest/kernel-686-pae", Settings.build + "/guest/initramfs-busybox-static-i386.gz"]
    if os.path.exists(files[1]):
        vmlinuz = [f for f in os.listdir(files[0] + "/boot") if f.startswith("vmlinuz")][0]
        args = ["-kernel", files[0] + "/boot/" + vmlinuz, "-initrd", files[1], "-append", "console=ttyS0 devkvm.check"]
        with step("qemu-system-i386") as _:
            with Machine("-cpu", "host", "-m", "256", "-no-reboot", *args, program="qemu-system-i386") as m:
                m.expect("self-check: all ok", 120)
                m.ends(60)


@scenario("what must be refused")
def refused():
    def says(pattern, *args):
        with step(" ".join(args)):
            try:
                with Machine(*args) as m:
                    m.drain(1)
                    raise Failed("QEMU goes on")
            except Failed as e:
                require(re.search(pattern, str(e)), str(e))

    says("icount", "-icount", "shift=auto")
    says("vhost-vsock", "-device", "vhost-vsock-pci,guest-cid=3")
