"""Where a figure of energy comes from, in words: it says what was measured, what estimated, and what not counted."""

from core.transfer.cost import WATTS_PER_CORE, Cost

ENERGY = "energy_wh"
SOURCES = {
    "nvml": "measured on the first GPU (NVML), its CPU not counted",
    "rapl": "measured on the CPU package (RAPL)",
    "estimate": f"estimated as CPU seconds times {WATTS_PER_CORE:g} W a core",
}
NO_GPU = "the GPU not counted; nvidia-ml-py (extra gpu) lets it be measured"


def counted(cost: Cost, device: str) -> str:
    """The origin of ``cost.energy_wh``.

    Args:
        device: type of the device that the model ran on, such as "cpu" or "cuda".
    """
    left_out = f", {NO_GPU}" if device == "cuda" and cost.energy_source != "nvml" else ""
    return SOURCES[cost.energy_source] + left_out
