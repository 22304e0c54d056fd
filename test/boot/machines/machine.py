"""A QEMU on our /dev/kvm, driven by its serial port and by QMP. Every wait has an end."""

import json
import os
import re
import select
import shutil
import socket
import subprocess
import time


class Failed(Exception):
    """A step that did not come out as it must."""


class Settings:
    """What the command line chose."""

    build = None  # the build folder
    engine = "jit"
    slow = 1.0  # factor on all time-outs
    files = None  # disk.raw, vmlinuz, initrd.img
    tmp = None  # of this run


def listen(path):
    """A socket that QEMU connects to as it starts: nothing that it writes is lost."""
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.listen(1)
    return s


class Machine:
    """One QEMU. Guest text goes to `log`; expect() looks at what came since the last match."""

    count = 0

    def __init__(self, *args, program="qemu-system-x86_64", accel="kvm", name=None):
        Machine.count += 1
        self.dir = os.path.join(Settings.tmp, "m%d" % Machine.count)
        os.mkdir(self.dir)
        self.text = ""  # all that the guest wrote
        self.seen = 0  # up to here it has been looked at
        self.shell_marks = 0
        self.events = []
        self.answers = []
        self.qmp_rest = b""
        lines = [listen(self.path(n)) for n in ("serial", "qmp")]
        self.command = [
            os.path.join(Settings.build, "devkvm"), "run", "--", program, "-accel", accel, "-display", "none",
            "-no-user-config", "-nodefaults",
            "-chardev", "socket,id=serial,path=" + self.path("serial"), "-serial", "chardev:serial",
            "-chardev", "socket,id=qmp,path=" + self.path("qmp"), "-mon", "chardev=qmp,mode=control",
        ] + list(args)  # fmt: skip
        env = dict(os.environ, DEVKVM_ENGINE=Settings.engine)
        self.said = open(self.path("qemu.log"), "w+")
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.said, stderr=subprocess.STDOUT, env=env
        )
        try:
            self.serial, self.control = [self.accept(s) for s in lines]
            self.take_control()
        except BaseException:
            self.close()
            raise

    def path(self, name):
        return os.path.join(self.dir, name)

    def accept(self, server):
        end = time.time() + 30
        try:
            while time.time() < end:
                if select.select([server], [], [], 0.1)[0]:
                    return server.accept()[0]
                if self.process.poll() is not None:
                    raise Failed("QEMU ended at once (%d): %s" % (self.process.returncode, self.messages()))
        finally:
            server.close()
        raise Failed("QEMU does not open its ports: " + self.messages())

    def messages(self):
        """What QEMU itself said."""
        self.said.flush()
        with open(self.path("qemu.log")) as f:
            return f.read()[-1000:].strip()

    def tail(self):
        return self.text[-1500:]

    def kept_waiting(self):
        """Whether the host let QEMU's threads wait for a processor for long, against what it let them run."""
        ran = waited = 0
        tasks = "/proc/%d/task" % self.process.pid
        for task in os.listdir(tasks):
            try:
                with open("%s/%s/schedstat" % (tasks, task)) as f:
                    a, b = f.read().split()[:2]
            except OSError:  # it has ended, or the kernel does not count
                continue
            ran += int(a)
            waited += int(b)
        return waited > ran / 4

    # The ports.

    def pump(self, seconds):
        """Reads what has come, or waits at most so long for something. False at the end of both."""
        ports = [p for p in (self.serial, self.control) if p]
        if not ports:
            return False
        for port in select.select(ports, [], [], max(0, seconds))[0]:
            try:
                data = port.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                if port is self.serial:
                    self.serial = None
                else:
                    self.control = None
            elif port is self.serial:
                self.text += data.decode("latin-1").replace("\r", "")
            else:
                self.qmp_rest += data
                *whole, self.qmp_rest = self.qmp_rest.split(b"\n")
                for line in whole:
                    if line.strip():
                        said = json.loads(line)
                        (self.events if "event" in said else self.answers).append(said)
        return True

    def wait(self, what, ready, timeout):
        """Until ready() gives something; that is returned."""
        end = time.time() + timeout * Settings.slow
        while True:
            got = ready()
            if got:
                return got
            left = end - time.time()
            if left <= 0:
                raise Failed("%s: not within %d s" % (what, timeout * Settings.slow))
            if not self.pump(min(left, 0.5)) and not ready():
                raise Failed("%s: QEMU ended (%s) %s" % (what, self.process.poll(), self.messages()))

    def drain(self, seconds):
        """Takes what comes for so long."""
        end = time.time() + seconds
        while time.time() < end and self.pump(end - time.time()):
            pass

    # The guest.

    def expect(self, pattern, timeout=120):
        regex = re.compile(pattern, re.M)

        def ready():
            return regex.search(self.text, self.seen)

        match = self.wait("the guest's %r" % pattern, ready, timeout)
        self.seen = match.end()
        return match

    def send(self, text):
        self.serial.sendall(text.encode("latin-1"))

    def login(self, timeout=150):
        """From the start to a shell. The time that took to the prompt, in seconds."""
        start = time.time()
        self.expect(r"^machine login: ", timeout)
        took = time.time() - start
        self.send("root\n")
        self.expect(r"root@machine:.*# ", 60)
        # Neither echo nor line editing: what comes back is the commands' output.
        self.send("exec env TERM=dumb PS1= sh\nstty -echo\n")
        self.sh("true")
        return took

    def start(self, command):
        """A command whose end nobody waits for."""
        self.send(command + "\n")

    def sh(self, command, timeout=60, check=True):
        """Runs a command in the guest; its output. The mark is typed in two pieces, so that an echo is not taken for it."""
        self.shell_marks += 1
        begin, end = "<b%d>" % self.shell_marks, "<e%d " % self.shell_marks
        self.send("echo '<b'%d'>'; %s\necho '<e'%d $?\n" % (self.shell_marks, command, self.shell_marks))
        self.expect(re.escape(begin) + "\n", timeout)
        at = self.seen
        match = self.expect(re.escape(end) + r"(\d+)\n", timeout)
        output = self.text[at : match.start()].strip()
        if check and match.group(1) != "0":
            raise Failed("the guest's %r gave %s: %s" % (command, match.group(1), output[-400:]))
        return output

    # The machine.

    def take_control(self):
        self.wait("QMP's greeting", lambda: self.answers, 30)
        self.answers.clear()
        self.qmp("qmp_capabilities")

    def qmp(self, command, timeout=60, **arguments):
        """One command; its answer. Names with dashes are written with underscores."""
        request = {"execute": command}
        if arguments:
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.answers.clear()
        self.control.sendall(json.dumps(request).encode() + b"\n")
        self.wait("an answer to QMP's %s" % command, lambda: self.answers, timeout)
        answer = self.answers.pop(0)
        if "error" in answer:
            raise Failed("QMP's %s: %s" % (command, answer["error"]["desc"]))
        return answer["return"]

    def hmp(self, line, timeout=120):
        """A line for the human monitor."""
        return self.qmp("human-monitor-command", timeout, command_line=line).replace("\r", "")

    def event(self, name, timeout=60):
        self.wait("QMP's event " + name, lambda: [e for e in self.events if e["event"] == name], timeout)
        found = [e for e in self.events if e["event"] == name][0]
        self.events.remove(found)
        return found

    def ends(self, timeout=60):
        """QEMU ends by itself, with status 0."""
        end = time.time() + timeout * Settings.slow
        while self.process.poll() is None and time.time() < end:
            self.pump(0.2) or time.sleep(0.1)
        if self.process.poll() is None:
            raise Failed("QEMU does not end within %d s" % (timeout * Settings.slow))
        if self.process.returncode != 0:
            raise Failed("QEMU ended with %d: %s" % (self.process.returncode, self.messages()))

    def quit(self):
        self.qmp("quit")
        self.ends(30)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.said.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
