"""What does not fit into the memory: fewer masked rows at once, in methods of the explainer's own."""

from __future__ import annotations

from dataclasses import replace

from gradcam_kit.jobs import ModelRequest
from gradcam_kit.jobs.work.loading import load_explainer
from gradcam_kit.jobs.work.methods import method_classes, with_methods


def test_fewer_rows_are_sent_by_copies_of_the_methods() -> None:
    explainer = load_explainer(ModelRequest("demo", device="cpu"))
    explainer = with_methods(explainer, method_classes(["grad-cam", "score-cam"]), ("layer4",), None, 8)
    other = replace(explainer, metrics=())  # shares what is known of the memory
    assert explainer._fitting_cams() == explainer.cams
    found = []
    while explainer._fewer_rows():
        found.append([cam.batch_size for cam in other._fitting_cams()])
    assert found == [[4, 4], [2, 2], [1, 1]]
    assert [cam.batch_size for cam in explainer.cams] == [8, 8]
    assert [type(cam) for cam in explainer._fitting_cams()] == [type(cam) for cam in explainer.cams]
