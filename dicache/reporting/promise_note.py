"""What a profile is worth to a run: a promise, an estimate, or less than that. One sentence of the report."""

from dicache.controllers.base import ProfileUse
from dicache.promise.learn_then_test import CERTAINTY


def fits(use: ProfileUse) -> bool:
    """Whether the run is one that the profile was tested for."""
    return use.kind != "nearest" and use.same_conditions


def promise_note(use: ProfileUse) -> str:
    if use.kind == "nearest":
        return f"nothing is promised: profile='nearest' moved a profile to this run ({use.name})."
    if not use.same_conditions:
        return (
            "nothing is promised, and errors may be several times what is estimated: the profile "
            f"{use.name} was tested with another negative prompt."
        )
    if use.confidence is None:
        return f"the error is estimated by the profile {use.name}; nothing is promised without confidence=..."
    return (
        f"promised with confidence {use.confidence:g} by the profile {use.name}, for prompts like the {use.prompts} it "
        f"was tested on; it holds for {CERTAINTY:.0%} of such calibrations."
    )
