"""kd-plugin report: logs read, what charts and tables hold, the page's safety. Every number in here is invented."""

import argparse
import base64
import hashlib
import html
import html.parser
import io
import json
import math
import re
import subprocess
import sys

import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from kd_plugin.cli import report
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.results import read_evaluation
from kd_plugin.evaluation.table import score_table
from kd_plugin.evaluation.training_logs import Run, parse_line, read_runs
from kd_plugin.files.user_cache import kept
from kd_plugin.report.charts import curves_panel, is_skewed, pareto_front
from kd_plugin.report.learning import exact, groups, learning_figures, thinned
from kd_plugin.report.page import TEMPLATES

DATE = "2020-01-02 03:04:05 | INFO | "
SIMPLE = f"""\
{DATE}fairseq_cli.train | model: TransformerModel
{DATE}kd_plugin.tasks.distillation_translation | kd|alpha:0.2|T:1.0|teacher:none
{DATE}train_inner | epoch 001:    100 / 149 loss=8.413, nll_loss=10.15, kd_loss=7.9, lr=1e-05, num_updates=100, wall=338
{DATE}valid | epoch 001 | valid on 'valid' subset | loss 3.7 | nll_loss 5.2 | agreement 41.97 | num_updates 149
{DATE}train | epoch 001 | loss 7.568 | nll_loss 9.228 | wps 1012.3 | num_updates 149 | train_wall 508
"""
JSON = f"""\
{DATE}train_inner | {{"epoch": 1, "update": 0.671, "loss": "8.413", "nll_loss": "10.15", "kd_loss": "7.9", \
"lr": "1e-05", "num_updates": "100", "wall": "338"}}
{DATE}valid | {{"epoch": 1, "valid_loss": "3.7", "valid_nll_loss": "5.2", "valid_agreement": "41.97", \
"valid_num_updates": "149"}}
{DATE}train | {{"epoch": 1, "train_loss": "7.568", "train_nll_loss": "9.228", "train_wps": "1012.3", \
"train_num_updates": "149", "train_train_wall": "508"}}
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is written to the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def run_of(text, name="run"):
    run = Run(name)
    run.read(text.splitlines(keepends=True))
    return run


# --- logs


@pytest.mark.parametrize("text", [SIMPLE, JSON, SIMPLE.replace(DATE, ""), JSON.replace("2020", "[progress] 2020")])
def test_both_formats_say_the_same(text):
    without_logger = re.sub(r"^(train_inner|train|valid) \| ", "", text, flags=re.MULTILINE)
    for run in (run_of(text), run_of(without_logger)):
        assert run.series == {
            ("train_inner", "loss"): {100: 8.413},
            ("train_inner", "nll_loss"): {100: 10.15},
            ("train_inner", "kd_loss"): {100: 7.9},
            ("train_inner", "lr"): {100: 1e-05},
            ("train_inner", "wall"): {100: 338.0},
            ("valid", "loss"): {149: 3.7},
            ("valid", "nll_loss"): {149: 5.2},
            ("valid", "agreement"): {149: 41.97},
            ("train", "loss"): {149: 7.568},
            ("train", "nll_loss"): {149: 9.228},
            ("train", "wps"): {149: 1012.3},
            ("train", "train_wall"): {149: 508.0},
        }
        assert run.updates == 149 and run.malformed == 0


@pytest.mark.parametrize("text", [SIMPLE, JSON])
@pytest.mark.parametrize("prefix", ["[2020-01-02 03:04:05,678][{}][INFO] - ", "INFO:{}:"])
def test_logs_of_hydra_and_of_plain_logging(text, prefix):
    other = re.sub(r"^2020.*?\| INFO \| ([\w.]+) \| ", lambda match: prefix.format(match[1]), text, flags=re.MULTILINE)
    assert other != text and "| INFO |" not in other.split("subset")[0]
    assert run_of(other).series == run_of(text).series
    assert run_of(other).dates == (["2020-01-02 03:04:05"] * 2 if prefix[0] == "[" else [])


def test_signature_and_dates_are_kept():
    run = run_of(SIMPLE)
    assert run.signatures == ["kd|alpha:0.2|T:1.0|teacher:none"]
    assert run.dates == ["2020-01-02 03:04:05"] * 2


def test_other_subsets_keep_their_names():
    assert parse_line("epoch 002 | valid on 'valid1' subset | nll_loss 5 | num_updates 7")[0] == "valid1"
    assert parse_line('{"epoch": 2, "valid1_nll_loss": "5", "valid1_num_updates": "7"}')[0] == "valid1"


def test_progress_bars_are_read(tmp_path):
    """Those of --log-format tqdm, each drawn over the last; the bar of a validation says nothing."""
    stream = io.StringIO()
    for prefix in ("epoch 001", "epoch 001 | valid on 'valid' subset"):
        bar = tqdm(range(3), prefix, file=stream, ncols=200, mininterval=0, leave=False)
        for update in bar:
            stats = {"loss": f"{8.5 - update}", "kd_loss": "None", "lr": "1e-05", "num_updates": f"{update + 1}"}
            bar.set_postfix(stats if prefix == "epoch 001" else {}, refresh=False)
    path = tmp_path / "bars.log"
    path.write_bytes(stream.getvalue().encode() + SIMPLE.splitlines(keepends=True)[-2].encode())
    (run,) = read_runs([f"a={path}"])
    assert run.series["train_inner", "loss"] == {1: 8.5, 2: 7.5, 3: 6.5} and run.malformed == 0
    assert set(run.series["train_inner", "lr"].values()) == {1e-05} and ("train_inner", "kd_loss") not in run.series
    assert run.series["valid", "nll_loss"] == {149: 5.2}


@pytest.mark.parametrize(
    "line",
    [
        "epoch 001:    100 / 149 loss=8.413, nll_lo",
        "train | epoch 001 | loss 7.568 | num_updates 2020-01-02 03:04:05 | INFO | next",
        'train_inner | {"epoch": 1, "num_updates": "1',
        'train | {"epoch": 1, "train_loss": "3", "train_num_updates": null}',
        "epoch 001:    100 / 149 loss=8.413, num_updates=nan",
        "epoch 001:    100 / 149 loss=8.413, num_updates=-5",
        '{"loss": 1' + "0" * 400 + ', "num_updates": 7}',
        '{"num_updates": ' + "[" * 100_000,
    ],
)
def test_garbled_lines_are_counted_and_change_nothing(line):
    run = run_of(SIMPLE + line + "\n")
    assert run.malformed == 1
    assert run.series == run_of(SIMPLE).series


@pytest.mark.parametrize(
    "line",
    ["", "epoch 001:  10%|#2   | 15/149 [00:01<00:10, loss=8]", "begin training epoch 1", "{}", '{"num_updates_x": 1}'],
)
def test_other_lines_are_passed_over(line):
    run = run_of(line + "\n")
    assert not run.series and run.malformed == 0


def test_values_that_are_no_numbers_are_left_out_and_infinite_ones_kept():
    run = run_of(
        "epoch 001:      1 / 9 loss=inf, nll_loss=nan, kd_loss=None, lr=[0.1], ppl=-inf, num_updates=1\n"
        'train_inner | {"loss": "3.5", "kd_loss": null, "lr": [1], "flag": true, "num_updates": "2"}\n'
    )
    assert run.series["train_inner", "loss"] == {1: math.inf, 2: 3.5}
    assert math.isnan(run.series["train_inner", "nll_loss"][1])
    assert {term for _, term in run.series} == {"loss", "nll_loss", "ppl"}
    assert run.finite(("train_inner", "loss")) == [(2, 3.5)]


def test_resumed_run_replaces_what_it_does_again():
    lines = "".join(f"epoch 001: {n} / 9 loss={n}.5, num_updates={n}\n" for n in (100, 200, 300, 400))
    again = "".join(f"epoch 001: {n} / 9 loss={n}.25, num_updates={n}\n" for n in (200, 300))
    run = run_of(lines + again)
    assert run.series["train_inner", "loss"] == {100: 100.5, 200: 200.25, 300: 300.25}
    assert run.resumed == 1 and run.updates == 300


def test_last_number_of_a_line_that_was_cut_off_is_not_believed(tmp_path):
    path = tmp_path / "cut.log"
    path.write_text(SIMPLE + "valid | epoch 002 | valid on 'valid' subset | nll_loss 4.1 | num_updates 29")
    (run,) = read_runs([f"a={path}"])
    assert run.series["valid", "nll_loss"] == {149: 5.2} and run.updates == 149


def test_same_name_continues_its_run_and_names_may_hold_equals_signs(tmp_path):
    first, second = tmp_path / "1.log", tmp_path / "k=2.log"
    first.write_text(SIMPLE)
    second.write_text(JSON.replace("149", "298").replace('"100"', '"200"'))
    (run,) = read_runs([f"cache k=16={first}", f"cache k=16={second}"])
    assert run.name == "cache k=16"
    assert list(run.series["valid", "nll_loss"]) == [149, 298]


# --- figures


def test_logged_values_keep_their_digits():
    assert [exact(value) for value in (3.054, 1490.0, 1e-05, 0.0)] == ["3.054", "1,490", "1e-05", "0"]


def test_perplexities_get_a_logarithmic_axis_and_seconds_do_not():
    assert is_skewed([1136.0, 138.0, 30.0, 12.0, 10.0, 9.0, 8.5])
    assert not is_skewed([float(second) for second in range(10, 6000, 10)])


points = st.lists(st.tuples(st.integers(1, 8).map(float), st.integers(0, 8).map(float)), min_size=1, max_size=12)


@given(points)
def test_pareto_front_is_what_nothing_dominates(models):
    def dominated(point):
        return any(o != point and o[0] >= point[0] and o[1] >= point[1] for o in models)

    front = pareto_front(models)
    assert front == [index for index, point in enumerate(models) if not dominated(point)]


@given(
    st.lists(st.sampled_from([0.0, 1.5, 7.0, -3.0, math.inf, math.nan]), min_size=1, max_size=300), st.integers(1, 400)
)
def test_thinned_curves_keep_their_extremes_and_their_gaps(values, limit):
    rows = thinned(list(enumerate(values)), limit)
    drawn = [row for row in rows if row["value"] is not None]
    finite = [value for value in values if math.isfinite(value)]
    assert len(drawn) <= limit and len(rows) - len(drawn) <= limit
    assert len({row["update"] for row in rows}) == len(rows)
    for row in drawn:
        assert row.get("low", row["value"]) <= row["value"] <= row.get("high", row["value"]) and row["value"] in finite
    if finite:
        assert min(row.get("low", row["value"]) for row in drawn) == min(finite)
        assert max(row.get("high", row["value"]) for row in drawn) == max(finite)
    assert (len(rows) > len(drawn)) == (len(finite) < len(values))
    if len(values) <= limit:
        assert [row["value"] for row in rows] == [value if math.isfinite(value) else None for value in values]


def test_a_dense_curve_is_the_medians_with_all_values_behind_them():
    noisy = [(update, 100.0 if update % 50 == 0 else 1.0) for update in range(1, 1001)]
    rows = thinned(noisy, 20)
    assert rows[0] == {"update": 25, "value": 1.0, "low": 1.0, "high": 100.0} and len(rows) == 20
    panel = curves_panel("gnorm", "", [{"run": "a", **row} for row in rows], ["a"])
    assert [layer["mark"]["type"] for layer in panel["layer"]] == ["area", "line"]


def test_a_long_log_gives_a_small_page(make, tmp_path):
    lines = [
        ", ".join(f"term{term}={step % 97}.{term}" for term in range(30)).join(
            (f"epoch 001: {step} / 9 loss=2, ", f", num_updates={step}\n")
        )
        for step in range(1, 4001)
    ]
    (tmp_path / "long.log").write_text("".join(lines))
    assert len(make(logs=[f"{name}={tmp_path / 'long.log'}" for name in ("one", "two", "three")])) < 2_000_000


def test_one_point_is_a_number_in_a_table_and_no_chart():
    (figure,) = learning_figures([run_of("train | epoch 001 | loss 7.5 | ppl 3 | num_updates 149\n", "a")])
    assert figure.spec is None
    cells = {
        table.name: [{head: text for (_, head), text in row.items()} for row in table.rows()] for table in figure.tables
    }
    assert cells == {"train loss": [{"update": "149", "a": "7.5"}], "train ppl": [{"update": "149", "a": "3"}]}


def test_machinery_is_folded_away():
    text = "".join(f"epoch 001: {n} / 9 loss={n}, wps={n}, gnorm={n}, wall={n}, num_updates={n}\n" for n in (1, 2))
    opened = {table.name: figure.open for figure in learning_figures([run_of(text)]) for table in figure.tables}
    assert opened == {f"train_inner {term}": term == "loss" for term in ("loss", "wps", "gnorm", "wall")}


def test_main_terms_come_first_and_no_term_is_lost():
    text = SIMPLE + "epoch 001 | valid on 'valid' subset | bleu 30.1 | kd_loss 2 | odd_term 3 | num_updates 149\n"
    run = run_of(text)
    main, *others = groups([run]).values()
    assert main == [("valid", "nll_loss"), ("valid", "bleu"), ("valid", "kd_loss"), ("valid", "agreement")]
    assert sorted(key for keys in (main, *others) for key in keys) == sorted(run.series)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_sufficient(scheme):
    light, dark = (TEMPLATES / "style.css").read_text().split("@media")[:2]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", light if scheme == "light" else dark))
    assert len(colours) == 12
    paper = luminance(colours["paper"])
    for name, colour in colours.items():
        ratio = (max(paper, luminance(colour)) + 0.05) / (min(paper, luminance(colour)) + 0.05)
        least = {"paper": 1, "grid": 1, "ink": 7, "muted": 4.5}.get(name, 3)
        assert ratio >= least, name


# --- the page

EVIL = '<script>alert("1")</script>\u202e&\x00'  # half of a surrogate pair is refused where JSON is read


def evaluation(names=("teacher", "student", "student, int8"), **changes):
    """Invented numbers."""
    models = []
    for index, name in enumerate(names):
        scores = [
            {
                "test": test,
                "metric": metric,
                "value": 30.0 - index,
                "signature": f"{metric}|sig",
                "p_value": [0.2, None, 0.0004][index % 3],
                "mean": 30.1 - index,
                "confidence": 1.25,
                "note": "",
            }
            for test in ("flickr", "<b>news")
            for metric in ("BLEU", "TER")
        ]
        scores.append({"test": "flickr", "metric": "COMET", "value": None, "note": "not measured: pip install it"})
        speed = {"cpu": {"tokens_per_second": 100.0 * 3**index}, "cuda": {"note": "not measured: no GPU"}}
        models.append(
            {
                "name": name,
                "engine": "fairseq",
                "parameters": 1000,
                "bytes": 4e6 / (index + 1),
                "speed": speed,
                "scores": scores,
            }
        )
    content = {
        "format": "kd_plugin evaluation",
        "version": 1,
        "date": "2020-01-02T03:04:05",
        "machine": {"cpu": "A <CPU>", "gpu": None},
        "versions": {"torch": "2.0"},
        "settings": {"beam": 5, "threads": 1, "subwords": {"symbols": "sentencepiece"}},
        "baseline": "student",
        "tests": [{"name": "flickr", "lines": 1000}, {"name": "<b>news", "lines": None}],
        "models": models,
    }
    return {**content, **changes}


class Reader(html.parser.HTMLParser):
    """What a browser would see of a page: tags with attributes, and text outside of script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.inside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.words.append(data)


