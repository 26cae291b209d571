"""Mistakes that people make in a call: the error says what to do instead."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from models import build, images, tiny
from torch import Tensor, nn

from gradcam_kit import GradCAM, Smooth, explain_all
from gradcam_kit.capture import rescoring
from gradcam_kit.errors import InputError, ShapeError, is_out_of_memory

BATCH = images(3, size=(16, 16))
MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "one picture": (
        BATCH[0],
        ShapeError,
        r"the model failed on these images: (.|\n)*a batch axis: images\[None\]",
    ),
    "a list of pictures": (
        list(BATCH),
        InputError,
        r"sequence of 3 .*TinyCNN.forward takes 1;.*torch\.stack\(images\)$",
    ),
    "a list of one": ([BATCH[0]], ShapeError, r"images\[None\]"),
    "different sizes": ([BATCH[0], BATCH[1, :, 2:]], InputError, r"torch\.stack\(images\), after resizing"),
    "a list of batches": (list(BATCH[:, None]), InputError, r"torch\.cat\(images\)"),
    "a list of arrays": (list(BATCH.numpy()), InputError, r"sequence of 3 .*torch\.stack\(\[transform"),
    "one array": ([BATCH[0].numpy()], ShapeError, r"images contain no tensor \(found: a ndarray\);.*torch\.stack"),
    "channels last": (BATCH.movedim(1, -1), ShapeError, r"images\.movedim\(-1, 1\)"),
}


@pytest.mark.parametrize("layer", ["relu2", None])
@pytest.mark.parametrize("kind", MISTAKES)
def test_images_in_the_wrong_form_say_what_to_do(kind: str, layer: str | None) -> None:
    wrong, error, message = MISTAKES[kind]
    with pytest.raises(error, match=message):
        inspect.unwrap(inspect.unwrap(GradCAM.explain))(GradCAM(tiny(), layer), wrong)


def test_two_pictures_for_a_model_with_two_inputs_are_told_to_be_stacked() -> None:
    model = build(lambda m, x, mask=None: m.body(x), body=tiny())
    model.forward = lambda x, mask=None: model.body(x)
    with pytest.raises(ShapeError, match=r"A sequence is read as several inputs.*torch\.stack\(images\)"):
        GradCAM(model, "body.relu2")([BATCH[0], BATCH[1]])


def test_other_failures_of_a_model_stay_as_they_are() -> None:
    def fail(m: Any, x: Tensor) -> Tensor:
        raise error

    cases = [
        (RuntimeError("broken"), BATCH),
        (RuntimeError("broken"), BATCH[..., :4]),  # narrow, and not with the channels last
        (torch.OutOfMemoryError("full"), BATCH[0]),
    ]
    for error, given in cases:
        with pytest.raises(type(error), match=str(error)) as caught:
            GradCAM(build(fail, layer=nn.Conv2d(3, 4, 3)), "layer")(given)
        assert caught.value is error


@pytest.mark.parametrize("own", [torch.float64, torch.bfloat16, torch.float16])
def test_images_in_another_precision_than_the_model_say_what_to_convert(own: torch.dtype) -> None:
    conv, linear = tiny().to(own), build(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(768, 5)).to(own)
    said = rf"the model failed on these images: (.|\n)*: images\.to\({own}\), or model\.float\(\)$"
    for layer in ("relu2", None):
        with pytest.raises(InputError, match=said):
            GradCAM(conv, layer)(BATCH)
    for model in (conv, linear):
        with pytest.raises(InputError, match=said), rescoring(model, BATCH):
            pass
    with pytest.raises(InputError, match=r"images\.to\(torch\.float32\), or model\.double\(\)$"):
        GradCAM(tiny(), "relu2")(BATCH.double())
    with pytest.raises(InputError, match=r"images\.to\("):  # three samples of a series may look like one picture
        GradCAM(build(lambda m, x: m.conv(x).mean(2), conv=nn.Conv1d(8, 5, 3)).to(own), "conv")(torch.rand(3, 8, 9))


def test_an_error_that_names_one_precision_is_about_something_else() -> None:
    def fail(m: Any, x: Tensor) -> Tensor:
        raise RuntimeError("\"foo\" not implemented for 'BFloat16'")

    with pytest.raises(RuntimeError, match=r'^"foo" not implemented') as caught:
        GradCAM(build(fail, layer=nn.Conv2d(3, 4, 3)).bfloat16(), "layer")(BATCH)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("error", "holds"),
    [
        (torch.OutOfMemoryError(), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_is_a_lack_of_memory(error: Exception, holds: bool) -> None:
    assert is_out_of_memory(error) is holds


def test_models_that_convert_images_themselves_are_left_alone() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        if broken:
            raise RuntimeError("the model is broken, and no dtype is to blame")
        return m.body(x.to(torch.float64))

    model, broken = build(run, body=tiny()).double(), False
    expected = GradCAM(tiny().double(), "relu2")(BATCH.double())
    torch.testing.assert_close(GradCAM(model, "body.relu2")(BATCH), expected)
    broken = True
    with pytest.raises(RuntimeError, match="no dtype is to blame") as caught:
        GradCAM(model, "body.relu2")(BATCH)
    assert type(caught.value) is RuntimeError


FOREIGN = {
    "target": "does not accept the argument 'target'; pass targets=",
    "class_idx": "in gradcam_kit: targets",
    "input_tensor": "in gradcam_kit: images, the first argument",
    "aug_smooth": r"a wrapper: TestTime\(cam\)",
    "eigen_smooth": r"a wrapper: EigenSmooth\(cam\)",
    "reshape": r"when the CAM is made: GradCAM\(model, reshape=\.\.\.\)",
    "normalize": r"when the CAM is made: GradCAM\(model, normalize=\.\.\.\)",
    "tragets": "did you mean 'targets'",
    "zzz": "which gets all keyword arguments besides targets=, does not accept the argument 'zzz'$",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_keywords_that_the_model_does_not_take_name_what_is_meant(name: str) -> None:
    for call in (GradCAM(tiny(), "relu2"), Smooth(GradCAM(tiny(), "relu2"))):
        with pytest.raises(InputError, match=FOREIGN[name]):
            call(BATCH, **{name: 1})
    with pytest.raises(InputError, match=FOREIGN[name]):
        explain_all([GradCAM(tiny(), "relu2")], BATCH, **{name: 1})


def test_keywords_of_a_model_that_takes_any() -> None:
    """It would swallow a misspelled target, and explain another class than was asked for."""
    seen = {}
    model = build(lambda m, x, **more: seen.update(more) or m.body(x), body=tiny())
    GradCAM(model, "body.relu2")(BATCH, flavor=2)
    assert seen == {"flavor": 2}
    with pytest.raises(InputError, match="pass targets="):
        GradCAM(model, "body.relu2")(BATCH, target=2)
    GradCAM(model, "body.relu2")({"x": BATCH, "target": 2})
    assert seen == {"flavor": 2, "target": 2}
