"""One optimizer step of all workers: gradients of each one's images, agreement on what they are worth, the update.

The loss of a step is that of the valid pixels of all workers, so that W workers take exactly the step that one worker
takes on the same images (fcn.md R11), whatever parts each of them cuts its images into. (But for dropout, whose masks
are drawn for each part, and batch normalisation, which sees one part of all workers at a time.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from fcn_ray.models.losses import build_loss
from fcn_ray.models.preprocessing import normalise
from fcn_ray.training.preflight import Job
from fcn_ray.training.replica import Replica, layer_name

Gradients = list[tf.Tensor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to; the same on every worker."""

    loss: float
    """Over all workers' valid pixels."""
    taken: bool
    """False when the loss or a gradient of some worker was not finite: then no weight has changed."""
    stop: bool
    """Some worker asks all to stop after this step."""


Step = Callable[..., Outcome]
"""(images (N, H, W, 3), labels (N, H, W), stop=False) -> Outcome: of this worker's images and labels, both uint8."""


def build_step(replica: Replica, job: Job) -> Step:
    """The step of this worker. All workers must call it equally often: each call waits for the others."""
    parts = job.config.accumulate
    pixels = (None, None, None)
    signature = [tf.TensorSpec((*pixels, 3), tf.uint8), tf.TensorSpec(pixels, tf.uint8)]
    gradients_of, agree, update = _functions(replica, job)
    gradients_of, agree, update = (
        _compile(replica, gradients_of, signature),  # crops of any size, and parts of a step of unequal ones
        _compile(replica, agree),
        _compile(replica, update),
    )
    # Statistics that a forward pass moves: a step that is not taken must leave them as they were.
    moving = [v for v in replica.model.non_trainable_variables if v.path.rpartition("/")[2].startswith("moving_")]

    def step(images: np.ndarray, labels: np.ndarray, stop: bool = False) -> Outcome:
        before = [variable.numpy() for variable in moving]
        gradients: Gradients = []
        terms = tf.constant(0.0)
        for part in np.array_split(np.arange(len(images)), parts):
            local, more = gradients_of(images[part], labels[part])
            terms = terms + local
            gradients = [a + b for a, b in zip(gradients, more, strict=True)] if gradients else more
        loss, factor, bad, stops = agree(terms, gradients, tf.constant(float(stop)))
        taken = not float(bad) and bool(np.isfinite(float(loss)))
        if taken:
            update(gradients, factor)
        else:
            replica.optimizer.iterations.assign_add(1)  # the schedule goes on with the images
            for variable, value in zip(moving, before, strict=True):
                variable.assign(value)
        return Outcome(float(loss), taken, bool(float(stops)))

    return step


def _functions(replica: Replica, job: Job) -> tuple[Callable[..., Any], ...]:
    """The three parts of a step, each as it runs on one replica."""
    model, optimizer = replica.model, replica.optimizer
    loss_of = build_loss(job.config.loss, len(job.labels), job.labels.ignore_id, job.class_weights)
    # SGD is linear in the gradient: a factor on it is one on the rate.
    slow = job.config.optimizer.backbone_rate
    rates = [slow if layer_name(v) in replica.pretrained else 1.0 for v in model.trainable_variables]

    def gradients_of(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, Gradients]:
        """This worker's terms of the loss, and their part of its gradient, but for `factor`."""
        with tf.GradientTape() as tape:
            local = loss_of.terms(labels, model(normalise(images, job.preprocessing), training=True))
            objective = local[0] if loss_of.additive else _of_all_workers(loss_of.combine, local)
        gradients = tape.gradient(objective, [v.value for v in model.trainable_variables])
        return local, [gradient * rate for gradient, rate in zip(gradients, rates, strict=True)]

    def agree(terms: tf.Tensor, gradients: Gradients, stop: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Loss, factor on the gradients, number of workers whose gradients are not finite, and of those that stop."""
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        votes = tf.stack([1.0 - tf.cast(finite, tf.float32), stop])
        totals = _all_reduce(tf.concat([terms, votes], axis=0))
        terms, votes = totals[:-2], totals[-2:]
        factor = loss_of.combine(tf.stack([1.0, terms[1]])) if loss_of.additive else tf.constant(1.0)
        return loss_of.combine(terms), factor, votes[0], votes[1]

    def update(gradients: Gradients, factor: tf.Tensor) -> None:
        """Add the workers' gradients up and change the weights."""
        scaled = [gradient * factor for gradient in gradients]
        optimizer.apply_gradients(zip(scaled, model.trainable_variables, strict=True))

    return gradients_of, agree, update


def _of_all_workers(combine: Callable[[tf.Tensor], tf.Tensor], local: tf.Tensor) -> tf.Tensor:
    """The loss of all workers with the gradient of this one's part: the update adds up the parts.

    (The gradient of all_reduce would add them up once more.)
    """
    return combine(_all_reduce(tf.stop_gradient(local)) + (local - tf.stop_gradient(local)))


def _all_reduce(values: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))


def _compile(
    replica: Replica, function: Callable[..., Any], signature: list[tf.TensorSpec] | None = None
) -> Callable[..., Any]:
    """`function` on this worker's replica, as a graph."""
    compiled: Callable[..., Any] = tf.function(
        lambda *arguments: replica.strategy.run(function, args=arguments), input_signature=signature, autograph=False
    )
    return compiled
