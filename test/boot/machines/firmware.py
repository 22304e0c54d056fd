"""Firmware, boot loaders, other kernels, and the debugger."""

import os
import re
import shutil
import subprocess
import time

from disk import drive, kernel, logs_in, pci, powers_down, powers_off, user_net
from machine import Failed, Machine, Settings
from steps import require, scenario, step


def bootable(machine, *more, cpu="host", memory="512"):
    return Machine(
        "-M", machine, "-cpu", cpu, "-smp", "2", "-m", memory, *more,
        "-drive", "if=none,id=disk,format=raw,snapshot=on,file=%s/disk.raw" % Settings.files,
        "-device", "virtio-blk-pci,drive=disk,bootindex=0",
    )  # fmt: skip


def boots_the_disk(m, efi):
    with step("GRUB", m):
        m.expect("GRUB reads its configuration", 200)
    logs_in(m, 2)
    with step("as the firmware left it", m):
        got = m.sh("[ -d /sys/firmware/efi ] && echo efi || echo bios")
        require(got == ("efi" if efi else "bios"), "the guest was started by " + got)
        # The memory map's runtime services get called.
        m.sh("cat /sys/class/rtc/rtc0/time")
    powers_down(m)


@scenario("SeaBIOS and GRUB from disk, pc", both=True)
def seabios_pc():
    with bootable("pc") as m:
        boots_the_disk(m, False)


@scenario("SeaBIOS and GRUB from disk, q35")
def seabios_q35():
    with bootable("q35") as m:
        boots_the_disk(m, False)


def ovmf(machine, **settings):
    variables = os.path.join(Settings.tmp, "vars.fd")
    shutil.copy("/usr/share/OVMF/OVMF_VARS_4M.fd", variables)
    flash = [
        "-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
        "-drive", "if=pflash,format=raw,file=" + variables,
    ]  # fmt: skip
    with bootable(machine, *flash, **settings) as m:
        boots_the_disk(m, True)


@scenario("OVMF and GRUB from disk, pc")
def ovmf_pc():
    # It maps the physical addresses of the host's processor, up to 47 bits, by 2 MiB pages: half a GiB of page tables.
    ovmf("pc", memory="2048")


@scenario("OVMF and GRUB from disk, q35")
def ovmf_q35():
    ovmf("q35", cpu="host,host-phys-bits-limit=40")


