"""Everything that jarvis_flags reads from the environment and from config/jarvis.yaml, in one place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from jarvis_flags.hints import did_you_mean
from jarvis_flags.overrides import AUDIT_FILE
from jarvis_flags.tree import TreeError, load_tree

__all__ = ["FLAG_KEYS", "EtcdSettings", "FlagSettings", "SettingsSource", "find_home"]

FLAG_KEYS = frozenset(
    {
        "flags_file",
        "state_dir",
        "environment",
        "allow_local",
        "flags_store",
        "etcd_endpoints",
        "etcd_prefix",
        "etcd_user",
        "etcd_password",
        "etcd_password_file",
        "etcd_ca",
        "etcd_cert",
        "etcd_key",
    }
)
"""The keys of jarvis.yaml that this package reads; the rest belongs to jarvis_otel."""

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_ENDPOINT = re.compile(r"https?://(\[[0-9a-fA-F:]+\]|[\w.-]+)(:\d{1,5})?")


def find_home(environ: Mapping[str, str], start: Path | None = None) -> Path:
    """The project root: JARVIS_HOME, else the nearest directory upward with config/, else the working directory."""
    if named := environ.get("JARVIS_HOME"):
        return Path(named).absolute()
    start = (start or Path.cwd()).absolute()
    return next((place for place in (start, *start.parents) if (place / "config").is_dir()), start)


class SettingsSource:
    """The settings file under the environment: `JARVIS_X` wins over the key `x` of config/jarvis.yaml.

    A value that cannot be used is replaced by its default and told in `problems`, one line each: settings never
    keep an application from starting; the command line refuses to go on with them.

    Args:
        environ: The environment, usually `os.environ`.
        start: Where the search for the project root begins; the working directory if None.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, start: Path | None = None) -> None:
        self.environ = _readable(os.environ if environ is None else environ)
        self.problems: list[str] = []
        self.home = find_home(self.environ, start)
        named = self.environ.get("JARVIS_CONFIG")
        self.file = self.home / (named or "config/jarvis.yaml")
        self._values = self._read_file(must_exist=bool(named))

    def _read_file(self, *, must_exist: bool) -> Mapping[str, Any]:
        try:
            text = self.file.read_bytes()
        except FileNotFoundError:
            if must_exist:
                self.problems.append(f"{self.file}: JARVIS_CONFIG names this file, but it is not there")
            return {}
        except OSError as error:
            self.problems.append(f"{self.file}: cannot be read: {error.strerror}")
            return {}
        try:
            tree = load_tree(text)
        except TreeError as error:
            self.problems.append(f"{self.file}:{error.line}: {error}")
            return {}
        if not isinstance(tree, dict):
            if tree is not None:
                self.problems.append(f"{self.file}: got {type(tree).__name__}, want a mapping of settings")
            return {}
        return {str(key).lower().removeprefix("jarvis_"): value for key, value in tree.items()}

    def check_keys(self, known: Iterable[str]) -> None:
        """Reports each key of the file that no part of jarvis-otel reads, with the nearest one that is read."""
        known = set(known)
        for key in self._values:
            if key not in known:
                self.problems.append(f"{self.file}: {key}: unknown setting{did_you_mean(key, known)}")

    def raw(self, key: str) -> tuple[Any, str] | None:
        """The value of a setting and where it was found, or None; empty text counts as unset."""
        variable = f"JARVIS_{key.upper()}"
        if text := self.environ.get(variable):
            return text, variable
        if (value := self._values.get(key)) not in (None, ""):
            return value, f"{self.file}: {key}"
        return None

    def text(self, key: str, default: str | None = None) -> str | None:
        """A setting that is text; a number in the file is taken as its text."""
        found = self.raw(key)
        if found is None:
            return default
        value, place = found
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.problems.append(f"{place}: got {value!r}, want text")
            return default
        return str(value)

    def choice(self, key: str, allowed: Iterable[str], default: str) -> str:
        """A setting that is one of a few words."""
        value = self.text(key)
        if value is None:
            return default
        allowed = tuple(allowed)
        if value.lower() in allowed:
            return value.lower()
        place = (self.raw(key) or ("", key))[1]
        self.problems.append(f"{place}: got {value!r}, want one of {', '.join(allowed)}")
        return default

    def flag(self, key: str, *, default: bool = False) -> bool:
        """A setting that is true or false (also 1/0, yes/no, on/off)."""
        found = self.raw(key)
        if found is None:
            return default
        value, place = found
        word = str(value).strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        self.problems.append(f"{place}: got {value!r}, want true or false")
        return default

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A setting that is a number between low and high, both included."""
        found = self.raw(key)
        if found is None:
            return default
        value, place = found
        try:
            number = float(value) if not isinstance(value, bool) else float("nan")
        except (OverflowError, TypeError, ValueError):
            number = float("nan")
        if low <= number <= high:
            return number
        self.problems.append(f"{place}: got {value!r}, want a number from {low:g} to {high:g}")
        return default

    def path(self, key: str, default: str) -> Path:
        """A setting that is a path; relative ones start at the project root."""
        return self.home / Path(self.text(key) or default).expanduser()

    def names(self, key: str) -> tuple[str, ...]:
        """A setting that is a list of words: a list in the file, commas in the environment."""
        found = self.raw(key)
        if found is None:
            return ()
        value, place = found
        if isinstance(value, str | int):
            return tuple(part for part in (piece.strip() for piece in str(value).split(",")) if part)
        if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
            return tuple(str(item) for item in value)
        self.problems.append(f"{place}: got {value!r}, want a list of words")
        return ()

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A setting that is a mapping in the file (it has no form in the environment)."""
        value = self._values.get(key)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.problems.append(f"{self.file}: {key}: got {value!r}, want a mapping")
        return {}


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """How the etcd is reached that keeps the run-time state of many machines.

    Attributes:
        endpoints: URLs of its members, without a slash at the end.
        prefix: What the names of all keys begin with; it ends in a slash.
        user: Who asks, where etcd wants to know.
        password: Their password.
        ca: File of the certificates that its own must descend from (PEM); those of the system if None.
        cert: File of the certificate by which this machine shows who it is.
        key: File of the key to it.
    """

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    prefix: str = "/jarvis/"
    user: str = ""
    password: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class FlagSettings:
    """Where the flags come from, and what the environment says about them.

    Attributes:
        home: The project root that relative paths start from.
        flags_file: The flag file: as it was named, else config/flags.yaml, else config/feature_flags.json.
        state_dir: The directory of run-time state; overrides lie in its `flags/`.
        environment: What JARVIS_ENVIRONMENT or the settings file says, if anything.
        resource_environment: The OpenTelemetry resource's deployment.environment.name, if any.
        allow_local: Whether flags.local.yaml may turn flags on in prod.
        pins: The variables `FF_<FLAG>` as they stand, by their full name.
        flags_file_named: Whether somebody named the flag file, and so counts on it.
        service: What the process is called (OTEL_SERVICE_NAME).
        store: Where run-time state is kept: `files` of this machine, or `etcd` for many.
        etcd: How that etcd is reached.
    """

    home: Path
    flags_file: Path
    state_dir: Path
    environment: str | None = None
    resource_environment: str | None = None
    allow_local: bool = False
    pins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    flags_file_named: bool = False
    service: str = "unknown_service"
    store: str = "files"
    etcd: EtcdSettings = field(default_factory=EtcdSettings)

    @property
    def flags_state_dir(self) -> Path:
        """The directory of overrides, audit, last good definitions and seen revisions."""
        return self.state_dir / "flags"

    @property
    def audit_file(self) -> Path:
        """The audit as this machine has it: what it wrote itself, or its copy of the one in etcd."""
        return self.flags_state_dir / ("etcd" if self.store == "etcd" else "") / AUDIT_FILE

    @classmethod
    def from_source(cls, source: SettingsSource) -> FlagSettings:
        """Reads the flag settings out of a settings source."""
        named = source.raw("flags_file") is not None
        if named:
            flags_file = source.path("flags_file", "config/flags.yaml")
        else:
            candidates = [source.home / "config" / name for name in ("flags.yaml", "feature_flags.json")]
            flags_file = next((path for path in candidates if path.exists()), candidates[0])
        return cls(
            home=source.home,
            flags_file=flags_file,
            state_dir=source.path("state_dir", "var"),
            environment=source.text("environment"),
            resource_environment=_resource_environment(source.environ),
            allow_local=source.flag("allow_local"),
            pins=MappingProxyType({k: v for k, v in source.environ.items() if k.startswith("FF_") and len(k) > 3}),
            flags_file_named=named,
            service=source.environ.get("OTEL_SERVICE_NAME") or "unknown_service",
            store=source.choice("flags_store", ("files", "etcd"), "files"),
            etcd=_etcd(source),
        )

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> FlagSettings:
        """Reads the flag settings from the environment and config/jarvis.yaml."""
        return cls.from_source(SettingsSource(environ))


