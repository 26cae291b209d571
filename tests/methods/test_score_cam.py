"""Score-CAM: masks, weightings, channels that are left out, and how often the model runs."""

from __future__ import annotations

from math import ceil

import pytest
import reference as ref
import torch
from cases import EARLIER, LAST, assert_same
from models import images as draw_images
from networks import blocks
from torch import nn

from gradcam_kit import METHODS, ScoreCAM
from gradcam_kit.errors import OptionError
from gradcam_kit.methods.score_cam import channel_scores
from gradcam_kit.targets import ClassProbability

CLASSES = [0, 2]


class Counted(nn.Module):
    """Notes how many rows each forward pass has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.rows: list[int] = []

    def forward(self, x):
        self.rows.append(len(x))
        return self.inner(x)


def with_dead_channels(*dead: int) -> nn.Module:
    """Blocks whose first block is zero in some channels for every image."""
    model = blocks()
    with torch.no_grad():
        model.block1[0].weight[list(dead)] = 0
        model.block1[0].bias[list(dead)] = -1
    return model


def saliency(model, layer="block1", images=None, targets=CLASSES, **options):
    images = draw_images(2).double() if images is None else images
    return ScoreCAM(model, layer, **options).explain(images, targets).saliency[layer]


def by_hand(model, weighting, channels=None, classes=CLASSES):
    """The transcription, on the first block of each image."""
    maps = []
    for image, target in zip(draw_images(2).double(), classes, strict=True):

        def score(masked, target=target):
            logits = model(torch.from_numpy(masked)[None])[0].detach()
            return float(logits.softmax(0)[target] if weighting == "probability" else logits[target])

        activations = model.block1(image[None])[0].detach()
        maps.append(torch.from_numpy(ref.score_cam(activations, image, score, weighting, channels)))
    return torch.stack(maps)


@pytest.mark.parametrize("dead", [(), (2,), (0, 3, 5)], ids=str)
@pytest.mark.parametrize("weighting", ["softmax", "probability", "relu"])
def test_weightings_with_constant_channels(weighting, dead):
    model = with_dead_channels(*dead)
    assert_same(saliency(model, weighting=weighting), by_hand(model, weighting))


def test_weightings_are_three_different_maps():
    maps = [saliency(blocks(), weighting=weighting) for weighting in ("softmax", "probability", "relu")]
    for one, another in ((0, 1), (0, 2), (1, 2)):
        first, second = (m / m.flatten(1).amax(1)[:, None, None] for m in (maps[one], maps[another]))
        assert (first - second).abs().max() > 0.02


def test_constant_positive_channel_counts_in_the_softmax_alone():
    model = blocks()
    with torch.no_grad():
        model.block1[0].weight[2], model.block1[0].bias[2] = 0, 3.0  # constant 3: it has weight, but no structure
    for weighting in ("softmax", "probability", "relu"):
        assert_same(saliency(model, weighting=weighting), by_hand(model, weighting))
    scores = channel_scores_of(model)
    assert scores[1].tolist() == [[False, False, True, False, False, False]] * 2
    zero_input = model(torch.zeros(2, 3, 16, 16).double()).detach()[range(2), CLASSES]
    torch.testing.assert_close(scores[0][:, 2], zero_input)
    torch.testing.assert_close(scores[2], zero_input)


def channel_scores_of(model):
    found = []

    class Spy(ScoreCAM):
        def saliency(self, layer):
            found.append(channel_scores(layer, layer.activations, 4, rescore=layer.rescore, baseline=True))
            return super().saliency(layer)

    Spy(model, "block1").explain(draw_images(2).double(), CLASSES)
    return found[0]


@pytest.mark.parametrize("batch_size", [1, 5, 7, 64])
@pytest.mark.parametrize(
    ("dead", "weighting", "extra"),
    [
        ((), "softmax", 0),  # the paper's baseline cancels in the softmax and is not run
        ((2,), "softmax", 1),
        ((0, 3, 5), "softmax", 1),  # constant channels share one score
        ((), "relu", 1),
        ((2, 4), "relu", 1),
    ],
)
def test_forward_passes_are_counted(dead, weighting, extra, batch_size):
    model = Counted(with_dead_channels(*dead)).eval()
    saliency(model, "inner.block1", weighting=weighting, batch_size=batch_size)
    rows = 2 * (6 - len(dead) + extra)
    assert len(model.rows) == 1 + ceil(rows / batch_size)
    assert sum(model.rows) == 2 + rows
    assert max(model.rows[1:]) == min(batch_size, rows)


def test_only_the_kept_channels_run():
    model = Counted(blocks()).eval()
    for channels, kept in ((1, 1), (4, 4), (0.5, 3), (1.0, 6), (0.01, 1)):
        model.rows.clear()
        saliency(model, "inner.block1", channels=channels)
        assert model.rows == [2, 2 * kept]


@pytest.mark.parametrize("weighting", ["softmax", "probability", "relu"])
@pytest.mark.parametrize("dead", [(), (1, 4)], ids=str)
def test_batch_size_changes_nothing(weighting, dead):
    model = with_dead_channels(*dead)
    expected = saliency(model, weighting=weighting)
    for batch_size in (1, 6, 7):
        assert_same(saliency(model, weighting=weighting, batch_size=batch_size), expected, 1e-12)


@pytest.mark.parametrize("weighting", ["softmax", "probability", "relu"])
def test_targets_share_the_masked_passes(weighting):
    model = Counted(blocks()).eval()
    once = [saliency(model, "inner.block1", targets=[c, c], weighting=weighting) for c in range(4)]
    passes = model.rows.copy()
    model.rows.clear()
    together = saliency(model, "inner.block1", targets=torch.arange(4).expand(2, 4), weighting=weighting)
    assert 4 * len(model.rows) == len(passes)
    assert 4 * sum(model.rows) == sum(passes)
    assert_same(together, torch.stack(once, 1))


@pytest.mark.parametrize("ranking", ["std", "gradient", "first-order"])
@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_ranked_channels(ranking, channels):
    for case in (EARLIER, LAST):
        found = ScoreCAM(case.model, case.layer, channels=channels, ranking=ranking).explain(case.images, case.targets)
        for (i, j), sample in case.samples.items():
            expected = ref.score_cam(
                sample.activations,
                sample.image,
                sample.rescore,
                channels=channels,
                ranking=ranking,
                gradients=sample.gradients,
            )
            assert_same(found.saliency[case.layer][i, j], expected)


def test_all_channels_equal_no_choice():
    expected = saliency(blocks())
    for options in ({"channels": 6}, {"channels": 1.0}, {"channels": 6, "ranking": "gradient"}):
        assert_same(saliency(blocks(), **options), expected)


def test_share_of_the_channels_equals_their_number():
    for share, number in ((0.5, 3), (0.34, 2), (0.01, 1)):
        assert torch.equal(saliency(blocks(), channels=share), saliency(blocks(), channels=number))


def test_rankings_choose_different_channels():
    one, another = (saliency(blocks(), channels=1, ranking=ranking) for ranking in ("std", "gradient"))
    assert (one - another).abs().max() > 0.1 * one.abs().max()


@pytest.mark.parametrize("channels", [0, -1, 0.0, 1.5, True])
def test_wrong_number_of_channels(channels):
    with pytest.raises(OptionError, match="channels"):
        ScoreCAM(blocks(), "block1", channels=channels)


def test_more_channels_than_there_are():
    with pytest.raises(OptionError, match="7, but layer 'block1' has 6"):
        saliency(blocks(), channels=7)


def test_probability_weighting_scores_probabilities():
    images = draw_images(2).double()
    found = ScoreCAM(blocks(), "block1", weighting="probability").explain(images, CLASSES)
    probabilities = blocks()(images).detach().softmax(1)[range(2), CLASSES]
    by_target = ScoreCAM(blocks(), "block1").explain(images, ClassProbability(CLASSES))
    torch.testing.assert_close(by_target.scores, probabilities)
    # scored as the class is explained by default, but weighted by its probability
    torch.testing.assert_close(found.scores, blocks()(images).detach()[range(2), CLASSES])
    assert (found.saliency["block1"] - by_target.saliency["block1"]).abs().max() > 0.01


def test_masked_images_are_the_images_times_the_masks():
    seen = []
    model = blocks()
    image = draw_images(1).double()
    activations = model.block2(model.block1(image))[0].detach()
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].clone()))
    ScoreCAM(model, "block2").explain(image, 1)
    masks = [ref.score_cam_mask(channel, (16, 16)) for channel in activations]
    alive = [mask for mask in masks if mask.any()]
    assert len(seen) == 2
    for masked, mask in zip(seen[1], alive, strict=False):
        assert_same(masked, image[0] * torch.from_numpy(mask))
    assert torch.equal(seen[0], image)


class Crowded(nn.Module):
    """A model on a device whose memory ends at `most` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.sizes = blocks(), most, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(images)


