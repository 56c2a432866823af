"""The commands on finished corpora: card, push, diff, forget, merge, stats, show, browse. A thin shell."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tagpr_data.errors import CheckFailed, InputError

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
    publish.run(publish.collect(corpus), target, push, typer.echo, lambda line: typer.echo(line, err=True))


@app.command("diff")
def diff_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Corpus folder, the earlier one.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Corpus folder, the later one.")],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="For release notes (this is the default).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the permutation test.")] = 0,
) -> None:
    """Say what changed from corpus A to corpus B: rows by id and field, examples, tags with a test, schema."""
    from tagpr_data import diff
    from tagpr_data.corpus import open_corpus

    if as_markdown and as_json:
        raise InputError("--markdown and --json exclude each other")
    difference = diff.compare(open_corpus(a), open_corpus(b), seed)
    typer.echo(difference.as_json() if as_json else diff.markdown(difference), nl=False)


@app.command("forget")
def forget_command(
    corpus: CorpusFolder,
    user: Annotated[str, typer.Option(help="Id of the user, as in the column user_id; with --user-map their own id.")],
    output: Annotated[Path | None, typer.Option(help="Corpus folder to write.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="JSON to write (default: OUTPUT.certificate.json).")] = None,
    drop_mentions: Annotated[
        bool, typer.Option("--drop-mentions", help="Also drop others' rows with their name or texts.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 when CORPUS names the user.")
    ] = False,
    user_map: Annotated[
        Path | None, typer.Option(help="The CSV that construct events --user-map wrote: USER is who they really are.")
    ] = None,
) -> None:
    """Write a corpus without one user, and a certificate that no file of it holds an id or a text of theirs.

    Where another user's row names them or shows what only they wrote (as a question which of two texts is whose),
    nothing is written unless --drop-mentions says that such rows go too."""
    from tagpr_data import forget
    from tagpr_data.corpus import open_corpus

    if not user:
        raise InputError("--user is empty; give the id of a user")
    known_as = [user] if user_map is not None else []
    if user_map is not None:
        from tagpr_data.pseudonyms import pseudonym_of

        user = pseudonym_of(user_map, user)
    if check:
        typer.echo(f"{corpus}: the user is in none of {forget.check_gone(corpus, user, known_as)} files")
        return
    if output is None:
        raise InputError("--output is missing: the folder for the corpus without the user")
    manifest, proof = forget.forget(open_corpus(corpus), user, output, drop_mentions, known_as)
    path = certificate or output.with_name(f"{output.name}.certificate.json")
    forget.write_certificate(path, proof)
    typer.echo(f"{output}: {manifest.kept:,} traces, {manifest.candidates - manifest.kept:,} rejected; proof in {path}")
    typer.echo("not covered: the data set it came from, working files, and what was published before", err=True)


@app.command("merge")
def merge_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Corpus folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Corpus folder.")],
    output: Annotated[Path, typer.Option(help="Corpus folder to write.")],
    name: Annotated[str | None, typer.Option(help="Name of the new corpus (default: from A and B).")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence, where those of A and B differ.")] = None,
) -> None:
    """Write the corpus of all rows of A and B; equal rows come once, contradictions are refused."""
    from tagpr_data.corpus import open_corpus
    from tagpr_data.merge import merge

    manifest = merge(open_corpus(a), open_corpus(b), output, name, licence)
    typer.echo(f"{output}: {manifest.kept:,} traces, {manifest.candidates - manifest.kept:,} rejected")


@app.command("stats")
def stats_command(
    corpus: CorpusFolder,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """Count what is in a corpus: sizes, lengths, tags, acceptance, tokens and cost by attempt, reasons, pairs."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tagpr_data.corpus import open_corpus
    from tagpr_data.stats import statistics

    numbers = statistics(open_corpus(corpus))
    if as_json:
        typer.echo(numbers.as_json(), nl=False)
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    for title, rows in vars(numbers).items():
        if not rows:
            continue
        table = Table(title=title, title_justify="left", box=None, header_style="dim")
        for column, value in rows[0].items():
            table.add_column(column.replace("_", " "), justify="left" if isinstance(value, str) else "right")
        for row in rows:
            table.add_row(*(escape(_cell(value)) for value in row.values()))
        console.print(table, "")


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.6g}" if isinstance(value, float) else str(value or "–")


@app.command("show")
def show_command(
    corpus: CorpusFolder,
    row: Annotated[str, typer.Argument(metavar="ID", help="A row's id or its beginning, or an example's id.")],
    tagset: Annotated[Path | None, typer.Option(help="Tag-set file, where it is not the shipped one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The row as JSON.")] = False,
) -> None:
    """Show one trace, rejected candidate or preference pair, steps in colour."""
    from rich.console import Console

    from tagpr_data import show
    from tagpr_data.corpus import open_corpus
    from tagpr_data.tags import load_tagset

    split, found = show.find(open_corpus(corpus, verify=False), row)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(show.render(split, found, load_tagset(tagset)))


@app.command("browse")
def browse_command(
    corpus: CorpusFolder,
    output: Annotated[Path, typer.Option(help="HTML file to write.")],
    max_rows: Annotated[int, typer.Option(min=1, help="Most rows on the page; examples are drawn by hash.")] = 5_000,
) -> None:
    """Write the corpus as one HTML page with filters and keys, to read in any browser, offline."""
    from tagpr_data.browse import write_page
    from tagpr_data.corpus import open_corpus

    rows = write_page(open_corpus(corpus), output, max_rows)
    typer.echo(f"{output}: {rows:,} rows")
