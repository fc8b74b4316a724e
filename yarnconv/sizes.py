"""Sizes for people."""


def readable_size(count: float, digits: int = 3) -> str:
    """A number of bytes in the largest unit that it fills; more digits where two are to be told apart."""
    rounded = float(f"{count:.{digits}g}")  # first, or what is all but one unit more has four digits
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if rounded >= scale:
            return f"{rounded / scale:.{digits}g} {unit}"
    return f"{count:.0f} bytes"
