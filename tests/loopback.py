"""A PyTorch index on loopback, with stub wheels for the builds that cannot be had here."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# what PyTorch 2.13 asks for in these builds: it is on their indexes only
TRITON = {"rocm7.2": "triton-rocm==3.7.1; platform_system == 'Linux'", "xpu": "triton-xpu==3.7.2"}


def write_stub_torch(
    folder: Path, build: str, cuda: str | None = None, tag: str = "py3-none-any", **versions: str
) -> None:
    """A wheel that says it is this build of torch 2.13.0, and the index page that lists it; with its Triton.

    Args:
        folder: of the package torch in the index of this build.
        build, cuda, versions: as in torch.__version__ and torch.version.
        tag: of the wheel.
    """
    said = "".join(f"{name} = {version!r}\n" for name, version in {"cuda": cuda, **versions}.items())
    files = {
        "torch/__init__.py": f"from . import cuda, version\n__version__ = '2.13.0+{build}'\n",
        "torch/cuda.py": "def is_available(): return False\n",
        "torch/version.py": said,
    }
    requires = TRITON.get(build, "")
    write_stub(folder, "torch", f"2.13.0+{build}", files, tag, requires)
    if requires:
        name, version = requires.partition(";")[0].split("==")
        write_stub(folder.with_name(name), name, version, {"triton/__init__.py": ""})


def write_stub(
    folder: Path, name: str, version: str, files: dict[str, str], tag: str = "py3-none-any", requires: str = ""
) -> None:
    """A wheel of these files that requires this, and the index page that lists it."""
    file_name = name.replace("-", "_")
    wheel, info = folder / f"{file_name}-{version}-{tag}.whl", f"{file_name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = {
        **files,
        f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    lines = [
        f"{file},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},"
        for file, text in contents.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in {**contents, f"{info}/RECORD": "\n".join([*lines, f"{info}/RECORD,,"])}.items():
            archive.writestr(file, text)
    write_page(wheel)


def fetch_torch(folder: Path, python: str) -> bool:
    """The CPU wheel that pip has at hand for this Python, with its page, if there is one."""
    wanted = "torch==2.13.0+cpu"  # PyPI has no such name: only a wheel at hand is found, nothing big is downloaded
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", python, "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, wanted]
    if subprocess.run(command, capture_output=True).returncode != 0:
        return False
    write_page(next(folder.glob("*.whl")))
    return True


def write_page(wheel: Path) -> None:
    """The index page for a wheel (PEP 503), with its metadata in a file of its own (PEP 658), as PyTorch's has."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name)
    wheel.with_name(wheel.name + ".metadata").write_bytes(metadata)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    of_metadata = f"sha256={hashlib.sha256(metadata).hexdigest()}"
    page = (
        f'<a href="{wheel.name.replace("+", "%2B")}#sha256={digest}" '
        f'data-core-metadata="{of_metadata}" data-dist-info-metadata="{of_metadata}">{wheel.name}</a>'
    )
    (wheel.parent / "index.html").write_text(page, encoding="utf-8")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address at which this folder is served, on loopback only."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
