"""A real etcd for tests: one node or three, each a process on free ports of loopback.

A test that wants one carries `@pytest.mark.real`. Where etcd is not installed the test is skipped, on CI it fails.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from jarvis_flags.settings import EtcdSettings, FlagSettings
from jarvis_otel.admin.opening import open_flags
from tests.http_peers import HttpPeer, PeerHandler
from tests.otlp_sink import until
from tests.ports import free_port

_nets = itertools.count()


def etcd_binary() -> str:
    """Where etcd is; ends the test where it is not installed."""
    path = shutil.which("etcd")
    if path is None:
        _missing("the real etcd is not installed here: apt-get install etcd-server")
    return path


def _missing(what):
    """Ends the test: what it needs is not here."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


class EtcdNode:
    """One member.

    Args:
        name: What it is called.
        home: The directory of its data and output.
        client, peer: Its two ports.
        options: Further options of its command line.

    Attributes:
        host, peer_host: Its addresses for machines and for other members.
        scheme: http or https.
        prefix: A command that starts it, such as `ip netns exec NAME`.
    """

    def __init__(self, name, home, client, peer, *options):
        self.name, self.home = name, Path(home)
        self.scheme, self.host, self.peer_host = "http", "127.0.0.1", "127.0.0.1"
        self.client, self.peer = client, peer
        self.options, self.prefix = options, ()
        self.process = None

    @property
    def url(self):
        return f"{self.scheme}://{self.host}:{self.client}"

    @property
    def peer_url(self):
        return f"http://{self.peer_host}:{self.peer}"

    def start(self, members):
        self.home.mkdir(parents=True, exist_ok=True)
        command = [*self.prefix, etcd_binary(), "--name", self.name, "--data-dir", str(self.home / "data")]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        command += ["--initial-cluster", ",".join(f"{one.name}={one.peer_url}" for one in members)]
        # a cluster of its own: leftovers of another test on the same port are no members
        command += ["--initial-cluster-token", str(self.home.parent), "--log-level", "error"]
        command += ["--heartbeat-interval", "100", "--election-timeout", "1000", *self.options]
        with (self.home / "output").open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        return self

    def stop(self, number=signal.SIGTERM):
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()

    def kill(self):
        self.stop(signal.SIGKILL)


