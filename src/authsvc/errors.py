"""Every error the service raises on purpose, in one tree.

::

    AuthsvcError
    ├── SettingsError                     the configuration cannot be used      (exit 78)
    ├── StartError                        start refused for another reason      (exit 3)
    │   ├── SchemaError                   the schema is not the one this code needs
    │   ├── BusyError                     another process is at work            (exit 75)
    │   └── DamagedError                  storage is damaged                    (exit 74)
    ├── InputError                        invalid_input, with the field named
    │   ├── LimitRequired                 limit_required
    │   └── CursorExpired                 cursor_expired
    ├── BadRequest                        bad_request: not even parsable
    ├── Unauthorized                      unauthorized: one answer for every bad credential
    ├── TokenRefused                      a word of RFC 6749, section 5.2
    ├── Forbidden                         insufficient_scope, tenant_disabled
    ├── NotFound                          role_not_found, key_not_found
    ├── Conflict                          conflict
    │   ├── IdempotencyMismatch           idempotency_mismatch
    │   ├── RoleCycle                     role_cycle
    │   └── UserNotKeyBacked              user_not_key_backed
    └── Unavailable                       storage_unavailable: ask again later
        ├── Busy                          busy
        ├── ReadOnly                      read_only
        └── OutcomeUnknown                outcome_unknown: the write may or may not be in force

An error carries a stable ``code`` and a sentence for people that says what to do next. It knows
nothing of HTTP (``api/problems.py`` maps classes to statuses) and never carries a secret, a
statement or a driver's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one field.

    ``field`` is the dotted path a caller would use (``changes.3.role``), ``message`` a sentence.
    """

    field: str
    message: str


class AuthsvcError(Exception):
    """Base of the tree. ``code`` is the stable word, ``str(error)`` the sentence for people."""

    code = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SettingsError(AuthsvcError):
    """The settings cannot be used; the message names the setting and never its value."""

    code = "settings"
    exit_code = 78


class StartError(AuthsvcError):
    """The process cannot start; ``exit_code`` is the process's status."""

    code = "start"
    exit_code = 3


class SchemaError(StartError):
    """The database's schema is not the one this version needs."""

    code = "schema"


class BusyError(StartError):
    """Another process is already at work on the same thing."""

    code = "busy"
    exit_code = 75


class DamagedError(StartError):
    """The storage is damaged and is not served."""

    code = "damaged"
    exit_code = 74


class InputError(AuthsvcError):
    """Well-formed but not acceptable; ``details`` names every offending field."""

    code = "invalid_input"

    def __init__(self, message: str, details: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)

    @classmethod
    def of(cls, field: str, message: str) -> InputError:
        """An error about one field."""
        return cls(f"{field}: {message}", [Problem(field, message)])


class LimitRequired(InputError):
    """A list without ``limit`` that has more items than one answer may hold."""

    code = "limit_required"


class CursorExpired(InputError):
    """A cursor that no longer belongs to its question."""

    code = "cursor_expired"


class BadRequest(AuthsvcError):
    """The request cannot be parsed."""

    code = "bad_request"


class Unauthorized(AuthsvcError):
    """No acceptable credential. Every reason gives the same answer.

    ``sent`` tells whether a credential was presented at all (RFC 6750, section 3); ``of`` whose
    it is, tenant and key, where it is known and has ended. That is for the audit trail alone.
    """

    code = "unauthorized"

    def __init__(self, *, sent: bool, of: tuple[UUID, str] | None = None) -> None:
        super().__init__(
            "A valid credential is required: send 'Authorization: Bearer' and a client key or token"
        )
        self.sent = sent
        self.of = of


class TokenRefused(AuthsvcError):
    """A token endpoint's refusal; ``code`` is one of RFC 6749, section 5.2."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Forbidden(AuthsvcError):
    """The caller is known but may not do this."""

    def __init__(self, message: str, code: str = "insufficient_scope") -> None:
        super().__init__(message)
        self.code = code


class NotFound(AuthsvcError):
    """Something named in the request does not exist in the caller's tenant.

    ``field`` is the path of the name inside the request, None where the path itself named it.
    """

    code = "not_found"

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.field = field


class Conflict(AuthsvcError):
    """The request contradicts what is in force."""

    code = "conflict"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class IdempotencyMismatch(Conflict):
    """An ``Idempotency-Key`` that was used for another request."""

    code = "idempotency_mismatch"


class RoleCycle(Conflict):
    """A parent that would make a role inherit from itself; the message names the path."""

    code = "role_cycle"


class UserNotKeyBacked(Conflict):
    """A user without a live API key, who is to be put into a role of a tenant with strict users."""

    code = "user_not_key_backed"


class Unavailable(AuthsvcError):
    """The service cannot know or cannot store right now. Doubt is a refusal, never *allow*.

    ``retry_after`` is in seconds.
    """

    code = "storage_unavailable"

    def __init__(
        self, message: str = "The database cannot be reached; try again", retry_after: int = 1
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Busy(Unavailable):
    """Others are writing; nothing was changed."""

    code = "busy"


class ReadOnly(Unavailable):
    """The database accepts no writes right now; nothing was changed."""

    code = "read_only"


class OutcomeUnknown(Unavailable):
    """The answer to the commit was lost: the write is in force or it is not, never half."""

    code = "outcome_unknown"