@pytest.fixture
def make(tmp_path):
    """Runs the verb; returns the page's text."""

    def make(*evaluations, logs=(), title="A report"):
        parser = argparse.ArgumentParser()
        report.add_arguments(parser)
        output = tmp_path / "out" / "report.html"
        output.parent.mkdir(exist_ok=True)
        paths = []
        for number, content in enumerate(evaluations):
            path = tmp_path / f"{number}.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            paths.append(str(path))
        arguments = ["--output", str(output), "--title", title]
        arguments += ["--evaluation", *paths] if paths else []
        arguments += ["--log", *logs] if logs else []
        assert report.run(parser.parse_args(arguments)) == 0
        assert list(output.parent.iterdir()) == [output]
        return output.read_text(encoding="utf-8")

    return make


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(SIMPLE + SIMPLE.replace("149", "298").replace("=100", "=200").replace("5.2", "4.9"))
    return path


def test_page_holds_every_name_and_value(make, log):
    text = make(evaluation(), logs=[f"plain={log}"])
    words = " ".join("".join(Reader(text).words).split())
    for wanted in (
        "A report", "teacher", "student", "student, int8", "flickr", "<b>news", "A <CPU>", "torch 2.0", "CPU, 1 thread",
        "+1.0", "−1.0*", "< 0.001", "0.200", "1.2", "BLEU|sig", "not measured: pip install it",
        "GPU: not measured: no GPU", "1,000 sentences", "4.00",
        "one pass", "plain", "nll_loss", "kd|alpha:0.2|T:1.0",
        "subwords.symbols", "2020-01-02 03:04:05", "lower is better",
    ):  # fmt: skip
        assert wanted in words, wanted


