"""Ways to start an application that knows nothing of us, beside what else of OpenTelemetry may be there."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

from tests.otlp_sink import until
from tests.ports import free_port
from tests.views import view

INSTRUMENT = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
OTEL_INSTRUMENTATION = (
    "opentelemetry-instrumentation",
    "opentelemetry-instrumentation-asgi",
    "opentelemetry-instrumentation-logging",
    "opentelemetry-instrumentation-requests",
)
OURS = {"OTEL_PYTHON_DISTRO": "jarvis", "OTEL_PYTHON_CONFIGURATOR": "jarvis"}
# whose default, gRPC, is not installed here
THEIRS = {
    "OTEL_PYTHON_DISTRO": "distro",
    "OTEL_PYTHON_CONFIGURATOR": "configurator",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    "OTEL_METRICS_EXPORTER": "none",
}
OTEL_YAML = """
    file_format: "1.0"
    resource: {attributes: [{name: service.name, value: "${OTEL_SERVICE_NAME}"}]}
    tracer_provider:
      processors:
        - batch: {schedule_delay: 100, exporter: {otlp_http: {endpoint: "${OTEL_EXPORTER_OTLP_ENDPOINT}/v1/traces"}}}
    logger_provider:
      processors:
        - batch: {schedule_delay: 100, exporter: {otlp_http: {endpoint: "${OTEL_EXPORTER_OTLP_ENDPOINT}/v1/logs"}}}
    instrumentation/development: {python: {jarvis: {}}}
"""


class Collected:
    """A collector of our own, and what it has written."""

    def __init__(self, directory, port):
        self.directory = directory
        self.url = f"http://127.0.0.1:{port}"

    def lines(self, file="jarvis", /, **wanted):
        entries = [
            json.loads(line)
            for path in sorted(self.directory.glob(f"{file}-*.jsonl"))
            # what follows the last line is being written
            for line in path.read_bytes().rpartition(b"\n")[0].splitlines()
        ]
        return [entry for entry in entries if all(entry.get(key) == value for key, value in wanted.items())]


def jarvis(*arguments, python=sys.executable):
    return [str(python), "-m", "jarvis_otel.cli.main", *map(str, arguments)]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    directory = tmp_path_factory.mktemp("collected")
    port_file = directory / "port"
    process = subprocess.Popen(
        jarvis("collector", "--dir", directory / "logs", "--port", "0", "--port-file", port_file),
        stderr=subprocess.DEVNULL,
        env={**clean_environ(), "JARVIS_HOME": str(directory)},
    )
    try:
        until(port_file.exists)
        yield Collected(directory / "logs", port_file.read_text().strip())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def pythons(tmp_path_factory):
    """Interpreters by what is installed beside us."""
    directory = tmp_path_factory.mktemp("pythons")
    return {
        "all": Path(sys.executable),
        "instrumentation": view(directory / "i", "opentelemetry-distro", "opentelemetry-configuration"),
        "nothing": view(directory / "n", "opentelemetry-distro", "opentelemetry-configuration", *OTEL_INSTRUMENTATION),
    }


def clean_environ():
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JARVIS_", "OTEL_", "FF_"))}
    return {**kept, "PYTHONPATH": ""}


class Place:
    """A directory to run an application in, its environment, and what the collector got from it."""

    def __init__(self, path, collected, service):
        self.path = path
        self.collected = collected
        self.service = service
        self.environ = {
            **clean_environ(),
            "JARVIS_HOME": str(path),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collected.url,
            "OTEL_SERVICE_NAME": service,
        }
        (path / "config").mkdir()
        (path / "config" / "flags.yaml").write_text('version: "1.0"\nflags: {NEW_UI: {enabled: true}}\n')
        self.write(OTEL_YAML, "otel.yaml")

    def write(self, source, name="app.py"):
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def run(self, command, **more):
        return subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.path,
            env={**self.environ, **more},
        )

    def lines(self, file="jarvis", /, **wanted):
        return self.collected.lines(file, service=self.service, **wanted)


@pytest.fixture
def place(request, tmp_path, collected):
    # a name that no other test's records have
    service = re.sub(r"\W+", "-", request.node.name.removeprefix("test_")).strip("-")
    return Place(tmp_path, collected, service)


def started(way, app, python=sys.executable):
    """The command that runs a script."""
    python, app = str(python), str(app)
    return {
        "run": jarvis("run", "--", python, app, python=python),
        "import": [python, app, "import"],
        "instrument": [python, "-c", INSTRUMENT, python, app],
        "run instrument import": jarvis("run", "--", python, "-c", INSTRUMENT, python, app, "import", python=python),
        "instrument run": [python, "-c", INSTRUMENT, *jarvis("run", "--", python, app, python=python)],
    }[way]


def told(stderr):
    """What stands on stderr, but for OpenTelemetry's own remarks on its configurators."""
    return [
        line
        for line in stderr.splitlines()
        if not line.startswith(("Configuration of ", "OTEL_CONFIG_FILE is set; ignoring configurator kwargs"))
    ]


