"""The usual meaning of each finding and its remedy, in two or three sentences."""

from __future__ import annotations

DEAD = (
    "These units return 0 for every input and do not learn. Lower the learning rate, check biases and "
    "initialization, or use LeakyReLU"
)
SATURATED = (
    "The slope of the activation function is nearly 0 at these values, so earlier layers hardly learn. Scale down "
    "weights or inputs, or normalize"
)
CONSTANT = (
    "The output is the same for every input. Look for zero weights, a disconnected input, or an earlier dead layer"
)
ZERO_WEIGHT = (
    "All weights are 0, as in zero-initialized residual branches at the start. This is fine if they change during "
    "training"
)
COLLAPSED = (
    "All inputs look alike to the layer. Check that inputs differ and that targets are not constant, and lower "
    "the learning rate"
)
REDUNDANT = "Units repeat each other. Break the symmetry of the initialization, or make the layer narrower"
VANISHING = "Early layers hardly learn. Use ReLU-like activations with He initialization, normalization, or shortcuts"
EXPLODING = "Early layers get huge gradients. Scale down the initialization, normalize, or clip gradients"
SPIKE = "The training became unstable. Lower the learning rate, warm it up, or clip the gradient norm"
OVERFLOW = "The largest float16 number is 65,504. Normalize or scale down the activations, or use bfloat16"
DEPTH = (
    "The scale of the signal changes with depth. Use an initialization that suits the activation function, or normalize"
)
NONFINITE = (
    "Run one step inside find_nonfinite(model), which reports whether an input, a parameter or a computation is the "
    "cause"
)
DETACHED = (
    "These parameters are not connected to the loss. Look for detach(), no_grad(), .item() or numpy in between, or for "
    "an output that the loss does not use"
)
UNUSED = "The layer of these parameters never ran. Call the layer in forward, or remove it"
BEHIND_ZERO = (
    "No gradient reaches the output of the layer. Look for dead units in later layers, or for a loss that does not "
    "depend on this layer"
)
OWN_ZERO = (
    "A gradient reaches the output of the layer, but not its parameters. The input of the layer is 0, or its weights "
    "are masked"
)
NOT_IN_OPTIMIZER = (
    "These parameters never change. Pass them to the optimizer, or freeze them with requires_grad_(False)"
)
FROZEN = (
    "These parameters have gradients but do not change. Check the learning rate of their group, and look for copies of "
    "the parameters"
)
NO_GRADIENT_WANTED = (
    "These parameters are not trained. This is fine for a frozen backbone; otherwise, call requires_grad_(True)"
)
UPDATE_HIGH = "Steps are large compared with the weights. Lower the learning rate until the ratio is about 1e-3"
UPDATE_LOW = "Steps are tiny compared with the weights. Raise the learning rate until the ratio is about 1e-3"
UPDATE_LOST = (
    "Updates are smaller than the precision of the weights, so they are lost to rounding. Raise the learning rate, or "
    "keep the weights in float32 and run under autocast"
)
ACCUMULATED = "Gradients add up from step to step. Call optimizer.zero_grad() in every step"
AMP = (
    "This is normal in the first steps with a GradScaler, which skips these steps and lowers its scale. Investigate if "
    "it persists"
)
UNCHANGED = (
    "The layer returns its input unchanged. This is fine for a residual branch that starts at 0. Otherwise, "
    "remove the layer, or train it with a larger learning rate"
)
SHIFT = (
    "Use the same transform for both data sets, and compare their pictures side by side, starting with the largest "
    "shift"
)
EMPTY_LEVEL = (
    "Nothing uses the features of this level. Check its anchor sizes and strides, and which levels the head receives"
)
REDUNDANT_HEADS = "Heads attend to the same positions. This is harmless; all but one of them can be pruned"
SINK = (
    "The head attends to a token that it hardly uses. This is common in trained models; look at other heads, and do "
    "not interpret such a token as important"
)
DEAD_HEAD = "The head contributes nothing. Check its value weights, or prune it"
STUCK_GATE = (
    "The gate does not react to its input. Look at its bias and the scale of the inputs. A forget gate that stays at 1 "
    "never forgets, and one that stays at 0 never remembers"
)
SATURATED_GATE = "The gate hardly learns. Scale down weights or inputs, or normalize"
ONE_NEIGHBOR = "All other neighbors are ignored. Look at the scale of the features, and at the number of heads"
