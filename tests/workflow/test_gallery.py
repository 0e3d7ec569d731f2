"""The gallery: the page says what the tables say, and does what it should in a real browser."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eigencache._files import sha256
from eigencache.metrics import METRICS
from eigencache.plan import FULL
from reproduction.gallery import page as gallery
from reproduction.provenance import manifest, record
from reproduction.tables.tables import read_table, write_table

SIDE = 16
RUNS = [(FULL, FULL, 8), *((f"{m}-0{b}", m, b) for m in ("FORA", "Taylor+1") for b in (3, 5)),
        ("bound-04", "bound", 4)]  # fmt: skip
PROMPTS = [
    "</script><script>window.broken = 1</script>",
    "<!-- <script> \"quotes\" and 'quotes' & &amp; {{ braces }} {% raw %}",
    "\u732b \N{CAT FACE} e\u0301 \u2028 \u202eright to left\u202c \\u0000 \\",
    "None",
    "a red apple " * 30,
]
REFERENCES = [FULL, "FORA-05"]
PER_IMAGE = ["psnr", "ssim", "clip_score"]


def colour(run: int, prompt: int) -> tuple[int, int, int]:
    return 40 * run, 50 * prompt, 200


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with contract-shaped tables and images of one colour each."""
    folder, draw = tmp_path_factory.mktemp("gallery"), np.random.default_rng(0)
    rows, records = [], []
    for i, (run, method, budget) in enumerate(RUNS):
        for p, prompt in enumerate(PROMPTS):
            image = folder / "images" / run / f"{p:05d}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (SIDE, SIDE), colour(i, p)).save(image)
            about = {
                "run": run, "method": method, "num_steps": 8, "full_steps": budget,
                "prompt_index": p, "prompt": prompt, "seed": 2**40 + p, "seconds": draw.random(),
                "image": str(image), "sha256": sha256(image),
            }  # fmt: skip
            records.append(about | {"shard": f"shards/{method}/000.csv"})
            clip = draw.normal(20, 5)
            for reference in REFERENCES:
                same = run == reference
                psnr = np.inf if same else draw.normal(40, 9)
                ssim = np.nan if (run, p) == ("FORA-03", 2) else draw.random()
                scored = {"psnr": psnr, "ssim": ssim, "clip_score": clip}
                rows.append(about | {"reference": reference} | scored)
    scores = pd.DataFrame(rows)
    write_table(pd.DataFrame(records), folder / "records.csv")
    write_table(scores, folder / "scores.csv")
    write_table(summary_of(scores), folder / "summary.csv")
    for name in ("records", "scores", "summary"):
        vouch(folder / f"{name}.csv")
    return folder


def summary_of(scores: pd.DataFrame) -> pd.DataFrame:
    by_run = scores.groupby(["run", "reference"], sort=False)
    table = by_run[["method", "num_steps", "full_steps"]].first()
    for metric in PER_IMAGE:
        mean = by_run[metric].mean()
        table[metric], table[f"{metric}_low"], table[f"{metric}_high"] = mean, mean - 1, mean + 1
    table["frechet_lite0"] = np.arange(len(table)) / 7
    table["predicted_psnr"] = np.where(table["method"] == "bound", 41.25, np.nan)
    speedup = 8 / table["full_steps"]
    table["speedup"], table["speedup_low"], table["speedup_high"] = speedup, 0.9 * speedup, np.nan
    table["images"] = by_run.size()
    return table.reset_index()


def vouch(path) -> None:
    """Write the manifest that a stage would have written."""
    lists = {"inputs": {}, "sources": {}, "models": {}, "seeds": {}, "devices": []}
    about = {"stage": "test", "code": "", "config": "0" * 64, "settings": {}} | lists
    record.write(path, about | {"package": {}, "libraries": {}})