class EtcdCluster:
    """Members that know each other, and what tests ask of them.

    Args:
        home: A directory.
        size: So many members.
        options: Further options of each.
    """

    def __init__(self, home, size=3, options=()):
        ports = set()
        while len(ports) < 2 * size:
            ports.add(free_port())
        pairs = iter(sorted(ports))
        self.nodes = [
            EtcdNode(f"n{number}", Path(home) / f"n{number}", next(pairs), next(pairs), *options)
            for number in range(size)
        ]

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        for node in self.nodes:
            node.kill()

    @property
    def urls(self):
        return tuple(node.url for node in self.nodes)

    def start(self):
        for node in self.nodes:
            if node.process is None:
                node.start(self.nodes)
        until(self.is_healthy, 60)

    def is_healthy(self):
        for node in self.nodes:
            assert node.process is None or node.process.poll() is None, (node.home / "output").read_text()
        return all(self.leads(node) is not None for node in self.nodes if node.process is not None)

    def leads(self, node):
        """Whether a member is the leader; None where it has none, or does not answer."""
        try:
            status = self.ask("maintenance/status", {}, node)
            header = status["header"]
        except (OSError, KeyError, ValueError):
            return None
        return None if status.get("leader", "0") == "0" else status["leader"] == header["member_id"]

    def leader(self):
        found = []
        until(lambda: found.extend(node for node in self.nodes if node.process and self.leads(node)) or bool(found), 30)
        return found[0]

    def follower(self):
        leader = self.leader()
        return next(node for node in self.nodes if node is not leader and node.process is not None)

    def ask(self, path, body, node=None):
        """One request to a member, past all of our own code."""
        request = urllib.request.Request(f"{(node or self.nodes[0]).url}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=3) as answer:
            return json.loads(answer.read())


class Partitioned(EtcdCluster):
    """Three members, each in a network namespace of its own with two links: to the other members, and to machines.

    Args:
        home: A directory.
    """

    def __init__(self, home):
        super().__init__(home)
        # the kernel takes links away some time after their namespace: names are used once
        count = next(_nets)
        self._net = f"j{os.getpid() % 100_000}{chr(ord('a') + count % 26)}"
        third = (os.getpid() + count) % 250
        for number, node in enumerate(self.nodes):
            node.host, node.peer_host = (f"10.{net}.{third}.{number + 2}" for net in (98, 99))
            node.prefix = ("ip", "netns", "exec", f"{self._net}n{number}")
        self._third = third

    def __enter__(self):
        try:
            self._lay()
        except (OSError, subprocess.CalledProcessError) as error:
            self._remove()
            _missing(f"there can be no network namespaces here: {error}")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        super().__exit__()
        self._remove()

    def _lay(self):
        for kind in "cp":
            _ip("link", "add", f"{self._net}{kind}", "type", "bridge")
            _ip("link", "set", f"{self._net}{kind}", "up")
        _ip("addr", "add", f"10.98.{self._third}.1/24", "dev", f"{self._net}c")
        for number, node in enumerate(self.nodes):
            namespace = f"{self._net}n{number}"
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
            for kind, address in (("c", node.host), ("p", node.peer_host)):
                outer, inner = f"{self._net}{kind}{number}", f"{kind}0"
                _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace)
                _ip("link", "set", outer, "master", f"{self._net}{kind}", "up")
                _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", inner)
                _ip("-n", namespace, "link", "set", inner, "up")

    def _remove(self):
        for number in range(len(self.nodes)):
            _ip("netns", "del", f"{self._net}n{number}", check=False)
        for kind in "cp":
            _ip("link", "del", f"{self._net}{kind}", check=False)

    def cut(self, node, kinds="cp"):
        """Cuts a member off: from machines (`c`), from other members (`p`), or both."""
        for kind in kinds:
            _ip("link", "set", f"{self._net}{kind}{self.nodes.index(node)}", "down")

    def mend(self):
        """Ends what was cut."""
        for number in range(len(self.nodes)):
            for kind in "cp":
                _ip("link", "set", f"{self._net}{kind}{number}", "up")


def _ip(*arguments, check=True):
    subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=10, text=True)


class Machine:
    """A machine of a cluster: a project directory of its own, with the flags open in it.

    Args:
        home: Its directory.
        urls: Where etcd is.
        flags: The content of its flag file.
        watch: Whether it follows.
        service: What it is called among the processes.
        options: Further settings of etcd, or (heartbeat, grace) of what follows it.
    """

    def __init__(self, home, urls, flags, *, watch=True, service="machine", environ=None, **options):
        self.home = Path(home)
        (self.home / "config").mkdir(parents=True, exist_ok=True)
        (self.home / "config" / "flags.yaml").write_text(flags)
        self.settings = FlagSettings(
            home=self.home,
            flags_file=self.home / "config" / "flags.yaml",
            state_dir=self.home / "var",
            service=service,
            store="etcd",
            etcd=EtcdSettings(endpoints=tuple(urls), **options),
        )
        self.told = []
        self.source, self.store = open_flags(
            self.settings, watch=watch, service=service if watch else None, tell=self.told.append
        )

    def state(self, flag_id):
        """What was set for a flag at run time, as this machine knows."""
        override = self.source.snapshot.overrides.overrides.get(flag_id)
        return None if override is None else override.state

    @property
    def revision(self):
        return self.source.snapshot.overrides.revision

    def close(self):
        self.source.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class LosesAnswers(HttpPeer):
    """A member's address at which what is asked is done, but some answers are lost on the way.

    Args:
        url: The member.
        path: Answers to requests of this path are lost.
        times: So many.
    """

    def __init__(self, url, path, times):
        lost = itertools.count()

        class Handler(PeerHandler):
            def do_POST(self):  # noqa: N802 - as http.server calls it
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    with urllib.request.urlopen(urllib.request.Request(url + self.path, body), timeout=5) as answer:
                        content = answer.read()
                except OSError:
                    content = b""
                if not content or (self.path.endswith(path) and next(lost) < times):
                    self.close_connection = True
                    return
                self.reply(200, {}, content)

        super().__init__(Handler)
