"""Edits of any two Hugging Face checkpoints, outside a study: `jobs/edit.py --donor DIR --recipient DIR --out URI`."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlheals_ray import tables
from rlheals_ray.command import EXIT_CODES, guarded
from rlheals_ray.config import InputError, edit_kinds
from rlheals_ray.connection import connect, named_cluster
from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.need import side_by_side
from rlheals_ray.spectra.ablation import Order, run_edits
from rlheals_ray.spectra.assembly import is_written
from rlheals_ray.spectra.edit import Edit, EditReport
from rlheals_ray.spectra.orders import Plan
from rlheals_ray.spectra.recombination import MODES
from rlheals_ray.spectra.roles import ROLES
from rlheals_ray.storage import fingerprint

CODE = 1
"""Part of every edit's fingerprint: raise it when the same command comes to write another checkpoint."""
PROVENANCE = "provenance.json"
FACTORS, PIECES, TABLES, TABLE = "factors", "pieces", "tables", "edits.parquet"
DEFAULT_ROLES = "q,k,v,o,gate,up,down"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 an edit failed, 2 wrong input, nothing written."""
    parsed = _parser().parse_args(arguments)
    return guarded("edit", lambda: _run(parsed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobs/edit.py",
        description="Put singular factors of the donor into the recipient; the controls are always written beside.",
        epilog="Writes OUT/<edit id>/ as Hugging Face directories and OUT/tables/edits.parquet; OUT/factors serves "
        f"later edits of the same checkpoints. {EXIT_CODES}",
    )
    parser.add_argument(
        "--donor", required=True, metavar="DIR", help="a directory or URI with safetensors weights"
    )
    parser.add_argument("--recipient", required=True, metavar="DIR", help="likewise; its other tensors stay")
    parser.add_argument(
        "--out", required=True, metavar="URI", help="a directory or URI for all that is written"
    )
    parser.add_argument(
        "--factors", default="UV", choices=("UV", "S", "USV"), help="what is taken (default UV)"
    )
    parser.add_argument("--mode", default="concatenate", help=f"of {', '.join(MODES)}, or a list a,b")
    parser.add_argument(
        "--k",
        default="all",
        help="how many directions: numbers, fractions as 0.2, or all (default); a list a,b",
    )
    parser.add_argument(
        "--part", default="top", choices=("top", "tail"), help="which directions (default top)"
    )
    parser.add_argument("--t", default="1", help="how far to turn, 0 to 1, with mode rotate; a list a,b")
    parser.add_argument("--layers", metavar="FROM-TO", help="for example 0-9, or a list 0-3,8 (default: all)")
    parser.add_argument("--roles", default=DEFAULT_ROLES, help=f"of {','.join(ROLES)}")
    parser.add_argument("--seed", type=int, default=0, help="of the random controls (default 0)")
    parser.add_argument("--address", help="a Ray cluster to join (default: RAY_ADDRESS, else this machine)")
    parser.add_argument("--workers", type=int, help="matrices at one time (default: one for each core)")
    return parser


def _run(parsed: argparse.Namespace) -> int:
    groups = _groups(parsed)
    edits = {name: edit for group in groups.values() for name, edit in group.items()}
    out = Folder.of(parsed.out)
    models = {side: Checkpoint(getattr(parsed, side)) for side in ("donor", "recipient")}
    for side, model in models.items():
        if out == model.folder:
            raise InputError(f"--out (got {parsed.out!r}) is the --{side}; name another directory.")
        model.check()
    if parsed.workers is not None and parsed.workers < 1:
        raise InputError(f"--workers (got {parsed.workers}) must be at least 1.")
    contents = {side: model.fingerprint() for side, model in models.items()}
    if contents["donor"] == contents["recipient"]:
        raise InputError(
            f"--donor (got {parsed.donor!r}) holds the weights of the --recipient; name two that differ."
        )
    orders = [
        Order(edit, out.child(name).uri, {PROVENANCE: _provenance(edit, contents)})
        for name, edit in edits.items()
    ]
    before = {row["edit"]: row for row in _stored(out)}
    found: dict[str, Mapping[str, Any]] = {
        name: before[name]
        for name, order in zip(edits, orders, strict=True)
        if name in before and is_written(order)
    }
    missing = {name: order for name, order in zip(edits, orders, strict=True) if name not in found}
    failures: dict[str, str] = {}
    if missing:
        reports = _written(list(missing.values()), out, parsed)
        for name, report in zip(missing, reports, strict=True):
            if isinstance(report, str):
                failures[name] = report
            else:
                found[name] = asdict(report)
    rows = [
        _row(name, group, edit, found[name])
        for group, members in groups.items()
        for name, edit in members.items()
        if name in found
    ]
    _store(out, rows)
    if not failures:
        out.child(PIECES).delete()
    print(_shown(rows, out))
    for name, failure in failures.items():
        print(f"edit: {name}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _groups(parsed: argparse.Namespace) -> dict[str, dict[str, Edit]]:
    """Every edit with its controls: group -> id, also its directory -> edit."""
    layers = None if parsed.layers is None else _numbers(parsed.layers)
    roles = tuple(parsed.roles.split(","))
    groups = {}
    for mode, k, t in product(parsed.mode.split(","), parsed.k.split(","), parsed.t.split(",")):
        edit = Edit(
            donor_directory=Folder.of(parsed.donor).uri,
            recipient_directory=Folder.of(parsed.recipient).uri,
            factors=parsed.factors,
            k=_directions(k),
            mode=mode,
            part=parsed.part,
            t=_number("--t", t),
            roles=roles,
            layers=layers,
            seed=parsed.seed,
        )
        whose = "" if layers is None else f"_layers={parsed.layers}"
        whose += "" if parsed.roles == DEFAULT_ROLES else f"_roles={'+'.join(roles)}"
        group = f"{edit.factors}_{mode}_k={k}"
        group += "" if edit.part == "top" else f"_{edit.part}"
        group += "" if edit.t == 1 else f"_t={edit.t:g}"
        # The swap of the same matrices is one, whatever edit it is for.
        groups[group + whose] = {
            (f"weight_swap{whose}" if kind == "weight_swap" else f"{group}{whose}_{kind}"): replace(
                edit, kind=kind
            )
            for kind in edit_kinds(edit.factors)
        }
    return groups


def _written(orders: Sequence[Order], out: Folder, parsed: argparse.Namespace) -> list[EditReport | str]:
    """The missing checkpoints; wrong input leaves nothing behind that was not there."""
    Plan.of(orders)  # what headers tell is told before Ray starts
    connect(parsed.address)
    workers = parsed.workers or _cores(parsed.address)
    new = [folder for folder in (out.child(FACTORS), out.child(PIECES), out) if not folder.exists()]
    try:
        return run_edits(
            orders, out.child(FACTORS).uri, out.child(PIECES).uri, concurrency=workers, sharding="recipient"
        )
    except InputError:
        for folder in new:
            folder.delete()
        raise


def _cores(address: str | None) -> int:
    if named_cluster(address) is None:
        return os.cpu_count() or 1
    import ray

    return side_by_side(ray.nodes())


def _provenance(edit: Edit, contents: Mapping[str, str]) -> bytes:
    """What a checkpoint was made from: the edit, and SHA-256 of the weights of donor and recipient."""
    how = asdict(edit) | dict(contents)
    return (json.dumps({"fingerprint": fingerprint(code=CODE, **how), **how}, indent=2) + "\n").encode()


def _row(name: str, group: str, edit: Edit, found: Mapping[str, Any]) -> dict[str, Any]:
    measured = {column: found[column] for column in ("projection", "residual", "smallest", "delta_norm")}
    return (
        dict.fromkeys(tables.EDITS.names)
        | measured
        | {
            "edit": name,
            "group": group,
            "seed": edit.seed,
            "donor": edit.donor_directory,
            "recipient": edit.recipient_directory,
            "kind": edit.kind,
            "mode": edit.mode,
            "factors": edit.factors,
            "part": edit.part,
            "k": edit.k if isinstance(edit.k, int) else None,
            "k_fraction": edit.k if isinstance(edit.k, float) else None,
            "t": edit.t,
            "layers": None if edit.layers is None else list(edit.layers),
            "roles": list(edit.roles),
        }
    )


def _stored(out: Folder) -> list[dict[str, Any]]:
    folder = out.child(TABLES)
    try:
        return pq.read_table(io.BytesIO(folder.read(TABLE))).to_pylist()
    except (OSError, pa.ArrowInvalid):
        return []


def _store(out: Folder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add to the table of this directory; rows of the same edits give way."""
    new = {row["edit"] for row in rows}
    kept = [row for row in _stored(out) if row["edit"] not in new]
    buffer = io.BytesIO()
    pq.write_table(tables.table("edits", [*kept, *rows]), buffer)
    out.child(TABLES).write(TABLE, buffer.getvalue())


def _shown(rows: Sequence[Mapping[str, Any]], out: Folder) -> str:
    wide = max((len(row["edit"]) for row in rows), default=4)
    lines = [f"{'edit':<{wide}}  projection  residual      ‖ΔW‖  smallest"]
    for name, row in {row["edit"]: row for row in rows}.items():
        smallest = "" if row["smallest"] is None else f"{row['smallest']:.3g}"
        measured = f"{row['projection']:10.4f}  {row['residual']:8.4f}  {row['delta_norm']:8.4g}"
        lines.append(f"{name:<{wide}}  {measured}  {smallest:>8}".rstrip())
    return "\n".join([*lines, f"in {out}; table: {out.child(TABLES).uri}/{TABLE}"])


def _directions(text: str) -> int | float | None:
    if text == "all":
        return None
    if text.isdigit():
        return int(text)
    return _number("--k", text)


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"{option} (got {text!r}) is no number; give numbers, separated by commas."
        ) from None


def _numbers(text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise InputError(f"--layers (got {text!r}) is no list of layers; write 0-9 or 0-3,8.")
        found |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))
