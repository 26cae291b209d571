"""ViT-Recipro-CAM against its transcription: both streams of the last block are masked alike."""

from __future__ import annotations

import pytest
import reference
import torch
import torchvision
from models import images, seeded, tiny

from gradcam_kit import ViTReciproCAM
from gradcam_kit.errors import CaptureError, LayerNotFoundError


def transformer() -> torchvision.models.VisionTransformer:
    return seeded(torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)).double()


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_it_equals_the_transcription(window, batch_size):
    model, x = transformer(), images(2, size=(32, 32)).double()
    block, seen = model.encoder.layers[1], {}
    handle = block.ln_1.register_forward_hook(lambda _, args, output: seen.update(residual=args[0], normed=output))
    with torch.no_grad():
        model(x)
    handle.remove()
    explanation = ViTReciproCAM(model, window=window, batch_size=batch_size).explain(x, [1, 3])
    assert explanation.layers == ("encoder.layers.encoder_layer_1.ln_1",)

    for sample, target in enumerate([1, 3]):

        def replay(residual, normed, target=target):
            residual, normed = torch.as_tensor(residual)[None], torch.as_tensor(normed)[None]
            with torch.no_grad():
                mixed = block.self_attention(normed, normed, normed)[0] + residual
                tokens = mixed + block.mlp(block.ln_2(mixed))
                return float(model.heads(model.encoder.ln(tokens)[:, 0])[0, target])

        expected = reference.vit_recipro_cam(
            seen["residual"][sample], seen["normed"][sample], (4, 4), replay, prefix=1, window=window
        )
        found = explanation.saliency["encoder.layers.encoder_layer_1.ln_1"][sample]
        torch.testing.assert_close(found, torch.as_tensor(expected))


def test_masking_the_residual_branch_matters():
    model, x = transformer(), images(2, size=(32, 32)).double()
    layer = "encoder.layers.encoder_layer_1.ln_1"
    both = ViTReciproCAM(model, layer, window=1).explain(x).saliency[layer]
    with torch.no_grad():
        for parameter in model.encoder.layers[1].self_attention.parameters():
            parameter.zero_()
    alone = ViTReciproCAM(model, layer, window=1).explain(x).saliency[layer]
    assert both.abs().max() > 1e-3
    # Without attention the class token, which is always kept, is all that the score depends on.
    torch.testing.assert_close(alone, torch.zeros_like(alone), atol=1e-9, rtol=0)


def test_a_network_without_transformer_blocks_is_an_error_that_says_so():
    with pytest.raises(LayerNotFoundError):
        ViTReciproCAM(tiny())(images())
    with pytest.raises(CaptureError, match="input normalization"):
        ViTReciproCAM(tiny(), "stage1")(images())
