"""The report of a sweep, from results made up for the purpose."""

import csv
import html.parser
import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from rank_trainer import report
from rank_trainer.report import plots, tables


def result(method="ours", depth=2, gain=0.1, seed=0, rank=5.0, **more):
    history = [{"epoch": 0, "rank/effective": 9.0}, {"epoch": 1, "rank/effective": rank}]
    return {
        "method": method,
        "depth": depth,
        "gain": gain,
        "seed": seed,
        "rank/effective": rank,
        "history": history,
        "singular_values": [1.0, 0.5, 0.0],
        "cut/1/error": 7.0,
        "cut/2/error": 6.0,
        "probe/all": 0.9,
        "frechet/classifier/gaussian": 12.5,
        **more,
    }


RESULTS = [
    result("plain", 0, None, rank=20.0),
    result("irmae", 2, None, rank=8.0),
    *(result(depth=depth, seed=seed, rank=depth + seed) for depth in (2, 4) for seed in (0, 1)),
]
SETTINGS = {"sweep": "a <sweep>", "variance_rtol": 0.01, "max_epochs": 2}


def written(tmp_path):
    grids = {}
    for name in ("ours-depth2-gain0.1-seed0", "ours-depth2-gain0.1-seed1"):
        path = tmp_path / "runs" / name / "reconstructions.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(path)
        grids[name] = [path]
    return report.write(RESULTS, grids, SETTINGS, tmp_path)


def test_a_cell_is_the_mean_and_its_interval():
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert tables.mean_and_interval(values) == f"{np.mean(values):.3g} ± {(high - low) / 2:.2g}" == "2.33 ± 3.8"
    assert tables.mean_and_interval([3.0]) == "3"
    assert tables.mean_and_interval([]) == "-"


def test_a_table_has_a_row_for_each_setting_and_only_measures_that_there_are():
    rows = tables.cells(RESULTS, {"rank/effective": "effective rank", "test/error": "test error"})
    assert rows == [
        ["method", "depth", "gain", "seeds", "effective rank"],
        ["plain", "0", "-", "1", "20"],
        ["irmae", "2", "-", "1", "8"],
        ["ours", "2", "0.1", "2", "2.5 ± 6.4"],
        ["ours", "4", "0.1", "2", "4.5 ± 6.4"],
    ]
    assert tables.cells(RESULTS, {"test/error": "test error"}) == []


def test_the_distance_of_a_classifier_is_not_called_fid():
    titles = {key: title for measures in tables.TABLES.values() for key, title in measures.items()}
    for key, title in titles.items():
        assert ("FID" in title) == ("Inception" in title) == key.startswith("fid/inception")
        assert ("classifier" in title) == key.startswith("frechet/classifier")
    assert "FID" not in report.text(RESULTS)
    assert "Fréchet (classifier), Gaussian" in report.text(RESULTS)


def test_the_csv_has_a_row_a_run_and_no_curves():
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(RESULTS))))
    assert [float(row["rank/effective"]) for row in rows] == [20, 8, 2, 3, 4, 5]
    assert not {"history", "singular_values"} & rows[0].keys()


def test_the_page_holds_everything_itself(tmp_path):
    assert set(written(tmp_path)) == {
        "report.html",
        "report.md",
        "results.csv",
        *(f"{n}.png" for n in plots.PLOTS),
    }
    page = (tmp_path / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    # Two panels of curves, of spectra and of errors, one of depth, two of quality, one grid of the first seed.
    assert len(sources) == 2 + 2 + 2 + 1 + 2 + 1
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "://" not in re.sub(r'src="[^"]*"', "", page)
    assert 'name="viewport"' in page
    assert "a &lt;sweep&gt;" in page
    assert "<sweep>" not in page
    opened = []

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Tags().feed(page)
    assert opened == []


def test_the_markdown_links_what_lies_beside_it(tmp_path):
    written(tmp_path)
    text = (tmp_path / "report.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert all((tmp_path / link).exists() for link in links)
    assert {"results.csv", "runs/ours-depth2-gain0.1-seed0/reconstructions.png", "spectra.png"} <= set(links)
    assert not any("seed1" in link for link in links)


def lines(draw, results):
    """What each panel draws: the points of its lines, by label."""
    panels = draw(results)
    figure = Figure()
    drawn = []
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes)
        drawn.append([(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines])
    return drawn


def test_the_plots_show_the_results():
    irmae, ours = lines(plots.rank_curves, RESULTS)
    assert irmae == [("plain autoencoder", [1, 2], [9.0, 20.0]), ("depth 2", [1, 2], [9.0, 8.0])]
    assert [label for label, *_ in ours] == ["plain autoencoder", "depth 2", "depth 2", "depth 4", "depth 4"]
    assert ("depth 4", [1, 2], [9.0, 5.0]) in ours
    accuracy, distance = lines(plots.quality_by_rank, RESULTS)
    assert [(x, y) for _, x, y in accuracy] == [([row["rank/effective"]], [0.9]) for row in RESULTS]
    assert [y for *_, y in distance] == [[12.5]] * len(RESULTS)
    irmae, ours = lines(plots.error_by_cut, RESULTS)
    assert [(x, y) for _, x, y in ours] == [([1, 2], [7.0, 6.0])] * 5
    assert plots.error_by_cut([{k: v for k, v in result().items() if not k.startswith("cut/")}]) == []
    (by_depth,) = lines(plots.rank_by_depth, RESULTS)
    assert ([2, 4], [2.5, 4.5]) in [(x, y) for _, x, y in by_depth]


@pytest.mark.parametrize("gains", [[0.1], [0.1, 0.3]])
def test_gains_are_told_apart_where_there_are_several(gains):
    (ours,) = lines(plots.spectra, [result(gain=gain) for gain in gains])
    assert len({label for label, *_ in ours}) == len(gains)


def test_the_plain_autoencoder_alone_has_a_report(tmp_path):
    report.write([result("plain", 0, None)], {}, SETTINGS, tmp_path)
    assert not (tmp_path / "rank_by_depth.png").exists()
