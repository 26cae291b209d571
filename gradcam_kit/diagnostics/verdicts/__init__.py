"""Turn statistics into findings with pure functions of a ledger and thresholds."""

from gradcam_kit.diagnostics.verdicts.finiteness import behind_nonfinite
from gradcam_kit.diagnostics.verdicts.flow import flow_findings
from gradcam_kit.diagnostics.verdicts.spread import effective_ranks, spread_findings
from gradcam_kit.diagnostics.verdicts.units import dead_units, unit_findings
from gradcam_kit.diagnostics.verdicts.updates import update_findings

__all__ = [
    "behind_nonfinite",
    "dead_units",
    "effective_ranks",
    "flow_findings",
    "spread_findings",
    "unit_findings",
    "update_findings",
]
