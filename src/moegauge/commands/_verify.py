"""`moegauge models --verify`: entries of the catalogue recounted from the headers their repositories hold."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from moegauge.commands._output import print_json, say, show_progress
from moegauge.errors import MoegaugeError
from moegauge.models.catalogue import Entry

JOBS = 4  # repositories counted at a time; most of a count waits for the network


@dataclass(slots=True)
class Verified:
    """One entry beside its repository.

    Attributes:
        entry: the catalogue's entry.
        commit: the commit that was counted, None when it could not be.
        differences: field -> (catalogue, Hub).
        error: why it could not be counted, empty when it was.
    """

    entry: Entry
    commit: str | None = None
    differences: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    error: str = ""

    @property
    def agrees(self) -> bool:
        """Counted, and nothing differs."""
        return not self.error and not self.differences

    def document(self) -> dict[str, Any]:
        """Its part of the JSON document."""
        return {
            "name": self.entry.name,
            "repo": self.entry.repo,
            "commit": self.commit,
            "agrees": self.agrees,
            "differences": [{"field": f, "catalogue": a, "hub": b} for f, (a, b) in self.differences.items()],
            "error": self.error or None,
        }

    def lines(self) -> Iterator[str]:
        """Its lines for people."""
        if self.agrees:
            yield f"{self.entry.name}: agrees with {self.entry.repo} at {(self.commit or '')[:10]}"
        elif self.error:
            yield f"{self.entry.name}: not counted: {self.error}"
        for name, (ours, theirs) in self.differences.items():
            yield f"{self.entry.name}: {name}: {_shown(ours)} in the catalogue, {_shown(theirs)} on the Hub"


def _shown(value: Any) -> str:
    return f"{value:,}" if type(value) is int else "unknown" if value is None else str(value)


def recounted(document: dict[str, Any]) -> dict[str, Any]:
    """The fields of an entry that a count of its repository (`moegauge count --json`) knows."""
    parameters, active, read = document["parameters"], document["active"], document["bytes_per_token"]
    return {
        "family": document["family"],
        "layers": document["layers"],
        "moe_layers": document["moe_layers"],
        "experts": document["experts"],
        "top_k": document["top_k"],
        "total": parameters["decoder"],
        "dense": parameters["dense"],
        "routed": parameters["routed"],
        "mtp": parameters["mtp"],
        "beside": parameters["total"] - parameters["decoder"] - parameters["mtp"],
        "active": active["parameters"],
        "active_without_embedding": active["without_embedding"],
        "stored_elements": document["stored"]["elements"],
        "bytes_per_token.native": read["total"],
        "kv_per_context_token": read["kv_per_context_token"],
    }


def verify(entry: Entry) -> Verified:
    """Count the entry's repository and compare; a failure is kept, not raised."""
    from moegauge.counting import count

    try:
        document = count(entry.repo).to_json()
    except MoegaugeError as error:
        return Verified(entry, error=error.message)
    ours = {"bytes_per_token.native": entry.bytes_per_token["native"]}
    pairs = {
        name: (ours[name] if name in ours else getattr(entry, name), theirs)
        for name, theirs in recounted(document).items()
    }
    differences = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if document["unclassified"]:
        differences["unclassified"] = ([], document["unclassified"])
    return Verified(entry, document["target"]["commit"], differences)


def verify_entries(listed: list[Entry], *, as_json: bool) -> None:
    """Recount every entry, print what differs, and leave with 1 when any differs or cannot be counted."""
    found: list[Verified] = []
    with ThreadPoolExecutor(JOBS) as pool:
        for done in pool.map(verify, listed):
            found.append(done)
            show_progress(f"{len(found)} of {len(listed)}", done=len(found) == len(listed))
            if not as_json:
                for line in done.lines():
                    say(line)
    failed = sum(1 for v in found if v.error)
    differing = sum(1 for v in found if v.differences)
    if as_json:
        print_json(
            {
                "schema": "moegauge.verify/1",
                "verified": len(found),
                "differing": differing,
                "failed": failed,
                "models": [v.document() for v in found],
            }
        )
    else:
        agreeing = len(found) - failed - differing
        say(f"{len(found)} recounted: {agreeing} agree, {differing} differ, {failed} could not be counted", err=True)
    if failed or differing:
        sys.exit(1)
