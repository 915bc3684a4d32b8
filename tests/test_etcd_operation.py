"""Flags on etcd as they are run: partitions, TLS and passwords, migration, `jarvis doctor`, applications and commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import closing

import pytest

from jarvis_flags.overrides import Override, read_overrides
from jarvis_flags.settings import EtcdSettings, FlagSettings
from jarvis_otel import FeatureFlagManager
from jarvis_otel.admin.audit import verify
from jarvis_otel.admin.author import Author
from jarvis_otel.admin.file_store import FileStore
from jarvis_otel.admin.service import FlagAdmin
from jarvis_otel.etcd.client import EtcdClient, EtcdRefusedError, EtcdUnavailableError
from jarvis_otel.settings import Settings
from tests.commands import jarvis
from tests.etcd_cluster import EtcdCluster, Machine, Partitioned
from tests.otlp_sink import until

ANN, BOB = Author("ann", "cli", "because"), Author("bob", "web", "no")
FLAGS = """
flags:
  PLAIN: {enabled: false}
  LIVE: {enabled: false, dangerous: true}
"""


@pytest.fixture
def one_node(tmp_path):
    with EtcdCluster(tmp_path / "etcd", size=1) as cluster:
        yield cluster


@pytest.fixture
def project(own_project, flag_file, monkeypatch):
    """A project whose run-time state is in files until `use` says otherwise."""
    flag_file(FLAGS)

    def use(cluster, store="etcd"):
        monkeypatch.setenv("JARVIS_FLAGS_STORE", store)
        monkeypatch.setenv("JARVIS_ETCD_ENDPOINTS", ",".join(cluster.urls))

    return use


def doctor():
    done = subprocess.run(
        [sys.executable, "-m", "jarvis_otel.cli.main", "doctor", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return [finding for finding in json.loads(done.stdout) if finding["what"] == "etcd"]


# --- partitions ---


@pytest.mark.real
@pytest.mark.parametrize("kinds", ["cp", "p"])
def test_a_leader_that_is_cut_off_keeps_nobody_from_changes(tmp_path, kinds):
    """Cut off from all, or only from the other members, so that machines still reach it and it knows nothing new."""
    with Partitioned(tmp_path / "etcd") as cluster:
        leader = cluster.leader()
        # these ask the one that will be cut off first
        urls = (leader.url, *(node.url for node in cluster.nodes if node is not leader))
        machines = [Machine(tmp_path / f"m{number}", urls, FLAGS) for number in range(4)]
        try:
            for one in machines:
                one.store._client._endpoints = list(urls)
                until(lambda one=one: one.source._feed._stream is not None)
                one.source._feed._stream.stop()
            FlagAdmin(machines[0].source, machines[0].store, seen_wait=0).enable("PLAIN", ANN)
            until(lambda: all(one.revision == 1 for one in machines))
            cluster.cut(leader, kinds)
            confirmed = 1
            while confirmed < 20:
                change = {"PLAIN": Override("on" if confirmed % 2 else "off")}
                confirmed += len(machines[1].store.commit("enable", ANN, lambda _, change=change: change))
            until(lambda: all(one.revision == confirmed for one in machines), 30)
            cluster.mend()
            until(lambda: all(one.source.snapshot.store == "ready" for one in machines), 30)
            machines[2].store.commit("disable", BOB, lambda _: {"PLAIN": Override("off")}, off_only=True)
            until(lambda: all(one.revision == confirmed + 1 for one in machines), 30)
            history = machines[3].store.history()
            assert [entry.revision for entry in history] == list(range(1, confirmed + 2))
            assert list(verify(machines[3].store.lines())) == []
        finally:
            cluster.mend()
            for one in machines:
                one.close()


@pytest.mark.real
def test_machines_that_reach_only_a_member_without_the_others_know_that_they_are_behind(tmp_path):
    with Partitioned(tmp_path / "etcd") as cluster:
        lone = cluster.follower()
        alone = Machine(tmp_path / "alone", [lone.url], FLAGS)
        others = Machine(tmp_path / "others", [node.url for node in cluster.nodes if node is not lone], FLAGS)
        try:
            cluster.cut(lone, "p")
            until(lambda: alone.source.snapshot.store == "stale", 30)
            FlagAdmin(others.source, others.store, seen_wait=0).enable("PLAIN", ANN)
            assert alone.revision == 0
            assert not FlagAdmin(alone.source, alone.store, seen_wait=0).enable("PLAIN", ANN).applied
            off = FlagAdmin(alone.source, alone.store, seen_wait=0).disable("PLAIN", BOB)
            assert "on this machine only" in off.message
            cluster.mend()
            until(lambda: others.state("PLAIN") == "off", 30)
            assert [entry.who for entry in others.store.history()] == ["ann", "bob"]
            assert list(verify(others.store.lines())) == []
        finally:
            cluster.mend()
            alone.close()
            others.close()


# --- who may ask ---


@pytest.mark.real
def test_a_user_with_a_password_over_tls_with_a_certificate_of_the_machine(tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /O=jarvis"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "extendedKeyUsage=serverAuth,clientAuth"]
    subprocess.run([*make.split(), *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    options = ["--cert-file", cert, "--key-file", key, "--trusted-ca-file", cert, "--client-cert-auth"]
    cluster = EtcdCluster(tmp_path / "etcd", size=1, options=tuple(map(str, options)))
    cluster.nodes[0].scheme = "https"
    url = cluster.nodes[0].url
    with_cert = {"ca": cert, "cert": cert, "key": key}
    root = EtcdClient(EtcdSettings((url,), **with_cert))
    try:
        cluster.nodes[0].start(cluster.nodes)
        root.call("kv/range", {"key": "YQ=="}, patience=20)
        for path, body in (
            ("auth/user/add", {"name": "root", "password": "r"}),
            ("auth/user/add", {"name": "jarvis", "password": "secret"}),
            ("auth/role/add", {"name": "root"}),
            ("auth/role/add", {"name": "flags"}),
            (
                "auth/role/grant",
                {"name": "flags", "perm": {"permType": 2, "key": "L2phcnZpcy8=", "range_end": "L2phcnZpczA="}},
            ),
            ("auth/user/grant", {"user": "root", "role": "root"}),
            ("auth/user/grant", {"user": "jarvis", "role": "flags"}),
            ("auth/enable", {}),
        ):
            root.call(path, body)
        with pytest.raises(EtcdRefusedError, match="etcd_user"):
            root.call("kv/range", {"key": "YQ=="})
        stranger = EtcdClient(EtcdSettings((url,)))
        with closing(stranger), pytest.raises(EtcdUnavailableError, match="certificate is not to be trusted"):
            stranger.call("kv/range", {"key": "YQ=="})
        wrong = EtcdClient(EtcdSettings((url,), user="jarvis", password="guess", **with_cert))
        with closing(wrong), pytest.raises(EtcdRefusedError, match="authentication failed"):
            wrong.call("kv/range", {"key": "YQ=="})
        settings = {"user": "jarvis", "password": "secret", **with_cert}
        assert "secret" not in repr(EtcdSettings((url,), **settings))
        with Machine(tmp_path / "a", [url], FLAGS, **settings) as one:
            assert FlagAdmin(one.source, one.store, seen_wait=0).enable("PLAIN", ANN).applied
            one.store._client._token = "gone"  # as after a restart of etcd, which forgets tokens
            assert FlagAdmin(one.source, one.store, seen_wait=0).disable("PLAIN", ANN).applied
            until(lambda: one.state("PLAIN") == "off")
            until(lambda: [seen.revision for seen in one.store.processes()] == [2])
    finally:
        root.close()
        cluster.__exit__()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"JARVIS_FLAGS_STORE": "redis"}, "want one of files, etcd"),
        ({"JARVIS_ETCD_ENDPOINTS": "ftp://x:1"}, "etcd_endpoints: got 'ftp://x:1', want URLs such as"),
        ({"JARVIS_ETCD_ENDPOINTS": "http://me:secret@x:1"}, "etcd_endpoints: got 'http://…@x:1'"),
        ({"JARVIS_ETCD_PREFIX": "jarvis"}, "etcd_prefix: got 'jarvis', want a name that begins with a slash"),
        ({"JARVIS_ETCD_USER": "ann"}, "want both or neither"),
        ({"JARVIS_ETCD_PASSWORD_FILE": "nowhere"}, "etcd_password_file: nowhere: cannot be read: No such file"),
        ({"JARVIS_ETCD_CERT": "nowhere.pem"}, "etcd_cert: "),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_in_one_line(own_project, values, problem):
    settings = Settings.load({**os.environ, **values})
    assert any(problem in line for line in settings.problems), settings.problems
    assert not any("\n" in line or "secret" in line for line in settings.problems)


def test_settings_of_etcd_come_from_file_and_environment(own_project):
    (own_project / "config" / "jarvis.yaml").write_text(
        "flags_store: etcd\netcd_endpoints: [10.0.0.1:2379, 'https://etcd.internal:2379/']\netcd_prefix: /team\n"
        "etcd_user: jarvis\netcd_password_file: secret\n"
    )
    (own_project / "secret").write_text("pass\n")
    settings = Settings.load().flags
    assert settings.store == "etcd"
    assert settings.etcd == EtcdSettings(
        ("http://10.0.0.1:2379", "https://etcd.internal:2379"), "/team/", "jarvis", "pass"
    )
    assert settings.audit_file == own_project / "var" / "flags" / "etcd" / "audit.jsonl"


def test_without_httpx_flags_are_evaluated_and_what_is_missing_is_said(own_project, project, tmp_path):
    project(type("Cluster", (), {"urls": ("http://127.0.0.1:9",)}))
    code = """
        import sys
        sys.modules["httpx"] = None
        from jarvis_otel import is_enabled, get_flags
        print(is_enabled("PLAIN", True), get_flags().admin.enable("PLAIN", __import__("jarvis_otel.admin.author").admin.author.Author("ann", "cli")).message)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False ")
    assert "pip install 'jarvis-otel[etcd]'" in done.stdout


