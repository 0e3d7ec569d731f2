"""Which prompts a job gets, and a check that calibration and evaluation share none."""


def refuse_overlap(calibration: list[str], evaluation: list[str]) -> None:
    """Raise a ValueError that names a prompt in both lists, if there is one."""
    both = set(calibration) & set(evaluation)
    if both:
        raise ValueError(
            f"{len(both)} calibration prompts are evaluation prompts too, for instance "
            f"{min(both)!r}: calibration must never see evaluation prompts; remove them from one"
        )


def shard_indices(count: int, shard: int, shards: int) -> range:
    """Return the prompt indices of one shard: contiguous, sizes differing by one at most.

    Raises:
        ValueError: the shard does not exist, or some shard would be empty.
    """
    if shards > count:
        raise ValueError(f"{shards} shards for {count} prompts: take at most one shard a prompt")
    if not 0 <= shard < shards:
        raise ValueError(f"shard {shard} is not one of the {shards} shards 0 to {shards - 1}")
    return range(count * shard // shards, count * (shard + 1) // shards)