def _etcd(source: SettingsSource) -> EtcdSettings:
    endpoints = []
    for text in source.names("etcd_endpoints"):
        url = text.rstrip("/") if "://" in text else f"http://{text.rstrip('/')}"
        if _ENDPOINT.fullmatch(url):
            endpoints.append(url)
        else:
            # a password in it must not be shown
            shown = re.sub(r"//[^/]*@", "//…@", text)
            source.problems.append(f"etcd_endpoints: got {shown!r}, want URLs such as http://10.0.0.1:2379")
    prefix = source.text("etcd_prefix") or EtcdSettings().prefix
    if not prefix.startswith("/"):
        source.problems.append(f"etcd_prefix: got {prefix!r}, want a name that begins with a slash, such as /jarvis/")
        prefix = EtcdSettings().prefix
    files = {
        name: source.path(name, "") if source.text(name) else None for name in ("etcd_ca", "etcd_cert", "etcd_key")
    }
    for name, path in files.items():
        if path is not None and not os.access(path, os.R_OK):
            source.problems.append(f"{name}: {path} cannot be read")
    if (files["etcd_cert"] is None) != (files["etcd_key"] is None):
        source.problems.append("etcd_cert and etcd_key: want both or neither")
    if files["etcd_cert"] is not None and any(url.startswith("http://") for url in endpoints):
        source.problems.append("etcd_endpoints: a certificate is shown over https:// only")
    user, password = source.text("etcd_user") or "", _password(source)
    if bool(user) != bool(password):
        source.problems.append("etcd_user and etcd_password (or etcd_password_file): want both or neither")
    return EtcdSettings(
        endpoints=tuple(dict.fromkeys(endpoints)) or EtcdSettings().endpoints,
        prefix=f"{prefix.rstrip('/')}/",
        user=user,
        password=password,
        ca=files["etcd_ca"],
        cert=files["etcd_cert"],
        key=files["etcd_key"],
    )


def _password(source: SettingsSource) -> str:
    named = source.text("etcd_password_file")
    if (password := source.text("etcd_password")) or not named:
        return password or ""
    try:
        return source.path("etcd_password_file", named).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not text"
        source.problems.append(f"etcd_password_file: {named}: cannot be read: {why}")
        return ""


def _readable(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment, in which bytes that are no UTF-8 are escapes, which can stand in messages and files."""
    return {name: value.encode("utf-8", "backslashreplace").decode() for name, value in environ.items()}


def _resource_environment(environ: Mapping[str, str]) -> str | None:
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = pair.partition("=")
        if key.strip() == "deployment.environment.name" and value.strip():
            return unquote(value.strip())
    return None