@pytest.mark.parametrize("method", ["score-cam", "ablation-cam", "sess", "smooth-grad-cam++"])
def test_passes_shrink_where_memory_ends(method, caplog):
    images = draw_images(1).double()
    crowded, roomy = Crowded(2), Crowded(1000)
    one, another = (METHODS[method](model, "inner.block1", batch_size=5)(images, 1) for model in (crowded, roomy))
    torch.testing.assert_close(one, another, atol=1e-5, rtol=1e-5)
    assert sum(size > 2 for size in crowded.sizes) == 1  # found out once
    assert caplog.text.count("pass batch_size=2") == 1


def test_one_row_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        ScoreCAM(Crowded(0), "inner.block1")(draw_images(1).double(), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"weighting": "relu"}, {"weighting": "probability"}])
def test_half_precision_is_that_of_the_masked_passes_alone(dtype, options):
    model, images = blocks().float(), draw_images(2)
    seen = []
    model.block1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    expected = ScoreCAM(model, "block1", **options).explain(images, CLASSES)
    assert set(seen) == {torch.float32}
    seen.clear()
    found = ScoreCAM(model, "block1", dtype=dtype, **options).explain(images, CLASSES)
    assert seen[0] == torch.float32
    assert set(seen[1:]) == {dtype}
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.heatmaps.dtype == found.saliency["block1"].dtype == torch.float32
    assert 0 < (found.saliency["block1"] - expected.saliency["block1"]).abs().max() < 0.05
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["ss-cam", "is-cam"])
def test_methods_that_build_on_it_run_in_half_precision_too(name):
    model, images = blocks().float(), draw_images(2)
    seen = []
    model.block1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    METHODS[name](model, "block1", dtype=torch.bfloat16, samples=2, weighting="relu")(images, CLASSES)
    assert seen[0] == torch.float32
    assert set(seen[1:]) == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_other_precisions_are_refused(dtype):
    with pytest.raises(OptionError, match=r"dtype is .*; expected None, torch\.bfloat16 or torch\.float16"):
        ScoreCAM(blocks(), "block1", dtype=dtype)


def test_double_precision_is_not_halved_in_silence():
    with pytest.raises(OptionError, match=r"the images are torch\.float64, which autocast does not change"):
        saliency(blocks(), dtype=torch.bfloat16)
