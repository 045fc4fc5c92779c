"""Times and multiply-accumulates in words."""

_PREFIXES = ((1e15, "peta-MACs"), (1e12, "tera-MACs"), (1e9, "giga-MACs"), (1e6, "mega-MACs"), (1e3, "kilo-MACs"))


def duration(seconds: float) -> str:
    """In the unit that people would use, with two or three digits."""
    if seconds < 90:
        return f"{seconds:.1f} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def macs(number: float) -> str:
    """Multiply-accumulates."""
    scale, unit = next(((scale, unit) for scale, unit in _PREFIXES if number >= scale), (1.0, "MACs"))
    return f"{number / scale:.3g} {unit}"


def size(number: float) -> str:
    """Bytes."""
    scale, unit = next(
        ((scale, unit) for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if number >= scale),
        (1, "bytes"),
    )
    return f"{number / scale:.3g} {unit}"


def spent(seconds: float, samples: int, executed: float, uncached: float) -> str:
    """What a measurement took, as one sentence; MACs are those of the denoiser."""
    drawn = f"{duration(seconds)} for {samples} samples"
    if executed <= 0:
        return f"It took {drawn}."
    share = f", where drawing all of them uncached would have been {macs(uncached)}" if uncached > executed else ""
    return f"It took {drawn}: {macs(executed)} of the denoiser{share}."