APP = """
    import sys
    if "import" in sys.argv:
        import jarvis_otel.auto
    import logging, os, signal
    from openfeature import api
    from opentelemetry import trace

    log = logging.getLogger("app")
    with trace.get_tracer("app").start_as_current_span("work"):
        print("flag", api.get_client().get_boolean_value("NEW_UI", False), flush=True)
        log.info("quiet")
        log.warning("loud")
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""
HANDLER, NO_HANDLER = ({"OTEL_PYTHON_LOG_AUTO_INSTRUMENTATION": text} for text in ("true", "false"))
FILE = {"OTEL_CONFIG_FILE": "otel.yaml"}


@pytest.mark.parametrize(
    ("way", "installed", "more"),
    [
        pytest.param("run", "nothing", {}, id="run"),
        pytest.param("import", "nothing", {}, id="import"),
        pytest.param("run", "instrumentation", {}, id="run beside instrumentations"),
        pytest.param("import", "instrumentation", {}, id="import beside instrumentations"),
        pytest.param("instrument", "instrumentation", {}, id="instrument"),
        pytest.param("run", "all", {}, id="run beside another distro"),
        pytest.param("import", "all", {}, id="import beside another distro"),
        pytest.param("instrument", "all", OURS, id="instrument by our distro"),
        pytest.param("instrument", "all", THEIRS, id="instrument by another distro"),
        pytest.param("instrument", "all", THEIRS | NO_HANDLER, id="instrument by another distro without its handler"),
        pytest.param("run", "all", HANDLER, id="run with their handler asked for"),
        pytest.param("run", "all", THEIRS, id="run by another distro"),
        pytest.param("instrument", "all", OURS | FILE, id="instrument by file"),
        pytest.param("instrument", "all", THEIRS | FILE, id="instrument by file and another distro"),
        pytest.param("run", "all", FILE, id="run by file"),
        pytest.param("import", "all", FILE, id="import by file"),
        pytest.param("run instrument import", "all", OURS, id="all ways at once"),
        pytest.param("instrument run", "all", THEIRS, id="two ways at once by another distro"),
    ],
)
def test_every_way_gives_the_same(place, pythons, way, installed, more):
    """Flags, their telemetry, records from INFO up once each and in the trace, the console, and all of it at SIGTERM."""
    result = place.run(started(way, place.write(APP), pythons[installed]), **more)
    assert (result.returncode, result.stdout, told(result.stderr)) == (-signal.SIGTERM, "flag True\n", ["loud"])
    event, quiet, loud = place.lines()
    assert (event["event"], event["flags"]) == ("feature_flag.evaluation", {"NEW_UI": "on"})
    assert (quiet["message"], quiet["level"], loud["message"], loud["level"]) == ("quiet", "INFO", "loud", "WARNING")
    assert quiet["flags"] == loud["flags"] == {"NEW_UI": "on"}
    (span,) = place.lines("traces")
    assert span["flags"] == {"NEW_UI": "on"}
    assert {entry["trace_id"] for entry in (event, quiet, loud, span)} == {span["trace_id"]}


OWN_LOGGER = """
    import sys
    import logging
    from jarvis_otel import get_logger
    from opentelemetry._logs import get_logger_provider

    with get_logger("trading").context(correlation_id=sys.argv[1]):
        get_logger("trading").warning("ours", symbol="SOL")
        logging.getLogger("opentelemetry.sdk").warning("of the exporters themselves")
        logging.getLogger("lib").warning("standard")
        get_logger_provider().get_logger("lib").emit(body="by the API", severity_text="WARN")
