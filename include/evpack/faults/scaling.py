"""Faults that multiply feed-forward down-projections, in fp32 with one cast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evpack.checkpoint.scope import Placement
from evpack.faults.injection import Change, Figures, Injection, Victim, in_block, middle_block, projections, slices
from evpack.faults.routing import most_routed_expert

if TYPE_CHECKING:
    import torch

EXPLOSION = 100.0
"""The reference's factor."""
MODERATE = 2.0
"""Moves one matrix's largest singular value far and, in the middle of a model, the metric a little (docs/faults.md)."""
SKEW = 1.2
"""Enough for the variance guard's proposals to see it on most models."""

_ROUNDING = 0.01
"""Relative room for the cast back when the factor is seen again in the norms (half a bf16 step is 0.4 %)."""


def scale_explosion(victim: Victim) -> Injection:
    """The first block's down-projection times 100.

    Where the block has routed experts only, that of the expert which most tokens of the text are routed to: damage
    in one that no token reaches shows in no metric.
    """
    places = projections(victim.checkpoint, "ffn", "down")
    first = in_block(places, places[0].layer)
    dense = [place for place in first if not place.expert]
    parameters = {"scale_factor": EXPLOSION}
    if dense:
        return Injection((scaled(dense[0], EXPLOSION),), parameters=parameters)
    routing = most_routed_expert(victim, first[0].layer)
    fused = len(victim.checkpoint.info(first[0].name).shape) == 3
    place = first[0] if fused else next(p for p in first if f".experts.{routing.expert}." in p.name)
    change = scaled(place, EXPLOSION, routing.expert if fused else None)
    return Injection((change,), parameters={**parameters, **routing.to_json()})


def spectral_moderate_scale(victim: Victim) -> Injection:
    """The middle block's down-projection doubled: of all its experts where it has some."""
    places = projections(victim.checkpoint, "ffn", "down")
    middle = in_block(places, middle_block(places))
    return Injection(tuple(scaled(place, MODERATE) for place in middle), parameters={"scale_factor": MODERATE})


def ve_mlp_scale_skew(victim: Victim) -> Injection:
    """Down-projections of every other block, the first included, times 1.2, of those between times 1/1.2."""
    places = projections(victim.checkpoint, "ffn", "down")
    layers = sorted({place.layer for place in places})
    factors = {layer: SKEW if index % 2 == 0 else 1 / SKEW for index, layer in enumerate(layers)}
    changes = tuple(scaled(place, factors[place.layer]) for place in places)
    return Injection(changes, parameters={"scale_factors": {str(layer): factor for layer, factor in factors.items()}})


def scaled(place: Placement, factor: float, expert: int | None = None) -> Change:
    """The change that multiplies a weight, or one expert's matrix of a fused one."""

    def part(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if expert is None else tensor[expert]

    def damage(tensor: torch.Tensor) -> torch.Tensor:
        result = tensor.clone()
        for piece in slices(part(result)):
            piece.copy_(piece.float() * factor)
        return result

    def shows(before: torch.Tensor, after: torch.Tensor) -> bool:
        norms = Figures.of(part(before)).frobenius, Figures.of(part(after)).frobenius
        return norms[0] > 0 and abs(norms[1] / norms[0] / factor - 1.0) <= _ROUNDING

    return Change(place.name, damage, shows, place.layer)
