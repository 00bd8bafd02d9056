"""What the sweep found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tests.peers.measure import ABSENT, ORIGINAL
from tests.peers.tools import PEERS

File = dict[str, Any]


def tables(files: list[File]) -> str:
    """A table of the peers, one of the models, and a list of what failed or is wrong."""
    whole = [file for file in files if file[ORIGINAL]]
    broken = [f"no result at all: {file['name']}" for file in files if not file[ORIGINAL]]
    return "\n".join([*_peers(whole), "", *_models(whole), "", *_troubles(whole), *broken]) + "\n"


def _row(file: File, peer: str) -> dict[str, Any]:
    found: dict[str, Any] = file["peers"].get(peer, {"failed": ABSENT})
    return found


def _calls(files: Iterable[File]) -> int:
    return sum(file[ORIGINAL]["calls"] for file in files)


def _removed(file: File, peer: str) -> int | None:
    """How many calls the peer took out; None if it failed or the outputs are wrong."""
    row = _row(file, peer)
    return None if "failed" in row or row["wrong"] else file[ORIGINAL]["calls"] - row["left"]


def best(file: File) -> int:
    """How many calls the best peer took out of a model and left it right."""
    return max((_removed(file, peer) or 0 for peer in PEERS), default=0)


def _peers(files: list[File]) -> Iterator[str]:
    calls = _calls(files)
    versions = {f"{package} {version}" for file in files for package, version in file["versions"].items()}
    yield f"{len(files)} models, {calls} calls of BatchNorm. {', '.join(sorted(versions))}."
    yield ""
    head = "peer", "handled", "failed", "wrong", "removed", "%", "without the wrong", "%"
    yield line(*head, "error, float32", "float64")
    yield _rule(9)
    for peer in PEERS:
        rows = [(file, row) for file in files if (row := _row(file, peer)).get("failed") != ABSENT]
        if not rows:
            yield line(peer, ABSENT, *[""] * 8)
            continue
        handled = [(file, row) for file, row in rows if "failed" not in row]
        right = [row for _, row in handled if not row["wrong"]]
        removed = _calls(file for file, _ in handled) - sum(row["left"] for _, row in handled)
        rightly = sum(_removed(file, peer) or 0 for file in files)
        shares = removed, _percent(removed, calls), rightly, _percent(rightly, calls)
        worst = [max((row[key] for row in right if key in row), default=None) for key in ("error", "error64")]
        errors = ["" if error is None else f"{error:.0e}" for error in worst]
        counts = len(handled), len(rows) - len(handled), len(handled) - len(right)
        yield line(peer, *counts, *shares, *errors)
    most = sum(map(best, files))
    yield line("best peer per model", *[""] * 5, most, _percent(most, calls), "", "")


def _models(files: list[File]) -> Iterator[str]:
    yield line("model", "calls", *PEERS, "best")
    yield _rule(len(PEERS) + 2)
    for file in files:
        cells = []
        for peer in PEERS:
            row, removed = _row(file, peer), _removed(file, peer)
            failed = "" if row.get("failed") == ABSENT else "failed"
            cells.append(failed if "failed" in row else "wrong" if removed is None else removed)
        yield line(file["name"], file[ORIGINAL]["calls"], *cells, best(file))


def _troubles(files: list[File]) -> Iterator[str]:
    for peer in PEERS:
        for file in files:
            row = _row(file, peer)
            if "failed" in row and row["failed"] != ABSENT:
                yield f"- {peer} fails on {file['name']}: {row['failed']}"
            elif "failed" not in row and row["wrong"]:
                noise = f"{file[ORIGINAL]['noise']:.0e}"
                yield f"- {peer} is wrong on {file['name']}: {row['error']:.1e}, where rounding does {noise}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _rule(columns: int) -> str:
    return "|---|" + "---:|" * columns


def line(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |"
