"""The two modalities, in the one order that all code keeps: where rows of both mix, even ones are RGB, odd depth."""

MODALITIES: tuple[str, str] = ("rgb", "depth")
BOTH = "both"


def other(modality: str) -> str:
    """The other modality."""
    return MODALITIES[1 - MODALITIES.index(modality)]
