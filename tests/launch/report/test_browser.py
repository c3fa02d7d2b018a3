"""The page in a real browser, one session for all tests: what moves does, nothing is asked for, and without script nothing is missing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rootstock.launch.report.page import write_report
from rootstock.tests.browser import CHROMIUM, WHY_NOT, Browser, browsing
from rootstock.tests.launch.report.test_live import pictured
from rootstock.tests.launch.report.test_page import make_pipeline

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)
MAP = "document.querySelector('[data-map] .live')"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    pipeline = make_pipeline(folder / "p", 2)
    for run in pipeline.glob("seed-*/*"):
        pictured(run)
    return write_report([pipeline], folder / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(browser: Browser, written: Path) -> Iterator[Browser]:
    """The page, opened anew at 1200 pixels in light colours; whatever a test does, the console stays empty and nothing is fetched."""
    browser.scripts(True)
    browser.size(1200)
    browser.prefer("light")
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(written)
    browser.wait("document.documentElement.dataset.live === 'ready'")
    yield browser
    assert browser.complaints == []
    fetched = [address for address in browser.requests if not address.startswith(("data:", "blob:"))]
    assert fetched == [written.as_uri()] * len(fetched)


def on_map(page: Browser, act: str, point: int) -> None:
    x, y = page.ask(f"{MAP}.pixel({point})")
    page.mouse(act, x, y)


def open_map(page: Browser) -> None:
    page.ask("document.querySelector('[data-map]').scrollIntoView()")
    page.wait(f"{MAP}?.view && document.querySelector('[data-map]').getBoundingClientRect().top < 400")


def test_hovering_over_a_point_shows_its_picture_and_a_click_its_neighbours(page: Browser) -> None:
    open_map(page)
    on_map(page, "moved", 7)
    page.wait("!document.querySelector('.tip').hidden")
    told = (
        "[document.querySelector('.tip').textContent, document.querySelector('.tip .thumb').style.backgroundPosition]"
    )
    assert page.ask(told) == ["$x_$ · target · right", f"{-80 * 7}px 0px"]
    on_map(page, "click", 40)
    page.wait("document.querySelectorAll('.near li').length === 3")
    assert page.ask("document.querySelector('.pinned').textContent") == "cat · source"
    shown = "[...document.querySelectorAll('.near .thumb')].map(one => one.style.backgroundPosition)"
    assert page.ask(shown) == [f"{-56 * (n % 40)}px {-56 * (n // 40)}px" for n in (41, 42, 43)]
    sheet = (
        "getComputedStyle(document.querySelector('.pinned .thumb')).backgroundImage.startsWith('url(\"data:image/webp')"
    )
    assert page.ask(sheet)
    page.ask("document.querySelector('.near button').click()")  # a neighbour shows its own
    assert page.ask("document.querySelector('.pinned').textContent") == "dog & <b> · target · wrong: taken for 鳥"


def test_the_keyboard_reaches_points_and_the_switch_colours_them(page: Browser) -> None:
    open_map(page)
    page.ask(f"{MAP}.focus()")
    for key in ("ArrowRight", "ArrowUp", "Enter"):
        page.key(key)
    page.wait("document.querySelectorAll('.near li').length === 3")
    page.key("Escape")
    assert page.ask("document.querySelectorAll('.near li').length") == 0
    legend = "document.querySelector('.atlas .legend').textContent"
    assert page.ask(legend).startswith("cat")
    page.ask("document.querySelector('[data-map] input[value=domain]').click()")
    assert page.ask(legend).startswith("sourcetarget")
    page.ask("document.querySelector('[data-map] input[value=right]').click()")
    assert page.ask(legend).startswith("rightnot knownwrong") or page.ask(legend).startswith("rightwrong")


def test_a_heading_sorts_its_column_within_groups(page: Browser) -> None:
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    table = "[...document.querySelectorAll('table.scores')].find(one => one.tHead.textContent.includes('recall'))"
    column = f"[...{table}.tBodies[0].rows].map(row => parseFloat(row.cells[2].textContent))"
    before = page.ask(column)
    click, order = (
        f"{table}.tHead.rows[0].cells[2].querySelector('button').click()",
        f"{table}.tHead.rows[0].cells[2].ariaSort",
    )
    for expected, said in ((sorted(before, reverse=True), "descending"), (sorted(before), "ascending"), (before, None)):
        page.ask(click)
        assert page.ask(column) == expected and page.ask(order) == said
    assert len(set(before)) > 2 and before not in (sorted(before), sorted(before, reverse=True))


def test_hovering_over_a_curve_tells_its_value(page: Browser) -> None:
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    chart = "[...document.querySelectorAll('figure[data-plot]')].find(one => one.textContent.includes('Training loss'))"
    page.ask(f"{chart}.scrollIntoView()")
    page.wait(f"{chart}.querySelector('.live')?.chart")
    step, loss = 100, 5 / 100
    view = f"{chart}.querySelector('.live').view"
    box = f"{view}.el.getBoundingClientRect()"
    x, y = page.ask(
        f"[{box}.left + {view}.frame.x_scale.compute({step}), {box}.top + {view}.frame.y_scale.compute({loss})]"
    )
    for near in (3, 1, 0):  # a pointer that comes from somewhere
        page.mouse("moved", x + near, y)
    # Bokeh's tooltip stands in a shadow tree.
    page.ask(
        "window.told = (root = document) => [...root.querySelectorAll('*')].flatMap(one => ["
        "/Tooltip/.test(one.className) ? (one.shadowRoot ?? one).textContent : '', one.shadowRoot ? told(one.shadowRoot) : '']).join('')"
    )
    page.wait(r"/step:\s*100\s*value:\s*0\.05/.test(told())")
    assert "seed 0" in page.ask("told()")


def test_smoothing_changes_the_curves_and_zero_gives_them_back(page: Browser) -> None:
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    chart = "[...document.querySelectorAll('figure[data-plot]')].find(one => one.textContent.includes('Training loss'))"
    page.ask(f"{chart}.scrollIntoView()")
    page.wait(f"{chart}.querySelector('.live')?.chart")
    lines, control = (
        f"{chart}.querySelector('.live').chart.lines()",
        f"{chart}.closest('.panels').previousElementSibling.querySelector('input')",
    )
    raw = page.ask(lines)
    assert len(raw) == 2 and raw[0][0] == 5
    weight = 0.8
    page.ask(f"{{ const input = {control}; input.value = {weight}; input.dispatchEvent(new Event('input')) }}")
    mean, mass, expected = 0.0, 0.0, []
    for value in raw[0]:
        mean, mass = weight * mean + (1 - weight) * value, weight * mass + 1 - weight
        expected.append(mean / mass)
    assert page.ask(lines)[0] == pytest.approx(expected, rel=1e-9)
    page.ask(f"{{ const input = {control}; input.value = 0; input.dispatchEvent(new Event('input')) }}")
    assert page.ask(lines) == raw
    page.ask("document.querySelector('[data-overlay]').scrollIntoView()")
    page.wait("document.querySelector('[data-overlay] .live').chart")
    assert page.ask("document.querySelector('[data-overlay] .live').chart.lines().length") == 4  # two stages, two seeds
    page.ask("document.querySelector('.tick input').click()")
    page.wait("document.querySelector('[data-overlay] .live').chart.lines().length === 2")
    page.prefer("dark")  # draws all anew, but not what is gone


def test_a_command_is_copied(page: Browser) -> None:
    page.ask("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve() }")
    page.ask("document.querySelector('.command .copy').click()")
    page.wait("document.querySelector('.command .copy').textContent === 'Copied'")
    assert page.ask("window.copied").startswith("rootstock ")


@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_overflows_in_either_colour_scheme(page: Browser, width: int) -> None:
    page.size(width)
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    paper = "getComputedStyle(document.body).backgroundColor"
    colours = {}
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        open_map(page)
        assert page.ask("document.documentElement.scrollWidth") <= width
        colours[scheme] = page.ask(paper)
    assert colours["light"] != colours["dark"]
    assert page.ask("document.images[0].naturalWidth") == 96, "the picture was decoded"
    page.ask("document.querySelector('.theme').click()")  # against the system's choice
    assert page.ask(paper) == colours["light"]
    page.ask("localStorage.clear()")


def test_without_script_all_of_it_can_be_read(browser: Browser, written: Path) -> None:
    browser.scripts(False)
    browser.size(390)
    browser.prefer("light")
    browser.open(written)
    browser.scripts(True)  # for the questions below: those of the page have had their turn
    assert browser.ask("document.documentElement.dataset.live") is None
    assert browser.ask("document.querySelectorAll('button').length") == 0
    text = browser.ask("document.body.innerText")
    for words in (
        "A rather long name of a method, CDAN+E",
        "80.5",
        "gain",
        "By domain",
        "t-SNE of features",
        "What the numbers mean",
    ):
        assert words in text, words
    sizes = "[...document.querySelectorAll('figure svg')].filter(one => one.getBoundingClientRect().width > 200).length"
    assert browser.ask(sizes) >= 2
    assert browser.ask("document.documentElement.scrollWidth") <= 390
