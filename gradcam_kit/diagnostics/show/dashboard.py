"""Show a report and captured features in the browser, updated live during training."""

from __future__ import annotations

from os import PathLike
from typing import Any, SupportsFloat

from torch import Tensor

from gradcam_kit.diagnostics.feature_records import Features
from gradcam_kit.diagnostics.naming import named_leaves
from gradcam_kit.diagnostics.report import Report
from gradcam_kit.diagnostics.show import panels
from gradcam_kit.diagnostics.show.log import Log
from gradcam_kit.diagnostics.watching import ModelDiagnostics
from gradcam_kit.errors import InputError, kind_of, missing_extra
from gradcam_kit.options import positive
from gradcam_kit.pages import data_uri

_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:1rem auto;max-width:75rem;"
    "padding:0 1rem}li{margin:.4rem 0}pre{white-space:pre-wrap;font:inherit;margin:0}img{max-width:100%}"
    "table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}"
    "td,th{padding:.2rem .6rem;border-bottom:1px solid #8884;text-align:left}"
    ".bad{border-left:4px solid #c53030;padding-left:.5rem}.warn{border-left:4px solid #dd6b20;padding-left:.5rem}"
    ".note{border-left:4px solid #a0aec0;padding-left:.5rem}.Select,.dash-dropdown{color:#111}"
)


def dashboard(*sources: Any, refresh: SupportsFloat = 2.0, title: str = "Diagnostics") -> Any:
    """Return a Dash app that shows a report, captured features and the folder of a `JsonWriter`.

    Call `.run()` on the returned app to serve the page at http://127.0.0.1:8050, which only this machine can reach. A
    folder is read again every `refresh` seconds, so the page follows training in another process. All scripts come from
    the app itself, so no network is needed.

    Args:
        sources: one or more of these, in any order: a `Report`, a `ModelDiagnostics`, the result of
            `capture_features`, the folder of a `JsonWriter`.
        refresh: seconds between two reads of the folder.
        title: title of the page.

    Raises:
        MissingExtraError: dash is not installed.
        InputError: no source, a source of another type, or a folder that does not exist.
        OptionError: `refresh` is 0 or less.
    """
    if not sources:
        raise InputError("nothing to show; pass a report, a ModelDiagnostics, features, or the folder of a JsonWriter")
    given = _Sources(sources)
    interval = positive("refresh", refresh)
    try:
        import dash
        from dash import Input, Output, dcc, html
    except ImportError as error:
        raise missing_extra("dashboard() needs dash", "dashboard") from error

    class LocalDash(dash.Dash):  # type: ignore[misc] # dash has no types
        """A Dash app that serves only this machine by default, whereas Dash itself would use $HOST."""

        def run(self, host: str = "127.0.0.1", port: int = 8050, **options: Any) -> None:
            super().run(host=host, port=port, **options)

    app = LocalDash("gradcam_kit", title=title, update_title=None, serve_locally=True, include_assets_files=False)
    app.index_string = app.index_string.replace("</head>", f"<style>{_STYLE}</style></head>")

    def choice(name: str, label: str) -> Any:
        return html.Label([label, dcc.Dropdown(id=name, clearable=False)], htmlFor=name)

    app.layout = html.Main(
        [
            html.H1(title),
            dcc.Interval(id="clock", interval=1000 * interval, disabled=given.log is None),
            html.Section([html.H2("Findings"), html.Div(id="findings")]),
            html.Section([html.H2("Layers"), dcc.Graph(id="profile"), html.Div(id="layers")], id="depth"),
            html.Section(
                [
                    html.H2("Over time"),
                    choice("scalar", "Number"),
                    dcc.Graph(id="curve"),
                    choice("histogram", "Histogram"),
                    dcc.Graph(id="ridges"),
                ],
                id="time",
                hidden=given.log is None,
            ),
            html.Section(
                [html.H2("Pictures"), choice("picture", "Picture"), html.Div(id="pictures")],
                id="seen",
                hidden=given.log is None,
            ),
            html.Section(
                [
                    html.H2("Features"),
                    choice("feature", "Layer"),
                    html.Label(["Sample ", dcc.Input(id="sample", type="number", value=0, min=0, step=1)]),
                    html.Div(id="maps"),
                ],
                id="captured",
                hidden=given.features is None,
            ),
        ]
    )

    @app.callback(  # type: ignore[untyped-decorator]
        [Output(name, "options") for name in ("scalar", "histogram", "picture")]
        + [Output(name, "children") for name in ("findings", "layers")]
        + [Output("profile", "figure")],
        Input("clock", "n_intervals"),
    )
    def refreshed(ticks: int | None) -> Any:
        given.update()
        log = given.log
        names = [sorted(series) for series in (log.scalars, log.histograms, log.images)] if log else [[], [], []]
        return [*names, panels.findings(given), panels.layers(given), panels.profile(given)]

    for name in ("scalar", "histogram", "picture", "feature"):
        app.clientside_callback(
            "(options, value) => (value ?? (options && options[0])) ?? null",
            Output(name, "value"),
            Input(name, "options"),
            dash.State(name, "value"),
        )

    @app.callback(Output("curve", "figure"), Input("scalar", "value"), Input("clock", "n_intervals"))  # type: ignore[untyped-decorator]
    def curve(name: str | None, ticks: int | None) -> Any:
        return panels.curve(given.log.scalars.get(name or "", []) if given.log else [], name)

    @app.callback(Output("ridges", "figure"), Input("histogram", "value"), Input("clock", "n_intervals"))  # type: ignore[untyped-decorator]
    def ridges(name: str | None, ticks: int | None) -> Any:
        return panels.ridges(given.log.histograms.get(name or "", []) if given.log else [], name)

    @app.callback(Output("pictures", "children"), Input("picture", "value"), Input("clock", "n_intervals"))  # type: ignore[untyped-decorator]
    def pictures(name: str | None, ticks: int | None) -> Any:
        return panels.pictures(given.log, name) if given.log and name else "No picture yet."

    app.layout.children[-1].children[1].children[1].options = given.layers

    @app.callback(Output("maps", "children"), Input("feature", "value"), Input("sample", "value"))  # type: ignore[untyped-decorator]
    def maps(layer: str | None, sample: int | None) -> Any:
        return given.maps(layer, sample)

    return app


