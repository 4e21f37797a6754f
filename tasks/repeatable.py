"""Under which condition a report's rows come again, stated in every report."""


def repeatable() -> dict[str, str]:
    """A fact of a report: torch adds in another order on another number of threads, so trained weights may differ."""
    import torch

    threads = torch.get_num_threads()
    return {
        "same rows again": f"with the same seed, versions and kind of hardware and {threads} torch "
        f"thread{'s' if threads > 1 else ''} (OMP_NUM_THREADS); torch does not promise trained weights that are equal "
        "to the bit on another number"
    }
