"""Select the engine that writes the shards of a run."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing

from gradcam_kit.capture import compile_around
from gradcam_kit.jobs.engines.devices import work_on_devices
from gradcam_kit.jobs.engines.local import Done, Pipeline
from gradcam_kit.jobs.sources.plan import Plan, Shard
from gradcam_kit.jobs.work.loading import device_names
from gradcam_kit.jobs.work.methods import layers_of


def write_shards(pipeline: Pipeline, plan: Plan, shards: Iterable[Shard], count: int) -> Generator[Done, None, None]:
    """Write shards with the requested engine; yield each once it is complete.

    Args:
        pipeline: the request, the model, and the progress callbacks.
        plan: all pictures of the run.
        shards: the shards to be written.
        count: number of these shards.

    Raises:
        GradCamKitError: the model or a method accepts none of the first pictures, or the engine failed.
        FirstFailureError: a picture failed, and the run stops at the first failure.
    """
    request, explainer = pipeline.request, pipeline.explainer
    begin, progress = pipeline.begin, pipeline.progress
    if request.engine == "ray":
        from gradcam_kit.jobs.engines.ray_engine import work_on_ray

        pipeline.verify()
        yield from work_on_ray(request, explainer, plan, shards, begin, progress)
        return
    devices, layers = device_names(request.device), layers_of(explainer)
    if len(devices) > 1 and count > 1:
        pipeline.verify()
        yield from work_on_devices(request, devices, layers, plan.pictures, shards, begin, progress)
        return
    if request.compile:
        compile_around(explainer.model, (name for names in layers.values() for name in names))
    with closing(pipeline.work(shards)) as finished:
        yield from finished