# --- migration ---


@pytest.mark.real
def test_files_go_to_etcd_and_back_with_the_whole_audit(own_project, project, one_node):
    project(one_node, "files")
    for _ in range(5):
        assert jarvis("enable", "LIVE", "--reason", "go", "--yes").returncode == 0
        assert jarvis("disable", "LIVE", "--reason", "stop").returncode == 0
    assert jarvis("enable", "PLAIN", "--reason", "for a while", "--for", "1h").returncode == 0
    state = own_project / "var" / "flags"
    before = FileStore(state).lines()
    moved = jarvis("migrate", "--to", "etcd")
    assert (moved.returncode, moved.stdout) == (0, "11 entries of the audit and 2 overrides are in etcd now\n")
    assert "set flags_store: etcd" in moved.stderr
    again = jarvis("migrate", "--to", "etcd")
    assert (again.returncode, again.stdout) == (
        0,
        "all 11 entries of the audit are in etcd already; nothing was changed\n",
    )
    project(one_node, "etcd")
    listed = jarvis("audit", "--verify")
    assert (listed.returncode, listed.stdout) == (0, "the chain of 11 entries is whole\n")
    shown = json.loads(jarvis("eval", "PLAIN").stdout)
    assert shown["value"] is True
    assert jarvis("disable", "PLAIN", "--reason", "enough").returncode == 0
    back = jarvis("migrate", "--to", "files")
    assert (back.returncode, back.stdout) == (0, "1 entries of the audit and 2 overrides are in files now\n"), (
        back.stderr
    )
    after = FileStore(state).lines()
    assert after[:11] == before
    assert list(verify(after)) == []
    overrides = read_overrides(state)
    assert (overrides.revision, overrides.overrides["PLAIN"].state) == (12, "off")
    assert not (read_overrides(state).overrides["PLAIN"].expires_at)


