"""diagnose: a verdict on a run, from what a Monitor recorded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import checks
from ..files.whole import there
from ..inspection.monitor import Monitor
from ..inspection.row import OPERAND_ROLES, RESULTS, ROLES, SLOT_OF, SUMS
from ..inspection.rows import MonitorRow, read_monitor
from ..inspection.step import Loss
from ..recipe import OPERANDS
from ..reports.rows import read_rows
from ..weights.updates.counts import UpdateReport, UpdateRow
from ..weights.updates.low_precision import LowPrecision
from .figures import Rule
from .gradient import ASTRAY, bounded, cosine_on, with_measured
from .paired import Batch, batches_of
from .rules import NOT_FINITE, OVERFLOWING, RULES
from .spread import gathered, place
from .updates import verdict_on_updates
from .verdict import GRAVE, Finding, Verdict

#: The file of a run folder that is looked at.
FILE = "monitor.jsonl"
#: and that of its updates, where these are in low precision
UPDATES = "updates.json"


def diagnose(
    record: Monitor | Iterable[MonitorRow] | LowPrecision | UpdateReport | str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    inputs: Any = None,
    targets: Any = None,
    loss: Loss | None = None,
    more: Iterable[Batch] = (),
) -> Verdict:
    """What is wrong with a run, where, why, and what to do.

    record   a Monitor, its rows, the .jsonl file that it saved, what low_precision_ returned or its
             report, or a run's folder, where both are looked for
    model    the converted model, as it is now: then the cosine of its gradient with that of full
             precision is measured too, on copies, on the batches of `inputs`, `targets`, `loss` and
             `more`, as `sensitivity` takes them; without, the record gives a bound of it

    Every layer and role is looked at by itself, over all records that are kept, under every rule of
    `rules.RULES`.  A product's finding follows those of its own operands: it is no more severe, and
    named after them.  NaN and infinities are named once, where they were recorded first.

    Raises ValueError where nothing is recorded, and for a file or folder without a record.
    """
    batches = batches_of("diagnose", inputs, targets, more)
    if model is None:
        if inputs is not None or targets is not None or loss is not None or len(batches) > 1:
            raise ValueError("diagnose: got a batch, but no model= to measure the gradient of")
        return _verdict(record)[0]
    checks.batch("inputs", inputs)
    verdict, step = _verdict(record)
    return with_measured(verdict, cosine_on(model, batches, loss), len(batches), step)


def _verdict(record: Any) -> tuple[Verdict, int]:
    """What the record says, and its last step."""
    updates = updates_of(record)
    if updates is not None and not _is_monitored(record):
        return verdict_on_updates(updates), updates.rows[0].steps
    rows = _rows(record)
    if not rows:
        raise ValueError(
            "diagnose: nothing is recorded; train a few steps under Monitor(model, every=...), or "
            "with qtrain train --monitor N"
        )
    by_tensor: dict[tuple[str, str], list[MonitorRow]] = {}
    for row in rows:
        by_tensor.setdefault((row.layer, row.role), []).append(row)
    layers = list(dict.fromkeys(row.layer for row in rows))
    findings: list[Finding] = [] if updates is None else [*verdict_on_updates(updates).findings]
    for layer in layers:
        own = {role: by_tensor[layer, role] for role in ROLES if (layer, role) in by_tensor}
        found = {role: _findings(tensor) for role, tensor in own.items()}
        for role in own:
            findings += _following(role, found)
    findings = gathered(findings, layers)
    findings.sort(key=lambda f: _order(f, by_tensor, layers))
    if (astray := bounded(by_tensor)) is not None:
        findings.insert(0, astray)
    steps = sorted({row.step for row in rows})
    checked = (
        f"{len(layers)} layers, {len(by_tensor)} tensors, {len(steps)} records of the steps "
        f"{steps[0]} to {steps[-1]}"
    )
    rules = (ASTRAY, *(rule.symptom for rule in RULES))
    if updates is not None:
        also = verdict_on_updates(updates)
        checked, rules = f"{checked}; {also.checked}", rules + also.rules
    return Verdict(findings=tuple(findings), checked=checked, rules=rules), steps[-1]


def updates_of(record: object) -> UpdateReport | None:
    """What a record says of updates; None: nothing, as of gradients alone in few bits."""
    if isinstance(record, LowPrecision):
        return record.report()
    if isinstance(record, str | os.PathLike) and there(path := Path(record) / UPDATES):
        report = UpdateReport(read_rows(path, UpdateRow))
        return report if report.rows else None
    return record if isinstance(record, UpdateReport) else None


def _is_monitored(record: object) -> bool:
    return isinstance(record, str | os.PathLike) and there(Path(record) / FILE)


def _rows(record: Monitor | Iterable[MonitorRow] | str | os.PathLike[str]) -> list[MonitorRow]:
    if isinstance(record, Monitor):
        return list(record.rows)
    if isinstance(record, str | os.PathLike):
        path = checks.path("record", record)
        if not path.exists():
            raise ValueError(
                f"diagnose: there is no {path}; give runs/<name>, or a Monitor's .jsonl"
            )
        if path.is_dir():
            if not there(path / FILE):
                raise ValueError(
                    f"{path}: holds no {FILE}; run it again with --monitor N (qtrain train), or "
                    "save a Monitor's record there"
                )
            path = path / FILE
        return read_monitor(path)
    need = "a Monitor, its rows, its .jsonl file, or a run's folder"
    rows = list(checks.iterable("record", record, need))
    for row in rows:
        if not isinstance(row, MonitorRow):
            checks.refuse("record: among the rows", row, "each a MonitorRow")
    return rows


def _findings(rows: Sequence[MonitorRow]) -> list[Finding]:
    """The symptoms of one tensor that no other of them explains, in the order of the rules."""
    found = {}
    for rule in RULES:
        if rows[0].role in rule.roles:
            finding = _finding(rule, rows)
            if finding is not None:
                found[rule.symptom] = finding
    explained: set[str] = set()
    kept = []
    for rule in RULES:  # causes stand before what they explain
        finding = found.get(rule.symptom)
        if finding is None or rule.symptom in explained:
            continue
        brought = [found[name].severity for name in rule.explains if name in found]
        explained.update(rule.explains)
        kept.append(replace(finding, severity=max([finding.severity, *brought])))
    return kept


def _finding(rule: Rule, rows: Sequence[MonitorRow]) -> Finding | None:
    value, limit = rule.value(rows), rule.limit(rows)
    if value is None or (severity := rule.severity(value, limit)) < 0:
        return None
    if rule.where is not None and not rule.where(rows):
        return None
    values = zip(rows, rule.values(rows), strict=True)
    past = [row.step for row, v in values if v is not None and rule.severity(v, limit) >= 0]
    steps = past or [row.step for row in rows]  # each alone may be within what noise allows
    layer, role = rows[0].layer, rows[0].role
    return Finding(
        layer=layer,
        role=role,
        symptom=rule.symptom,
        value=value,
        threshold=limit,
        seen=len(past),
        records=len(rows),
        first=steps[0],
        last=steps[-1],
        cause=rule.cause,
        remedy=rule.remedy.format(layer=layer, slot=_slot(role)),
        source=rule.source,
        severity=severity,
    )


def _following(role: str, found: dict[str, list[Finding]]) -> list[Finding]:
    """The findings of a role; those of a product as consequences of its operands' errors and its
    accumulator's, where these have any: NaN and infinities of theirs alone, all else of any."""
    errors = {rule.symptom for rule in RULES if rule.error}
    operands = [f for other in _operands(role) for f in found.get(other, []) if f.symptom in errors]
    kept = []
    for finding in found[role]:
        overflow = finding.symptom == NOT_FINITE
        causes = [f for f in operands if not overflow or f.symptom in (NOT_FINITE, OVERFLOWING)]
        if role in SUMS.values() and not overflow:  # its own, whatever is summed
            causes = []
        if causes:
            most = max(causes, key=lambda f: f.severity)
            finding = replace(
                finding,
                severity=min(finding.severity, most.severity),
                cause=f"follows from {most.role}: {most.symptom}",
                remedy=most.remedy,
            )
        kept.append(finding)
    return kept


