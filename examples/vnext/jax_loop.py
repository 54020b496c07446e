"""Record a training run in a jitted JAX loop, then audit its LoRA factors in memory.

pip install flax optax
python examples/vnext/jax_loop.py --out runs/jax
gradience monitor runs/jax/run.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gradience import TelemetryWriter, audit_pytree
from gradience.events import ConfigSnapshot, LoraSnapshot, OptimizerSnapshot, TrainingSnapshot

LR, R, BATCH, SEED = 3e-2, 4, 64, 0


class Model(nnx.Module):
    """A frozen layer with LoRA beside it, and a head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        base = nnx.Linear(16, 32, rngs=rngs)
        self.hidden = nnx.LoRA(16, R, 32, base_module=base, rngs=rngs)
        self.head = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return one number for each row."""
        return self.head(jnp.tanh(self.hidden(x)))


def loss_of(model: Model, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean squared error."""
    return jnp.mean((model(x) - y) ** 2)


@nnx.jit
def train_step(model: Model, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Update only the LoRA factors. Return the loss and the gradient norm as arrays on the device."""
    loss, grads = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, x, y)
    optimizer.update(model, grads)
    return loss, optax.global_norm(grads)


def main() -> None:
    """Train, record the run, then audit the factors."""
    parser = argparse.ArgumentParser(description="Record a small JAX run.")
    parser.add_argument("--out", type=Path, required=True, help="folder for run.jsonl")
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()

    x = jax.random.normal(jax.random.key(SEED), (576, 16))
    y = jnp.sin(x.sum(axis=1, keepdims=True))
    model = Model(nnx.Rngs(SEED))
    optimizer = nnx.Optimizer(model, optax.adam(LR), wrt=nnx.LoRAParam)
    config = ConfigSnapshot(
        model_name="tanh-16-32-1",
        optimizer=OptimizerSnapshot(name="adam", lr=LR),
        lora=LoraSnapshot(r=R, target_modules=["hidden"]),
        training=TrainingSnapshot(seed=SEED, batch_size=BATCH, max_steps=options.steps),
    )
    with TelemetryWriter(options.out / "run.jsonl") as recorder:  # recorder: also says how the loop ended
        recorder.run_start(config, meta={"framework": "jax"})  # recorder
        for step in range(1, options.steps + 1):
            at = (step - 1) * BATCH % 512
            loss, norm = train_step(model, optimizer, x[at : at + BATCH], y[at : at + BATCH])
            recorder.train_step(step, loss=loss, lr=LR, grad_norm=norm)  # recorder: JAX scalars as they are
            if step % 40 == 0:
                held_out = loss_of(model, x[512:], y[512:])
                recorder.eval(step, split="eval", metrics={"loss": held_out, "n": 64})  # recorder
    print(audit_pytree(nnx.state(model, nnx.LoRAParam)).summary)


if __name__ == "__main__":
    main()