@pytest.mark.real
def test_a_store_with_other_changes_is_not_overwritten(own_project, project, one_node):
    project(one_node, "files")
    assert jarvis("enable", "PLAIN", "--reason", "here").returncode == 0
    project(one_node, "etcd")
    assert jarvis("enable", "PLAIN", "--reason", "there").returncode == 0
    for target in ("etcd", "files"):
        refused = jarvis("migrate", "--to", target)
        assert refused.returncode == 2
        assert "tells of other changes" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert [entry["reason"] for entry in json.loads(jarvis("history", "--format", "json").stdout)] == ["there"]


@pytest.mark.real
def test_a_migration_that_was_killed_is_finished_by_the_next_and_nobody_takes_it_for_whole(
    own_project, project, one_node
):
    project(one_node, "files")
    store = FileStore(own_project / "var" / "flags")
    for number in range(450):
        store.commit("enable", Author("ann", "cli", str(number)), lambda _: {"PLAIN": Override("on")})
    settings = FlagSettings.load()
    client = EtcdClient(settings.etcd)
    from jarvis_otel.etcd.client import b64
    from jarvis_otel.etcd.keys import Keys

    # as a killed one leaves it: the first lines, and no state
    first = b"".join(line + b"\n" for line in store.lines()[:200])
    client.call("kv/put", {"key": b64(Keys(settings.etcd.prefix).audit(1)), "value": b64(first)})
    client.close()
    project(one_node, "etcd")
    refused = jarvis("enable", "PLAIN", "--reason", "too early")
    assert refused.returncode == 2
    assert "jarvis flags migrate --to etcd again" in refused.stderr
    project(one_node, "files")
    assert jarvis("migrate", "--to", "etcd").returncode == 0
    project(one_node, "etcd")
    assert jarvis("audit", "--verify").stdout == "the chain of 450 entries is whole\n"