def _operands(role: str) -> tuple[str, ...]:
    """The roles whose tensors a product, or its accumulator, takes, be they its own or the
    forward's; none for an operand."""
    sums = tuple(SUMS[kind] for kind, result in RESULTS.items() if result == role)
    return sums + tuple(
        OPERAND_ROLES[product, operand]
        for kind, result in RESULTS.items()
        if role in (result, SUMS[kind])
        for product in dict.fromkeys((kind, "forward"))
        for operand in OPERANDS[kind]
        if (product, operand) in OPERAND_ROLES
    )


def _slot(role: str) -> str:
    """The operand's quantizer, or the sums' accumulator, in a recipe: "grad_input.grad_output"."""
    sums = {own: f"{kind}.accumulator" for kind, own in SUMS.items()}
    return ".".join(SLOT_OF[role]) if role in SLOT_OF else sums.get(role, role)


def _order(
    finding: Finding, by_tensor: Mapping[tuple[str, str], Sequence[MonitorRow]], layers: list[str]
) -> tuple[object, ...]:
    """Before others of which nothing is left; then what came first, as the cause of the others: a
    symptom of a tensor's first record was there from the start, whenever its turn was."""
    rows = by_tensor.get((finding.layer, finding.role))
    began = 0 if rows is not None and finding.first == rows[0].step else finding.first
    at = (0, 0, 0) if rows is None else place(finding, layers)
    return finding.severity < GRAVE, began, -round(finding.severity, 1), at
