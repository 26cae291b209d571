"""The page of the app, in Gradio: it shows what `state.py` computes, and answers every failure with a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import skimage.data

from gradcam_kit.app.launching import gradio
from gradcam_kit.app.state import (
    RULES,
    USUAL,
    Choice,
    MethodMap,
    check,
    escaped,
    explain,
    has_gradient_rules,
    method_choices,
    paint,
    said,
    summary,
)
from gradcam_kit.app.uploads import PictureSource, read_upload
from gradcam_kit.app.views import AppModel, View, look
from gradcam_kit.demo import sample_pictures
from gradcam_kit.pixels.outlines import outline, read_outlines
from gradcam_kit.pixels.pictures import RGB

MOST_METHODS = 6
"""Number of maps side by side."""

_PHOTOGRAPHS = {"astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
"""Functions of `skimage.data`, and their files, which come with scikit-image."""

_HELP = (
    "A number and letters after a method are its price: F a forward pass, B a backward pass, R a pass of one masked row"
)


def build_page(model: AppModel) -> Any:
    """Return the page, a `gradio.Blocks` that `launch(**launch_options())` shows.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    return _Page(gradio(), model).blocks


class _Page:
    """The components of the page, and their event handlers."""

    def __init__(self, gr: Any, model: AppModel) -> None:
        self.gr, self.model = gr, model
        with gr.Blocks(analytics_enabled=False, title="gradcam-kit", delete_cache=(3600, 86400)) as self.blocks:
            self.view, self.maps = gr.State(None), gr.State(())
            gr.Markdown(_heading(model))
            self.message = gr.Markdown("", elem_id="message", visible=False)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self._picture()
                with gr.Column(scale=1, min_width=280):
                    self._choices()
            with gr.Row(elem_id="maps"):
                self.cards = [self._card() for _ in range(MOST_METHODS)]
        with self.blocks:
            self._events()

    def _picture(self) -> None:
        gr = self.gr
        self.upload = gr.Image(
            label="Drop a photograph here, or click to choose one",
            sources=["upload", "clipboard"],
            type="filepath",
            height=340,
            elem_id="picture",
            buttons=[],
        )
        # Pass the file on: our own reader refuses files that are not pictures, and turns photographs upright.
        self.upload.preprocess = lambda payload: payload and payload.path
        with gr.Row():
            self.samples = [
                (gr.Button(source.name, size="sm", min_width=60), path, source) for path, source in _samples(self.model)
            ]
        self.found = gr.Label(label="What the model finds (click to choose)", num_top_classes=5, elem_id="found")

    def _choices(self) -> None:
        gr = self.gr
        self.target = gr.Dropdown([], label="Explain", elem_id="target", interactive=True, filterable=True)
        self.methods = gr.Dropdown(
            method_choices(),
            value=list(USUAL),
            label=f"Methods, at most {MOST_METHODS}",
            info=_HELP,
            multiselect=True,
            max_choices=MOST_METHODS,
            elem_id="methods",
        )
        self.layer = gr.Dropdown([("automatic", "")], value="", label="Layer", elem_id="layer", interactive=True)
        self.rule = gr.Radio(
            [("of the method", ""), *((rule, rule) for rule in RULES)],
            value="",
            label="Gradient rule",
            visible=has_gradient_rules(),
            elem_id="rule",
        )
        self.alpha = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity", elem_id="opacity")
        self.check = gr.Button("Check these maps (six times their price)", elem_id="check")

    def _card(self) -> tuple[Any, Any, Any, Any]:
        gr = self.gr
        with gr.Column(min_width=270, visible=False, elem_classes="card") as card:
            picture = gr.Image(interactive=False, height=300, buttons=["download", "fullscreen"])
            text = gr.Markdown()
            with gr.Accordion("Code that makes this map", open=False):
                code = gr.Code(language="python", show_label=False, interactive=False, wrap_lines=True)
        return card, picture, text, code

    def _events(self) -> None:
        gr, shown = self.gr, [part for card in self.cards for part in card]
        opened = [self.message, self.view, self.upload, self.found, self.target, self.layer]
        asked = [self.view, self.target, self.methods, self.layer, self.rule, self.alpha]
        explained = [self.message, self.maps, *shown]

        def then_explain(event: Any) -> None:
            event.then(self.explain, asked, explained, api_visibility="private")

        quiet = {"api_visibility": "private"}
        then_explain(self.upload.upload(self.open_upload, [self.upload], opened, **quiet))
        for button, path, source in self.samples:
            then_explain(button.click(_opener(self.open, path, source), None, opened, **quiet))
        chosen = [one.input for one in (self.target, self.methods, self.layer, self.rule)]
        gr.on(chosen, self.explain, asked, explained, trigger_mode="always_last", **quiet)
        then_explain(self.found.select(_with_event(gr, self.choose_named), [self.view], [self.target], **quiet))
        then_explain(self.upload.select(_with_event(gr, self.choose_box), [self.view], [self.target], **quiet))
        self.alpha.release(self.repaint, [self.view, self.maps, self.alpha], shown, **quiet)
        self.check.click(self.checked, [self.maps, self.view], explained, **quiet)

    def open_upload(self, path: str | None) -> dict[Any, Any]:
        """Show an uploaded file."""
        return {} if path is None else self.open(path, None)

    def open(self, path: str | Path, source: PictureSource | None) -> dict[Any, Any]:
        """Show a file, or the reason why that failed."""
        gr = self.gr
        try:
            picture, own = read_upload(path)
            view = look(self.model, picture, source or own)
        except Exception as error:
            nothing = gr.update(choices=[], value=None)
            return {
                **self._said(said(error)), self.view: None, self.upload: None, self.found: None,
                self.target: nothing, self.layer: gr.update(choices=[("automatic", "")], value=""),
            }  # fmt: skip
        choices = view.target_choices(self.model)
        scores = {label: one.score for label, one in zip(view.bars(), view.targets, strict=True)}
        return {
            **self._said("; ".join(view.notes)),
            self.view: view,
            self.upload: _with_boxes(view),
            self.found: scores if view.in_percent else None,
            self.target: gr.update(choices=choices, value=choices[0][1]),
            self.layer: gr.update(choices=view.layer_choices(), value=""),
        }

    def explain(
        self, view: View | None, target: int | None, methods: Sequence[str], layer: str, rule: str, alpha: float
    ) -> Iterator[dict[Any, Any]]:
        """Show one map after the other."""
        gr = self.gr
        if view is None or target is None:
            yield {self.maps: (), **{card: gr.update(visible=False) for card, *_ in self.cards}}
            return
        choice = Choice(target, tuple(methods or ())[:MOST_METHODS], layer or "", rule or "")
        count = len(choice.methods)
        yield {
            **self._said("; ".join(view.notes) if count else "Choose a method."),
            **{card: gr.update(visible=place < count) for place, (card, *_) in enumerate(self.cards)},
        }
        maps: list[MethodMap] = []
        try:
            for found in explain(self.model, view, choice):
                maps.append(found)
                yield {self.maps: tuple(maps), **self._shown(len(maps) - 1, view, found, alpha)}
        except Exception as error:
            yield self._said(said(error))

    def checked(self, maps: Sequence[MethodMap], view: View | None) -> Iterator[dict[Any, Any]]:
        """Check one map after the other."""
        found = list(maps)
        if view is None or not found:
            yield self._said("There is no map to check.")
            return
        for place, one in enumerate(found):
            found[place] = check(view, one)
            yield {self.maps: tuple(found), self.cards[place][2]: summary(found[place])}

    def repaint(self, view: View | None, maps: Sequence[MethodMap], alpha: float) -> dict[Any, Any]:
        """Show the same maps at another opacity."""
        if view is None:
            return {}
        return {
            key: value for place, one in enumerate(maps) for key, value in self._shown(place, view, one, alpha).items()
        }

    def choose_named(self, view: View | None, event: Any) -> Any:
        """Choose the class or box whose bar was clicked."""
        return self.gr.skip() if view is None else view.bars().get(event.value, self.gr.skip())

    def choose_box(self, view: View | None, event: Any) -> Any:
        """Choose the box that was clicked in the picture."""
        place = view.box_at(*event.index) if view is not None else None
        return self.gr.skip() if place is None else place

    def _said(self, text: str) -> dict[Any, Any]:
        """Return the message of the page; without a text there is none."""
        return {self.message: self.gr.update(value=escaped(text), visible=bool(text))}

    def _shown(self, place: int, view: View, found: MethodMap, alpha: float) -> dict[Any, Any]:
        """Return the content of a map's card."""
        gr, (card, picture, text, code) = self.gr, self.cards[place]
        painted = paint(view, found, alpha)
        return {
            card: gr.update(visible=True),
            picture: gr.update(value=painted, label=f"{found.method}: {found.target.name}"),
            text: summary(found),
            code: "" if found.code is None else found.code(alpha),
        }


