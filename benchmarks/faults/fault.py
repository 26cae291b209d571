"""Faults that are planted on purpose, each with a healthy twin for which nothing may be reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradcam_kit.diagnostics import Finding
from gradcam_kit.diagnostics.findings import worst_first
from gradcam_kit.diagnostics.origins import Origins

Case = Callable[[bool], Any]


@dataclass(frozen=True)
class Fault:
    """A fault and the findings that it must cause.

    Attributes:
        number: number in the list of faults; variants share a number.
        title: description of the fault.
        at: dotted name of the faulty module or parameter; "" for data, the loop and the model as a whole.
        tool: the tool that finds the fault.
        level: expected level of the finding.
        kind: expected kind of the finding.
        layer: module that the finding must name; "" if it must name none.
        case: function that returns the findings with the fault (True), or for the twin without it (False).
    """

    number: int
    title: str
    at: str
    tool: str
    level: str
    kind: str
    layer: str
    case: Case

    def said(self, planted: bool) -> list[Finding]:
        """Return the findings of the tool, the worst first."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return worst_first(findings_of(self.case(planted)))

    def answer(self, said: Sequence[Finding]) -> Finding | None:
        """Return a finding of the expected kind, preferably one that names the expected module, or None."""
        own = [finding for finding in said if finding.kind == self.kind]
        return next((finding for finding in own if finding.layer == self.layer), next(iter(own), None))


FAULTS: list[Fault] = []
"""All faults, in the order of their numbers."""


def fault(
    number: int, title: str, *, at: str = "", tool: str = "ModelDiagnostics", says: tuple[str, str, str]
) -> Callable[[Case], Case]:
    """Return a decorator that adds a fault: a function from `planted` to what a tool returns, such as a report.

    Args:
        number: number in the list of faults.
        title: description of the fault.
        at: dotted name of the faulty module or parameter; "" for data, the loop and the model as a whole.
        tool: the tool that finds the fault.
        says: expected level, kind and layer of the finding.
    """

    def add(case: Case) -> Case:
        FAULTS.append(Fault(number, title, at, tool, *says, case))
        FAULTS.sort(key=lambda one: one.number)
        return case

    return add


def findings_of(answer: Any) -> list[Finding]:
    """Return the findings in the result of any tool; the first origin of NaN or inf becomes a "nonfinite" finding."""
    if isinstance(answer, Origins):
        found = [origin for origin in (answer.forward, answer.backward) if origin is not None]
        return [
            Finding("bad", "nonfinite", origin.layer, str(origin), float(origin.count), 0.0) for origin in found[:1]
        ]
    findings: Iterable[Finding] = getattr(answer, "findings", answer)
    return list(findings)
