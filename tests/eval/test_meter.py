"""What is shown while models answer."""

from tagpr_eval.config import EvaluationConfig
from tagpr_eval.meter import meter
from tagpr_eval.run import Limits, evaluate

NO_LIMITS = Limits()


def _ask_all(prompts, name, answer, output):
    import polars as pl

    answer(pl.read_parquet(sorted(prompts.glob("*.parquet"))[0])["cell", "example_id"].rows())


class Notes:
    """Keeps what it is told."""

    def __init__(self):
        self.started, self.tokens, self.notes = [], [], []

    def start(self, title, total, done):
        self.started.append((title, total, done))

    def advance(self, tokens, note=""):
        self.tokens.append(tokens)
        self.notes.append(note)


def _run(data, server, folder, limits=NO_LIMITS):
    shown = Notes()
    config = EvaluationConfig(
        dataset=str(data), models=("t=openai:tiny", "knn"), k=(0, 1, 2), server={"base_url": server.url}
    )
    evaluate(config, folder, shown, limits, score=_ask_all)
    return shown


def test_cells_and_cost_rise_with_the_answers_and_go_on_where_a_stopped_run_ended(toy_data, server, tmp_path):
    prices = {"t": (1e6, 2e6)}
    part = _run(toy_data, server, tmp_path / "run", Limits(max_samples=20, prices=prices))
    rest = _run(toy_data, server, tmp_path / "run", Limits(prices=prices))
    notes = part.notes + rest.notes
    done = [int(note.split("/")[0]) for note in notes]
    cost = [float(note.split("cost ")[1].split(" ")[0]) for note in notes]
    assert done == sorted(done)
    assert done[0] == 0
    assert notes[-1].startswith("6/6 cells, cost ")  # two tasks, three ks
    assert cost == sorted(cost)
    assert cost[-1] > cost[0] > 0
    assert rest.started == [("t", len(notes), len(part.notes))]
    assert 0 < len(part.notes) <= 20


def test_without_prices_no_cost_is_shown(toy_data, server, tmp_path):
    assert _run(toy_data, server, tmp_path / "run").notes[-1] == "6/6 cells"


def test_the_last_line_says_samples_cells_speed_cost_and_time_left(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with meter() as shown:
        shown.start("m", 3, 1)
        shown.advance(10, "0/1 cells, cost 0.1 so far")
        shown.advance(10, "1/1 cells, cost 0.2 so far")
    line = capsys.readouterr().err
    assert line.startswith("m: 3/3 samples, 1/1 cells, cost 0.2 so far, ")
    assert line.endswith(" tokens/s, 0 s left\n")