"""


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(OURS, id="our distro"),
        pytest.param(OURS | HANDLER, id="our distro and their handler"),
        pytest.param(THEIRS, id="another distro"),
        pytest.param(THEIRS | NO_HANDLER, id="another distro without its handler"),
        pytest.param(
            THEIRS | {"OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true"},
            id="another distro with the handler of the SDK",
        ),
    ],
)
def test_each_record_arrives_once_and_none_of_opentelemetrys_own(place, more):
    python = [sys.executable, "-W", "ignore"]
    result = place.run([*python, "-c", INSTRUMENT, *python, place.write(OWN_LOGGER), place.service], **more)
    assert result.returncode == 0, result.stderr
    assert "of the exporters themselves" in result.stderr
    entries = place.collected.lines(correlation_id=place.service)
    assert sorted(entry["message"] for entry in entries) == ["by the API", "ours", "standard"]
    assert len({entry["trace_id"] for entry in entries}) == 1


@pytest.mark.parametrize("more", [OURS, THEIRS], ids=["our distro", "another distro"])
def test_the_applications_own_exporters_get_each_record_too(place, more):
    command = [sys.executable, "-c", INSTRUMENT, sys.executable, place.write(OWN_LOGGER), place.service]
    text = place.run(command, **more, OTEL_LOGS_EXPORTER="otlp,console").stdout.strip()
    printed = []
    while text:
        entry, end = json.JSONDecoder().raw_decode(text)
        printed.append(entry["body"])
        text = text[end:].strip()
    shipped = [entry["message"] for entry in place.collected.lines(correlation_id=place.service)]
    assert sorted(printed) == sorted(shipped) == ["by the API", "ours", "standard"]


@pytest.mark.parametrize("more", [OURS, THEIRS], ids=["our distro", "another distro"])
def test_where_we_ship_nothing_the_applications_own_exporters_get_each_record_once(place, more):
    command = [sys.executable, "-c", INSTRUMENT, sys.executable, place.write(OWN_LOGGER), place.service]
    result = place.run(command, **more, OTEL_LOGS_EXPORTER="console")
    assert sorted(re.findall(r'"body": "(.*)"', result.stdout)) == ["by the API", "ours", "standard"]
    assert "standard" in result.stderr.splitlines()
    assert place.collected.lines(correlation_id=place.service) == []


def test_the_applications_own_handler_and_exporter_to_the_same_collector_ship_nothing_twice(place):
    source = """
        import logging
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
        from opentelemetry.instrumentation.logging.handler import LoggingHandler
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
        provider = LoggerProvider()
        provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
        logging.getLogger().addHandler(LoggingHandler(logger_provider=provider))
        logging.warning("once")
        provider.shutdown()
    """
    result = place.run(started("run", place.write(source)))
    assert result.returncode == 0, result.stderr
    assert [entry["message"] for entry in place.lines()] == ["once"]


REQUESTS = """
    import sys
    if "import" in sys.argv:
        import jarvis_otel.auto
    import os, requests
    print(hasattr(requests.Session.send, "__wrapped__"), os.environ.get("OTEL_PYTHON_DISTRO"))
