#!/usr/bin/env python3
"""Vendor Swagger UI into src/authsvc/static/swagger-ui.

Usage: scripts/vendor_swagger.py [VERSION]        (needs npm, which checks the package's integrity)

Takes the few files the documentation page needs and writes the images that the style sheet holds
as ``data:`` URIs into files of their own, because ``default-src 'self'`` does not allow them.
Everything else stays byte for byte as published; SHA256SUMS lists what was written.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from base64 import b64decode
from pathlib import Path
from urllib.parse import unquote_to_bytes

TARGET = Path(__file__).resolve().parent.parent / "src/authsvc/static/swagger-ui"
VERBATIM = (
    "LICENSE",
    "NOTICE",
    "swagger-ui-bundle.js",
    "swagger-ui-bundle.js.LICENSE.txt",
)
_DATA_URI = re.compile(
    r"""url\(\s*(?:"(?P<quoted>data:(?:[^"\\]|\\.)*)"|(?P<bare>data:[^)"']*))\s*\)"""
)
_SUFFIXES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}


def download(version: str, folder: Path) -> Path:
    """The unpacked package."""
    packed = subprocess.run(
        ["npm", "pack", "--json", f"swagger-ui-dist@{version}"],
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
    )
    with tarfile.open(folder / json.loads(packed.stdout)[0]["filename"]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def without_data_uris(css: str) -> tuple[str, dict[str, bytes]]:
    """The style sheet with relative file names in place of data URIs, and those files."""
    files: dict[str, bytes] = {}

    def moved(found: re.Match[str]) -> str:
        uri = found["bare"] or re.sub(r"\\(.)", r"\1", found["quoted"])
        kind, _, data = uri.removeprefix("data:").partition(",")
        content = unquote_to_bytes(data)
        if kind.endswith(";base64"):
            content = b64decode(content, validate=True)
        suffix = _SUFFIXES[kind.partition(";")[0]]
        name = f"image-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
        files[name] = content
        return f'url("{name}")'

    css = _DATA_URI.sub(moved, css)
    css = re.sub(r"/\*# sourceMappingURL=.*?\*/", "", css)
    return css.rstrip() + "\n", files


def main() -> None:
    version = sys.argv[1] if len(sys.argv) > 1 else (TARGET / "VERSION").read_text().strip()
    with tempfile.TemporaryDirectory() as name:
        package = download(version, Path(name))
        version = json.loads((package / "package.json").read_text())["version"]
        css, files = without_data_uris((package / "swagger-ui.css").read_text("utf-8"))
        if "data:" in css:
            sys.exit("the style sheet still holds a data: URI")
        files["swagger-ui.css"] = css.encode()
        for verbatim in VERBATIM:
            files[verbatim] = (package / verbatim).read_bytes()
    shutil.rmtree(TARGET, ignore_errors=True)
    folder = TARGET / version
    folder.mkdir(parents=True)
    for file_name, content in files.items():
        (folder / file_name).write_bytes(content)
    (TARGET / "VERSION").write_text(f"{version}\n")
    (TARGET / "SHA256SUMS").write_text(
        "".join(
            f"{hashlib.sha256(content).hexdigest()}  {version}/{file_name}\n"
            for file_name, content in sorted(files.items())
        )
    )
    print(f"swagger-ui {version}: {len(files)} files, {sum(map(len, files.values()))} bytes")


if __name__ == "__main__":
    main()