def _heading(model: AppModel) -> str:
    """Return the heading of the page: the model, and warnings about its maps."""
    notes = "; ".join(model.loaded.notes)
    return f"# Where did the model look?\n**{escaped(model.loaded.spec)}** · {escaped(notes)}"


def _samples(model: AppModel) -> list[tuple[Path, PictureSource]]:
    """Return example pictures: photographs of scikit-image, or the bundled pictures for the bundled model."""
    if model.request.model == "demo":
        imported = "from gradcam_kit.demo import sample_pictures"
        return [
            (one.path, PictureSource(one.name.split("-", 1)[1], f"sample_pictures()[{place}].picture", imported))
            for place, one in enumerate(sample_pictures()[:4])
        ]
    folder = Path(skimage.data.__file__).parent
    return [
        (folder / file, PictureSource(name, f"data.{name}()", "from skimage import data"))
        for name, file in _PHOTOGRAPHS.items()
        if (folder / file).is_file()
    ]


def _with_boxes(view: View) -> RGB:
    """Return the picture with all boxes that can be chosen."""
    boxes = [one.box for one in view.targets if one.box is not None]
    if not boxes:
        return view.shown
    canvas = view.shown.copy()
    outline(canvas, read_outlines(boxes, canvas.shape[:2]))
    return canvas


def _opener(open_file: Callable[..., Any], path: Path, source: PictureSource) -> Callable[[], Any]:
    return lambda: open_file(path, source)


def _with_event(gr: Any, handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a handler annotated with Gradio's event class, so that Gradio passes the event."""

    def handle(view: Any, event: Any) -> Any:
        return handler(view, event)

    handle.__annotations__ = {"event": gr.SelectData}
    return handle