"""


@pytest.mark.parametrize("way", ["run", "import"])
def test_the_instrumentations_that_are_installed_are_active_too(place, way):
    result = place.run(started(way, place.write(REQUESTS)))
    assert (result.stdout, result.stderr) == ("True None\n", "")


def test_an_instrumentation_that_fails_is_one_line_and_the_others_are_active(place):
    entry_points = "[opentelemetry_instrumentor]\nbroken = broken:Broken\nabsent = absent:Absent\n"
    place.write("Metadata-Version: 2.1\nName: broken\nVersion: 1\n", "broken-1.dist-info/METADATA")
    place.write(entry_points, "broken-1.dist-info/entry_points.txt")
    source = """
        class Broken:
            def instrument(self, **kwargs):
                raise ValueError("of two\\nlines")
    """
    place.write(source, "broken.py")
    result = place.run(started("run", place.write(REQUESTS)), PYTHONPATH=str(place.path))
    assert result.stdout == "True None\n"
    assert result.stderr == "jarvis: the instrumentation of broken is not active: ValueError: of two lines\n"


@pytest.mark.parametrize("way", ["run", "import", "instrument"])
def test_where_we_cannot_be_set_up_one_line_says_so_and_the_application_runs(place, way):
    place.write("raise ImportError('not for this\\nmachine')", "mmh3.py")
    source = """
        import sys
        if "import" in sys.argv:
            import jarvis_otel.auto
        print("went on")
    """
    command, paths = started(way, place.write(source)), [str(place.path)]
    if way == "run":
        # the command line itself needs what is broken here, so only what it would do
        command = [sys.executable, place.path / "app.py"]
        paths.insert(0, str(Path(__file__).parents[1] / "jarvis_otel" / "auto" / "site"))
    result = place.run(command, PYTHONPATH=os.pathsep.join(paths), **OURS)
    assert (result.returncode, result.stdout) == (0, "went on\n")
    assert told(result.stderr) == ["jarvis: not active in this process: ImportError: not for this machine"]


def test_a_configuration_file_that_cannot_be_used_is_one_line_and_we_are_active(place):
    place.write("file_format: 7", "otel.yaml")
    line, loud = place.run(started("run", place.write(APP)), **FILE).stderr.splitlines()
    assert line.startswith("jarvis: OpenTelemetry is not set up as OTEL_CONFIG_FILE says: ")
    assert loud == "loud"
    assert len(place.lines()) == 3


def test_a_service_that_the_configuration_file_names_is_ours_too(place):
    del place.environ["OTEL_SERVICE_NAME"]
    place.write(OTEL_YAML.replace("${OTEL_SERVICE_NAME}", place.service), "otel.yaml")
    place.run(started("run", place.write(APP)), **FILE)
    assert len(place.lines()) == 3


@pytest.mark.parametrize(
    ("way", "names"),
    [("run", "jarvis"), ("import", "requests, jarvis"), ("instrument", "jarvis"), ("run", "*"), ("instrument", "*")],
)
def test_disabled_we_do_nothing(place, way, names):
    more = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": names, "OTEL_TRACES_EXPORTER": "none", **OURS, **NO_HANDLER}
    result = place.run(started(way, place.write(APP)), OTEL_LOGS_EXPORTER="none", **more)
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "flag False\n")
    assert told(result.stderr) == ["loud"]
    assert place.lines() == []


def test_disabled_but_named_as_the_configurator_opentelemetry_is_set_up_by_its_own(place):
    source = APP[: APP.index("os.kill")]
    result = place.run(
        started("instrument", place.write(source)), OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="jarvis", **OURS
    )
    assert result.stdout == "flag False\n"
    assert [entry["message"] for entry in place.lines()] == ["loud"]
    assert len(place.lines("traces")) == 1


@pytest.mark.parametrize("way", ["run", "import", "instrument"])
def test_with_the_sdk_disabled_flags_are_evaluated_and_nothing_is_sent(place, way):
    result = place.run(started(way, place.write(APP)), OTEL_SDK_DISABLED="true", **OURS)
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "flag True\n")
    assert told(result.stderr) == ["loud"]
    assert place.lines() == place.lines("traces") == []


def test_what_is_uninstrumented_is_taken_down(place):
    source = """
        import logging
        from jarvis_otel.instrumentation import JarvisInstrumentor
        before = logging.getLogger().level, logging.getLogRecordFactory()
        JarvisInstrumentor().instrument()
        JarvisInstrumentor().instrument()
        logging.warning("told")
        JarvisInstrumentor().uninstrument()
        print((logging.getLogger().level, logging.getLogRecordFactory()) == before)
        logging.warning("not told")
    """
    result = place.run([sys.executable, place.write(source)])
    assert (result.stdout, result.stderr) == ("True\n", "WARNING:root:told\nWARNING:root:not told\n")
    assert [entry["message"] for entry in place.lines()] == ["told"]


def test_our_distro_sets_defaults_where_nobody_said_anything(place):
    source = """
        import os
        names = ("TRACES_EXPORTER", "LOGS_EXPORTER", "METRICS_EXPORTER", "EXPORTER_OTLP_PROTOCOL", "EXPORTER_OTLP_TIMEOUT")
        print([os.environ.get(f"OTEL_{name}") for name in names])
    """
    command = started("run", place.write(source))
    assert place.run(command).stdout == "['otlp', 'otlp', 'none', 'http/protobuf', '3']\n"
    more = {"OTEL_EXPORTER_OTLP_TIMEOUT": "9", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:4317/"}
    assert place.run(command, **more).stdout == "['otlp', 'otlp', 'none', None, '9']\n"


def test_the_command_that_takes_any_distro_is_told_to_take_ours(place):
    command = place.write("#!/bin/sh\necho $OTEL_PYTHON_DISTRO $OTEL_PYTHON_CONFIGURATOR\n", "opentelemetry-instrument")
    command.chmod(0o755)
    assert place.run(jarvis("run", "--", command)).stdout == "jarvis jarvis\n"
    assert place.run(jarvis("run", "--", command), OTEL_PYTHON_DISTRO="x").stdout == "x jarvis\n"


NAMED = """
    import logging, multiprocessing, sys, work

    if __name__ == "__main__":
        logging.getLogger("named").warning(sys.argv[-1])
        child = multiprocessing.get_context("spawn").Process(target=work.work)
        child.start()
        child.join()
