"""Encode the texts of a target with the explained model itself, and direct the call to its image tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradcam_kit.capture.model.inputs import Inputs
from gradcam_kit.capture.model.state import untouched
from gradcam_kit.errors import TargetError
from gradcam_kit.targets.contrastive import Negative
from gradcam_kit.targets.text import TextTarget
from gradcam_kit.targets.values import changed

_TOWERS = {"encode_image": "encode_text", "get_image_features": "get_text_features"}
"""Maps the method that embeds images to the method that embeds texts, in open_clip and in transformers."""


def with_texts(model: nn.Module, inputs: Inputs, targets: Any) -> tuple[Inputs, Any]:
    """Return inputs and targets; for text targets, encode the texts and direct the call to the image tower.

    Raises:
        TargetError: the model does not have two towers, the tokenizer is missing or belongs to another model, or a text
            is too long.
    """
    if isinstance(targets, Negative) and isinstance(targets.target, TextTarget):
        inputs, target = with_texts(model, inputs, targets.target)
        return inputs, changed(targets, target=target)
    if not isinstance(targets, TextTarget):
        return inputs, targets
    entry = next((image for image, text in _TOWERS.items() if hasattr(model, image) and hasattr(model, text)), None)
    if entry is None:
        raise TargetError(
            f"{type(model).__name__} cannot embed texts; TextTarget needs encode_image and encode_text (open_clip) or "
            "get_image_features and get_text_features (transformers). For other models pass EmbeddingSimilarity"
        )
    inputs = replace(inputs, entry=entry)
    if targets.encoded is not None:
        return inputs, targets
    return inputs, targets.with_embeddings(_encoded(model, targets, _TOWERS[entry]))


def _encoded(model: nn.Module, target: TextTarget, tower: str) -> Float[Tensor, "m d"]:
    """Return the embeddings of all texts of a target.

    Raises:
        TargetError: the model does not accept the tokens.
    """
    tokenizer = target.tokenizer if target.tokenizer is not None else _tokenizer_of(model)
    arguments = _tokens(tokenizer, target.all_texts, model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with untouched(model, device), torch.no_grad():
        moved = {key: value.to(device) for key, value in arguments.items()}
        encode = getattr(model, tower)
        try:
            found = encode(moved["input_ids"]) if tower == "encode_text" else encode(**moved)
        except (RuntimeError, IndexError) as error:  # wrong length, or token indices outside the vocabulary
            raise TargetError(
                f"{type(model).__name__} cannot encode this tokenizer's tokens of shape "
                f"{tuple(moved['input_ids'].shape)} ({str(error).partition(chr(10))[0]}); pass the model's own "
                "tokenizer"
            ) from error
    if isinstance(found, Mapping):
        found = next(found[name] for name in ("text_embeds", "pooler_output") if name in found)
    embeddings: Tensor = found[0] if isinstance(found, tuple) else found
    return embeddings


def _tokens(tokenizer: Any, texts: list[str], model: nn.Module) -> dict[str, Tensor]:
    """Return the tokens of texts, padded to the length that the model expects.

    Raises:
        TargetError: a text has more tokens than the model accepts, or the tokenizer does not return a tensor.
    """
    limit = _limit(tokenizer, model)
    for text, count in zip(texts, _counts(tokenizer, texts), strict=False):
        if limit is not None and count > limit:
            raise TargetError(
                f"the text {text[:40] + '...' if len(text) > 40 else text!r} has {count} tokens, but the model accepts "
                f"at most {limit}; shorten the text"
            )
    if _is_of_transformers(tokenizer):
        filled = {"padding": "max_length", "max_length": limit} if limit is not None else {"padding": True}
        return dict(tokenizer(texts, return_tensors="pt", **filled))
    tokens = tokenizer(texts)
    if not isinstance(tokens, Tensor):
        raise TargetError(
            f"the tokenizer returned {type(tokens).__name__}; expected a tensor of tokens (m, length). Pass a "
            "tokenizer that returns such a tensor, or a tokenizer of transformers"
        )
    if limit is not None and tokens.shape[1] > limit:
        raise TargetError(
            f"the tokenizer returned {tokens.shape[1]} tokens, but the model accepts at most {limit}; pass the model's "
            "own tokenizer"
        )
    return {"input_ids": tokens}


def _limit(tokenizer: Any, model: nn.Module) -> int | None:
    """Return how many tokens the model accepts by its own declaration, else by the tokenizer's; None if unknown."""
    config = getattr(getattr(model, "config", None), "text_config", None)
    for owner, name in (
        (config, "max_position_embeddings"),
        (model, "context_length"),
        (tokenizer, "context_length"),
        (tokenizer, "model_max_length"),
    ):
        if isinstance(found := getattr(owner, name, None), int):
            return found
    return None


def _counts(tokenizer: Any, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text before truncation, or an empty list if the numbers are unknown."""
    own: Any = tokenizer if _is_of_transformers(tokenizer) else getattr(tokenizer, "tokenizer", None)
    if _is_of_transformers(own):
        return [len(ids) for ids in own(texts, truncation=False, verbose=False)["input_ids"]]
    if hasattr(tokenizer, "encode") and hasattr(tokenizer, "sot_token_id"):
        return [len(tokenizer.encode(text)) + 2 for text in texts]  # includes the start and end tokens
    return []


def _is_of_transformers(tokenizer: Any) -> bool:
    return callable(tokenizer) and hasattr(tokenizer, "model_max_length") and hasattr(tokenizer, "pad")


def _tokenizer_of(model: nn.Module) -> Any:
    """Return the tokenizer that a model carries, or whose files are stored with its weights."""
    carried = getattr(model, "tokenizer", None)
    if carried is not None:
        return carried
    if (source := getattr(model, "name_or_path", "")) and hasattr(model, "get_text_features"):
        try:
            return import_module("transformers").AutoTokenizer.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError, ImportError, KeyError):
            pass  # the message below has the remedy
    raise TargetError(
        f"the texts need the tokenizer of {type(model).__name__}, which the model does not carry; pass "
        "TextTarget(texts, tokenizer=open_clip.get_tokenizer(NAME)) or a tokenizer of transformers"
    )
