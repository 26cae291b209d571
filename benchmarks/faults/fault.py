"""Faults that are planted on purpose, each with a healthy twin: what is said of one, and nothing of the other."""

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
    """One fault and what must be said of it.

    Attributes:
        number: of the list of faults; several variants share one.
        title: what is planted.
        at: where: a dotted name of a module or a parameter; "" for data, the loop and the model as a whole.
        tool: what finds it.
        level: of the finding.
        kind: of the finding.
        layer: the module that must be named.
        case: the findings with the fault (True) and of the twin without it (False).
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
        """What the tool says, the worst first."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return worst_first(findings_of(self.case(planted)))

    def answer(self, said: Sequence[Finding]) -> Finding | None:
        """The finding of the expected kind, if there is one; of several, the first that names the expected module."""
        own = [finding for finding in said if finding.kind == self.kind]
        return next((finding for finding in own if finding.layer == self.layer), next(iter(own), None))


FAULTS: list[Fault] = []
"""All of them, in the order of their numbers."""


def fault(
    number: int, title: str, *, at: str = "", tool: str = "ModelDiagnostics", says: tuple[str, str, str]
) -> Callable[[Case], Case]:
    """Add a function of `planted` that returns findings, a report or the origins of NaN.

    Args:
        number: of the list.
        title: what is planted.
        at: where.
        tool: what finds it.
        says: level, kind and layer that are expected.
    """

    def add(case: Case) -> Case:
        FAULTS.append(Fault(number, title, at, tool, *says, case))
        FAULTS.sort(key=lambda one: one.number)
        return case

    return add


def findings_of(answer: Any) -> list[Finding]:
    """The findings of whatever a tool returns; an origin of NaN is one of kind "nonfinite"."""
    if isinstance(answer, Origins):
        found = [origin for origin in (answer.forward, answer.backward) if origin is not None]
        return [
            Finding("bad", "nonfinite", origin.layer, str(origin), float(origin.count), 0.0) for origin in found[:1]
        ]
    findings: Iterable[Finding] = getattr(answer, "findings", answer)
    return list(findings)
