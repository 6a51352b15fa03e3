"""Where settings are looked for: the environment, files named by it, ``.env``. Knows no meaning.

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

PREFIX = "AUTH_"

# Set by test runs, and by Kubernetes for a Service that is called "auth".
_IGNORED = ("AUTH_TEST_", "AUTH_SERVICE_", "AUTH_PORT")
# How alike two names are from which on a misspelling is likelier than another program's variable.
_CLOSE = 0.8


@dataclass(frozen=True, slots=True)
class Found:
    """What the sources gave.

    ``values`` is by field name. ``from_env_file`` are the fields that ``.env`` decided,
    ``unknown`` the variables of the environment that are no settings. ``env_file_open`` tells
    whether other users of the machine may read or write ``.env``.
    """

    values: Mapping[str, str] = field(repr=False)
    unknown: tuple[str, ...]
    from_env_file: frozenset[str]
    env_file_open: bool


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
    """Collect the settings called ``names``; ``secrets`` may also be named as ``*_FILE``.

    ``env`` goes before ``env_file``, which need not exist. Raises SettingsError for a variable
    that looks like a misspelt setting, for any unknown one in ``env_file``, and for what cannot
    be read.
    """
    known = _Known(names, secrets)
    given, unknown = known.sort(env)
    for name in unknown:
        if near := known.nearest(name, _CLOSE):
            raise SettingsError(f"{name}: there is no such setting; is {near} meant?")
    values = known.values(given)
    from_file: dict[str, str] = {}
    env_file_open = False
    if env_file is not None and env_file.is_file():
        env_file_open = bool(stat.S_IMODE(env_file.stat().st_mode) & 0o077)
        given_in_file, unknown_in_file = known.sort(_parsed(env_file))
        for name in unknown_in_file:
            near = known.nearest(name, 0.6)
            advice = f"is {near} meant?" if near else "remove it"
            raise SettingsError(f"{name} in {env_file}: there is no such setting; {advice}")
        from_file = known.values(given_in_file, decided=values)
    return Found(
        values=values | from_file,
        unknown=tuple(sorted(unknown)),
        from_env_file=frozenset(from_file),
        env_file_open=env_file_open,
    )


class _Known:
    """The variables that mean something."""

    def __init__(self, names: Collection[str], secrets: Collection[str]) -> None:
        self._fields = {variable(name): name for name in names}
        self._files = {f"{variable(name)}_FILE": name for name in secrets}

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
