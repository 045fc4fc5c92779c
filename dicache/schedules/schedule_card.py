"""The model card of a schedule, or of several: what it is of, what it costs and loses, how it was found."""

from collections.abc import Sequence

from dicache.files.card import Card, table
from dicache.schedules.action_table import lines_of, macs
from dicache.schedules.schedule_file import Content

REPOSITORY = "USER/REPOSITORY"


def schedule_card(content: Content, work: float, prompts: str | None) -> Card:
    """Of one that executes this share of the uncached work; `prompts` says in words what the prompts were."""
    steps, sites = content.basis.shape
    lines = lines_of(content.table)
    return Card(
        title=f"Schedule of {_model(content)}, {steps} steps: {1 / work:.2f}x less computed",
        lead=(
            "Which steps are computed and which are filled in, found with dicache for this very model, scheduler and "
            "number of steps."
        ),
        usage=(
            "import dicache\n\n"
            f'with dicache.enable(pipe, schedule="{REPOSITORY}"):\n'
            f"    pipe(prompt, num_inference_steps={steps})"
        ),
        facts={
            **_setting(content),
            "work": f"{work:.1%} of the uncached multiply-accumulates of the denoiser, {1 / work:.2f}x less",
            "error of the final latent": f"{_error(content)} (relative L2, the mean over {content.origin.prompts} "
            "prompts)",
            **({} if content.score is None else {"score that it was found by": f"{content.score:.4f}"}),
            "fitted coefficients": _coefficients([content]),
        },
        sections=[
            ("Its actions", "```\n" + ("".join(lines) if sites == 1 else "\n".join(lines)) + "\n```"),
            ("How it was found", table(("what", "which"), _origin(content, prompts))),
        ],
    )


def set_card(contents: Sequence[Content], prompts: str | None) -> Card:
    """Of several, from much work to little."""
    first, steps = contents[0], contents[0].basis.shape[0]
    works = [_work(content) for content in contents]
    return Card(
        title=f"{len(contents)} schedules of {_model(first)}, {steps} steps: {1 / works[0]:.2f}x to "
        f"{1 / works[-1]:.2f}x less computed",
        lead=(
            "Which steps are computed and which are filled in, from much work to little, found with dicache for this "
            "very model, scheduler and number of steps."
        ),
        usage=(
            "import dicache\n\n"
            f'schedules = dicache.ParetoSet.load("{REPOSITORY}")\n'
            f"with dicache.enable(pipe, schedule=schedules.at(cost={works[-1] + 0.005:.2f})):  # or .within(error)\n"
            f"    pipe(prompt, num_inference_steps={steps})"
        ),
        facts={**_setting(first), "fitted coefficients": _coefficients(contents)},
        sections=[
            (
                "What they cost and lose",
                "Work is a share of the uncached multiply-accumulates of the denoiser; errors are those of the final "
                "latent, relative L2, the mean over the prompts that they were found on.\n\n" + _table(contents, works),
            ),
            ("How they were found", table(("what", "which"), _origin(first, prompts))),
        ],
    )


def _table(contents: Sequence[Content], works: Sequence[float]) -> str:
    """With a column of scores where they were found by an objective."""
    rows, scored = [], any(content.score is not None for content in contents)
    for content, work in zip(contents, works, strict=True):
        score = "not measured" if content.score is None else f"{content.score:.4f}"
        rows.append(
            (f"{work:.3f}", f"{1 / work:.2f}x", _error(content), *([score] if scored else []), _actions(content))
        )
    return table(("work", "less computed", "error", *(["score"] if scored else []), "actions"), rows)


def _actions(content: Content) -> str:
    sites = content.basis.shape[1]
    return f"`{''.join(lines_of(content.table))}`" if sites == 1 else f"{sites} sites"


def _work(content: Content) -> float:
    """Executed over uncached."""
    return float(macs(content.table, content.basis.costs)) / content.basis.uncached


def _model(content: Content) -> str:
    return content.basis.model.split("-")[0]


def _error(content: Content) -> str:
    return "not measured" if content.error is None else f"{content.error:.4f}"


def _coefficients(contents: Sequence[Content]) -> str:
    return "none" if all(content.fitted is None for content in contents) else "beside it, for the cells marked *"


def _setting(content: Content) -> dict[str, str]:
    basis = content.basis
    steps, sites = basis.shape
    return {
        "model": basis.model,
        "scheduler": basis.scheduler,
        "steps": f"{steps}, sigmas from {basis.sigmas[0]:.4g} to {basis.sigmas[-1]:.4g}",
        "decided on its own": f"{sites} sites, {basis.selector.get('name', '')}".rstrip(", "),
    }


def _origin(content: Content, prompts: str | None) -> list[tuple[str, str]]:
    origin = content.origin
    words = [] if prompts is None else [("prompts were", prompts)]
    arguments = [(name, str(value)) for name, value in origin.arguments.items()]
    counted = [("prompts", str(origin.prompts)), ("SHA-256 of them", origin.digest), ("seed", str(origin.seed))]
    return [("finder", origin.finder), *arguments, *words, *counted, ("version of dicache", origin.version)]
