"""Settings of a run that only some choices of others have: those of a variant, of an embedding, of
a head and of a schedule.

A setting that several of these tables name needs a fitting choice in each: order is of a dt that
learns its embeddings.
"""

from typing import Any

from .variants import VARIANTS

OF_LEARNED = {"embed_scale": 1.0, "detach_target": False, "order": "paper"}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "variant": {name: variant.defaults for name, variant in VARIANTS.items()},
    "embedding": {
        "one-hot": {},
        "learned": {"embed_dim": 20, "embed_init": "orthogonal", **OF_LEARNED},
        "prototype": OF_LEARNED,
    },
    "head": {"none": {}, "paper": {}, "softmax": {}, "radial": {"head_sigma": 1.0}},
    "schedule": {"linear": {}, "learned": {"gamma_hidden": 1024}},
}
OWN = tuple(
    dict.fromkeys(
        name for table in TABLES.values() for defaults in table.values() for name in defaults
    )
)


def owners(option: str, name: str) -> list[str]:
    """The values of an option of TABLES that have a setting; empty where it is not of its table."""
    return [value for value, defaults in TABLES[option].items() if name in defaults]


def missing(name: str, chosen: dict[str, Any]) -> str | None:
    """Which choice a setting needs beside those made, or None.

    Args:
        chosen: the values of the options of TABLES; None of one that the variant has not.
    """
    for option in TABLES:
        able = owners(option, name)
        if able and chosen[option] not in able:
            got = "" if chosen[option] is None else f", not {chosen[option]}"
            return f"only {option} {' and '.join(able)} has it{got}"
    return None


def defaults(chosen: dict[str, Any]) -> dict[str, Any]:
    """All of OWN: the defaults of the choices made, and None for what they have not."""
    values = dict.fromkeys(OWN)
    for option, table in TABLES.items():
        values |= table.get(chosen[option], {})
    return {name: None if missing(name, chosen) else value for name, value in values.items()}


def needs_head(embedding: str, schedule: str | None) -> bool:
    """Whether something is learned that an output head's loss teaches."""
    return embedding != "one-hot" or schedule == "learned"


def no_units(variant: str, embedding: str, several_seeds: bool) -> str | None:
    """Why the units of a run of these choices cannot be trained apart, or None."""
    if variant != "dt":
        return f"{variant} has one block of all t: there is nothing to train apart"
    if embedding != "one-hot":
        return f"embeddings that are {embedding} learn from all blocks, which need each other"
    if several_seeds:
        return "several seeds are trained at once: run each with --seed"
    return None


def one_seed(embedding: str, schedule: str | None) -> str | None:
    """Why a run of these choices has one seed, or None."""
    if embedding != "one-hot":
        return (
            f"embeddings that are {embedding} learn from the blocks of one model, and are trained "
            "for one seed at a time"
        )
    if schedule == "learned":
        return (
            "a schedule that is learned takes each step on one batch, where several seeds have "
            "orders of rows of their own, and is trained for one seed at a time"
        )
    return None
