"""The commands `tagpr-data annotate`, `discover-tags` and `relabel`: tags for chains, tag sets from chains, a corpus in
another tag set. A thin shell."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tagpr_data.engine_cli import AddressOption, EngineOption, WorkersOption
from tagpr_data.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from tagpr_data.budget import Limits
    from tagpr_data.chat_server import ServerOptions

app = typer.Typer(no_args_is_help=True)

ChainsFile = Annotated[
    Path, typer.Argument(metavar="CHAINS", help="JSON lines or Parquet: id, text[, question, answer, k], or attempts.")
]
BaseUrls = Annotated[list[str] | None, typer.Option("--base-url", help="Server up to /v1; several share the work.")]
ModelName = Annotated[str | None, typer.Option("--model", help="Model as the server knows it.")]
ModelRevision = Annotated[str, typer.Option("--revision", help="Version of the model, for lineage.")]
KeyEnv = Annotated[str, typer.Option("--key-env", help="Environment variable with the server's key.")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Most questions at once to one server.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest reply.")]
MaxSamples = Annotated[int | None, typer.Option("--max-samples", min=0, help="Stop after so many replies in all.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=0, help="Stop after so many tokens in all.")]
MaxCost = Annotated[float | None, typer.Option("--max-cost", min=0, help="Stop at this cost; needs --prices.")]
Prices = Annotated[Path | None, typer.Option("--prices", help="TOML: [MODEL] input, output per million tokens.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides every draw.")]
MaxCharacters = Annotated[int, typer.Option("--max-characters", min=1, help="Longer chains go to the ledger.")]


@app.command("annotate")
def annotate_command(
    chains: ChainsFile,
    output: Annotated[Path, typer.Option(help="Folder to write: annotated.jsonl, rejected.jsonl, manifest.json.")],
    dataset: Annotated[
        Path | None,
        typer.Option(help="Data set whose examples the chains answer (rows with example_id): makes candidates.jsonl."),
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Label by a classifier: a tagged corpus to train it on, or one saved before.")
    ] = None,
    save_classifier: Annotated[Path | None, typer.Option(help="JSON to write the trained classifier to.")] = None,
    base_url: BaseUrls = None,
    model: ModelName = None,
    revision: ModelRevision = "unstated",
    key_env: KeyEnv = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    attempts: Annotated[int, typer.Option(min=1, help="Replies to ask for until one can be used.")] = 2,
    max_new_tokens: MaxNewTokens = 2_000,
    max_samples: MaxSamples = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    prices: Prices = None,
    seed: Seed = 0,
    max_characters: MaxCharacters = 20_000,
    tagset: Annotated[Path | None, typer.Option(help="Tag-set file (TOML); without it tagpr-9.")] = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Put tags around the sentences of untagged chains, without changing a word: by a teacher behind a server
    (--base-url, --model) or by a classifier trained on a tagged corpus (--classifier).

    With --dataset (and for chains that are attempts) candidates.jsonl is what `select` makes a corpus of.
    A chain that cannot be tagged goes to rejected.jsonl with a reason. Killed, the same command goes on. Exit code 1
    where a limit left chains out.
    """
    from tagpr_data.annotate import AnnotatingTeacher, annotate_with_classifier, annotate_with_teacher
    from tagpr_data.chat_server import ChatServer
    from tagpr_data.dataset import Dataset
    from tagpr_data.engine import Engine
    from tagpr_data.records import Sampling
    from tagpr_data.tags import load_tagset

    grammar = load_tagset(tagset)
    place = Engine(engine, workers, address)
    answered = Dataset.load(dataset) if dataset is not None else None
    if (classifier is None) == (not base_url):
        raise InputError("give either --classifier CORPUS or --base-url ADDRESS and --model NAME")
    if classifier is not None:
        from tagpr_data import step_classifier

        trained = (
            step_classifier.load(classifier, grammar)
            if classifier.is_file()
            else step_classifier.train(classifier, grammar)
        )
        if save_classifier is not None:
            trained.save(save_classifier)
        quality = trained.quality
        typer.echo(
            f"classifier: {quality.accuracy:.1%} of {quality.sentences:,} sentences of {quality.users:,} users it did "
            f"not see get their tag (the most frequent tag alone: {quality.majority:.1%})",
            err=True,
        )
        for tag, given in quality.confusion.items():
            typer.echo(f"  {tag:<20} taken for {json.dumps(given, ensure_ascii=False)}", err=True)
        manifest = annotate_with_classifier(chains, output, trained, grammar, place, max_characters, answered)
    else:
        if save_classifier is not None:
            raise InputError("--save-classifier belongs to --classifier")
        options = server_options(base_url or [], model, key_env, concurrency)
        limits, price = budget(options.model, max_samples, max_tokens, max_cost, prices)
        # the first reply greedy, further ones drawn
        temperatures = [0.0, *[0.7] * (attempts - 1)]
        from tagpr_data.progress import meter

        with meter() as watch:
            manifest = annotate_with_teacher(
                chains, output, AnnotatingTeacher(ChatServer(options), revision), grammar, place, max_characters,
                [Sampling(temperature=value, max_new_tokens=max_new_tokens) for value in temperatures], seed,
                options.at_once, limits, price, watch, answered,
            )  # fmt: skip
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.items()) or "none"
    typer.echo(f"{output}: {manifest.annotated:,} chains annotated; rejected: {reasons}")
    if manifest.parameters.get("partial"):
        raise CheckFailed(f"{output} is partial: a limit was reached; the same command with a higher one goes on")


