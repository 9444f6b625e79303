"""What every feature network refuses, in one line that says why."""

from __future__ import annotations

import numpy as np
import pytest
from qpass_evaluators.networks.feature_network import check_images

from qpass.evaluator import EvaluationError

NAN = np.full((1, 8, 8, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8, 1), np.uint8), "uint8 of 2 x 8 x 8 x 1; repeat the gray channel"),
        (np.zeros((2, 8, 8, 4), np.uint8), "drop the alpha channel"),
        (np.zeros((2, 3, 8, 8), np.uint8), "channels come last"),
        (np.zeros((8, 8, 3), np.uint8), "not uint8 of 8 x 8 x 3"),
        (np.zeros((2, 8, 8, 3)), "float64 of 2 x 8 x 8 x 3; round them"),
        (NAN, "192 values that are not finite"),
        (np.zeros((2, 8, 8, 3), np.int64), "not int64"),
        ([1, 2], "not list"),
        (np.zeros((2, 0, 8, 3), np.uint8), "no pixels"),
    ],
)
def test_what_is_no_image_is_refused(images, words):
    with pytest.raises(EvaluationError, match=words) as caught:
        check_images("inception-2015", images)
    assert str(caught.value).startswith("inception-2015: ")
    assert "\n" not in str(caught.value)


def test_uint8_images_pass():
    check_images("any", np.zeros((0, 1, 7, 3), np.uint8))
