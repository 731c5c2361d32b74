"""What one client does with its data, as pure functions: `init`, `step` per batch, `final`.

A `LocalTraining` says nothing about how many clients there are or where they run; `cohort.py` maps it over
a cohort. Two kinds exist: training mask logits (DeltaMask, FedPM, …) and training weights (linear probing,
full fine-tuning, …).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deltamask_jax import masks
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.public_random import uniforms_at

Batch = dict[str, jax.Array]  # inputs [b, ...], labels i32[b], weights f32[b] (0 for padding)
Forward = Callable[[Any, Any, jax.Array], jax.Array]  # (params, head, inputs) -> logits f32[b, classes]

Frozen = Any  # pytree that all clients share and no round changes
Received = Any  # pytree that all clients start the round from
Carry = Any  # pytree, state of one client's training
ClientInit = Callable[[Frozen, Received, Any], Carry]
ClientStep = Callable[[Frozen, Received, Carry, Batch, jax.Array], tuple[Carry, jax.Array]]
ClientFinal = Callable[[Frozen, Received, Carry, Any], Any]

LossAndGradient = Callable[[Batch], tuple[jax.Array, Any]]  # means over the examples that are not padding
# (what gives loss and gradient, batch, the step's key) -> loss and gradient to step along
Gradient = Callable[[LossAndGradient, Batch, jax.Array], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class LocalTraining:
    """One client's training, vmappable over clients.

    Attributes:
        init: (frozen, received, private) -> carry. `frozen` never changes, `received` is the round's
            broadcast, `private` is what differs between clients beside their data (a pytree with a leading
            client axis in the cohort).
        step: (frozen, received, carry, batch, key) -> (carry, mean loss of the batch f32[]).
        final: (frozen, received, carry, private) -> update, what leaves the device.
    """

    init: ClientInit
    step: ClientStep
    final: ClientFinal


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Mean softmax cross-entropy over the examples of a batch that are not padding: f32[], in nats.

    Args:
        logits: f32[b, classes].
        batch: labels i32[b] and weights f32[b].
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return jnp.sum(losses * batch["weights"]) / jnp.maximum(jnp.sum(batch["weights"]), 1)


def cosine(first: float, share: float, rounds: int) -> optax.Schedule:
    """From `first` in round 0 to that share of it in round `rounds` − 1, on half a cosine."""
    return optax.cosine_decay_schedule(first, max(rounds - 1, 1), alpha=share)


def of_batch(loss_and_gradient: LossAndGradient, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
    """The plain gradient of a batch; privacy.py has the noisy one."""
    return loss_and_gradient(batch)


def mask_training(
    forward: Forward,
    index: FlatIndex,
    optimizer: optax.GradientTransformation,
    theta_clip: float,
    final: Callable[[jax.Array, Any, Any], Any],
    draw: Callable[[jax.Array, jax.Array], jax.Array] = masks.sample,
    straight_through: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = masks.straight_through,
    keeps: bool = False,
    gradient: Gradient = of_batch,
) -> LocalTraining:
    """Train mask logits by straight-through Bernoulli sampling (DeltaMask §3, step 2).

    Logits live as a tree of kernels, like the weights they mask, and become one vector only at the end.

    Args:
        forward: network with frozen weights and head.
        index: which weights are masked.
        optimizer: direction of a step in the logits, which `received['learning_rate']` scales; the paper
            uses Adam.
        theta_clip: start logits from θ inside [theta_clip, 1 − theta_clip].
        final: (theta_k u16[d], received, private) -> update. `received['theta']` is θ_g, u16[d].
        draw: (θ f32[...], private uniforms u16[...]) -> the forward pass's mask, bool[...].
        straight_through: (∂L/∂(m ⊙ w), w, θ) -> ∂L/∂s, f32[...] all.
        keeps: the optimiser goes on where the client's last round left it: `private` then is {'moments': its
            state, 'own': what `final` takes}, and the update {'moments': its state now, 'sent': what `final`
            gives}.
        gradient: what the loss and ∂L/∂s of a batch are made with.
    """

    def init(frozen, received, private):
        logits = index.unravel(masks.logits(received["theta"], theta_clip))
        return logits, private["moments"] if keeps else optimizer.init(logits)

    def step(frozen, received, carry, batch, key):
        logits, state = carry
        weights = index.kernels(frozen["params"])
        words = jax.random.bits(key, (2,), jnp.uint32)
        theta = jax.tree.map(jax.nn.sigmoid, logits)
        masked = jax.tree.map(
            lambda p, w, at: jnp.where(draw(p, uniforms_at(words, at, jnp)), w, 0),
            theta,
            weights,
            index.positions(),
        )

        def loss_of(kernels, batch):
            params = index.merge(frozen["params"], kernels)
            return cross_entropy(forward(params, received["head"], batch["inputs"]), batch)

        def loss_and_gradient(batch):
            loss, grads = jax.value_and_grad(loss_of)(masked, batch)
            return loss, jax.tree.map(straight_through, grads, weights, theta)

        loss, grads = gradient(loss_and_gradient, batch, key)
        steps, state = optimizer.update(grads, state, logits)
        logits = jax.tree.map(lambda s, step: s - received["learning_rate"] * step, logits, steps)
        return (logits, state), loss

    def final_(frozen, received, carry, private):
        theta = masks.theta16(jax.nn.sigmoid(index.ravel(carry[0])))
        # Without the barrier XLA computes the whole vector again inside each of its many uses.
        theta = jax.lax.optimization_barrier(theta)
        if keeps:
            return {"moments": carry[1], "sent": final(theta, received, private["own"])}
        return final(theta, received, private)

    return LocalTraining(init, step, final_)


def weight_training(
    loss_of: Callable[[Any, Any, Batch], jax.Array],
    optimizer: optax.GradientTransformation,
    proximal: float = 0.0,
    gradient: Gradient = of_batch,
) -> LocalTraining:
    """Train `received['weights']`, any pytree, by gradient descent; the update is the trained weights.

    Args:
        loss_of: (frozen, trained weights, batch) -> mean loss f32[].
        optimizer: direction of a step in the weights, which `received['learning_rate']` scales; it starts
            anew in every round.
        proximal: μ of FedProx (arXiv 1812.06127): adds μ/2 · ‖w − received‖² to what is minimised, not to the
            loss that is reported.
        gradient: what loss and gradient of a batch are made with.
    """

    def init(frozen, received, private):
        return received["weights"], optimizer.init(received["weights"])

    def step(frozen, received, carry, batch, key):
        weights, state = carry

        def loss_and_gradient(batch):
            return jax.value_and_grad(lambda w: loss_of(frozen, w, batch))(weights)

        loss, grads = gradient(loss_and_gradient, batch, key)
        if proximal:
            start = received["weights"]
            grads = jax.tree.map(lambda g, w, w0: g + proximal * (w - w0), grads, weights, start)
        steps, state = optimizer.update(grads, state, weights)
        weights = jax.tree.map(lambda w, step: w - received["learning_rate"] * step, weights, steps)
        return (weights, state), loss

    return LocalTraining(init, step, lambda frozen, received, carry, private: carry[0])
