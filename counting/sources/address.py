"""Hub addresses people paste: `https://huggingface.co/org/name/tree/main`, `hf://org/name@revision/file`."""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from moegauge.counting import errors

HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
ENDPOINT = "HF_ENDPOINT"  # read here, not through huggingface_hub: a path should not cost its import
_PAGES = ("tree", "blob", "resolve", "raw", "commit")  # what stands between a repo and a revision
_OTHERS = ("datasets", "spaces", "collections", "papers", "buckets")
_PATH = re.compile(
    r"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>(?:refs/(?:pr|convert)/)?[^/]+))?(?:/(?P<file>.*))?", re.DOTALL
)
ADVICE = "Give a model's repo: org/name, its page, or hf://org/name@revision."


class Address(NamedTuple):
    """What an address names: a repo, perhaps a revision, perhaps one file of it."""

    repo: str
    revision: str | None = None
    file: str = ""


def parse(target: str) -> Address | None:
    """The address `target` is; None where it is none, so a path or `org/name`.

    Raises:
        TargetNotFoundError: an address of something else than a model.
    """
    if target.startswith("hf://"):
        return _hf(target)
    host, path = _split(target if "://" in target else f"https://{target}")
    own, _ = _split(os.environ.get(ENDPOINT, ""))
    if host not in (*HOSTS, *filter(None, [own])):
        if "://" in target:
            raise errors.TargetNotFoundError("is not an address of the Hub.", file=target, advice=ADVICE)
        return None
    parts = [unquote(part) for part in path.split("/") if part]
    if not parts or parts[0] in _OTHERS or len(parts) == 1:
        raise errors.TargetNotFoundError("names no model on the Hub.", file=target, advice=ADVICE)
    repo, rest = "/".join(parts[:2]), parts[2:]
    if not rest or rest[0] not in _PAGES or len(rest) == 1:
        return Address(repo)
    if rest[0] == "commit":
        return Address(repo, rest[1])
    revision, file = _revision(rest[1:])
    return Address(repo, revision, file)


def _split(url: str) -> tuple[str, str]:
    """Host and path of an address; no host where it is none, as `https://[::1`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""
    return parts.netloc, parts.path


def _hf(target: str) -> Address:
    """`hf://[models/]org/name[@revision][/file]`, as huggingface_hub's file system spells it."""
    path = target.removeprefix("hf://").removeprefix("models/")
    match = _PATH.fullmatch(path)
    if match is None or match["repo"].partition("/")[0] in _OTHERS:
        raise errors.TargetNotFoundError("names no model on the Hub.", file=target, advice=ADVICE)
    revision = unquote(match["revision"]) if match["revision"] else None
    return Address(match["repo"], revision, (match["file"] or "").strip("/"))


def _revision(rest: list[str]) -> tuple[str, str]:
    """(revision, file): a revision is one component, or `refs/pr/4`."""
    length = 3 if rest[0] == "refs" and len(rest) >= 3 else 1
    return "/".join(rest[:length]), "/".join(rest[length:])