def make(results, name="gallery.html", *options):
    """Run the stage as a rule does; return the page's path and what was printed."""
    path = results / name
    inputs = [v for n in ("records", "scores", "summary") for v in (f"--{n}", f"{results}/{n}.csv")]
    done = subprocess.run(
        [sys.executable, "-m", "reproduction.gallery.page", "--title", "a <b>title</b>", *inputs,
         "--page", str(path), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return path, done.stdout


@pytest.fixture(scope="module")
def page(results):
    path, printed = make(results)
    assert path.is_file(), printed
    return path


@pytest.fixture(scope="module")
def scores(results):
    return gallery.attach(read_table(results / "scores.csv"), read_table(results / "records.csv"))


class Scripts(HTMLParser):
    """The texts of a page's script elements, by id."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.inside = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "script":
            self.inside = dict(attributes).get("id")
            self.found[self.inside] = ""

    def handle_endtag(self, tag):
        self.inside = None if tag == "script" else self.inside

    def handle_data(self, data):
        if self.inside is not None:
            self.found[self.inside] += data


def scripts(page) -> dict[str, str]:
    return Scripts(page.read_text("utf-8")).found


def test_nasty_prompts_come_out_as_they_went_in(page):
    text, found = page.read_text("utf-8"), scripts(page)
    about = json.loads(found["about"])
    assert [prompt["text"] for prompt in about["prompts"]] == PROMPTS
    assert text.count("<script") == 2 + len(RUNS) * len(PROMPTS)
    assert "<h1>a &lt;b&gt;title&lt;/b&gt;</h1>" in text


def test_numbers_are_those_of_the_tables(page, results):
    about = json.loads(scripts(page)["about"])
    table = read_table(results / "scores.csv").set_index(["reference", "run", "prompt_index"])
    table = table.sort_index()
    for (r, reference), (m, metric) in (
        (a, b) for a in enumerate(about["references"]) for b in enumerate(about["metrics"])
    ):
        for i, (run, _, _) in enumerate(RUNS):
            shown = [float("nan") if v is None else float(v) for v in about["scores"][r][m][i]]
            expected = table.loc[(reference, run), metric["name"]]
            np.testing.assert_array_equal(shown, expected)


def test_small_images_are_embedded_pixel_for_pixel(page):
    found = scripts(page)
    about = json.loads(found["about"])
    assert about["size"] == [SIDE, SIDE] and about["exact"]
    for i in range(len(RUNS)):
        for p in range(len(PROMPTS)):
            copy = base64.b64decode(found[f"image-{about['images'][i][p]}"])
            with Image.open(io.BytesIO(copy)) as image:
                assert np.all(np.asarray(image) == colour(i, p)), (i, p)


def test_page_asks_nothing_of_any_network(page):
    text = page.read_text("utf-8")
    assert not re.search(r"https?:|//\w+\.\w|@import|url\(", text.split('id="about"')[0])
    assert "default-src 'none'" in text


def test_same_input_gives_the_same_bytes(page, results):
    again, _ = make(results, "again.html")
    assert again.read_bytes() == page.read_bytes()
    assert manifest.check(page)["stage"] == "reproduction.gallery.page"


def test_altered_image_is_refused(results, page):
    image = results / "images/FORA-03/00001.png"
    whole = image.read_bytes()
    try:
        Image.new("RGB", (SIDE, SIDE)).save(image)
        path, printed = make(results, "refused.html")
    finally:
        image.write_bytes(whole)
    assert "images/FORA-03/00001.png: missing or altered" in printed
    assert "delete the folder " in printed and "Traceback" not in printed
    assert not path.exists()


def test_budgets_and_prompts_limit_what_is_shown(scores):
    shown = gallery.select(scores, budgets=[3], prompts=[4, 1])
    assert list(shown["run"].unique()) == [FULL, "FORA-03", "Taylor+1-03", "bound-04"]
    assert list(shown["prompt_index"].unique()) == [4, 1]
    notes = gallery.describe(shown, scores, (1024, 768), (512, 384))
    assert "4 of 6 runs on 2 of 5 prompts" in notes[0]
    assert "scaled from 1024\u00d7768 to 512\u00d7384 pixels" in notes[1] and "loss" in notes[1]
    assert len(gallery.describe(scores, scores, (SIDE, SIDE), (SIDE, SIDE))) == 1


def test_missing_score_is_named(scores):
    wrong = scores[(scores["run"] != "FORA-05") | (scores["prompt_index"] != 3)]
    with pytest.raises(ValueError, match="no score of FORA-05 on prompt 3 against full"):
        gallery.select(wrong)


def test_scores_of_other_images_are_refused(results):
    records = read_table(results / "records.csv")
    records.loc[3, "sha256"] = "0" * 64
    with pytest.raises(ValueError, match=r"full/00003\.png: scored, but the records have no such"):
        gallery.attach(read_table(results / "scores.csv"), records)


def test_run_without_summary_is_named(scores, results):
    summary = read_table(results / "summary.csv")
    with pytest.raises(ValueError, match="no row of run FORA-05 against full"):
        gallery.contents(gallery.select(scores), summary[summary["run"] != "FORA-05"])


def test_equal_images_are_embedded_once(scores, results):
    one = scores.assign(sha256=scores["sha256"].iloc[0])
    shown = gallery.select(one)
    assert len(gallery.unique_images(shown)) == 1
    places = gallery.contents(shown, read_table(results / "summary.csv"))["images"]
    assert {place for row in places for place in row} == {0}


def test_large_images_are_scaled_and_lossy(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (copy,) = gallery.copies([tmp_path / "a.png"], 300)
    with Image.open(io.BytesIO(copy)) as image:
        assert image.size == (300, 200)
    (lossy,) = gallery.copies([tmp_path / "a.png"])
    assert len(lossy) < noise.size / 2


def test_too_large_a_page_names_the_settings(tmp_path, monkeypatch):
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    (copy,) = gallery.embedded([tmp_path / "a.png"])
    monkeypatch.setattr(gallery, "LIMIT", 10 * len(copy))
    assert len(gallery.embedded([tmp_path / "a.png"] * 10)) == 10
    with pytest.raises(ValueError, match=r"figures\.gallery\.prompts"):
        gallery.embedded([tmp_path / "a.png"] * 11)


# ---- In a browser ------------------------------------------------------------------------------

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no chromium on the PATH to open the page in")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"), executable_path=found, args=FLAGS.split()
        )
        yield context
        context.close()


@pytest.fixture
def opened(browser, page):
    """Return a function that opens the page; at the end, no complaint and no request is allowed."""
    complaints, requests, tabs = [], [], []

    def visit(address: str = "", width: int = 1200, height: int = 900, **media):
        tab = browser.new_page()
        tabs.append(tab)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.set_viewport_size({"width": width, "height": height})
        tab.emulate_media(**media)
        tab.goto(f"file://{page}{address}")
        return tab

    yield visit
    for tab in tabs:
        assert tab.evaluate("window.broken") is None
        tab.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def pixels(tab) -> np.ndarray:
    """Return what is seen of the images, as a person sees it."""
    with Image.open(io.BytesIO(tab.locator("#stage").screenshot())) as image:
        # An edge may lie between two pixels of the screen.
        return np.asarray(image.convert("RGB")).astype(int)[1:-1, 1:-1]


def left_share(tab, left: int, right: int, prompt: int) -> float:
    """Return which share of a line of pixels has the colour of the left image.

    All others, but for those of the divider, must have that of the right one.
    """
    line = pixels(tab)[10]
    is_left, is_right = (np.all(line == colour(run, prompt), axis=1) for run in (left, right))
    assert is_left.sum() + is_right.sum() >= len(line) - 6
    assert not is_right[: is_left.sum()].any()
    return is_left.mean()


def hash_of(tab) -> str:
    return tab.evaluate("location.hash")


def listed(tab) -> list[int]:
    """Return the prompts in the order in which the list shows them."""
    labels = tab.locator("#prompts label")
    tops = labels.evaluate_all(
        "all => all.map(l => [l.getBoundingClientRect().top, +l.dataset.prompt])"
    )
    return [prompt for _, prompt in sorted(tops)]


def test_dragging_moves_the_split_that_is_seen(opened):
    tab = opened("#right=FORA-03&prompt=1")
    assert left_share(tab, 0, 1, 1) == pytest.approx(0.5, abs=0.01)
    box = tab.locator("#stage").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    tab.mouse.down()
    for share in (0.3, 0.8):
        tab.mouse.move(box["x"] + share * box["width"], box["y"] + 60, steps=4)
        assert left_share(tab, 0, 1, 1) == pytest.approx(share, abs=0.01)
    tab.mouse.up()
    tab.mouse.move(box["x"], box["y"])
    assert left_share(tab, 0, 1, 1) == pytest.approx(0.8, abs=0.01)
    assert float(tab.locator("#split").input_value()) == pytest.approx(80, abs=1)


@pytest.mark.parametrize("focused", [True, False])
def test_arrow_keys_move_the_split_that_is_seen(opened, focused):
    tab = opened("#right=FORA-03&prompt=1")
    if focused:
        tab.locator("#split").focus()
    for _ in range(5):
        tab.keyboard.press("ArrowLeft")
    share = left_share(tab, 0, 1, 1)
    assert share < 0.49
    assert share == pytest.approx(float(tab.locator("#split").input_value()) / 100, abs=0.01)
    tab.keyboard.press("ArrowRight")
    assert left_share(tab, 0, 1, 1) > share


def test_space_flips_between_whole_images(opened):
    tab = opened("#right=FORA-03&prompt=1")
    for run in (0, 1, 0):
        tab.keyboard.press("Space")
        assert np.all(pixels(tab) == colour(run, 1))


def test_keys_step_through_prompts_methods_and_budgets(opened):
    tab = opened("#right=FORA-03&prompt=1&sort=number")
    for key, expected in [
        ("j", "right=FORA-03&prompt=2"), ("ArrowUp", "right=FORA-03&prompt=1"),
        ("k", "right=FORA-03&prompt=0"), ("k", "right=FORA-03&prompt=4"),
        ("m", "right=Taylor%2B1-03&prompt=4"), ("b", "right=Taylor%2B1-05&prompt=4"),
        ("m", "right=bound-04"), ("m", "right=full"), ("Shift+M", "right=bound-04"),
        ("x", "left=bound-04&right=full"), ("d", "view=difference"), ("d", "view=images"),
        ("s", "sort=psnr"),
    ]:  # fmt: skip
        tab.keyboard.press(key)
        assert expected in hash_of(tab), key
    tab.locator("#shortcuts").uncheck()
    before = hash_of(tab)
    tab.keyboard.press("j")
    assert hash_of(tab) == before


def test_keys_leave_menus_alone(opened):
    tab = opened("#right=FORA-03&prompt=1")
    tab.locator("#right .method").focus()
    tab.keyboard.press("ArrowDown")
    assert "right=Taylor%2B1-03&prompt=1" in hash_of(tab)
    tab.keyboard.press("Escape")
    tab.keyboard.press("ArrowLeft")
    assert float(tab.locator("#split").input_value()) < 50


def test_prompts_are_sorted_by_damage(opened, results):
    table = read_table(results / "scores.csv")
    table = table[table["reference"] == FULL]
    tab = opened("#right=FORA-03")
    mine = table[table["run"] == "FORA-03"].set_index("prompt_index")
    for metric in PER_IMAGE:  # in all of them higher is better; one value of SSIM is missing
        tab.locator("#sort").select_option(metric)
        assert listed(tab) == list(mine[metric].sort_values(na_position="last").index), metric
    worst = tab.locator("#prompts label").first.locator("output").inner_text()
    assert worst == f"{mine['clip_score'].min():.2f}"
    tab.locator("#sort").select_option("number")
    assert listed(tab) == [0, 1, 2, 3, 4]


def test_lower_is_better_sorts_the_other_way(browser, results, scores, tmp_path):
    renamed = scores.rename(columns={"ssim": "lpips_alex"})
    summary = read_table(results / "summary.csv").rename(columns={"ssim": "lpips_alex"})
    shown = gallery.select(renamed)
    about = gallery.contents(shown, summary) | {"size": [SIDE, SIDE], "exact": True}
    images = gallery.embedded(list(gallery.unique_images(shown)["image"]))
    (tmp_path / "page.html").write_text(gallery.render("x", about, [], images), "utf-8")
    tab = browser.new_page()
    tab.goto(f"file://{tmp_path}/page.html#right=FORA-05&sort=lpips_alex")
    mine = renamed[(renamed["run"] == "FORA-05") & (renamed["reference"] == FULL)]
    ranked = mine.sort_values("lpips_alex", ascending=False, na_position="last")
    assert listed(tab) == list(ranked["prompt_index"])
    tab.close()


@pytest.mark.parametrize("reference", REFERENCES)
def test_numbers_shown_are_those_of_the_tables(opened, results, reference):
    table = read_table(results / "scores.csv").set_index(["reference", "run", "prompt_index"])
    summary = read_table(results / "summary.csv").set_index(["reference", "run"])
    tab = opened("#left=Taylor%2B1-05&right=FORA-03&prompt=3")
    tab.locator("#reference").select_option(label=reference)
    for metric in PER_IMAGE:
        digits = METRICS[metric].digits
        cells = tab.locator(f"#image-numbers tr[data-metric={metric}] td").all_inner_texts()
        left, right = (table.loc[(reference, r, 3), metric] for r in ("Taylor+1-05", "FORA-03"))
        change = f"{right - left:+.{digits}f}".replace("-", "\u2212")
        assert cells == [f"{left:.{digits}f}", f"{right:.{digits}f}", change]
        mean = tab.locator(f"#run-numbers tr[data-mean={metric}] td").nth(1).inner_text()
        row = summary.loc[(reference, "FORA-03")]
        ends = ", ".join(f"{row[f'{metric}_{end}']:.{digits}f}" for end in ("low", "high"))
        expected = f"{row[metric]:.{digits}f}\n[{ends}]".replace("-", "\u2212")
        assert mean == expected
    text = tab.locator("#run-numbers").inner_text()
    speedups = [f"{summary.loc[(FULL, r), 'speedup']:.2f}" for r in ("Taylor+1-05", "FORA-03")]
    assert re.search(r"Speed-up \(median\)\s+" + r"\s+".join(speedups), text)
    assert re.search(r"Full steps\s+5\s+3", text)
    whole = summary.loc[(reference, "FORA-03"), "frechet_lite0"]
    assert f"{whole:.3f}" in text


def test_page_opens_on_the_fewest_steps_beside_the_full_run(opened, results):
    table = read_table(results / "summary.csv")
    fewest = table[(table["reference"] == FULL) & (table["full_steps"] == 3)]
    best = fewest.sort_values("psnr").iloc[-1]["run"].replace("+", "%2B")
    assert f"left=full&right={best}&" in hash_of(opened())


@pytest.mark.parametrize("metric", ["psnr", "ssim"])  # one value of SSIM is missing
def test_page_opens_on_the_prompt_of_the_median(opened, results, metric):
    """Of an even number it is the worse of the two in the middle."""
    table = read_table(results / "scores.csv")
    mine = table[(table["reference"] == FULL) & (table["run"] == "FORA-03")]
    ranked = mine.dropna(subset=metric).sort_values(metric)["prompt_index"]
    assert len(ranked) == 5 - (metric == "ssim")
    tab = opened(f"#right=FORA-03&sort={metric}")
    assert f"prompt={ranked.iloc[(len(ranked) - 1) // 2]}&" in hash_of(tab)


def test_page_opens_on_eigencache_if_there_is_one():
    runs = [
        {"method": method, "full_steps": steps, "means": [[[psnr, None, None]]]}
        for method, steps, psnr in [
            (FULL, 50, "Infinity"), ("a", 3, 60.0), ("EigenCache", 9, 58.0), ("EigenCache", 5, 50.0)
        ]
    ]  # fmt: skip
    assert gallery.start(runs) == 3
    assert gallery.start(runs[:2]) == 1 and gallery.start(runs[:1]) == 0
    assert gallery.start([runs[0], {**runs[1], "means": [[[None] * 3]]}, runs[1]]) == 2


def test_steps_are_named_for_what_they_are(opened):
    tab = opened("#left=full&right=FORA-03&prompt=1")
    assert tab.locator("#left .steps option").all_inner_texts() == ["8 steps"]
    assert tab.locator("#right .steps option").all_inner_texts() == [
        "3 of 8 in full",
        "5 of 8 in full",
    ]
    assert "FORA, 3 of 8 in full" in tab.locator("#right-image").get_attribute("alt")


def test_row_shows_all_methods_at_the_budget_and_chooses_one(opened, results):
    table = read_table(results / "scores.csv").set_index(["reference", "run", "prompt_index"])
    tab = opened("#right=FORA-03&prompt=3")
    assert tab.locator("#row-title").inner_text() == "All methods near 3 full steps"
    tiles = tab.locator("#row button")
    for tile, run in zip(tiles.all(), [FULL, "FORA-03", "Taylor+1-03", "bound-04"], strict=True):
        psnr = table.loc[(FULL, run, 3), "psnr"]
        shown = "\u221e" if np.isinf(psnr) else f"{psnr:.1f}"
        method, _, value = tile.locator("strong, span").all_inner_texts()
        assert method == run.rsplit("-", 1)[0] and value.endswith(f" {shown}")
        assert (tile.get_attribute("aria-pressed") == "true") == (run == "FORA-03")
    tiles.nth(2).click()
    assert "right=Taylor%2B1-03&prompt=3" in hash_of(tab)
    assert tiles.nth(2).get_attribute("aria-pressed") == "true"
    tab.keyboard.press("b")
    assert tab.locator("#row-title").inner_text() == "All methods near 5 full steps"


@pytest.mark.parametrize("width", [340, 400, 1440])
def test_every_menu_can_be_read(opened, width):
    tab = opened(width=width)
    for menu in tab.locator(".side select").all():
        assert menu.bounding_box()["width"] >= 90
    assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_the_chosen_method_is_in_view_on_a_phone(opened):
    tab = opened("#right=bound-04", width=340)
    row = tab.locator("#row").bounding_box()
    tile = tab.locator("#row button[aria-pressed=true]").bounding_box()
    assert row["x"] <= tile["x"] and tile["x"] + tile["width"] <= row["x"] + row["width"]


def test_question_mark_shows_the_keys(opened):
    tab = opened()
    tab.evaluate("document.getElementById('help').open = false")
    tab.keyboard.press("?")
    assert tab.locator("#help dl").is_visible()
    assert tab.evaluate("document.activeElement.parentElement.id") == "help"


def test_infinite_and_missing_values_are_told(opened):
    tab = opened("#left=full&right=FORA-03&prompt=2")
    rows = tab.locator("#image-numbers")
    psnr = rows.locator("tr[data-metric=psnr] td").all_inner_texts()
    assert psnr[0] == "\u221e" and psnr[2] == "\u2013"
    assert rows.locator("tr[data-metric=ssim] td").all_inner_texts()[1] == "\u2013"


def test_difference_is_that_of_the_images(opened):
    tab = opened("#left=FORA-03&right=Taylor%2B1-03&prompt=2&view=difference")
    legend = tab.locator("#legend-text")
    legend.filter(has_text="Largest 80, mean 80.00; 100.0 % of the pixels differ.").wait_for()
    assert np.all(pixels(tab) == (252, 255, 164))  # the brightest colour: all differ the most
    tab.locator("#scale").select_option("255")
    darker = pixels(tab)
    assert np.all(darker == darker[0, 0]) and darker[0, 0].sum() < 252 + 255 + 164
    tab.keyboard.press("x")
    assert np.all(pixels(tab) == darker)


def test_address_brings_the_comparison_back(opened):
    tab = opened()
    for key in ("m", "b", "j", "ArrowLeft", "x", "s"):
        tab.keyboard.press(key)
    address = hash_of(tab)
    again = opened(f"{address}&scale=32&reference=FORA-05")
    assert again.locator("#scale").input_value() == "32"
    assert again.locator("#reference").input_value() == "1"
    assert "against FORA-05" in again.locator("#image-numbers").inner_text()
    again = opened(address)
    assert hash_of(again) == address
    assert np.all(pixels(again) == pixels(tab))
    odd = opened("#left=nobody&prompt=99&split=1000&sort=%00&view=x")
    assert "left=full" in hash_of(odd) and "split=50" in hash_of(odd)


def test_prompts_are_shown_as_text(opened):
    for index, prompt in enumerate(PROMPTS):
        tab = opened(f"#prompt={index}")
        assert tab.locator("#caption strong").text_content() == prompt


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(opened, scheme):
    tab = opened(width=380, height=800, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == 380
    box = tab.locator("#stage").bounding_box()
    assert box["width"] % SIDE == 0 and 300 < box["width"] <= 380  # whole pixels of the image
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", dark))) < 100) == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened, scheme):
    tab = opened(color_scheme=scheme)
    names = ["ground", "raised", "chosen", "ink", "faint", "left", "right"]
    values = tab.evaluate(
        "names => names.map(n => getComputedStyle(document.body).getPropertyValue('--' + n))", names
    )
    colours = dict(zip(names, values, strict=True))
    for text in ("ink", "faint", "left", "right"):
        for ground in ("ground", "raised", "chosen"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(a: str, b: str) -> float:
    """Return the contrast ratio of two colours by WCAG 2."""
    lights = []
    for text in (a, b):
        channels = np.array([int(text.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        lights.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_everything_that_takes_input_has_a_name(opened):
    tab = opened()
    unnamed = tab.evaluate(
        """[...document.querySelectorAll("input, select, button, canvas[role=img]")]
           .filter(e => !e.hidden && !e.getAttribute("aria-label") && !e.labels?.length
                        && !e.textContent.trim()).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    tab.keyboard.press("Tab")
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