"""
WORK = """
    import logging, sys
    if "import" in sys.argv:
        import jarvis_otel.auto

    def work():
        logging.getLogger("named").warning(sys.argv[-1] + "-child")
"""


@pytest.mark.parametrize(
    ("way", "arguments", "name"),
    [
        ("run", ["shop/main.py"], "main"),
        ("run", ["-m", "shop.main"], "shop.main"),
        ("run", ["-mshop"], "shop"),
        # by then the interpreter has put the module's file in the place of its name
        ("import", ["-m", "shop.main"], "main"),
        ("import", ["-m", "shop"], "shop"),
    ],
)
def test_a_process_is_named_after_its_program_and_its_children_too(place, way, arguments, name):
    del place.environ["OTEL_SERVICE_NAME"]
    for file in ("shop/main.py", "shop/__main__.py"):
        place.write(NAMED, file)
    place.write(WORK, "work.py")
    command = [sys.executable, *arguments, way, place.service]
    result = place.run(jarvis("run", "--", *command) if way == "run" else command, PYTHONPATH=str(place.path))
    assert result.returncode == 0, result.stderr
    for message in (place.service, f"{place.service}-child"):
        assert [entry["service"] for entry in place.collected.lines(message=message)] == [name]


def test_processes_of_multiprocessing_deliver_each_record_once(place):
    source = """
        import logging, multiprocessing, os, sys

        log = logging.getLogger("work")

        def work(what):
            log.info("%s", what)

        if __name__ == "__main__":
            log.info("before")
            for method in ("fork", "spawn", "forkserver"):
                context = multiprocessing.get_context(method)
                processes = [context.Process(target=work, args=(f"{method} {number}",)) for number in range(3)]
                for process in processes:
                    process.start()
                for process in processes:
                    process.join()
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map(work, [f"pool {number}" for number in range(4)])
                pool.close()
                pool.join()
            log.info("after")
    """
    result = place.run(started("run", place.write(source)))
    assert (result.returncode, result.stderr) == (0, "")
    expected = ["before", "after", *(f"pool {number}" for number in range(4))]
    expected += [f"{method} {number}" for method in ("fork", "spawn", "forkserver") for number in range(3)]
    until(lambda: len(place.lines()) >= len(expected))
    assert sorted(entry["message"] for entry in place.lines()) == sorted(expected)


SHOP = """
    import logging
    from opentelemetry import trace

    log = logging.getLogger("shop")

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        log.warning("in %s", scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def make():
        return app

    def wsgi(environ, start_response):
        log.warning("in %s", environ["PATH_INFO"])
        start_response("200 OK", [("content-length", "2")])
        return [b"ok"]
"""
SCRIPT = """
    import sys
    import uvicorn
    import shop
    if __name__ == "__main__":
        port, workers = int(sys.argv[1]), int(sys.argv[2])
        uvicorn.run("shop:app" if workers > 1 else shop.app, port=port, workers=workers)
"""


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def running(place, command, ready):
    """A command and all that it starts, from when it is ready; ended by SIGTERM."""
    output = place.path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=place.path,
            env={**place.environ, "PYTHONPATH": str(place.path)},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            until(lambda: process.poll() is not None or ready(), 60)
            assert process.poll() is None, output.read_text()
            yield
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@pytest.mark.parametrize(
    ("command", "logger"),
    [
        pytest.param("uvicorn shop:app --port PORT", "uvicorn.access", id="uvicorn"),
        pytest.param("-m uvicorn shop:app --port PORT", "uvicorn.access", id="uvicorn as a module"),
        pytest.param("uvicorn shop:app --workers 2 --port PORT", "uvicorn.access", id="uvicorn with workers"),
        pytest.param("uvicorn shop:app --reload --port PORT", "uvicorn.access", id="uvicorn with reload"),
        pytest.param("uvicorn shop:make --factory --port PORT", "uvicorn.access", id="uvicorn with a factory"),
        pytest.param("uvicorn shop:wsgi --interface wsgi --port PORT", "uvicorn.access", id="uvicorn with WSGI"),
        pytest.param("uvicorn manual:app --port PORT", "uvicorn.access", id="uvicorn and the import"),
        pytest.param("script.py PORT 1", "uvicorn.access", id="uvicorn from a script"),
        pytest.param("script.py PORT 2", "uvicorn.access", id="uvicorn with workers from a script"),
        pytest.param(
            "gunicorn shop:app -k uvicorn_worker.UvicornWorker --access-logfile - -b 127.0.0.1:PORT",
            "uvicorn.access",
            id="gunicorn with uvicorn",
        ),
        pytest.param(
            "gunicorn shop:app -k asgi --access-logfile - -b 127.0.0.1:PORT", "gunicorn.access", id="gunicorn with ASGI"
        ),
        pytest.param("hypercorn shop:app --access-logfile - -b 127.0.0.1:PORT", "hypercorn.access", id="hypercorn"),
    ],
)
def test_each_request_of_a_server_has_a_trace_and_so_has_its_access_record(place, command, logger):
    place.write(SHOP, "shop.py")
    place.write("import jarvis_otel.auto\n" + textwrap.dedent(SHOP), "manual.py")
    place.write(SCRIPT, "script.py")
    port = free_port()
    first, *rest = command.replace("PORT", str(port)).split()
    if first in ("uvicorn", "gunicorn", "hypercorn"):
        first = Path(sys.executable).parent / first
    started = [sys.executable, first, *rest]
    if "manual:app" not in rest:
        started = jarvis("run", "--", *started)

    def inside():
        return [entry for entry in place.lines(logger="shop") if entry["message"] != "in /ready"]

    def accesses():
        return [entry for entry in place.lines(logger=logger) if "/ready" not in entry["message"]]

    def spans():
        return [span for span in place.lines("traces", kind="server") if span["attributes"]["url.path"] != "/ready"]

    with running(place, started, lambda: get(port, "/ready")):
        for number in range(4):
            assert get(port, f"/{number}")
        until(lambda: min(len(inside()), len(accesses()), len(spans())) >= 4)
    assert len(inside()) == len(accesses()) == len(spans()) == 4
    assert len({span["trace_id"] for span in spans()}) == 4
    for number in range(4):
        (span,) = [span for span in spans() if span["attributes"]["url.path"] == f"/{number}"]
        (record,) = [entry for entry in inside() if entry["message"] == f"in /{number}"]
        (access,) = [entry for entry in accesses() if f" /{number} " in entry["message"]]
        ids = [(entry["trace_id"], entry["span_id"]) for entry in (span, record, access)]
        assert ids == [ids[0]] * 3
    uids = [entry["_meta"]["uid"] for entry in place.lines()]
    assert len(uids) == len(set(uids))


@pytest.mark.parametrize("more", [[], ["--preload"]], ids=["", "preload"])
def test_gunicorns_forked_workers_deliver_their_records_once(place, more):
    place.write(SHOP + "\n    log.warning('loaded')\n", "shop.py")
    # gunicorn forgets a SIGTERM to a worker that still has the master's handlers, and waits 30 s for it
    place.write("def post_worker_init(worker): open(f'booted-{worker.pid}', 'x').close()", "gunicorn.conf.py")
    port = free_port()
    gunicorn = [sys.executable, Path(sys.executable).parent / "gunicorn", "shop:wsgi", "-w", "2", *more]
    command = jarvis("run", "--", *gunicorn, "-b", f"127.0.0.1:{port}", "--access-logfile", "-")
    paths = [f"/{number}" for number in range(8)]

    def told(logger, path):
        return sum(f" {path}" in f"{entry['message']} " for entry in place.lines(logger=logger))

    def both_serve():
        return len(list(place.path.glob("booted-*"))) == 2 and get(port, "/ready")

    with running(place, command, both_serve):
        for path in paths:
            assert get(port, path)
        until(lambda: all(told("shop", path) and told("gunicorn.access", path) for path in paths))
    assert [told("shop", path) for path in paths] == [told("gunicorn.access", path) for path in paths] == [1] * 8
    messages = [entry["message"] for entry in place.lines()]
    assert messages.count("loaded") == (1 if more else 2)
    # the master's own, which the workers inherited
    assert sum("Listening at" in message for message in messages) == 1
    uids = [entry["_meta"]["uid"] for entry in place.lines()]
    assert len(uids) == len(set(uids))


def test_celerys_forked_workers_deliver_their_records_once(place):
    source = """
        import logging
        from celery import Celery
        from celery.utils.log import get_task_logger

        app = Celery("tasks", broker="filesystem://")
        app.conf.broker_transport_options = {
            "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control",
        }

        @app.task
        def work(number):
            get_task_logger("tasks").info("task %s", number)
            logging.getLogger("lib").warning("lib %s", number)
    """
    place.write(source, "tasks.py")
    for folder in ("queue", "control"):
        (place.path / folder).mkdir()
    send = "import tasks\nfor number in range(6): tasks.work.delay(number)"
    assert place.run([sys.executable, "-c", send]).returncode == 0
    celery = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "-c", "2", "-l", "INFO"]

    def messages():
        return [entry["message"] for entry in place.lines()]

    with running(place, jarvis("run", "--", *celery), lambda: sum("succeeded" in text for text in messages()) >= 6):
        until(lambda: all(f"lib {number}" in messages() for number in range(6)))
    for number in range(6):
        assert messages().count(f"task {number}") == messages().count(f"lib {number}") == 1
    assert sum("succeeded" in text for text in messages()) == 6
    assert "task 5" in (place.path / "output").read_text()
