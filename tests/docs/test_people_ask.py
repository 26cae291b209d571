"""What people ask in forums is found in the documentation by their own words."""

from __future__ import annotations

import re

import pytest
from documents import DOCS

PAGES = re.sub(r"\s+", " ", " ".join(page.read_text() for page in sorted(DOCS.glob("diagnostics*.md")))).lower()
"""All pages about diagnostics as one text."""

ASKED = {
    "which layer made the first nan": "which layer made the first nan",
    "nan only in backward": "nan only in backward",
    "why is the loss flat": "why is the loss flat",
    "are my relus dead": "are my relus dead",
    "gradient flow plot": "how do i plot the gradient flow",
    "vanishing or exploding gradients": "vanishing or exploding",
    "feature maps of layer x": "feature maps or activations of layer x",
    "hook fails with in-place relu": "my hook fails at an in-place relu",
    "memory grows with hooks": "memory grows with my hooks",
    "hooks never fire": "my hook never fires",
    "hooks under compile": "`torch.compile`",
    "checkpointing counts twice": "checkpointing",
    "ddp": "ddp",
    "attention of timm and hugging face with fused kernels": "fused kernels of timm, torchvision, hugging face",
    "per-head attention of nn.transformerencoder": "nn.transformerencoder",
    "lstm gates": "what does my lstm remember? are its gates stuck",
    "gat coefficients": "which neighbors does my graph network look at",
    "train and test look different": "does my test data look different to the model",
    "is the learning rate sane": "is my learning rate sane",
    "histograms are slow or crash on nan": "histograms crash or are empty once there is a nan, and are slow",
    "did i normalize twice": "did i normalize twice",
    "softmax twice": "softmax twice",
    "leaked test data": "does my test set leak",
    "fast path of transformerencoder": "fast path",
    "gradients before unscale": "unscale_",
    "inf in the first amp steps": "my amp training has inf in its first steps",
    "nan in eval only": "nan only in eval mode",
    "one total gradient norm": "in one total and not in hundreds of lines",
    "values that are no module's output": "a value that is not a module's output",
    "train and eval disagree": "train and eval mode disagree",
    "same answer for every input": "my model says the same for every input",
    "parameters that never change": "which parameters never change",
    "can my model learn at all": "can my model learn anything at all",
    "does it overfit": "does it overfit",
    "what does it cost": "what does it cost",
}


@pytest.mark.parametrize("question", ASKED)
def test_a_question_is_found_by_its_words(question: str) -> None:
    assert ASKED[question] in PAGES