@scenario("a rescue CD of GRUB", both=True)
def rescue():
    folder = os.path.join(Settings.tmp, "cd")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder + "/boot/grub")
    with open(folder + "/boot/grub/grub.cfg", "w") as f:
        f.write("serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n")
    iso = os.path.join(Settings.tmp, "rescue.iso")
    made = subprocess.run(["grub-mkrescue", "-o", iso, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    require(made.returncode == 0, "grub-mkrescue: " + made.stdout.decode()[-300:])
    cd = ["-drive", "if=none,id=cd,media=cdrom,format=raw,readonly=on,file=" + iso]
    for machine, device in (("pc", "ide-cd"), ("q35", "ide-cd")):
        with Machine("-M", machine, "-cpu", "host", "-m", "128", *cd, "-device", device + ",drive=cd") as m:
            with step("the prompt on " + machine, m):
                m.expect(r"grub> ", 120)
            with step("commands on " + machine, m):
                m.send("echo one two; cpuid -l; echo long $?\r")
                m.expect(r"^one two$", 60)
                m.expect(r"^long 0$", 60)
                m.send("lsmmap\r")
                m.expect(r"base_addr = 0x100000, length = 0x7[0-9a-f]+, available RAM", 60)
                m.send("hashsum --hash sha256 /boot/grub/grub.cfg\r")
                m.expect(r"^[0-9a-f]{64} ", 60)
            with step("halt on " + machine, m):
                m.send("halt\r")
                m.ends(60)


@scenario("memtest86+, one pass over 64 MiB")
def memtest():
    image = "/boot/memtest86+x64.bin"
    args = ["-M", "pc", "-cpu", "host", "-m", "64", "-kernel", image, "-append", "console=ttyS0,115200"]
    with Machine(*args) as m:
        with step("the pass", m) as figures:
            start = time.time()
            m.expect(r"Memtest86\+", 60)
            # Its last test lets memory rest for some minutes.
            m.expect(r"Pass: +1 +Errors: +\d+", 900)
            figures.note("%d s" % (time.time() - start))
            errors = re.findall(r"Errors: +([1-9]\d*)", m.text)
            require(not errors, "errors: %s" % errors[-1:])


def guest_files(flavour):
    """A kernel of Debian's and an initramfs with the self-check."""
    tool = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../tools/guest-files")
    return subprocess.run([tool, Settings.build, flavour], stdout=subprocess.PIPE, check=True).stdout.decode().split()


def combinations():
    """Machine type, chips, processor and number of vCPUs. QEMU 7.2 with its own APICs runs one vCPU only."""
    for machine in ("pc", "q35", "microvm"):
        for cpu in ("host", "max", "qemu64"):
            for cpus in (1, 2):
                yield machine, "on", cpu, cpus
        for cpus in (1, 2):
            yield machine, "split", "host", cpus
        yield machine, "off", "host", 1


@scenario("each machine type with each processor and chip")
def each():
    initrd = guest_files("cloud-amd64")[1]
    for machine, chips, cpu, cpus in combinations():
        args = ["-M", "%s,kernel-irqchip=%s" % (machine, chips), "-cpu", cpu, "-smp", str(cpus), "-m", "256", "-no-reboot"]
        args += ["-kernel", Settings.files + "/vmlinuz", "-initrd", initrd, "-append", "console=ttyS0 devkvm.check"]
        with Machine(*args) as m:
            with step("%s, chips %s, %s, %d vCPU: self-check" % (machine, chips, cpu, cpus), m):
                got = m.expect(r"Brought up 1 node, (\d+) CPU", 60).group(1)
                require(got == str(cpus), "the guest sees %s processors" % got)
                m.expect("self-check: all ok", 120)
                m.ends(60)


@scenario("32-bit kernel", both=True)
def pae():
    files = guest_files("686-pae")
    for machine, cpu in (("pc", "host"), ("q35", "max"), ("pc,kernel-irqchip=split", "host"), ("microvm", "host")):
        with step("self-check on %s, %s" % (machine, cpu)) as figures:
            args = ["-kernel", files[0], "-initrd", files[1], "-append", "console=ttyS0 devkvm.check"]
            with Machine("-M", machine, "-cpu", cpu, "-smp", "2", "-m", "256", "-no-reboot", *args) as m:
                m.expect("self-check: all ok", 120)
                m.ends(60)


def gdb(m, *commands, timeout=120):
    """gdb in batch mode on the guest; what it printed."""
    args = ["gdb", "-batch", "-nx", "-ex", "set pagination off", "-ex", "set architecture i386:x86-64"]
    args += ["-ex", "target remote " + m.path("gdb")]
    for c in commands:
        args += ["-ex", c]
    try:
        got = subprocess.run(
            args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=timeout * Settings.slow,
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        raise Failed("gdb does not end; it said: " + (e.stdout or b"").decode()[-600:])
    return got.stdout.decode()


@scenario("gdb, 2 vCPUs")
def debugger():
    args = ["-M", "q35", "-cpu", "host", "-smp", "2", *kernel("root=/dev/vda1 console=ttyS0 nokaslr"), *drive()]
    with Machine("-m", "512", *args, *user_net()) as m:
        m.hmp("gdbserver unix:%s,server=on,wait=off" % m.path("gdb"))
        logs_in(m, 2)

        def address(symbol):
            return "0x" + m.sh("grep -E ' %s$' /proc/kallsyms" % symbol).split()[0]

        open_at, uname_at, jiffies = [
            address("[TtDd] " + s) for s in ("do_sys_openat2", "__x64_sys_newuname", "jiffies")
        ]
        m.start("while [ ! -e /tmp/stop ]; do uname -s; cat /proc/uptime; sleep 0.05; done >/dev/null &")
        for kind, command in (("hardware", "hbreak"), ("software", "break")):
            with step(kind + " breakpoint", m):
                said = gdb(
                    m, "%s *%s" % (command, open_at), "continue", "printf \"hit %lx\\n\", $rip",
                    "continue", "printf \"hit %lx\\n\", $rip", "delete", "detach",
                )  # fmt: skip
                require(said.count("hit " + open_at[2:].lstrip("0")) == 2, said[-600:])
                m.sh("true")
        with step("both at once, steps between", m):
            said = gdb(
                m, "hbreak *" + open_at, "break *" + uname_at, "continue", "stepi", "printf \"at %lx\\n\", $rip", "stepi",
                "printf \"at %lx\\n\", $rip", "stepi 20", "printf \"at %lx\\n\", $rip", "continue", "x/3i $rip", "delete",
                "detach",
            )  # fmt: skip
            places = re.findall(r"^at ([0-9a-f]+)$", said, re.M)
            require(len(places) == 3 and len(set(places)) == 3, said[-800:])
            require(said.count("Breakpoint") >= 3, said[-800:])
            m.sh("true")
        for kind in ("watch", "awatch", "rwatch"):
            with step(kind, m):
                said = gdb(m, "%s *(unsigned long *)%s" % (kind, jiffies), "continue", "continue", "delete", "detach")
                require(len(re.findall(r"[Ww]atchpoint \d+: ", said)) >= 2, said[-800:])
                m.sh("true")
        with step("registers and memory are written", m):
            said = gdb(
                m, "info registers rip rsp cr3", "set var $saved = $rax", "set var $rax = 0x1122334455667788",
                "printf \"rax %lx\\n\", $rax", "set var $rax = $saved", "x/4xg $rsp", "thread 2", "x/i $rip", "detach",
            )  # fmt: skip
            require("rax 1122334455667788" in said, said[-800:])
            m.sh("true")
        with step("the guest goes on as before", m):
            m.sh("touch /tmp/stop; sleep 1; seq 1 100000 | sha256sum | grep -q ^b2bc7d3f")
        powers_down(m)
