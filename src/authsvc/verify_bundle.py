"""Verify an audit bundle of authsvc, on its own: Python 3.11 and the package cryptography suffice.

    python verify_bundle.py --public-key checkpoint.pub.pem acme.bundle.jsonl ...

Exit status: 0 intact, 1 tampered, 2 incomplete (nothing contradicts, but something that proves it
was not there). Give the segments of one tenant in their order, oldest first.

What is checked: each file is whole (its digest and, with the public key, its signature); each
event's payload has its hash; each event follows from the one before; segments follow each other;
each checkpoint is signed, and names the hash that the event of that number has.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

INTACT, TAMPERED, INCOMPLETE = 0, 1, 2


class Tampered(Exception):
    """Something is not what was written."""


def _field(part: bytes) -> bytes:
    return bytes((len(part),)) + part


def _event_hash(tenant: bytes, event: dict[str, Any], previous: bytes) -> bytes:
    parts = (
        b"\x01",
        tenant,
        event["seq"].to_bytes(8, "big"),
        event["at"].to_bytes(8, "big", signed=True),
        previous,
        bytes.fromhex(event["payload_hash"]),
    )
    return hashlib.sha256(b"".join(map(_field, parts))).digest()


def _must(condition: bool, problem: str) -> None:
    if not condition:
        raise Tampered(problem)


def _signed(key: Ed25519PublicKey | None, signature: str | None, content: bytes) -> bool | None:
    """None: it cannot be told."""
    if key is None or signature is None:
        return None
    try:
        key.verify(bytes.fromhex(signature), content)
    except InvalidSignature:
        return False
    return True


class Verification:
    """Bundles of one tenant, one after the other."""

    def __init__(self, key: Ed25519PublicKey | None) -> None:
        self._key = key
        self.tenant = ""
        self.events = 0
        self.checkpoints = 0
        self.proven_until = 0
        self.reached = (0, bytes(32))
        self.lacking: list[str] = []

    def read(self, path: Path) -> None:
        """Verify one more file. Raises Tampered."""
        digest = hashlib.sha256()
        marks: dict[int, bytes] = {}
        ended = False
        with path.open("rb") as file:
            head = json.loads(first := file.readline())
            _must(head.get("format") == "authsvc audit bundle", "this is no audit bundle")
            _must(head["version"] == 1, "a bundle of a version that is not known")
            digest.update(first)
            self._begin(head, path)
            hashes: dict[int, bytes] = {head["after"][0]: bytes.fromhex(head["after"][1])}
            for line in file:
                said = json.loads(line)
                _must(not ended, "something follows the end")
                if "sha256" in said:
                    self._end(said, digest.digest(), path)
                    ended = True
                    continue
                digest.update(line)
                if "checkpoint" in said:
                    self._checkpoint(said, marks)
                else:
                    self._event(said)
                    hashes[said["seq"]] = bytes.fromhex(said["hash"])
        _must(ended, "the end is missing")
        until = (head["until"][0], bytes.fromhex(head["until"][1]))
        _must(self.reached == until, "the events do not lead to where the bundle says they do")
        for seq, digest_of_it in marks.items():
            if seq in hashes:
                _must(hashes[seq] == digest_of_it, f"a checkpoint names another event {seq}")
                self.proven_until = max(self.proven_until, seq)
            elif seq > until[0]:
                raise Tampered(f"a checkpoint names event {seq}, and the events end before it")

    def _begin(self, head: dict[str, Any], path: Path) -> None:
        after = (head["after"][0], bytes.fromhex(head["after"][1]))
        _must(self.tenant in ("", head["tenant"]), "this is another tenant's")
        if not self.tenant and after[0] != 0:
            self.lacking.append(f"{path} follows event {after[0]}, which no file before it holds")
        else:
            _must(after == self.reached, "this does not follow from what comes before it")
        self.tenant, self.reached = head["tenant"], after

    def _event(self, event: dict[str, Any]) -> None:
        seq = self.reached[0] + 1
        _must(event["seq"] == seq, f"event {seq} is missing")
        payload = base64.b64decode(event["payload"])
        _must(
            hashlib.sha256(payload).hexdigest() == event["payload_hash"],
            f"event {seq} does not say what was written",
        )
        tenant = bytes.fromhex(self.tenant.replace("-", ""))
        found = _event_hash(tenant, event, self.reached[1])
        _must(found.hex() == event["hash"], f"event {seq} does not follow from those before it")
        self.reached = (seq, found)
        self.events += 1

    def _checkpoint(self, said: dict[str, Any], marks: dict[int, bytes]) -> None:
        signed = _signed(self._key, said["signature"], said["checkpoint"].encode())
        _must(signed is not False, "a checkpoint is not signed with this key")
        body = json.loads(said["checkpoint"])
        for states in (body["heads"], body["anchors"]):
            if self.tenant in states:
                revision, head = states[self.tenant]
                marks[revision] = bytes.fromhex(head)
        self.checkpoints += 1

    def _end(self, said: dict[str, Any], digest: bytes, path: Path) -> None:
        _must(said["sha256"] == digest.hex(), "the file was changed")
        signed = _signed(self._key, said["signature"], digest)
        _must(signed is not False, "the file is not signed with this key")
        if said["signature"] is None:
            self.lacking.append(f"{path} is not signed")
        elif signed is None:
            self.lacking.append("signatures were not looked at: give --public-key")


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify the files named on the command line; the exit status."""
    parser = argparse.ArgumentParser(description="Verify audit bundles of authsvc.")
    parser.add_argument("bundle", nargs="+", type=Path, help="segments of a tenant, oldest first")
    parser.add_argument(
        "--public-key", type=Path, help="the public key of checkpoints, in PEM form"
    )
    given = parser.parse_args(arguments)
    key = None
    if given.public_key is not None:
        loaded = load_pem_public_key(given.public_key.read_bytes())
        if not isinstance(loaded, Ed25519PublicKey):
            parser.error(f"{given.public_key} is no Ed25519 public key")
        key = loaded
    verification = Verification(key)
    for path in given.bundle:
        try:
            verification.read(path)
        except (Tampered, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            reason = error if isinstance(error, Tampered) else "a line cannot be read"
            print(f"TAMPERED  {path}: {reason}")
            return TAMPERED
    print(
        f"tenant {verification.tenant}: {verification.events} events,"
        f" {verification.checkpoints} checkpoints; signed checkpoints prove them up to event"
        f" {verification.proven_until}"
    )
    for sentence in dict.fromkeys(verification.lacking):
        print(f"INCOMPLETE  {sentence}")
    if verification.lacking:
        return INCOMPLETE
    print("INTACT")
    return INTACT


if __name__ == "__main__":
    sys.exit(main())
