"""The Gradio page of the app: show what `state.py` computes, and report every failure as a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gradcam_kit.app.launching import gradio
from gradcam_kit.app.pictures import enlargement, samples, with_boxes
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

MOST_METHODS = 6
"""Maximum number of maps side by side."""

_FIRST = "Drop a photograph, or click one of the samples. The maps appear here."
_GONE = "This picture was opened too long ago and is no longer kept. Drop it here again."
_KEPT = 86_400
"""Seconds for which uploaded files, and what the model found in them, are kept."""
_HELP = "Cost in parentheses: F = forward pass, B = backward pass, R = forward pass of one masked image"


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
        with gr.Blocks(analytics_enabled=False, title="gradcam-kit", delete_cache=(3600, _KEPT)) as self.blocks:
            self.view, self.maps, self.done = (gr.State(empty, time_to_live=_KEPT) for empty in (None, (), None))
            gr.Markdown(_heading(model))
            self.message = gr.Markdown(_FIRST, elem_id="message")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    self._picture()
                with gr.Column(scale=5, min_width=320):
                    self._choices()
                    with gr.Row(elem_id="maps"):
                        self.cards = [self._card() for _ in range(MOST_METHODS)]
        with self.blocks:
            self._events()

    def _picture(self) -> None:
        gr = self.gr
        self.upload = gr.Image(
            label="Drop or choose a photograph",
            sources=["upload", "clipboard"],
            type="filepath",
            height=320,
            elem_id="picture",
            buttons=[],
        )
        # Pass on the path only: our own reader rejects files that are not pictures, and turns photographs upright.
        self.upload.preprocess = lambda payload: payload and payload.path
        with gr.Row():
            self.samples = [
                (gr.Button(source.name, size="sm", min_width=60), path, source) for path, source in samples(self.model)
            ]
        self.found = gr.Label(label="What the model finds (click to choose)", num_top_classes=5, elem_id="found")

    def _choices(self) -> None:
        gr = self.gr
        with gr.Row():
            self.target = gr.Dropdown(
                [], label="Explain", elem_id="target", interactive=True, filterable=True, min_width=200
            )
            self.layer = gr.Dropdown(
                [("automatic", "")], value="", label="Layer", elem_id="layer", interactive=True, min_width=200
            )
            self.rule = gr.Dropdown(
                [("the method's own", ""), *((rule, rule) for rule in RULES)],
                value="",
                label="Gradient rule",
                visible=has_gradient_rules(),
                elem_id="rule",
                min_width=160,
            )
        self.methods = gr.Dropdown(
            method_choices(),
            value=list(USUAL),
            label=f"Methods, at most {MOST_METHODS}",
            info=_HELP,
            multiselect=True,
            max_choices=MOST_METHODS,
            elem_id="methods",
        )
        with gr.Row():
            self.alpha = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity", elem_id="opacity", min_width=220)
            self.check = gr.Button("Check these maps (six times their cost)", elem_id="check", size="md", min_width=220)

    def _card(self) -> tuple[Any, Any, Any]:
        """Return the components of a card for one map, which the style sheet hides while they are empty.

        Setting `visible` would not work: when a component appears, the browser restores its former value, and the new
        value may get lost.
        """
        gr = self.gr
        with gr.Column(min_width=230, elem_classes="card"):
            picture = gr.Image(interactive=False, height=270, buttons=["download", "fullscreen"])
            text = gr.Markdown()
            with gr.Accordion("Code that makes this map", open=False):
                code = gr.Code(language="python", show_label=False, interactive=False, wrap_lines=True)
        return picture, text, code

    def _events(self) -> None:
        gr, shown = self.gr, [part for card in self.cards for part in card]
        opened = [self.message, self.view, self.upload, self.found, self.target, self.layer]
        asked = [self.view, self.target, self.methods, self.layer, self.rule, self.alpha, self.done]
        explained = [self.message, self.maps, self.done, *shown]
        quiet = {"api_visibility": "private"}
        # Run one event at a time, so that maps of an earlier choice never replace maps of a later choice.
        in_order = {**quiet, "concurrency_id": "maps", "concurrency_limit": 1}

        def then_explain(event: Any) -> None:
            event.then(self.explain, asked, explained, **in_order)

        then_explain(self.upload.upload(self.open_upload, [self.upload], opened, **quiet))
        then_explain(self.upload.clear(self.close, None, opened, **quiet))
        for button, path, source in self.samples:
            then_explain(button.click(_opener(self.open, path, source), None, opened, **quiet))
        # A click on a bar or a box only sets the target, and the change of the target starts the explanation. The click
        # must not start it: the browser delays changes while maps are made, so the event could get the old target.
        chosen = [self.target.change, *(one.input for one in (self.methods, self.layer, self.rule))]
        gr.on(chosen, self.explain, asked, explained, trigger_mode="always_last", **in_order)
        self.found.select(_with_event(gr, self.choose_named), [self.view], [self.target], **quiet)
        self.upload.select(_with_event(gr, self.choose_box), [self.view], [self.target], **quiet)
        self.alpha.release(self.repaint, [self.view, self.maps, self.alpha], shown, **quiet)
        self.check.click(self.checked, [self.maps, self.view], explained, **in_order)

    def open_upload(self, path: str | None) -> Any:
        """Show an uploaded file."""
        return self.gr.skip() if path is None else self.open(path, None)

    def open(self, path: str | Path, source: PictureSource | None) -> dict[Any, Any]:
        """Show a picture file, or the reason why it cannot be shown."""
        gr = self.gr
        try:
            picture, own = read_upload(path)
            view = look(self.model, picture, source or own)
        except Exception as error:
            return {**self.close(), **self._said(said(error))}
        choices = view.target_choices(self.model)
        scores = {label: one.score for label, one in zip(view.bars(), view.targets, strict=True)}
        return {
            **self._said("; ".join(view.notes)),
            self.view: view,
            self.upload: with_boxes(view),
            self.found: scores if view.in_percent else None,
            self.target: gr.update(choices=choices, value=choices[0][1]),
            self.layer: gr.update(choices=view.layer_choices(), value=""),
        }

    def close(self) -> dict[Any, Any]:
        """Return what the page shows without a picture."""
        gr = self.gr
        return {
            **self._said(_FIRST),
            **dict.fromkeys((self.view, self.upload, self.found)),
            self.target: gr.update(choices=[], value=None),
            self.layer: gr.update(choices=[("automatic", "")], value=""),
        }

    def explain(
        self,
        view: View | None,
        target: int | None,
        methods: Sequence[str],
        layer: str,
        rule: str,
        alpha: float,
        done: tuple[View, Choice] | None,
    ) -> Iterator[Any]:
        """Show one map after another; do nothing if a dropdown reports the choice whose maps are already shown."""
        gr = self.gr
        if view is None or target is None:
            if target is not None:
                yield self._said(_GONE)
            yield {self.maps: (), self.done: None, **self._emptied(0)}
            return
        choice = Choice(target, tuple(methods or ())[:MOST_METHODS], layer or "", rule or "")
        if done == (view, choice):
            yield gr.skip()
            return
        count = len(choice.methods)
        yield {
            self.done: None,
            **self._said("; ".join(view.notes) if count else "Choose a method."),
            **self._emptied(count),
        }
        maps: list[MethodMap] = []
        try:
            for found in explain(self.model, view, choice):
                maps.append(found)
                yield {self.maps: tuple(maps), **self._shown(len(maps) - 1, view, found, alpha)}
        except Exception as error:
            yield self._said(said(error))
            return
        yield {self.done: (view, choice)}

    def checked(self, maps: Sequence[MethodMap], view: View | None) -> Iterator[dict[Any, Any]]:
        """Check one map after another."""
        found = list(maps)
        if view is None or not found:
            yield self._said("There is no map to check.")
            return
        for place, one in enumerate(found):
            found[place] = check(view, one)
            yield {self.maps: tuple(found), self.cards[place][1]: summary(found[place])}

    def repaint(self, view: View | None, maps: Sequence[MethodMap], alpha: float) -> Any:
        """Render the same maps again with another opacity."""
        if view is None or not maps:
            return self.gr.skip()
        return {
            key: value for place, one in enumerate(maps) for key, value in self._shown(place, view, one, alpha).items()
        }

    def choose_named(self, view: View | None, event: Any) -> Any:
        """Choose the class or box whose bar was clicked."""
        return self.gr.skip() if view is None else view.bars().get(event.value, self.gr.skip())

    def choose_box(self, view: View | None, event: Any) -> Any:
        """Choose the box that was clicked in the picture."""
        at = None if view is None else view.box_at(*(side / enlargement(view) for side in event.index))
        return self.gr.skip() if at is None else at

    def _said(self, text: str) -> dict[Any, Any]:
        """Return an update of the page's message, which is hidden while it is empty."""
        return {self.message: escaped(text)}

    def _emptied(self, first: int) -> dict[Any, Any]:
        """Return empty content for all cards from number `first` on."""
        return {part: value for card in self.cards[first:] for part, value in zip(card, (None, "", ""), strict=True)}

    def _shown(self, place: int, view: View, found: MethodMap, alpha: float) -> dict[Any, Any]:
        """Return the content of a map's card."""
        picture, text, code = self.cards[place]
        painted = paint(view, found, alpha)
        return {
            picture: self.gr.update(value=painted, label=f"{found.method}: {found.target.name}"),
            text: summary(found),
            code: "" if found.code is None else found.code(alpha),
        }


def _heading(model: AppModel) -> str:
    """Return the heading of the page: the model, and notes on how it was loaded."""
    notes = "; ".join(model.loaded.notes)
    return f"# Where did the model look?\n**{escaped(model.loaded.spec)}** · {escaped(notes)}"


def _opener(open_file: Callable[..., Any], path: Path, source: PictureSource) -> Callable[[], Any]:
    return lambda: open_file(path, source)


def _with_event(gr: Any, handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a handler annotated with Gradio's event class, so that Gradio passes the event."""

    def handle(view: Any, event: Any) -> Any:
        return handler(view, event)

    handle.__annotations__ = {"event": gr.SelectData}
    return handle