@app.command("discover-tags")
def discover_command(
    sample: ChainsFile,
    output: Annotated[Path, typer.Option(help="Folder to write: tagset.toml to edit, discovery.json with all labels.")],
    base_url: BaseUrls = None,
    model: ModelName = None,
    revision: ModelRevision = "unstated",
    key_env: KeyEnv = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    groups: Annotated[int | None, typer.Option(min=2, help="Number of groups (default: the clearest).")] = None,
    min_share: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of the sentences of a proposed tag.")
    ] = 0.01,
    max_new_tokens: MaxNewTokens = 2_000,
    max_samples: MaxSamples = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    prices: Prices = None,
    seed: Seed = 0,
) -> None:
    """Propose a tag set from a sample of chains: a teacher's own words for each sentence, gathered into groups.

    Edit tagset.toml before use: its tags are what the labels look like, not yet what you want to tell apart.
    """
    from tagpr_data.annotate import AnnotatingTeacher
    from tagpr_data.chat_server import ChatServer
    from tagpr_data.discover import NOT_ASKED, discover_tags
    from tagpr_data.progress import meter
    from tagpr_data.records import Sampling

    if not base_url:
        raise InputError("--base-url is missing: the address of the server of the model that labels")
    options = server_options(base_url, model, key_env, concurrency)
    limits, price = budget(options.model, max_samples, max_tokens, max_cost, prices)
    samplings = [Sampling(temperature=value, max_new_tokens=max_new_tokens) for value in (0.0, 0.7)]
    with meter() as watch:
        found = discover_tags(
            sample, output, AnnotatingTeacher(ChatServer(options), revision), groups=groups, min_share=min_share,
            seed=seed, concurrency=options.at_once, limits=limits, price=price, samplings=samplings, watch=watch,
        )  # fmt: skip
    typer.echo("sentences  chains  place  tag: labels")
    for group in found.groups:
        often = "; ".join(f"{label} ({count})" for label, count in list(group.labels.items())[:4])
        mark = "" if group.is_kept else " (too rare, left out)"
        typer.echo(f"{group.sentences:>9,}  {group.chains:>6,}  {group.place:>5.2f}  {group.name}{mark}: {often}")
    typer.echo(
        f"{output / 'tagset.toml'}: covers {found.coverage:.1%} of {found.sentences:,} sentences of {found.chains:,} "
        f"chains; stability {found.stability:.2f}, silhouette {found.silhouette:.2f}"
    )
    for reason, count in found.unlabelled.items():
        typer.echo(f"{count:,} chains left out: {reason}", err=True)
    if NOT_ASKED in found.unlabelled:
        raise CheckFailed(
            f"{output / 'tagset.toml'} is of a part of the sample: a limit was reached; with a higher one the same "
            "command goes on"
        )


@app.command("relabel")
def relabel_command(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Corpus folder.")],
    tagset: Annotated[Path, typer.Option(help="The new tag set: a TOML file, or the name of a shipped one (tagpr-5).")],
    output: Annotated[Path, typer.Option(help="Corpus folder to write.")],
    names: Annotated[
        list[str] | None, typer.Option("--map", metavar="OLD=NEW", help="Tag → tag; *=NEW takes all others.")
    ] = None,
    old: Annotated[Path | None, typer.Option("--from", help="Tag set of CORPUS, where it is not tagpr-9.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new corpus (default: from CORPUS and tag set).")] = None,
) -> None:
    """Write a corpus in another tag set: tags renamed or merged, every word as it was, every trace checked.

    Tags of both sets keep their name. Example: tagpr-data relabel runs/personas/corpus --tagset tagpr-1 --map '*=step'
    --output runs/personas/corpus-1
    """
    from tagpr_data.corpus import open_corpus
    from tagpr_data.relabel import relabel
    from tagpr_data.tags import load_tagset

    pairs: dict[str, str] = {}
    for text in names or ():
        was, equals, becomes = text.partition("=")
        if not (was and equals and becomes) or was in pairs:
            raise InputError(f"--map {text!r} is not OLD=NEW, or names {was!r} a second time")
        pairs[was] = becomes
    made = relabel(open_corpus(corpus), load_tagset(old), load_tagset(tagset), pairs, output, name)
    typer.echo(
        f"{output}: {made.kept:,} traces in the tag set {made.tagset}; set `tagset` to it where it is trained on"
    )


def server_options(base_urls: list[str], model: str | None, key_env: str, concurrency: int) -> "ServerOptions":
    """Give the options of a server from a command line; InputError when the model is missing."""
    from tagpr_data.chat_server import ServerOptions

    if not model:
        raise InputError("--model is missing: the model's name as the server knows it")
    return ServerOptions(base_url=tuple(base_urls), model=model, key_env=key_env, concurrency=concurrency)


def budget(
    model: str, max_samples: int | None, max_tokens: int | None, max_cost: float | None, prices: Path | None
) -> "tuple[Limits, tuple[float, float]]":
    """Give limits and the model's price from a command line; InputError when a price is needed and not there."""
    from tagpr_data.budget import FREE, Limits, read_prices

    known = read_prices(prices, max_cost)
    if max_cost is not None and model not in known:
        raise InputError(f"{prices} has no price of {model!r}; it has: {', '.join(sorted(known)) or 'none'}")
    return Limits(max_samples, max_tokens, max_cost), known.get(model, FREE)
