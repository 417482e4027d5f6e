"""The contact sheet: whom it shows, and where its lines lie on figures drawn at known places."""

import dataclasses

import cv2
import numpy as np
import pytest

from rgbd_reid_jax.data import check, contact_sheet
from rgbd_reid_jax.data.inspection import Split
from tfds_builders import schema
from tfds_builders.knobs import knob_values
from tfds_builders.recorded import prepared_layout, tree
from tfds_builders.recorded.frames import Frame
from tfds_builders.rgbd_folder import example_tree as own_example
from tfds_builders.rgbd_folder import rgbd_folder_dataset_builder as own_builder
from tfds_builders.rgbd_folder import scan as own_scan
from tfds_builders.robotpku_rgbd_id import example_tree as robotpku_example
from tfds_builders.robotpku_rgbd_id import scan as robotpku_scan
from tfds_builders.tvrid import example_tree as tvrid_example
from tfds_builders.tvrid import scan as tvrid_scan

ROWS, COLUMNS, SCALE = 32, 16, 6.5  # of the drawn images, and how much a panel enlarges them
PANEL = (208, 104)
CELL = (PANEL[0] + 4 * 16 + 16, 3 * (PANEL[1] + 1) + 16)
RED, BLUE, BLACK = (230, 0, 0), (0, 0, 255), (0, 0, 0)
FIGURE = np.zeros((ROWS, COLUMNS), bool)
FIGURE[4:28, 5:11] = True
VALID_DEPTH = {"mask": schema.VALID_DEPTH}


def split_of(places: list[tuple[int, int, int]]) -> Split:
    """A split of labels alone: (person, camera, recording) of each record."""
    names = ("person_id", "camera_id", "recording_id")
    columns = np.array(places, np.int64).reshape(-1, 3).T
    return Split("train", None, [], dict(zip(names, columns, strict=True)))


def grid(cameras_of: dict[int, int]) -> list[tuple[int, int, int]]:
    """Three records of each person before the first so many cameras, each a recording of its own."""
    return [
        (person, camera, 100 * person + camera)
        for person, count in cameras_of.items()
        for camera in range(count)
        for _ in range(3)
    ]


@pytest.mark.parametrize(
    ("cameras_of", "count"),
    [
        ({0: 2, 1: 2, 2: 2, 3: 2}, 8),
        ({0: 4, 1: 4, 2: 4, 3: 4}, 12),
        ({0: 5, 1: 5, 2: 5, 3: 5}, 12),
        ({7: 4}, 4),
        ({0: 4, 1: 1, 2: 1, 3: 1}, 7),
        ({0: 1, 1: 1, 2: 9, 3: 3}, 12),
        ({0: 40, 1: 40}, 12),
    ],
)
def test_every_camera_is_shown_before_one_is_shown_again(cameras_of, count):
    split = split_of(grid(cameras_of))
    rows = contact_sheet.chosen_rows(split)
    assert len(rows) == count
    people, cameras = split.labels["person_id"][rows], split.labels["camera_id"][rows]
    assert set(people) == set(cameras_of), "nobody is left out"
    assert len(set(cameras)) == min(12, max(cameras_of.values()))
    assert len(set(zip(people, cameras, strict=True))) == count, "nobody is shown twice before a camera"
    assert all(row % 3 == 1 for row in rows), "the middle frame"
    assert list(zip(people, cameras, strict=True)) == sorted(zip(people, cameras, strict=True))


def test_people_before_the_same_cameras_are_shown_equally_often():
    split = split_of(grid(dict.fromkeys(range(9), 4)))
    rows = contact_sheet.chosen_rows(split)
    assert np.unique(split.labels["person_id"][rows], return_counts=True)[1].tolist() == [3, 3, 3, 3]
    assert np.unique(split.labels["camera_id"][rows], return_counts=True)[1].tolist() == [3, 3, 3, 3]
    assert {0, 8} < set(split.labels["person_id"][rows]), "spread over the split"


def test_cameras_that_few_people_saw_are_shown_too():
    random = np.random.default_rng(0)
    for _ in range(50):
        seen = random.random((4, 6)) < 0.4
        seen[np.arange(4), random.integers(0, 6, 4)] = True
        split = split_of([(person, camera, person) for person, camera in np.argwhere(seen).tolist()])
        rows = contact_sheet.chosen_rows(split)
        assert set(split.labels["camera_id"][rows]) == set(np.flatnonzero(seen.any(axis=0)))
        assert len(rows) == min(12, seen.sum())