def test_migration_without_etcd_says_so_in_one_line(own_project, project):
    project(type("Cluster", (), {"urls": ("http://127.0.0.1:9",)}), "files")
    refused = jarvis("migrate", "--to", "etcd")
    assert refused.returncode == 2
    assert "etcd does not answer: http://127.0.0.1:9: refuses connections" in refused.stderr
    assert refused.stderr.count("\n") == 1


# --- commands and applications ---


@pytest.mark.real
def test_commands_on_one_machine_change_what_an_application_on_another_evaluates(
    tmp_path, own_project, project, one_node
):
    project(one_node)
    with Machine(tmp_path / "elsewhere", one_node.urls, FLAGS, service="trading") as elsewhere:
        until(lambda: len(elsewhere.store.processes()) == 1)
        done = jarvis("enable", "LIVE", "--reason", "go", "--yes", "--format", "json")
        answer = json.loads(done.stdout)
        assert (answer["outcome"], answer["seen"], answer["running"]) == ("applied", 1, 1)
        assert elsewhere.state("LIVE") == "on"
        until(lambda: elsewhere.source.snapshot.store == "ready")
        one_node.nodes[0].process.send_signal(signal.SIGSTOP)
        try:
            refused = jarvis("enable", "PLAIN", "--reason", "go")
            assert refused.returncode == 2
            assert "nothing was changed" in refused.stderr
            off = jarvis("disable", "LIVE", "--reason", "stop")
            assert off.returncode == 0
            assert "on this machine only, until etcd answers" in off.stdout
            assert json.loads(jarvis("eval", "LIVE").stdout)["value"] is False
        finally:
            one_node.nodes[0].process.send_signal(signal.SIGCONT)
        until(lambda: one_node.leads(one_node.nodes[0]) is not None)
        assert jarvis("list").returncode == 0  # any command writes it back
        until(lambda: elsewhere.state("LIVE") == "off")
        # while it has not noticed that etcd answers again, it tells of the audit what it has itself
        until(lambda: elsewhere.source.snapshot.store == "ready")
        until(lambda: [entry.action for entry in elsewhere.store.history()] == ["enable", "disable"])