class _Sources:
    """The sources of the dashboard, sorted by kind."""

    def __init__(self, sources: tuple[Any, ...]) -> None:
        self.log: Log | None = None
        self.features: Features | None = None
        self._report: Report | ModelDiagnostics | None = None
        for one in sources:
            if isinstance(one, Report | ModelDiagnostics):
                self._report = one
            elif isinstance(one, Features):
                self.features = one
            elif isinstance(one, str | PathLike):
                self.log = Log(one)
            else:
                raise InputError(
                    f"a dashboard cannot show {kind_of(one)}; expected a report, a ModelDiagnostics, "
                    "captured features, or the folder of a JsonWriter"
                )
        self.update()

    def update(self) -> None:
        """Read new records from the folder."""
        if self.log is not None:
            self.log.update()

    @property
    def report(self) -> Report | None:
        """The current report."""
        return self._report.report() if isinstance(self._report, ModelDiagnostics) else self._report

    @property
    def layers(self) -> list[str]:
        """Layers whose features were captured and kept."""
        return [name for name in (self.features or {}) if self._tensor(name) is not None]

    def maps(self, layer: str | None, sample: int | None) -> Any:
        """Return the feature maps of one sample as an HTML image, or a message if there are none."""
        from dash import html

        tensor = self._tensor(layer) if layer else None
        if self.features is None or layer is None or tensor is None:
            return "No features were kept."
        if sample is None or not 0 <= sample < len(tensor):
            return f"Layer {layer} has samples 0 to {len(tensor) - 1}."
        shown = panels.feature_picture(tensor[sample], self.features[layer].unit_axis)
        return html.Img(src=data_uri(shown, "png"), alt=f"feature maps of {layer}, sample {sample}")

    def _tensor(self, layer: str) -> Tensor | None:
        assert self.features is not None
        leaves = (leaf for _, leaf in named_leaves(layer, self.features[layer].output))
        return next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), None)
