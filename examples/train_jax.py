"""Trains a small network of flax on scikit-learn's digits, and goes on after any kill as if nothing had happened.

    lastgood run --store ./checkpoints --run digits --ranks 1 -- python examples/train_jax.py --steps 200

The batch of a step and its noise are pure functions of a key and the step, so that parameters, optimizer, average and
key are all that there is to save. Prints a digest of the final state, the same to the bit with and without kills.
"""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import lastgood as lg
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits


class Network(nn.Module):
    """Two dense layers with dropout between them."""

    @nn.compact
    def __call__(self, images: Any, train: bool) -> Any:
        hidden = nn.relu(nn.Dense(64)(images))
        hidden = nn.Dropout(0.2, deterministic=not train)(hidden)
        return nn.Dense(10)(hidden)


def start(steps: int) -> dict[str, Any]:
    """The state of step 0."""
    key = jax.random.key(0)
    params = jax.jit(Network().init, static_argnames="train")(key, jnp.zeros((1, 64)), train=False)[
        "params"
    ]
    schedule = optax.cosine_onecycle_schedule(steps, 3e-3)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    train = TrainState.create(apply_fn=Network().apply, params=params, tx=optimizer)
    # A number of Python would compile the step twice: once for it, and once for the array that it becomes.
    train = train.replace(step=jnp.int32(0))
    return {"train": train, "average": jax.tree.map(jnp.copy, params), "key": key}


@jax.jit
def train_step(train: TrainState, average: Any, key: Any, images: Any, labels: Any) -> Any:
    """One step of the optimizer, and of the moving average of the parameters."""
    batch_key, noise_key, dropout_key = jax.random.split(jax.random.fold_in(key, train.step), 3)
    rows = jax.random.choice(batch_key, len(images), (64,), replace=False)
    batch = images[rows] + 0.1 * jax.random.normal(noise_key, (64, 64))

    def loss_of(params: Any) -> Any:
        rngs = {"dropout": dropout_key}
        logits = train.apply_fn({"params": params}, batch, train=True, rngs=rngs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    loss, grads = jax.value_and_grad(loss_of)(train.params)
    train = train.apply_gradients(grads=grads)
    return train, optax.incremental_update(train.params, average, 0.05), loss


def digest(state: dict[str, Any]) -> str:
    """BLAKE2 over every bit of the state."""
    found = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves({**state, "key": jax.random.key_data(state["key"])}):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def main() -> None:
    """Trains for ``--steps`` steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10, help="save every so many steps")
    parser.add_argument("--store", default=None, help="default: LASTGOOD_STORE")
    args = parser.parse_args()
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16.0, jnp.float32), jnp.asarray(labels)
    state = start(args.steps)
    with lg.open(args.store, state, policy=lg.Policy(steps=args.every)) as run:
        first = run.restore()
        print(f"attempt {run.attempt} begins at step {first}", flush=True)
        for step in range(first, args.steps):
            state["train"], state["average"], loss = train_step(
                state["train"], state["average"], state["key"], images, labels
            )
            run.step(step + 1, loss=loss)
    logits = Network().apply({"params": state["average"]}, images, train=False)
    print(f"accuracy {float((logits.argmax(-1) == labels).mean()):.3f}")
    print(f"digest {digest(state)}")


if __name__ == "__main__":
    main()