@pytest.mark.real
def test_an_application_follows_etcd_through_the_manager_and_ends_without_a_trace(
    own_project, project, one_node, tmp_path
):
    project(one_node)
    import threading

    threads = threading.active_count()
    manager = FeatureFlagManager.of_process()
    changes = []
    manager.on_change("PLAIN", lambda *change: changes.append(change))
    assert manager.is_enabled("PLAIN", True) is False
    with Machine(tmp_path / "elsewhere", one_node.urls, FLAGS, watch=False) as elsewhere:
        FlagAdmin(elsewhere.source, elsewhere.store, seen_wait=0).enable("PLAIN", ANN)
        until(lambda: changes == [("PLAIN", False, True)])
        assert manager.is_enabled("PLAIN") is True
        assert manager.set_enabled("PLAIN", False, "enough", "tg:1")
        assert [entry.who for entry in elsewhere.store.history()] == ["ann", "tg:1"]
        manager.close()
        assert threading.active_count() == threads
        assert elsewhere.store.processes() == []


@pytest.mark.real
def test_doctor_tells_how_each_member_is(own_project, project, tmp_path):
    with EtcdCluster(tmp_path / "etcd") as cluster:
        project(cluster)
        findings = doctor()
        assert [finding["state"] for finding in findings] == ["ok"] * 4
        assert "3 members, 0 overrides at revision 0" in findings[-1]["text"]
        assert "3.4" in findings[0]["text"]
        # until the others have noticed: a leader may be among them, and a member looks well till it misses the rest
        cluster.nodes[2].kill()
        until(lambda: [finding["state"] for finding in doctor()] == ["ok", "ok", "problem", "warning"])
        assert "refuses connections" in doctor()[2]["text"]
        cluster.nodes[1].kill()
        until(lambda: {finding["state"] for finding in doctor()} == {"problem"})


@pytest.mark.real
def test_a_full_etcd_refuses_changes_with_the_cure_and_off_still_works(own_project, project, tmp_path):
    with EtcdCluster(tmp_path / "etcd", size=1, options=("--quota-backend-bytes", str(2**20))) as cluster:
        project(cluster)
        blob = "A" * 400_000
        for number in range(20):
            try:
                cluster.ask("kv/put", {"key": f"Z{number:02d}=", "value": blob})
            except OSError:
                break
        refused = jarvis("enable", "PLAIN", "--reason", "go")
        assert refused.returncode == 2
        assert "compact and defragment" in refused.stderr
        off = jarvis("disable", "LIVE", "--reason", "stop")
        assert (off.returncode, "on this machine only" in off.stdout) == (0, True)
        assert any("NOSPACE" in finding["text"] for finding in doctor())


@pytest.mark.skipif(shutil.which("etcd") is not None, reason="etcd is here")
def test_without_etcd_its_tests_say_what_is_missing():
    from tests.etcd_cluster import etcd_binary

    with pytest.raises(pytest.skip.Exception, match="apt-get install etcd-server"):
        etcd_binary()


@pytest.mark.real
def test_evaluation_is_the_same_object_work_with_etcd_as_with_files(own_project, project, one_node):
    """Nothing of etcd is on the way, which stands still meanwhile: the snapshots are of the same kind."""
    project(one_node, "files")
    files = FeatureFlagManager.of_process()
    kinds = type(files.source), type(files.source.snapshot), type(files.source.snapshot.flag("PLAIN"))
    files.close()
    project(one_node)
    shared = FeatureFlagManager.of_process()
    assert (type(shared.source), type(shared.source.snapshot), type(shared.source.snapshot.flag("PLAIN"))) == kinds
    one_node.nodes[0].process.send_signal(signal.SIGSTOP)
    try:
        assert not any(shared.is_enabled("PLAIN", True) for _ in range(1000))
    finally:
        one_node.nodes[0].process.send_signal(signal.SIGCONT)
    shared.close()
