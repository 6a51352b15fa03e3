"""What an entry of the audit trail says, in words for people. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from authsvc.audit_entries import Entry

_MOST_NAMES = 5
_LONGEST = 160
_Said = dict[str, Any]


def in_words(entry: Entry) -> str:
    """One line that fits behind *who did it*: ``added mallory to role admin``.

    What there are no words for is told with its details as JSON. Nothing in it moves a terminal's
    cursor, whatever the entry holds.
    """
    tell = _WORDS.get((entry.action, entry.entity_type))
    text = ""
    if tell is not None:
        try:
            text = tell(entry.entity_id, entry.details)
        except (KeyError, TypeError, AttributeError):
            # Somebody else's writing, or another version's: told as it is.
            text = ""
    return one_line(text or _as_it_is(entry))


def one_line(text: str) -> str:
    """Text that is safe to print: one line, nothing invisible."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _as_it_is(entry: Entry) -> str:
    text = f"{entry.action} {entry.entity_type} {entry.entity_id}"
    if entry.details:
        text += " " + json.dumps(entry.details, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _bounds(said: _Said) -> str:
    parts = []
    if said.get("scope"):
        parts.append(f"scope {said['scope']}")
    if said.get("not_before"):
        parts.append(f"from {said['not_before']}")
    if said.get("expires_at"):
        parts.append(f"until {said['expires_at']}")
    return f" ({', '.join(parts)})" if parts else ""


def _quoted(text: str) -> str:
    return f" '{text}'" if text else ""


def _described(role: str, said: _Said) -> str:
    text = said["description"]
    return f"described role {role} as '{text}'" if text else f"took role {role}'s description away"


def _member_added(user: str, said: _Said) -> str:
    if "before" in said:
        was = _bounds(said["before"]) or " (no bounds)"
        now = _bounds(said) or " (no bounds)"
        return f"changed {user}'s membership in role {said['role']}: was{was}, is{now}"
    return f"added {user} to role {said['role']}{_bounds(said)}"


def _member_removed(user: str, said: _Said) -> str:
    text = f"removed {user} from role {said['role']}"
    scopes = [one["scope"] for one in said.get("before", ()) if one.get("scope")]
    return text + (f" (scope {_some(scopes)})" if scopes else "")


def _user_removed(user: str, said: _Said) -> str:
    roles = sorted({one["role"] for one in said["before"]})
    text = f"removed user {user}"
    if roles:
        text += f" from {_some(roles)}"
    keys = len(said["api_keys_revoked"])
    return text + (f", revoked {keys} API key{'s' * (keys != 1)}" if keys else "")


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _key(verb: str) -> Callable[[str, _Said], str]:
    def tell(key: str, said: _Said) -> str:
        scopes = ", ".join(said.get("scopes", ()))
        end = f", until {said['expires_at']}" if said.get("expires_at") else ""
        may = f" ({scopes}{end})" if scopes else ""
        return f"{verb} client key {key}{_quoted(said.get('label', ''))}{may}"

    return tell


def _api_key(verb: str) -> Callable[[str, _Said], str]:
    return lambda key, said: (
        f"{verb} API key {key}{_quoted(said.get('label', ''))} of {said['user']}"
    )


def _settings(_name: str, said: _Said) -> str:
    changed = {name: value for name, value in said.items() if name != "before"}
    before = said.get("before", {})
    return ", ".join(
        f"set {name} to {json.dumps(value)}"
        + (f", was {json.dumps(before[name])}" if name in before else "")
        for name, value in changed.items()
    )


_ENCRYPTION = {
    "enable": "encrypted",
    "disable": "decrypted",
    "reseal": "encrypted under a new key",
}


def _tenant_updated(name: str, said: _Said) -> str:
    if "lockdown" in said:
        shut = ", and disabled it" if said.get("disabled") else ""
        return f"ended every token of tenant {name} ({said['lockdown']}){shut}"
    if "review" in said:
        of = said["review"]
        return f"recorded that {of['reviewer']} reviewed the list {of['sha256'][:16]}"
    if "encryption" in said:
        return f"{_ENCRYPTION[said['encryption']]} the names of tenant {name}"
    if "audit_key" in said:
        return f"sealed the trail of tenant {name}"
    if not isinstance(said.get("disabled"), bool):
        return ""
    return f"{'disabled' if said['disabled'] else 'enabled'} tenant {name}"


def _why(said: _Said) -> str:
    if "seq" in said:
        return f", event {said['seq']}: {said['action']} {said['entity_type']} {said['entity_id']}"
    return f": {said['count']} in {said['seconds']} s" if "count" in said else ""


def _of_key(said: _Said) -> str:
    return f" of client key {said['key_id']}" if said.get("key_id") else ""


_WORDS: dict[tuple[str, str], Callable[[str, _Said], str]] = {
    ("create", "role"): lambda role, said: f"made role {role}{_quoted(said['description'])}",
    ("delete", "role"): lambda role, _: f"removed role {role}",
    ("update", "role"): _described,
    ("grant", "permission"): lambda name, said: f"granted {name} to role {said['role']}",
    ("revoke", "permission"): lambda name, said: f"took {name} from role {said['role']}",
    ("add", "membership"): _member_added,
    ("remove", "membership"): _member_removed,
    ("add", "role_parent"): lambda role, said: f"let role {role} inherit from {said['parent']}",
    ("remove", "role_parent"): lambda role, said: (
        f"ended that role {role} inherits from {said['parent']}"
    ),
    ("delete", "user"): _user_removed,
    ("create", "key"): _key("made"),
    ("update", "key"): _key("changed"),
    ("delete", "key"): _key("revoked"),
    ("revoke", "key"): _key("revoked"),
    ("create", "api_key"): _api_key("made"),
    ("delete", "api_key"): _api_key("revoked"),
    ("revoke", "api_key"): _api_key("revoked"),
    ("update", "settings"): _settings,
    ("create", "tenant"): lambda name, _: f"made tenant {name}",
    ("update", "tenant"): _tenant_updated,
    ("revoke", "token"): lambda family, said: f"revoked token family {family}{_of_key(said)}",
    ("reuse_detected", "token"): lambda family, said: (
        f"used a spent refresh token, which ended token family {family}{_of_key(said)}"
    ),
    ("check", "permission"): lambda name, said: (
        f"asked whether {said['user']} may {name}"
        + (f" in {said['scope']}" if said.get("scope") else "")
    ),
    ("auth_failure", "credential"): lambda _, said: (
        f"was refused {said['count']} times in {said['seconds']} s ({said['reason']})"
    ),
    ("scope_refused", "credential"): lambda _, said: (
        f"lacked the scope {said['scope']} for {said['method']} {said['route']}"
    ),
    ("alert", "rule"): lambda rule, said: f"met the rule {rule}{_why(said)}",
    ("drop", "activity"): lambda _, said: f"{said['count']} entries could not be written",
    ("issue", "token"): lambda family, said: f"got tokens, family {family}{_of_key(said)}",
    ("refresh", "token"): lambda family, said: f"refreshed tokens, family {family}{_of_key(said)}",
}
"""(action, entity type) -> from the entity's name and the details to words."""