def test_a_person_before_one_camera_is_shown_in_several_recordings():
    split = split_of([(3, 1, recording) for recording in range(5) for _ in range(3)])
    assert contact_sheet.chosen_rows(split) == [1, 7, 13]


@pytest.fixture
def drawn(registry, drawn_tree, tmp_path):
    """A function that gives the sheet of some frames, uint8 [H, W, 3] RGB, drawn by the command."""

    def draw(frames: dict[str, list[Frame]], **more) -> np.ndarray:
        registry.give(frames, **more)
        sheet = tmp_path / "sheets" / "sheet.png"
        check.main(["people", f"--manual_dir={drawn_tree}", f"--data_dir={tmp_path / 'data'}", f"--sheet={sheet}"])
        picture = cv2.imread(str(sheet))
        assert picture is not None
        return picture[..., ::-1]

    return draw


@pytest.fixture
def words(monkeypatch) -> list[str]:
    """What was written onto pictures."""
    found: list[str] = []
    write = contact_sheet.pictures.write_text

    def record(picture, text, *place):
        found.append(text)
        write(picture, text, *place)

    monkeypatch.setattr(contact_sheet.pictures, "write_text", record)
    return found


def changed(frames: dict[str, list[Frame]], number: int, **images) -> dict[str, list[Frame]]:
    """The frames with images of a training frame put in place of those drawn for it; frame 1 is shown first."""
    train = list(frames["train"])
    train[number] = dataclasses.replace(train[number], extra=images)
    return frames | {"train": train}


def panels(sheet: np.ndarray, place: int = 0) -> tuple[np.ndarray, ...]:
    """Colour, depth and overlay of a cell in the first line."""
    lefts = [place * CELL[1] + 8 + number * (PANEL[1] + 1) for number in range(3)]
    return tuple(sheet[32 : 32 + PANEL[0], left : left + PANEL[1]] for left in lefts)


def enlarged(image: np.ndarray) -> np.ndarray:
    """An image [32, 16, ...] as a panel shows it."""
    rows, columns = (np.minimum((np.arange(count) / SCALE).astype(int), count) for count in PANEL)
    return image[np.ix_(rows, columns)]