def specs(text):
    """The charts of a page, as its script reads them."""
    return [json.loads(part) for part in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)]


def panels(text):
    """{(title, subtitle): rows}."""
    found = [panel for spec in specs(text) for panel in spec["concat"]]
    return {(panel["title"]["text"], panel["title"]["subtitle"]): panel["data"]["values"] for panel in found}


def test_charts_hold_the_numbers_of_the_files(make, log):
    drawn = panels(make(evaluation(), logs=[f"plain={log}"]))
    content = evaluation()
    for test in ("flickr", "<b>news"):
        rows = drawn[test, "BLEU against speed"]
        for row, model in zip(rows, content["models"]):
            assert (row["model"], row["bytes"], row["engine"]) == (model["name"], model["bytes"], "fairseq")
            assert row["speed"] == model["speed"]["cpu"]["tokens_per_second"] and row["front"]
        for scored in (rows, drawn[test, "BLEU"], drawn[test, "TER (lower is better)"]):
            assert [row["score"] for row in scored] == [30.0, 29.0, 28.0]
            assert [row["low"] for row in scored] == pytest.approx([28.85, 27.85, 26.85])
            assert [row["high"] for row in scored] == pytest.approx([31.35, 30.35, 29.35])
    assert drawn["valid nll_loss", "bits per token"] == [
        {"run": "plain", "update": 149, "value": 5.2},
        {"run": "plain", "update": 298, "value": 4.9},
    ]


