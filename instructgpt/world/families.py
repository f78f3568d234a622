"""All families of the world, in the order in which reports list them."""

from __future__ import annotations

from instructgpt.world import classification, dialogue, formatting, numbers, reading, reasoning, rewriting, translation
from instructgpt.world.core import Family

FAMILIES: tuple[Family, ...] = (
    *translation.FAMILIES,
    *classification.FAMILIES,
    *reading.FAMILIES,
    *reasoning.FAMILIES,
    *numbers.FAMILIES,
    *rewriting.FAMILIES,
    *formatting.FAMILIES,
    *dialogue.FAMILIES,
)

BY_NAME: dict[str, Family] = {family.name: family for family in FAMILIES}
