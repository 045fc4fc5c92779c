"""What a profile is worth to a run: a promise, an estimate, or less than that. Sentences of the report."""

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


def too_small_note(use: ProfileUse) -> str:
    """Where a budget is kept by computing everything."""
    how = "" if use.confidence is None else f" with confidence {use.confidence:g}"
    least = f" The smallest that it can is {use.smallest}." if use.smallest else ""
    return f"a budget is smaller than the profile can vouch for{how}: everything was computed there.{least}"