def test_a_dominated_model_is_not_on_the_front(make):
    content = evaluation()
    content["models"][2]["speed"]["cpu"]["tokens_per_second"] = 5.0
    rows = panels(make(content))["flickr", "BLEU against speed"]
    assert [row["front"] for row in rows] == [True, True, False]


def test_every_value_is_in_a_table_without_script(make, log):
    text = re.sub(r"<script.*?</script>", "", make(evaluation(), logs=[f"plain={log}"]), flags=re.DOTALL)
    cells = re.findall(r"<t[dh][^>]*>(?:<bdi>)?([^<]*)", text)
    for value in ("5.2", "4.9", "30.0", "29.0", "28.0", "100", "300", "900"):
        assert value in cells, value
    assert "train_inner loss 8.413" in text and "train_inner lr 1e-05" in text  # the same at all times


def test_page_asks_for_nothing_from_outside(make, log):
    text = make(evaluation(), logs=[f"plain={log}"])
    reader = Reader(text)
    for _, attributes in reader.tags:
        assert not {"href", "src", "xlink:href", "srcset", "style", "data", "action"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in reader.tags}
    assert not re.search(r"url\(|@import|https?:", re.sub("<script>.*</script>", "", text, flags=re.DOTALL))
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for tag in ("style", "script"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "ast: true" in (TEMPLATES / "page.js").read_text()  # without it Vega needs unsafe-eval
    assert len(text) < 1_200_000


def test_every_curve_and_picture_zooms_and_has_a_legend_that_hides(make, log):
    """As compiled: Vega-Lite drops a parameter in silence where it stands in the wrong place."""
    asked = [spec for spec in specs(make(evaluation(), logs=[f"plain={log}"])) if "params" in spec]
    assert len(asked) >= 2
    for spec in asked:
        compiled = json.dumps(vl_convert.vegalite_to_vega(spec))
        assert all(f'"zoom_panel{number}_zoom_delta"' in compiled for number in range(len(spec["concat"])))
        assert '"hidden_toggle"' in compiled and "wheel" in compiled


def test_pictures_have_descriptions(make, log):
    drawn = specs(make(evaluation(), logs=[f"plain={log}", f"kd={log}"]))
    assert len(drawn) >= 3 and all(spec["description"] for spec in drawn)


def test_missing_libraries_are_named_before_any_work(tmp_path):
    block = "import sys; sys.argv[0] = 'kd-plugin'; sys.modules['vl_convert'] = None\n"
    block += "from kd_plugin.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", block, "report", "--log", "a=none.log", "--output", str(tmp_path / "r.html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "vl_convert" in done.stderr and "Remedy: pip install 'kd-plugin[report]'" in done.stderr


def test_text_of_files_is_never_markup(make, log):
    names = (EVIL, "</style><img src=x onerror=alert(1)>", "' onload='x")
    text = make(
        evaluation(names, baseline=EVIL, settings={EVIL: {EVIL: EVIL}}, machine={EVIL: EVIL}, date=EVIL),
        logs=[f"<script>={log}"],
        title="</title><script>alert(2)</script>\ud800",
    )
    reader = Reader(text)
    tags = [tag for tag, _ in reader.tags]
    blocks = [attributes.get("type") for tag, attributes in reader.tags if tag == "script"]
    assert blocks.count(None) == 1 and set(blocks) == {None, "application/json"} and len(blocks) == len(specs(text)) + 1
    assert "img" not in tags and tags.count("style") == 1
    assert "\x00" not in text and "\u202e" not in text
    assert "<script>" in "".join(reader.words)


def test_same_input_gives_the_same_page(make, log):
    assert make(evaluation(), logs=[f"a={log}"]) == make(evaluation(), logs=[f"a={log}"])


@pytest.mark.parametrize(
    "content",
    [
        {"format": "kd_plugin evaluation", "version": 1, "models": [{"name": "alone"}]},
        evaluation(("alone",), baseline="someone else", tests=[]),
        evaluation(baseline=None, machine=None, versions=[], settings=None, date=None),
        evaluation(tests=[{"name": "unscored", "lines": 5}]),
        evaluation(settings={"lenpen": float("nan"), "beam": float("inf"), "threads": -float("inf")}),
        {**evaluation(), "models": [{**m, "speed": None, "bytes": None} for m in evaluation()["models"]]},
        {**evaluation(), "models": [{**m, "bytes": "4", "parameters": True} for m in evaluation()["models"]]},
    ],
)
def test_partial_evaluations_give_a_page(make, content):
    words = "".join(Reader(make(content)).words)
    assert all(model["name"] in words for model in content["models"])


def test_two_evaluations_keep_their_machines_apart(make):
    words = "".join(Reader(make(evaluation(), evaluation(machine={"cpu": "another"}))).words)
    assert "A <CPU>" in words and "another" in words and "0.json" in words and "1.json" in words


def test_log_alone_gives_a_page(make, log):
    words = "".join(Reader(make(logs=[f"a={log}"])).words)
    assert "Learning curves" in words and "Quality" not in words


@pytest.mark.parametrize(
    "content, cause",
    [
        ("", "cannot be read"),
        ("[1]", "object"),
        ({"format": "other", "version": 1}, "'other'"),
        ({"format": "kd_plugin evaluation", "version": 2}, "version 2"),
        ({"format": "kd_plugin evaluation", "version": 1, "models": []}, "no model"),
        ({"format": "kd_plugin evaluation", "version": 1, "models": [{}]}, "without a name"),
        ({"format": "kd_plugin evaluation", "version": 1, "models": ["a"]}, "'models'"),
        ({"format": "kd_plugin evaluation", "version": 1, "models": [{"name": "a", "scores": 5}]}, "'scores'"),
    ],
)
def test_bad_evaluations_are_refused_by_name(make, content, cause):
    with pytest.raises(KDPluginError, match="Remedy: ") as error:
        make(content)
    assert "0.json" in str(error.value) and cause in str(error.value)


def test_bad_logs_and_outputs_are_refused_by_name(make, tmp_path, log):
    empty = tmp_path / "empty.log"
    empty.write_text("nothing of fairseq's\n")
    for argument, cause in (
        (f"a={empty}", "contains no numbers"), (f"a={tmp_path / 'no.log'}", "No such file"), (f"a={tmp_path}", "a="),
        (str(log), "not NAME=FILE"), ("=x", "not NAME=FILE"),
    ):  # fmt: skip
        with pytest.raises(KDPluginError, match="Remedy: ") as error:
            make(logs=[argument])
        assert cause in str(error.value)
    with pytest.raises(KDPluginError, match="nothing to report.*Remedy: "):
        make()
    for output in (tmp_path, tmp_path / "none" / "a.html"):
        with pytest.raises(KDPluginError, match="--output.*Remedy: "):
            report.run(
                argparse.Namespace(
                    sweep=[], gap=[], evaluation=[], log=[f"a={log}"], output=str(output), title="t", times=None
                )
            )


def test_folder_of_an_evaluation_will_do(tmp_path, log):
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    output = tmp_path / "report.html"
    report.run(arguments(evaluation=[str(tmp_path)], output=str(output)))
    assert html.escape("student, int8") in output.read_text(encoding="utf-8")


def test_what_one_run_alone_logs_is_not_said_of_all():
    simple = "2026-01-01 00:00:00 | INFO | train_inner | epoch 001: {0} / 9 loss=3, {1}num_updates={0}\n"
    runs = [
        run_of("".join(simple.format(at, "kd_alpha=0.5, lr=0.1, ") for at in (1, 2)), "distilled"),
        run_of("".join(simple.format(at, "lr=0.1, ") for at in (1, 2)), "plain"),
    ]
    constants = [text for figure in learning_figures(runs) for text in figure.constants]
    assert "train_inner kd_alpha (distilled) 0.5" in constants and "train_inner lr 0.1" in constants


def test_a_significantly_worse_score_has_another_mark_than_a_better_one(tmp_path):
    scored = {"base": (30.0, None), "up": (31.0, 0.0), "down": (29.0, 0.01), "same": (30.0, 0.001)}
    models = [
        {"name": name, "scores": [{"test": "t", "metric": "BLEU", "value": value, "p_value": p_value}]}
        for name, (value, p_value) in scored.items()
    ]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation(baseline="base", models=models)))
    table = score_table(read_evaluation(str(tmp_path)), "t")
    assert [row["BLEU", "difference"] for row in table.rows()] == ["–", "+1.0*", "−1.0↓", "+0.0"]
    assert [row["BLEU", "p"] for row in table.rows()] == ["–", "< 0.001", "0.010", "0.001"]


