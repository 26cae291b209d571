"""Every metric runs on a device: the numbers are those of the host, and it is known where the device is waited for.

The device is one on the host (`waits.py`); `test_cuda.py` asks CUDA itself the same.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from metric_cases import CLASSES, SIZE, masks, measure, represent, standard_case
from models import images, tiny
from waits import device, metric_waits, on_device, on_host

from gradcam_kit import GradCAM
from gradcam_kit.capture import rescoring
from gradcam_kit.metrics import BASELINES, METRICS, MetricInput


@pytest.mark.parametrize("name", METRICS)
def test_metrics_wait_where_they_have_to(name):
    with standard_case(named=False) as case:
        expected = measure(METRICS[name], case)
    classes = CLASSES.tolist()
    with device() as seen:
        model, x = on_device(tiny()), on_device(images(size=SIZE))
        heatmaps, objects = on_device(case.heatmaps), on_device(masks())
        cam = GradCAM(model, "relu1")
        with rescoring(model, x, classes) as rescore:
            for _ in range(2):  # the first time the model gets known
                seen.waits.clear()
                own = MetricInput(
                    heatmaps,
                    x,
                    rescore,
                    masks=objects,
                    explain=lambda rows: cam(rows, classes),
                    represent=partial(represent, model),
                    seed=case.seed,
                )
                of_case = Counter(seen.waits)
                found = measure(METRICS[name], own)
    assert found.values.device.type == "meta"
    torch.testing.assert_close(on_host(found.values), expected.values, rtol=2e-4, atol=1e-5)
    assert torch.equal(on_host(found.status), expected.status)
    places = {wait.partition(": ")[0] for wait in Counter(seen.waits) - of_case}
    assert of_case.total() == 2, "the range of the heatmaps, and that the images are those of the scores"
    assert places == set(metric_waits(name))


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_do_not_wait(name):
    x = images(size=SIZE)
    with device() as seen:
        found = BASELINES[name](on_device(x), 3)
    torch.testing.assert_close(on_host(found), BASELINES[name](x, 3))
    assert not seen.waits
