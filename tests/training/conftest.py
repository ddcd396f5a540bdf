"""Images few enough for an epoch of three steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onceforall.data.dataset import ImageData


@pytest.fixture(scope="session")
def few_data(tiny_data: ImageData) -> ImageData:
    """A hundred images, of which 90 train."""
    images, labels = tiny_data.train_images[:100], tiny_data.train_labels[:100]
    return replace(tiny_data, train_images=images, train_labels=labels, _prepared={})