def test_the_bundle_is_made_once_and_believed_only_where_nobody_else_can_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return f"text {len(made)} ä"

    folder, file = tmp_path / "kd_plugin", tmp_path / "kd_plugin" / "a.js"
    assert [kept("a.js", make), kept("a.js", make)] == ["text 1 ä"] * 2
    file.write_bytes(file.read_bytes().replace(b"text 1", b"evil 1"))  # its hash is no longer its own
    assert [kept("a.js", make), kept("a.js", make)] == ["text 2 ä"] * 2
    folder.chmod(0o770)
    assert [kept("a.js", make), kept("a.js", make)] == ["text 3 ä", "text 4 ä"]
    folder.chmod(0o700)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert kept("a.js", make) == "text 5 ä"
    folder.unlink()
    folder.write_text("no folder")
    assert kept("a.js", make) == "text 6 ä"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    assert kept("a.js", make) == "text 7 ä" and not (tmp_path / "relative").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert kept("a.js", make) == "text 8 ä"


def test_a_file_of_another_user_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept("a.js", lambda: "mine") == "mine"
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert kept("a.js", lambda: "made again") == "made again"


def arguments(**given):
    return argparse.Namespace(
        **{"evaluation": [], "log": [], "sweep": [], "gap": [], "times": None, "title": "t", **given}
    )
