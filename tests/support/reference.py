"""Slow, independent float64 transcriptions of every method's formula: for one sample and one target, `saliency`.

They import nothing of the package. Tensors and arrays are taken; numpy arrays are returned, shaped as the layer's
positions unless the docstring says otherwise. "Ambiguous": the paper leaves it open, and one reading was chosen.
"Unconfirmed": the reading was not compared with the paper's text.
"""

from __future__ import annotations

from reference_activations import *  # noqa: F403
from reference_attention import *  # noqa: F403
from reference_components import *  # noqa: F403
from reference_composed import *  # noqa: F403
from reference_gradients import *  # noqa: F403
from reference_inputs import *  # noqa: F403
from reference_last_stage import *  # noqa: F403
from reference_replay import *  # noqa: F403
from reference_scores import *  # noqa: F403
