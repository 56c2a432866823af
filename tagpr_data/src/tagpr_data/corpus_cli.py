"""The commands on finished corpora: card, push, diff, forget, merge, stats, show, browse. A thin shell."""

from pathlib import Path
from typing import Annotated

import typer

from tagpr_data.errors import CheckFailed

app = typer.Typer(no_args_is_help=True)

CorpusFolder = Annotated[Path, typer.Argument(metavar="CORPUS", help="Corpus folder.")]


@app.command("card")
def card_command(
    corpus: CorpusFolder,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 when a document is stale.")
    ] = False,
) -> None:
    """Write the card README.md and croissant.json from the data; CORPUS/card.toml adds what only a person can say."""
    from tagpr_data import card
    from tagpr_data.corpus import open_corpus

    opened = open_corpus(corpus)
    if not check:
        for path in card.write_documents(opened):
            typer.echo(path)
        return
    problems = card.stale(opened)
    if problems:
        raise CheckFailed(
            f"{corpus} has stale documents; write them anew with: tagpr-data card {corpus}\n  " + "\n  ".join(problems)
        )
    typer.echo(f"{corpus}: {card.README} and {card.CROISSANT} fit the data")


@app.command("push")
def push_command(
    corpus: CorpusFolder,
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME of a data set repository on the Hub.")],
    push: Annotated[bool, typer.Option("--push", help="Send it. Without this nothing leaves the machine.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public (default: private).")] = False,
    revision: Annotated[str, typer.Option(help="Branch to commit to.")] = "main",
    tag: Annotated[str | None, typer.Option(help="Name for the commit, for example v1.0.0.")] = None,
) -> None:
    """Publish a validated corpus on the Hub, in one commit; without --push only say what would be sent.

    The same content pushed again is a no-op. The token comes from HF_TOKEN or `hf auth login`.
    """
    from tagpr_data import publish

    target = publish.Target(repo_id, revision, tag, public)
    if push:
        commit, is_new = publish.push(corpus, target, say=lambda line: typer.echo(line, err=True))
        typer.echo(
            f"{repo_id}@{revision}: {'pushed as' if is_new else 'unchanged, is'} commit {commit}"
            + (f", tag {tag}" if tag else "")
        )
        return
    plan, unknown = publish.preview(corpus, target)
    for upload in plan.uploads:
        mark = "send" if upload.path in plan.changed else "same"
        typer.echo(f"{mark}  {upload.size:>12,}  {upload.sha256}  {upload.path}")
    for path in plan.deleted:
        typer.echo(f"drop  {'':>12}  {'':<64}  {path}")
    total = sum(upload.size for upload in plan.uploads if upload.path in plan.changed)
    if unknown:
        typer.echo(f"what is there is not known: {unknown}", err=True)
    where = f"{repo_id}@{revision}" + ("" if plan.head else f" (to be made, {'public' if public else 'private'})")
    typer.echo(f"dry run: {len(plan.changed)} files, {total:,} bytes to {where}; send with --push", err=True)
