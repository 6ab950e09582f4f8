"""Latents along directions and lines, and grids of images: by value."""

import numpy as np
import pytest
import torch

from lightning_rank.functional import row_moments
from lightning_rank.traversal import image_grid, interpolate_latents, traverse_principal_directions


def latents():
    return torch.randn(200, 3, dtype=torch.float64) @ torch.randn(3, 6, dtype=torch.float64) + 7


@pytest.mark.parametrize("centered", ["at the mean", "at a latent"])
def test_a_row_is_the_center_plus_multiples_of_deviation_times_direction(centered):
    rows = latents()
    center = rows.mean(0) if centered == "at the mean" else rows[3]
    found = traverse_principal_directions(row_moments(rows), 4, 5, center=None if centered == "at the mean" else center)
    x = rows.numpy()
    _, sigma, directions = np.linalg.svd(x - x.mean(0), full_matrices=False)
    for k in range(3):
        axis = directions[k] * np.sign(directions[k][np.abs(directions[k]).argmax()]) * sigma[k] / np.sqrt(len(x))
        expected = center.numpy() + np.array([-2, -1, 0, 1, 2])[:, None] * axis
        np.testing.assert_allclose(found[k], expected, rtol=1e-9)
    np.testing.assert_allclose(found[3], np.tile(center, (5, 1)), rtol=1e-6)  # the rank is 3


def test_interpolation_is_a_straight_line_with_both_ends_for_latents_of_any_shape():
    start, end = torch.randn(3, 2, 2), torch.randn(3, 2, 2)
    line = interpolate_latents(start, end, 4)
    torch.testing.assert_close(line, torch.stack([start, (2 * start + end) / 3, (start + 2 * end) / 3, end]))
    assert interpolate_latents(start.bfloat16(), end.bfloat16(), 2).dtype == torch.bfloat16


def test_the_grid_has_every_image_in_its_place_between_gray_lines():
    images = torch.arange(12).reshape(2, 3, 2, 1, 1).float() / 12
    grid = image_grid(images)
    assert (grid.dtype, grid.shape) == (torch.uint8, (2, 2 * 67 + 3, 3 * 67 + 3))
    expected = torch.full(grid.shape, 128, dtype=torch.uint8)
    for row in range(2):
        for column in range(3):
            tile = expected[:, 3 + 67 * row : 67 * row + 67, 3 + 67 * column : 67 * column + 67]
            tile[:] = (255 * images[row, column]).round()
    assert grid.equal(expected)


def test_images_keep_their_pixels_and_values_beyond_the_range_are_clamped():
    image = torch.tensor([[-1.0, 0.5], [2.0, torch.nan]])
    grid = image_grid(image.expand(1, 1, 1, 2, 2))
    assert grid[0, 3:67, 3:67].unfold(0, 32, 32).unfold(1, 32, 32).flatten(2).unique(dim=-1).tolist() == [
        [[0], [128]],
        [[255], [0]],
    ]
    large = torch.rand(1, 2, 3, 70, 100)
    assert image_grid(large)[:, 3:73, 106:206].equal((255 * large[0, 1]).round().to(torch.uint8))


def test_bad_arguments_are_refused():
    moments = row_moments(latents())
    for bad in (0, 7):
        with pytest.raises(ValueError, match=f"n_directions: expected 1 to 6, the width of the latents, got {bad}"):
            traverse_principal_directions(moments, bad, 5)
    with pytest.raises(ValueError, match="steps: expected 2 or more, got 1"):
        traverse_principal_directions(moments, 2, 1)
    with pytest.raises(ValueError, match=r"center: expected shape \(6,\), got \(1, 6\)"):
        traverse_principal_directions(moments, 2, 3, center=torch.zeros(1, 6))
    with pytest.raises(ValueError, match="moments: expected those of one row or more, got none"):
        traverse_principal_directions(row_moments(torch.full((2, 6), torch.nan)), 2, 3)
    with pytest.raises(ValueError, match="steps: expected 2 or more, got 0"):
        interpolate_latents(torch.zeros(2), torch.zeros(2), 0)
    with pytest.raises(ValueError, match=r"end: expected the shape of start, \(2,\), got \(3,\)"):
        interpolate_latents(torch.zeros(2), torch.zeros(3), 3)
    with pytest.raises(ValueError, match=r"images: expected shape \(rows, columns, C, H, W\), got \(2, 1, 8, 8\)"):
        image_grid(torch.zeros(2, 1, 8, 8))
