"""The report in a real browser: paint, keyboard, filters, hostile text. Skipped where there is no chromium."""

import pytest

from tagpr_data.tags import load_tagset
from tagpr_eval import browser, cells, report

from . import report_fixture as fixture
from .chromium import Chromium, find

pytestmark = pytest.mark.skipif(find() is None, reason="no chromium on this machine")

SELECTED = "document.querySelector('.sample[aria-selected=true] span').textContent"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    dataset = fixture.make_dataset(folder / "data")
    run = fixture.make_run(folder / "run", dataset)
    groups = cells.make_groups(cells.load_runs([run]))
    shown = [
        browser.Shown(group.task, cell.model, cell.setting, cell.frame, cell.evidence)
        for group in groups
        for cell in group.cells
    ]
    return browser.sample_data(shown, load_tagset().names, 10_000)


@pytest.fixture(scope="module")
def page(samples, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.html(report.Report("Samples", (), (), samples)), "utf-8")
    with Chromium() as tab:
        tab.open(path)
        tab.value("document.getElementById('samples').scrollIntoView()")
        yield tab


def choose(tab, **filters):
    """Set filters as a person does; all others are cleared."""
    for name in ("task", "model", "setting", "score", "tag", "flag", "other", "text"):
        value = filters.get(name, "" if name == "text" else "all")
        tab.value(f"document.getElementById('f-{name}').value = {value!r}")
    tab.value("document.getElementById('f-task').dispatchEvent(new Event('change'))")
    if "other" in filters:
        tab.value(f"document.getElementById('f-other').value = {filters['other']!r}")
    tab.value("document.getElementById('f-model').dispatchEvent(new Event('change'))")
    return int(tab.value(COUNT).split()[0].replace(",", ""))


def test_ten_thousand_samples_paint_within_two_seconds_and_do_not_freeze(samples, tmp_path):
    filler = " and then some more words about the user" * 30
    place = samples["fields"].index("text")
    many = [[*row[:place], row[place] + filler, *row[place + 1 :]] for row in samples["samples"] * 4][:10_000]
    path = tmp_path / "large.html"
    path.write_text(report.html(report.Report("Many", (), (), samples | {"samples": many, "total": 10_000})), "utf-8")
    assert path.stat().st_size > 12_000_000
    with Chromium() as tab:
        paint, ready = tab.open(path)
        assert paint < 2
        assert ready < 10
        assert tab.value("document.querySelectorAll('.sample').length") < 60
        move = "(() => { const t = performance.now(); for (let i = 0; i < 100; i += 1) document.dispatchEvent("
        move += "new KeyboardEvent('keydown', { key: 'j' })); return (performance.now() - t) / 100; })()"
        assert tab.value(move) < 50  # milliseconds a key
        search = "(() => { const t = performance.now(); document.getElementById('f-text').value = 'glyph'; "
        search += (
            "document.getElementById('f-model').dispatchEvent(new Event('change')); return performance.now() - t; })()"
        )
        assert tab.value(search) < 2000


def test_hostile_text_is_shown_as_text_and_does_nothing(page):
    assert choose(page, text="owned") > 0
    shown = page.value("document.getElementById('detail').textContent")
    assert "</script><script>document.title='owned'</script>" in shown
    assert page.value("document.querySelectorAll('#samples script, #samples img').length") == 0
    assert page.value("document.title") == "Samples"
    assert page.value("typeof window.owned") == "undefined"


def test_the_keyboard_moves_searches_compares_and_swaps(page, samples):
    choose(page, task="component", model="tuned")
    first = page.value(SELECTED)
    page.press("j", "j")
    third = page.value(SELECTED)
    page.press("k")
    assert len({first, third, page.value(SELECTED)}) == 3
    page.press("c")
    assert page.value("document.querySelectorAll('.side').length") == 2
    sides = page.value("[...document.querySelectorAll('.side')].map(s => s.textContent)")
    page.press("x")
    assert page.value("[...document.querySelectorAll('.side')].map(s => s.textContent)") == sides[::-1]
    page.press("/")
    assert page.value("document.activeElement.id") == "f-text"
    page.press("j", "j")
    assert page.value("document.getElementById('f-text').value") == "jj"
    page.press("Escape")
    assert page.value("document.activeElement.id") != "f-text"


def test_the_list_itself_takes_arrows_pages_and_ends(page):
    total = choose(page)
    page.value("document.getElementById('list').focus()")
    page.press("End")
    assert page.value("document.querySelector('.sample[aria-selected=true]').dataset.place") == str(total - 1)
    page.press("Home", "ArrowDown", "PageDown", "PageUp")
    assert page.value("document.querySelector('.sample[aria-selected=true]').dataset.place") == "1"
    assert page.value("document.getElementById('list').getAttribute('aria-activedescendant')") == "row-1"


def test_filters_show_exactly_the_samples_that_pass(page, samples):
    at = {name: place for place, name in enumerate(samples["fields"])}
    rows = samples["samples"]

    def cell(row):
        return samples["cells"][row[at["cell"]]]

    tag = samples["tags"].index("examine_examples")
    expected = {
        "task": sum(cell(row)["task"] == "stars" for row in rows),
        "model": sum(cell(row)["model"] == "tuned" for row in rows),
        "score": sum(row[at["parsed"]] == 1 for row in rows),
        "tag": sum(tag in row[at["tags"]] for row in rows),
        "flag": sum(row[at["valid"]] is False for row in rows),
    }
    chosen = {"task": "stars", "model": "tuned", "score": "1", "tag": str(tag), "flag": "invalid"}
    for name, value in chosen.items():
        assert choose(page, **{name: value}) == expected[name] > 0, name
    assert choose(page, text="no such words anywhere") == 0
    assert "No sample passes" in page.value("document.getElementById('detail').textContent")


def test_samples_better_than_another_model_can_be_found(page, samples):
    at = {name: place for place, name in enumerate(samples["fields"])}
    names = [(one["task"], one["model"], one["setting"]) for one in samples["cells"]]
    mine, other = (names.index(("component", model, "bm25, k = 4 (trace)")) for model in ("tuned", "base"))
    worth = {(row[at["cell"]], row[at["example"]]): row[at["parsed"]] for row in samples["samples"]}
    expected = sum(value > worth[other, example] for (place, example), value in worth.items() if place == mine)
    found = choose(
        page, task="component", model="tuned", setting="bm25, k = 4 (trace)", score="better", other=str(other)
    )
    assert found == expected > 0


def test_steps_are_coloured_by_tag_and_citations_lead_to_their_item(page):
    choose(page, task="component", model="tuned", setting="bm25, k = 4 (trace)", text="[p1]")
    assert page.value("document.querySelector('.step b').textContent") == "examine_examples"
    colours = page.value("[...document.querySelectorAll('.step')].map(s => getComputedStyle(s).borderLeftColor)")
    assert len(set(colours)) == len(colours) == 3
    assert page.value("document.querySelector('.items li.cited .number').textContent") == "[P1]"
    page.value("document.querySelector('.cite').click()")
    assert page.value("document.querySelector('.items li.target .number').textContent") == "[P1]"


def test_the_page_asked_for_nothing_and_no_script_failed(page):
    assert page.faults == []
    assert all(url.startswith("file:") for url in page.requests)
    assert len(page.requests) == 1


def test_light_and_dark_have_readable_contrast(page):
    script = "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; })()"

    def luminance(colour):
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    seen = set()
    for _ in range(2):
        ink, paper = map(luminance, page.value(script))
        seen.add(ink > paper)
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
        page.value("document.getElementById('theme').click()")
    assert seen == {True, False}
