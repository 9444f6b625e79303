"""Two recipes and two tiny models, and one comparison of them that many tests look at."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `shop`
from shop import OBEYS, RECIPE, Done, Shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    from diffusers import DDIMScheduler, UNet2DModel

    made = Shop(folder=tmp_path_factory.mktemp("shop"))
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        UNet2DModel(
            sample_size=8, block_out_channels=(16,), norm_num_groups=8, layers_per_block=1, attention_head_dim=8,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        ).save_pretrained(made.folder / name)  # fmt: skip
        DDIMScheduler(beta_schedule="linear").save_pretrained(made.folder / name)
    model = str(made.folder / "one")
    obey = f'{{use = "obey", file = {str(made.order)!r}}}, '
    (made.folder / "plain.toml").write_text(RECIPE.format(model=model, weight="int4 channel", extra=""))
    (made.folder / "obeys.toml").write_text(RECIPE.format(model=model, weight="int8 channel", extra=obey))
    (made.folder / "obeys.py").write_text(OBEYS)
    return made


@pytest.fixture(scope="session")
def done(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("done") / "both"
    finished = shop.compare(out, models=2)
    assert finished.returncode == 0, finished.stderr
    return Done(out=out, stdout=finished.stdout, stderr=finished.stderr)
