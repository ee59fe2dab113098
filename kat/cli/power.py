"""`kat power`: what a comparison could see, before it is run."""

from pathlib import Path
from typing import Annotated

import typer

from kat.errors import UsageError


def power(
    items: Annotated[int | None, typer.Option(min=1, help="Which difference could so many items show?")] = None,
    difference: Annotated[
        float | None, typer.Option(help="A true difference, as a share (.03 is three points): what does it need?")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="Items to show 'not worse by this share'.")] = None,
    discordant: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of items that exactly one of the two models has right.")
    ] = 0.2,
    design_effect: Annotated[
        float, typer.Option(min=1.0, help="Above 1 where items share lectures or passages; an audit prints it.")
    ] = 1.0,
    seeds: Annotated[int | None, typer.Option(min=2, help="Training seeds a side.")] = None,
    seed_sd: Annotated[
        float | None, typer.Option(min=0.0, help="Standard deviation of the score over seeds; kat noise measures it.")
    ] = None,
    wanted: Annotated[
        float, typer.Option("--power", min=0.01, max=0.999, help="Chance of finding what is there.")
    ] = 0.8,
    picture: Annotated[Path | None, typer.Option(help="Write the table and a picture of it as one html page.")] = None,
) -> None:
    """Items for a difference or a margin, the smallest difference that so many items or seeds can show."""
    from kat.audit import power_page, words
    from kat.stats import power as stats

    lines = []
    if seeds is not None and seed_sd is None:
        raise UsageError("kat power --seeds needs --seed-sd, the noise between seeds; kat noise RECIPE measures it")
    if items is not None:
        found = stats.mde_paired(items, discordant, wanted, design_effect=design_effect)
        lines.append(power_page.items_sentence(items, discordant, design_effect, wanted, found))
    if difference is not None and seed_sd is None:
        n = stats.n_for_difference(difference, discordant, wanted, design_effect=design_effect)
        size, needed = words.size_in_points(difference), words.count(n, "item")
        lines.append(f"A difference of {size} is found {wanted:.0%} of the time from {needed}.")
    if margin is not None:
        n = stats.n_for_margin(margin, discordant, wanted, design_effect=design_effect)
        size, needed = words.size_in_points(margin), words.count(n, "item")
        lines.append(
            f"'Not worse by {size}' is shown {wanted:.0%} of the time from {needed}, where the two models are equally "
            "good."
        )
    if seed_sd is not None:
        lines += power_page.seed_sentences(seeds, difference, seed_sd, wanted)
    if not lines:
        lines = power_page.table_text(wanted, design_effect)
    for line in lines:
        typer.echo(line)
    if picture is not None:
        from kat.runs.files import write_text

        write_text(picture, power_page.page(wanted, design_effect))
        typer.echo(str(picture))
