"""Where settings are looked for: the environment, files, stores, ``.env``. Knows no meaning.

What is found is text by setting; ``settings.py`` says what it means. Nothing here changes the
environment, and no sentence holds what was found: a secret may stand in the wrong variable.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from authsvc.errors import SettingsError
from authsvc.secret_stores import FOLDER, file_of, read_stores

PREFIX = "AUTH_"
ENVIRONMENT = "the environment"
ENV_FILE = ".env"

# Set by test runs, and by Kubernetes for a Service that is called "auth".
_IGNORED = ("AUTH_TEST_", "AUTH_SERVICE_", "AUTH_PORT")
# How alike two names are from which on a misspelling is likelier than another program's variable.
_CLOSE = 0.8


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where secrets came from, by field name, and the ``files`` among these places.

    ``open_env_file`` is ``.env`` if other users of the machine may read or write it.
    """

    origins: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    open_env_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What the sources gave: ``values`` by field name.

    ``unknown`` are the variables of the environment that are no settings.
    """

    values: Mapping[str, str] = field(repr=False)
    unknown: tuple[str, ...]
    provenance: Provenance


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def read_sources(
    env: Mapping[str, str],
    env_file: Path | None,
    *,
    names: Collection[str],
    secrets: Collection[str],
) -> Found:
    """Collect the settings called ``names``; ``secrets`` may also be in files and in stores.

    The first that has a setting wins: ``env``, a file that ``env`` names, the stores, and last
    ``env_file``, which need not exist. Raises SettingsError for a variable that looks like a
    misspelt setting, for any unknown one in ``env_file``, and for what cannot be read.
    """
    known = _Known(names, secrets)
    given, unknown = known.sort(env)
    for name in unknown:
        if near := known.nearest(name, _CLOSE):
            raise SettingsError(f"{name}: there is no such setting; is {near} meant?")
    from_env = known.values(given)
    written: dict[str, str] = {}
    from_file: dict[str, str] = {}
    open_env_file = None
    if env_file is not None and env_file.is_file():
        if stat.S_IMODE(env_file.stat().st_mode) & 0o077:
            open_env_file = env_file
        written, unknown_in_file = known.sort(_parsed(env_file))
        for name in unknown_in_file:
            near = known.nearest(name, 0.6)
            advice = f"is {near} meant?" if near else "remove it"
            raise SettingsError(f"{name} in {env_file}: there is no such setting; {advice}")
        from_file = known.values(written, decided=from_env)
    stored, stores = read_stores(from_env, from_file, secrets)
    every = (
        known.origins(written, from_file, ENV_FILE)
        | stores
        | known.origins(given, from_env, ENVIRONMENT)
    )
    origins = {name: every[name] for name in sorted(every) if name in secrets}
    named = known.files(written) | known.files(given)
    folder = Path((from_file | from_env).get("secrets_dir", ""))
    files = {
        name: file_of(folder, name) if origin == FOLDER else named[name]
        for name, origin in origins.items()
        if origin in (FOLDER, known.file_variable(name))
    }
    return Found(
        values=from_file | stored | from_env,
        unknown=tuple(sorted(unknown)),
        provenance=Provenance(origins, files, open_env_file),
    )


class _Known:
    """The variables that mean something."""

    def __init__(self, names: Collection[str], secrets: Collection[str]) -> None:
        self._fields = {variable(name): name for name in names}
        self._files = {self.file_variable(name): name for name in secrets}

    def sort(self, given: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """The known variables that are not empty, in capitals; and the names of unknown ones."""
        known: dict[str, str] = {}
        unknown: list[str] = []
        for name, value in given.items():
            upper = name.upper()
            if not value or not upper.startswith(PREFIX) or upper.startswith(_IGNORED):
                continue
            if upper not in self._fields and upper not in self._files:
                unknown.append(name)
            elif known.setdefault(upper, value) != value:
                raise SettingsError(f"{upper}: set twice, in capitals and not; keep one")
        return known, unknown

    def values(self, given: Mapping[str, str], *, decided: Collection[str] = ()) -> dict[str, str]:
        """The value of every given setting not yet ``decided``, secrets read from their files."""
        values = {
            self._fields[name]: value for name, value in given.items() if name in self._fields
        }
        for name in sorted(given.keys() & self._files.keys()):
            setting = self._files[name]
            if setting in values:
                raise SettingsError(f"{variable(setting)} and {name}: both are set; keep one")
            if setting not in decided:
                values[setting] = _read_secret(name, given[name])
        return {name: value for name, value in values.items() if name not in decided}

    @staticmethod
    def file_variable(name: str) -> str:
        """The variable that names the file of a secret setting."""
        return f"{variable(name)}_FILE"

    def origins(
        self, given: Mapping[str, str], values: Collection[str], source: str
    ) -> dict[str, str]:
        """Where a source's ``values`` came from: itself, or the file that it named."""
        in_files = self.files(given)
        return {name: self.file_variable(name) if name in in_files else source for name in values}

    def files(self, given: Mapping[str, str]) -> dict[str, Path]:
        """The files that are named by ``*_FILE``, by the setting they hold."""
        return {self._files[name]: Path(given[name]) for name in given.keys() & self._files.keys()}

    def nearest(self, name: str, likeness: float) -> str | None:
        """The known variable that ``name`` resembles most, if it does at least so much."""
        every = [*self._fields, *self._files]
        found = difflib.get_close_matches(name.upper(), every, n=1, cutoff=likeness)
        return found[0] if found else None


def _read_secret(name: str, path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
    except ValueError:
        reason = "it is not text in UTF-8"
    else:
        # Editors and `echo` end a file with a line break that nobody means; a blank may be meant.
        secret = text.rstrip("\r\n")
        if secret:
            return secret
        reason = "it is empty"
    raise SettingsError(f"{name}: the file it names cannot be used: {reason}")


def _parsed(env_file: Path) -> dict[str, str]:
    """The assignments of ``.env``, taken literally: a ``$`` in a password stays one.

    Through dotenv's parser, because its readers skip a line that they cannot read.
    """
    try:
        text = env_file.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
    except ValueError:
        reason = "it is not text in UTF-8"
    else:
        found: dict[str, str] = {}
        for binding in parse_stream(StringIO(text)):
            if binding.error:
                line = binding.original.line
                raise SettingsError(f"{env_file}: line {line} is not NAME=value; mend its quotes")
            if binding.key is not None:
                found[binding.key] = binding.value or ""
        return found
    raise SettingsError(f"{env_file} cannot be read: {reason}")