def beside(inside: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels one of whose four neighbours is on the other side, found by moving the whole image."""
    padded = np.pad(inside, 1, mode="edge")
    moved = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.any([one != inside for one in moved], axis=0)


def of_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == colour).all(axis=-1)


def figure(on: tuple[int, int, int], around: tuple[int, int, int]) -> np.ndarray:
    return np.where(FIGURE[..., None], on, around).astype(np.uint8)


def test_the_sheet_shows_all_splits_and_what_is_damaged(registry, drawn, words):
    sheet = drawn(changed(registry.people(), 1, rgb=b"damaged"))
    # Per split two people before two cameras: one line of four cells with captions.
    assert sheet.shape == (3 * (32 + CELL[0]), 4 * CELL[1], 3)
    middles = [((np.arange(count) + 0.5) * SCALE).astype(int) for count in (ROWS, COLUMNS)]
    shown = panels(sheet, 1)[0][np.ix_(*middles)]
    np.testing.assert_array_equal(shown, registry.images_of(4)["rgb"])
    assert {word for word in words if word in ("damaged", "recorded")} == {"damaged"}
    assert panels(sheet, 0)[0].min(axis=-1).mean() > 240, "paper with words"
    assert sum(word.startswith("person at 2.0") for word in words) == 11, "all but the damaged one"
    assert not any("no person mask" in word for word in words)


def test_lines_of_depth_and_mask_coincide_on_the_figure(registry, drawn):
    overlay = panels(drawn(registry.people()))[2]
    np.testing.assert_array_equal(of_colour(overlay, BLACK), beside(enlarged(FIGURE)))
    assert not of_colour(overlay, RED).any()
    assert not of_colour(overlay, BLUE).any()


def test_lines_of_depth_and_mask_that_disagree_are_both_seen(registry, drawn):
    mask = np.roll(FIGURE, 3, axis=1)
    overlay = panels(drawn(changed(registry.people(), 1, mask=255 * mask.astype(np.uint8))))[2]
    of_depth, of_mask = beside(enlarged(FIGURE)), beside(enlarged(mask))
    np.testing.assert_array_equal(of_colour(overlay, BLACK), of_depth & of_mask)
    np.testing.assert_array_equal(of_colour(overlay, RED), of_depth & ~of_mask)
    np.testing.assert_array_equal(of_colour(overlay, BLUE), of_mask & ~of_depth)


@pytest.mark.parametrize("shift", [0, 1, -3])
@pytest.mark.parametrize(
    ("on", "around"),
    [
        ((60, 120, 90), (120, 60, 90)),  # as bright as what is around it
        ((104, 104, 104), (96, 96, 96)),
        ((12, 9, 9), (4, 5, 6)),
        ((230, 0, 0), (0, 0, 255)),  # the lines' own colours
    ],
)
def test_colour_that_is_shifted_is_seen_beside_the_lines(registry, drawn, on, around, shift):
    rgb = np.roll(figure(on, around), shift, axis=1)
    overlay = panels(drawn(changed(registry.people(), 1, rgb=rgb)))[2]
    lines = of_colour(overlay, BLACK)
    np.testing.assert_array_equal(lines, beside(enlarged(FIGURE)))
    assert overlay[~lines].min() >= 128, "lines stand out from whatever is below them"
    shown = enlarged(np.roll(FIGURE, shift, axis=1))
    (inside,) = np.unique(overlay[shown & ~lines], axis=0)
    (outside,) = np.unique(overlay[~shown & ~lines], axis=0)
    assert np.abs(inside.astype(int) - outside).max() >= 90


def test_without_a_person_mask_no_outline_and_no_person_is_claimed(registry, drawn, words):
    sheet = drawn(registry.people(), metadata=VALID_DEPTH)
    overlay = panels(sheet)[2]
    np.testing.assert_array_equal(of_colour(overlay, RED), beside(enlarged(FIGURE)))
    assert not of_colour(overlay, BLACK).any()
    assert not of_colour(overlay, BLUE).any()
    assert not any("person at" in word or "blue" in word for word in words)
    depths = [word for word in words if word.startswith("median depth 2.0") and word.endswith(" m (no person mask)")]
    assert len(depths) == 12


def test_builders_tell_whether_there_is_a_person_mask(tmp_path):
    for folder in ("prepared", "raw"):
        robotpku_example.write(tmp_path / folder, folder)
    tvrid_example.write(tmp_path / "tvrid")
    paths = {folder: tree.listing(tmp_path / folder) for folder in ("prepared", "raw", "tvrid")}
    found = {
        "prepared": prepared_layout.scan(tmp_path / "prepared", paths["prepared"], fold=0, sizes={}, seed=0),
        "raw": robotpku_scan.scan(tmp_path / "raw", paths["raw"], "", 0),
        "tvrid": tvrid_scan.scan(tmp_path / "tvrid", paths["tvrid"], validation_share=0.2, seed=0),
    }
    for name in ("own", "own_bare"):
        own_example.write(tmp_path / name)
        for file in (tmp_path / name).rglob("*_mask.png") if name == "own_bare" else ():
            file.unlink()
        knobs = knob_values(own_builder.config_of("default", {}))
        found[name] = own_scan.scan(tmp_path / name, tree.listing(tmp_path / name), knobs)
    masked = {name: contact_sheet.has_person_mask(scan.metadata) for name, scan in found.items()}
    assert masked == {"prepared": False, "raw": True, "tvrid": True, "own": True, "own_bare": False}


@pytest.mark.parametrize(("modality", "called", "left"), [("rgb", "colour", 2), ("depth", "depth", 1)])
def test_what_was_never_recorded_is_said_so(registry, drawn, words, modality, called, left):
    empty = np.zeros_like(registry.images_of(1)[modality])
    sheet = drawn(changed(registry.people(), 1, modalities=left, **{modality: empty}))
    said = [words[number - 1 : number + 2] for number, word in enumerate(words) if word == called]
    assert said == [["no", called, "recorded"]]
    shown = panels(sheet)[{"rgb": 0, "depth": 1}[modality]]
    assert np.median(shown) == 255
    assert (shown < 128).any(), "words on paper"
    outline = of_colour(panels(sheet)[2], BLUE if modality == "depth" else BLACK)
    np.testing.assert_array_equal(outline, beside(enlarged(FIGURE)))


def test_images_of_the_wrong_type_do_not_stop_the_sheet(registry, drawn, words):
    wrong = {"rgb": np.zeros((ROWS, COLUMNS, 4), np.uint8), "depth": np.zeros((ROWS, COLUMNS, 3), np.uint8)}
    encoded = {name: cv2.imencode(".png", image)[1].tobytes() for name, image in wrong.items()}
    drawn(changed(registry.people(), 1, **encoded))
    assert words.count("damaged") == 2
