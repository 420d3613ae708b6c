"""Activations that are made again on the way back instead of kept.

What a convolution puts out is kept for the derivative of the normalisation that follows. What goes into the next
convolution is cheap to make again from it: a feature map travels together with the recipe for that, and whoever needs
the map on the way back keeps the recipe in its place. This halves the memory for training (Chen et al. 2016,
"Training deep nets with sublinear memory cost", arXiv:1604.06174).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

Recipe = Callable[[], Tensor]


class Activation(NamedTuple):
    """A feature map and, where it is not to be kept for the way back, how to make it again in new memory."""

    values: Tensor
    recipe: Recipe | None = None

    def then(self, step: Callable[[Tensor], Tensor]) -> "Activation":
        """Return the map after a step that costs little and that its derivative does not need the map for."""
        values, recipe = step(self.values), self.recipe
        return Activation(values, None if recipe is None else lambda: step(recipe()))


def save(ctx, maps: Sequence[Tensor], recipes: Sequence[Recipe | None], *others: Tensor) -> None:
    """Keep, in the context of an autograd function, what :func:`restore` gives back; of each map its recipe if it has one."""
    ctx.recipes = tuple(recipes)
    ctx.save_for_backward(*[x for x, recipe in zip(maps, recipes, strict=True) if recipe is None], *others)


def restore(ctx) -> tuple[list[Tensor], list[bool], list[Tensor]]:
    """Return the maps, which of them were made again and are of use to nobody else, and the other tensors; once only.

    Raises
    ------
    RuntimeError
        If asked again: by then a map may have been overwritten by its gradient.
    """
    if ctx.recipes is None:
        raise RuntimeError("the gradient was taken before, and its memory was that of the activation")
    saved, again = list(ctx.saved_tensors), [recipe is not None for recipe in ctx.recipes]
    maps = [saved.pop(0) if recipe is None else recipe() for recipe in ctx.recipes]
    if any(again):
        ctx.recipes = None  # else they would hold their tensors as long as the graph lasts
    return maps, again, saved
