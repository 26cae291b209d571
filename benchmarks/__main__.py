"""`python -m benchmarks COMMAND`: run one command; most of them print a table and store the figures as JSON."""

from __future__ import annotations

import typer

from benchmarks import (
    balanced,
    capabilities,
    compare,
    core,
    cuda,
    diagnostics,
    ground_truth,
    methods,
    metrics,
    peers,
    proof,
    quality,
    ratios,
    report,
    runs,
    support_command,
    tricks,
    waiting,
)
from benchmarks.faults import command as faults
from benchmarks.thresholds import command as thresholds

app = typer.Typer(help="Benchmarks that anyone can rerun.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Benchmarks that anyone can rerun."""


# one module per command; the signature of its `run` defines the options
app.command("ratios")(ratios.run)
app.command("balanced")(balanced.run)
app.command("methods")(methods.run)
app.command("peers")(peers.run)
app.command("core")(core.run)
app.command("quality")(quality.run)
app.command("cuda")(cuda.run)
app.command("report")(report.run)
app.command("compare")(compare.run)
app.command("ground-truth")(ground_truth.run)
app.command("ground-truth-pages")(ground_truth.rewrite)
app.command("metrics")(metrics.run)
app.command("runs")(runs.run)
app.command("diagnostics")(diagnostics.run)
app.command("capabilities")(capabilities.run)
app.command("faults")(faults.run)
app.command("proof")(proof.run)
app.command("thresholds")(thresholds.run)
app.command("support")(support_command.run)
app.command("tricks")(tricks.run)
app.command("waiting")(waiting.run)


if __name__ == "__main__":
    app()
