"""Activations that are made again on the way back instead of kept.

An activation that is cheap to make carries a recipe. What saves it for the way back keeps the recipe in its place.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def remember(activation: Tensor, recipe: Callable[[], Tensor]) -> None:
    """Attach to an activation how to make it again, in new memory."""
    activation.recipe = recipe


def recipe_of(activation: Tensor) -> Callable[[], Tensor]:
    """Give how to make an activation again; a tensor without a recipe is simply kept."""
    kept = activation.detach()
    return getattr(activation, "recipe", lambda: kept)


def recomputed(activations: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """Let operations within keep, for those of these tensors that they save, the recipe in place of the values."""
    recipes = {x.data_ptr(): x.recipe for x in activations if hasattr(x, "recipe")}
    if not recipes or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: recipes.get(tensor.data_ptr(), tensor), lambda kept: _made(kept) if callable(kept) else kept
    )


def is_spare(saved: Tensor) -> bool:
    """Say whether a saved tensor was made for its reader alone, who may then overwrite it."""
    return getattr(saved.untyped_storage(), "spare", False)


def _made(recipe: Callable[[], Tensor]) -> Tensor:
    result = recipe()
    result.untyped_storage().spare = True  # the saved tensor that autograd hands out shares the storage alone
    return result
