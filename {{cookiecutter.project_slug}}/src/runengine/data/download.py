"""Download a file that is known by its SHA-256: once, and on from where it was cut."""

from __future__ import annotations

import http.client
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from ..settings.errors import UserError
from ..settings.files import sha256

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 30  # how long the server may send nothing
WAITS_S = (1, 2, 4)  # before each further try


def download(url: str, file: Path, checksum: str) -> None:
    """Have `file` with this SHA-256. What has come so far is kept in `<file>.part`, also after Ctrl-C.

    Raises:
        UserError: the server cannot be reached, does not have the file, or has another one.
    """
    if file.exists():
        return _check(file, checksum, "is damaged")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} is no address of a server: it must begin with http:// or https://.")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    continued = part.exists()
    _fetch(url, part)
    if continued and sha256(part) != checksum:  # the file on the server has changed between the two halves
        part.unlink()
        _fetch(url, part)
    _check(part, checksum, f"is not the file that was expected from {url}")
    part.replace(file)


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what it lacks, with a few tries."""
    for wait_s in (*WAITS_S, None):
        try:
            return _append(url, part)
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            passing = error.code in (408, 429) or error.code >= 500
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason, passing = str(getattr(error, "reason", error)), True
        if wait_s is None or not passing:
            raise UserError(
                f"{url} cannot be downloaded: {reason}. Try again: the download resumes from here; "
                f"or bring the file from elsewhere and put it into {part.parent}."
            )
        print(f"{url}: {reason}. Trying again in {wait_s} s.", file=sys.stderr)
        time.sleep(wait_s)


def _append(url: str, part: Path) -> None:
    offset = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # nothing is left to send: the checksum decides whether this is the file
            return
        raise
    with answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            offset = 0  # this server sends the complete file
        length = answer.headers.get("Content-Length")
        total = offset + int(length) if length else None
        with (
            part.open("ab" if offset else "wb") as out,
            tqdm(total=total, initial=offset, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := answer.read(CHUNK_BYTES):
                out.write(chunk)
                bar.update(len(chunk))
    if total and part.stat().st_size < total:
        raise ConnectionError("the connection was cut")


def _check(file: Path, checksum: str, otherwise: str) -> None:
    found = sha256(file)
    if found != checksum:
        file.unlink()
        raise UserError(
            f"{file} {otherwise}: its SHA-256 is {found[:12]}..., wanted {checksum[:12]}.... "
            "It was deleted; start again to download it once more."
        )
