"""Best of n: what is chosen among several answers, and the run that comes of it."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from tagpr_data.errors import CheckFailed, InputError
from tagpr_data.prmu_client import RemotePRMU
from tagpr_data.records import Prediction, RunManifest, SampledAnswer, Task
from tagpr_data.tables import read_json, read_records, sha256_text
from tagpr_data.tags import TAGSETS
from tagpr_eval import choice
from tagpr_eval.best_of import SampledRun, best_of, score_key, write_requests
from tagpr_eval.cells import load_runs, make_groups
from tagpr_eval.cli import app
from tagpr_eval.config import EvaluationConfig
from tagpr_eval.origins import origin
from tagpr_eval.report_stages import make_stages, stage_tables
from tagpr_eval.run import evaluate

COLOUR = Task(
    name="colour",
    kind="classification",
    labels=("red", "blue", "green"),
    answer_form="a colour",
    item_template="{text}",
)
NOTE = Task(name="note", kind="generation", answer_form="a name", item_template="{text}")
STARS = Task(name="stars", kind="rating", labels=("1", "2", "3", "4", "5"), answer_form="stars", item_template="{text}")
DRAWN = {"temperature": 1.0}


def only_ask(prompts, name, answer, output):
    """Stands in for lighteval: asks for every answer and scores none."""
    import polars as pl

    for file in sorted(prompts.glob("*.parquet")):
        answer(pl.read_parquet(file)["cell", "example_id"].rows())


def test_the_majority_is_the_commonest_label_and_the_first_of_equals():
    assert choice.most_agreed(COLOUR, ["red", "blue", "green", "blue"]) == 1
    assert choice.most_agreed(COLOUR, ["red", "blue"]) == 0
    assert choice.most_agreed(COLOUR, [None, "blue", None, None]) == 1  # no answer is no vote
    assert choice.most_agreed(COLOUR, [None, None]) == 0


def test_the_majority_of_ratings_lies_in_their_middle():
    # sums of |error|: 0+0+4+3 = 7 for 1, 9 for 5, 3+3+1 = 7 for 4: the first of the two least
    assert choice.most_agreed(STARS, ["1", "1", "5", "4"]) == 0
    # with a 3 among them: 9, 11, 8, and 2+2+2+1 = 7 for 3
    assert choice.most_agreed(STARS, ["1", "1", "5", "4", "3"]) == 4


def test_the_majority_of_texts_shares_most_with_the_others():
    assert choice.most_agreed(NOTE, ["a b c", "x y", "a b d"]) == 0
    assert choice.most_agreed(NOTE, ["x y", "a b c d", "a b c", "b c d"]) == 1


def test_the_truest_traces_vote_and_a_broken_one_only_where_all_are():
    answers = ["red", "blue", "blue", "green"]
    assert choice.most_grounded(COLOUR, answers, [(True, 1.0), (True, 0.5), (True, 0.5), (False, 1.0)]) == 0
    assert choice.most_grounded(COLOUR, answers, [(True, 0.5), (True, 0.5), (True, 0.5), (False, 1.0)]) == 1
    assert choice.most_grounded(COLOUR, answers, [(False, 0.0), (False, 0.1), (False, 0.0), (False, 0.1)]) == 1
    assert choice.most_grounded(COLOUR, [None, "blue"], [(True, 1.0), (False, 0.0)]) == 1
    assert choice.most_grounded(COLOUR, [None, None], [(True, 1.0), (True, 1.0)]) == 0


def test_a_score_decides_only_among_completions_with_an_answer():
    assert choice.best_scored(["red", None, "blue"], [0.1, 9.0, 0.2]) == 2
    assert choice.best_scored([None, None], [0.1, 9.0]) == 0
    assert choice.best_scored(["red", "red"], [-1.0, -1.0]) == 0


def test_the_oracle_takes_the_best_by_the_gold():
    assert choice.best_known(STARS, ["1", "4", None], "5") == 1
    assert choice.best_known(STARS, ["2", "1"], None) == 0


@pytest.fixture(scope="module")
def sampled(toy_data, server_class, tmp_path_factory):
    """A run with four answers to each question, and the requests its server got."""
    server = server_class()
    answers = iter(range(10**6))

    def answer(request, body, treatment):
        text = ("red", "blue", "green", "none of them")[int(sha256_text(json.dumps(body))[:4], 16) % 4]
        said = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        said["usage"] = {"prompt_tokens": 7, "completion_tokens": 1 + next(answers) % 3}
        type(server).answer(server, request, body, said)

    server.answer = answer
    folder = tmp_path_factory.mktemp("sampled") / "run"
    settings = EvaluationConfig(
        dataset=str(toy_data), models=("m=openai:tiny", "knn"), retrievers=("bm25", "wrong-user"), k=(0, 4), samples=4,
        sampling=DRAWN, server={"base_url": server.url},
    )  # fmt: skip
    evaluate(settings, folder, score=only_ask)
    yield folder, server.requests
    server.stop()


def test_every_question_is_asked_with_as_many_seeds_as_samples_and_the_first_is_the_prediction(sampled):
    folder, requests = sampled
    rows = read_records(folder / "samples.parquet", SampledAnswer)
    predictions = [row for row in read_records(folder / "predictions.parquet", Prediction) if row.model == "m"]
    assert len(rows) == 4 * len(predictions) == 4 * 2 * 3 * 15  # tasks × (none, bm25, wrong-user) × examples
    firsts = [
        Prediction(**{name: getattr(row, name) for name in Prediction.model_fields}) for row in rows if not row.sample
    ]
    assert firsts == predictions
    seeds = {}
    for _, _, body in requests:
        seeds.setdefault(json.dumps(body["messages"]), []).append(body["seed"])
    assert {len(set(found)) for found in seeds.values()} == {4} == {len(found) for found in seeds.values()}
    assert all(0 in found for found in seeds.values()), "the seed of a run that asks once"


def test_choices_are_models_in_the_cells_they_were_chosen_in(sampled, tmp_path):
    folder, _ = sampled
    opened = SampledRun(folder)
    manifest = best_of(opened, tmp_path / "best", ["majority", "oracle"], [2, 4])
    rows = read_records(tmp_path / "best" / "predictions.parquet", Prediction)
    names = {f"m@best{n}-{rule}" for n in (2, 4) for rule in ("majority", "oracle")}
    assert {row.model for row in rows} == names == set(manifest.results["models"])
    assert len(rows) == 4 * 90
    by_question = {}
    for row in read_records(folder / "samples.parquet", SampledAnswer):
        by_question.setdefault((row.task, row.retriever, row.k, row.example_id), []).append(row)
    for row in rows:
        four = by_question[row.task, row.retriever, row.k, row.example_id]
        n = int(row.model[6])
        drawn = [found.text for found in four[:n]]
        assert row.text in drawn and row.output_tokens == sum(found.output_tokens for found in four[:n])
        if row.task == "colour" and row.model.endswith("oracle"):
            assert (row.text == row.gold) == (row.gold in drawn)
    scores = {(cell["model"], cell["cell"]): cell["metrics"] for cell in manifest.results["cells"]}
    for cell in {cell for _, cell in scores if cell.startswith("colour")}:
        assert scores["m@best4-oracle", cell]["accuracy"] >= scores["m@best4-majority", cell]["accuracy"]
        assert scores["m@best4-oracle", cell]["accuracy"] >= scores["m@best2-oracle", cell]["accuracy"]
    again = best_of(opened, tmp_path / "again", ["majority", "oracle"], [2, 4])
    assert again.results == manifest.results
    assert (tmp_path / "again/predictions.parquet").read_bytes() == (tmp_path / "best/predictions.parquet").read_bytes()
    with pytest.raises(InputError, match="models is"):
        best_of(opened, tmp_path / "best", ["majority"], [4])


FALSE, TRUE, BROKEN, BARE = (
    f"<think>\n<examine_examples>{said}</examine_examples>\n<infer_preference>It is liked.</{tag}>\n</think>\n{answer}"
    for said, tag, answer in (
        ('[P1] is "no such label".', "infer_preference", "red"),  # exists, but the label does not hold: 1 of 2
        ("[P1] was looked at.", "infer_preference", "blue"),
        ("[P1] was looked at.", "examine_examples", "green"),
        ("They were looked at.", "examine_examples", "green"),
    )
)


def test_a_run_is_chosen_from_by_the_truth_of_its_claims(toy_data, server_class, tmp_path):
    server = server_class()

    def answer(request, body, treatment):
        text = (FALSE, TRUE, BROKEN, BARE)[int(sha256_text(json.dumps(body))[:4], 16) % 4]
        type(server).answer(
            server, request, body, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        )

    server.answer = answer
    settings = EvaluationConfig(
        dataset=str(toy_data), tasks=("colour",), models=("m=openai:tiny",), retrievers=("bm25",), k=(0, 2),
        styles=("trace",), samples=3, sampling=DRAWN, server={"base_url": server.url},
    )  # fmt: skip
    evaluate(settings, tmp_path / "run", score=only_ask)
    server.stop()
    best_of(SampledRun(tmp_path / "run"), tmp_path / "best", ["grounded"])
    drawn = {}
    for row in read_records(tmp_path / "run/samples.parquet", SampledAnswer):
        drawn.setdefault((row.example_id, row.k), []).append(row.text)
    chosen = read_records(tmp_path / "best/predictions.parquet", Prediction)
    with_items = [row for row in chosen if row.item_ids]
    assert {row.model for row in chosen} == {"m@best3-grounded"} and len(with_items) > 10
    order = (TRUE, FALSE, BROKEN, BARE)  # by claims that hold: 1, 1/2 of a valid trace; broken ones: 1, none
    assert {row.text for row in with_items} > {TRUE, FALSE}
    for row in with_items:
        assert row.text == min(drawn[row.example_id, row.k], key=order.index)
    (command,) = origin(load_runs([tmp_path / "best"])).commands
    assert command.startswith("tagpr-eval best-of run --by grounded --n=3 --output")


def test_choices_are_judged_by_the_tag_set_of_their_model_and_a_lost_one_is_refused(toy_data, server_class, tmp_path):
    server = server_class()
    own = TRUE.replace("examine_examples", "vorlem").replace("infer_preference", "bindu")
    said = {"choices": [{"message": {"content": own}, "finish_reason": "stop"}]}
    server.answer = lambda request, body, treatment: type(server).answer(server, request, body, said)
    (tmp_path / "own.toml").write_bytes((TAGSETS / "tagpr-9-random.toml").read_bytes())
    settings = EvaluationConfig(
        dataset=str(toy_data), tasks=("colour",), models=("m=openai:tiny",), styles=("trace",), samples=2,
        sampling=DRAWN, server={"base_url": server.url}, per_model={"m": {"tagset": str(tmp_path / "own.toml")}},
    )  # fmt: skip
    evaluate(settings, tmp_path / "run", score=only_ask)
    server.stop()
    best_of(SampledRun(tmp_path / "run"), tmp_path / "best", ["grounded"])
    (group,) = make_groups(load_runs([tmp_path / "best"]))
    shown = [cell for cell in group.cells if cell.k]
    assert shown and all(
        cell.frame.filter(cell.frame["item_ids"].list.len() > 0)["is_valid_trace"].all() for cell in shown
    )
    (tmp_path / "own.toml").unlink()
    with pytest.raises(InputError, match="own"):
        best_of(SampledRun(tmp_path / "run"), tmp_path / "lost", ["grounded"])
    assert not (tmp_path / "lost").exists(), "refused before anything was written"


def test_a_report_reads_choices_as_models_and_the_oracle_as_a_rule(sampled, tmp_path):
    folder, _ = sampled
    best_of(SampledRun(folder), tmp_path / "best", ["majority", "oracle"])
    groups = make_groups(load_runs([folder, tmp_path / "best"]))
    cells = [cell for group in groups for cell in group.cells if group.task.name == "colour"]
    assert {cell.model for cell in cells if not cell.is_baseline} == {"m", "m@best4-majority"}
    assert {cell.rule for cell in cells if cell.is_baseline} == {"knn", "oracle"}
    (stages,) = make_stages([group for group in groups if group.task.name == "colour"], k=4)
    assert [stages.cell(place).model for place in stages.rules] == ["knn", "m@best4-oracle"]
    (table, _) = stage_tables([stages])
    assert "Rules read the whole profile: knn. Upper bounds, which know the gold: m@best4-oracle." in table.note
    commands = origin(load_runs([folder, tmp_path / "best"])).commands
    assert commands[0].startswith("tagpr-eval run --model m=openai:tiny") and "--samples 4" in commands[0]
    assert commands[1].startswith("tagpr-eval best-of run --by majority --by oracle --n=4 --output")
    shown = {cell.setting for cell in cells if cell.model == "m@best4-oracle"}
    assert shown == {"no profile (direct)", "bm25, k = 4 (direct)", "wrong-user, k = 4 (direct)"}


class PretendedPRMU:
    """Speaks the protocol of serve-prmu; likes completions by their hash and by whose items it gets. Counts."""

    def __init__(self, fails_after=math.inf):
        self.groups, self.scored, self.weights = [], 0, "a" * 64
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                limits = {"max_completions": 7, "max_bytes": 1 << 20}
                self.say({"weights": served.weights, "score_mean": 0, "score_std": 1, "limits": limits, "name": "p"})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if served.scored >= fails_after:
                    self.send_error(400, "no more")
                    return
                served.groups += body["requests"]
                scores = [[worth(group, text) for text in group["completions"]] for group in body["requests"]]
                served.scored += sum(map(len, scores))
                self.say({"scores": scores, "standardised": scores, "weights": served.weights})

            def say(self, value):
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


def worth(group, text):
    who = [group.get("user"), [item["item_id"] for item in group["items"]]]
    return int(sha256_text(json.dumps([who, group["prompt"][0]["content"], text]))[:8], 16) / 2**32


@pytest.fixture
def prmu():
    served = PretendedPRMU()
    yield served
    served.stop()


def test_the_prmu_is_told_of_the_person_what_the_cell_shows(sampled, prmu, tmp_path):
    folder, _ = sampled
    opened = SampledRun(folder)
    best_of(opened, tmp_path / "best", ["prmu"], prmu=RemotePRMU(prmu.url))
    wanted = {request.key: request for request in opened.requests()}
    assert prmu.scored == len(wanted) < 360, "equal completions for one person are scored once"
    users = {group.get("user") for group in prmu.groups}
    assert None in users and len(users) > 3
    for group in prmu.groups:
        assert "Past items" not in group["prompt"][0]["content"]
        owner = group.get("user")
        assert (owner is None) <= (group["items"] == [])
        assert all(item["profile_id"] == f"p{owner[1:]}" for item in group["items"])
    chosen = read_records(tmp_path / "best/predictions.parquet", Prediction)
    lent = [row for row in chosen if row.retriever == "wrong-user" and row.profile_size]
    assert any(row.profile_id != f"p{row.user_id[1:]}" for row in lent)
    by_question = {}
    for row in read_records(folder / "samples.parquet", SampledAnswer):
        by_question.setdefault((row.task, row.retriever, row.example_id), []).append(row)
    for row in chosen:
        four = by_question[row.task, row.retriever, row.example_id]
        readable = [one for one in four if row.task == "note" or one.text != "none of them"] or four[:1]
        scores = [worth(json.loads(wanted[score_key(one)].as_json()), one.text) for one in readable]
        assert row.text == readable[scores.index(max(scores))].text


def test_a_file_of_scores_chooses_as_the_server_does_and_a_gap_is_named(sampled, prmu, tmp_path):
    folder, _ = sampled
    opened = SampledRun(folder)
    count = write_requests(opened, tmp_path / "requests.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert len(lines) == count
    scored = [json.dumps(line | {"score": worth(line, line["completion"]), "standardised": 0.0}) for line in lines]
    (tmp_path / "scores.jsonl").write_text("\n".join(scored) + "\n")
    best_of(opened, tmp_path / "file", ["prmu"], scores=tmp_path / "scores.jsonl")
    best_of(opened, tmp_path / "served", ["prmu"], prmu=RemotePRMU(prmu.url))
    assert (tmp_path / "file/predictions.parquet").read_bytes() == (
        tmp_path / "served/predictions.parquet"
    ).read_bytes()
    for name, scorer in (("file", "--scores FILE"), ("served", "--prmu URL")):
        (command,) = origin(load_runs([tmp_path / name])).commands
        assert command.startswith(f"tagpr-eval best-of run --by prmu --n=4 {scorer} --output ")
    (tmp_path / "gap.jsonl").write_text("\n".join(scored[1:]))
    with pytest.raises(InputError, match=f"lacks the scores of 1 of {count} completions"):
        best_of(opened, tmp_path / "gap", ["prmu"], scores=tmp_path / "gap.jsonl")
    (tmp_path / "bad.jsonl").write_text(scored[0] + '\n{"key": "x", "score": NaN}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl, line 2: score"):
        best_of(opened, tmp_path / "bad", ["prmu"], scores=tmp_path / "bad.jsonl")


def test_what_was_scored_before_a_failure_is_not_scored_again(sampled, prmu, tmp_path):
    folder, _ = sampled
    opened = SampledRun(folder)
    best_of(opened, tmp_path / "whole", ["prmu"], prmu=RemotePRMU(prmu.url))
    failing = PretendedPRMU(fails_after=100)
    try:
        with pytest.raises(InputError, match="refused POST /score"):
            best_of(opened, tmp_path / "broken", ["prmu"], prmu=RemotePRMU(failing.url))
    finally:
        failing.stop()
    assert read_json(tmp_path / "broken/run.json", RunManifest).status == "running"
    kept = len((tmp_path / "broken/scores.jsonl").read_text().splitlines())
    before = prmu.scored
    best_of(opened, tmp_path / "broken", ["prmu"], prmu=RemotePRMU(prmu.url))
    assert prmu.scored - before == before - kept
    names = ("predictions.parquet", "run.json")
    assert [(tmp_path / "broken" / name).read_bytes() for name in names] == [
        (tmp_path / "whole" / name).read_bytes() for name in names
    ]
    prmu.weights = "b" * 64
    with pytest.raises(InputError, match=r"best_of is .* there and"):
        best_of(opened, tmp_path / "broken", ["prmu"], prmu=RemotePRMU(prmu.url))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 2}, "samples = 2 at temperature 0 are 2 times the same"),
        ({"samples": 2, "sampling": DRAWN, "protocols": ("generation", "log-likelihood")}, "gives one answer"),
        ({"samples": 0}, "samples"),
    ],
)
def test_samples_that_cannot_differ_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(dataset="d", models=("knn",), **settings)


def test_the_command_says_what_is_missing(sampled, toy_data, tmp_path):
    folder, _ = sampled

    def call(*options):
        return CliRunner().invoke(app, ["best-of", *map(str, options)])

    done = call(folder, "--by", "majority", "--by", "oracle", "--n", 3, "--output", tmp_path / "best")
    assert done.exit_code == 0 and "m@best3-oracle" in done.stdout
    for options, message in (
        ((folder, "--by", "prmu", "--output", tmp_path / "x"), "give either --prmu http"),
        ((folder, "--n", 5, "--output", tmp_path / "x"), "has 4 samples to a question"),
        (
            (folder, "--by", "vote", "--output", tmp_path / "x"),
            "'vote' is unknown; known: majority, grounded, prmu, oracle",
        ),
        ((folder, "--by", "grounded", "--output", tmp_path / "x"), "m was asked in style 'direct'"),
        ((folder,), "--output is missing"),
        ((tmp_path / "best", "--output", tmp_path / "x"), "one answer to each question"),
        ((folder, "--output", toy_data), "is no run folder and not empty"),
    ):
        result = call(*options)
        assert isinstance(result.exception, InputError) and message in str(result.exception), options
    running = read_json(folder / "run.json", RunManifest).model_copy(update={"status": "running"})
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/run.json").write_text(running.model_dump_json())
    assert isinstance(call(tmp_path / "unfinished", "--output", tmp_path / "x").exception, CheckFailed)
    rerun = CliRunner().invoke(app, ["rerun", str(tmp_path / "best")])
    assert "is a choice among answers" in str(rerun.exception)
