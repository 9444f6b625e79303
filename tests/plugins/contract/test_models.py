"""What every source of models keeps to."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
import torch
from installed import every, fields, in_recipes
from torch import Tensor

from qpass.manager import PassContext
from qpass.report.data import plain


@every("models")
class TestModels:
    """Sources of models, those of them that need no more than what ships."""

    @pytest.fixture
    def model(self, cls: Any, unet_folder: Any) -> Any:
        if cls.name == "diffusers":
            return cls(path=str(unet_folder))
        if not in_recipes(cls) or any(f.default is attrs.NOTHING for f in fields(cls)):
            pytest.skip("needs a model that does not ship")
        return cls()

    def test_shape_without_weights(self, model: Any) -> None:
        """The skeleton has the parameters of the loaded module, without their memory."""
        full, bare = model.load(), model.skeleton()
        assert {n: (p.shape, p.dtype) for n, p in full.named_parameters()} == {
            n: (p.shape, p.dtype) for n, p in bare.named_parameters()
        }
        assert all(p.is_meta for p in bare.parameters())
        assert not any(p.is_meta for p in full.parameters())
        assert not full.training
        assert not bare.training

    def test_example(self, model: Any) -> None:
        """Seeded inputs, of any batch, that the module takes."""
        for batch in (1, 3):
            inputs, again = model.example(batch), model.example(batch)
            assert all(torch.equal(a, b) for a, b in zip(inputs, again, strict=True))
            with torch.no_grad():
                output = model.call(model.load(), *inputs)
            assert output.shape[0] == batch
        dims = model.dynamic()
        assert dims is None or len(dims) == len(inputs)

    def test_plain_data(self, model: Any) -> None:
        """What travels in artifacts is JSON; the fingerprint is the same each time."""
        for data in (dict(model.config()), model.signature()):
            assert json.loads(json.dumps(data)) == plain(data)
        assert isinstance(model.fingerprint(), str)
        assert model.fingerprint() == model.fingerprint()

    def test_sampling(self, model: Any, context: PassContext) -> None:
        """Either it says why it cannot be sampled from, or images come out; the same each time."""
        if reason := model.cannot_sample():
            assert isinstance(reason, str)
            return
        module = model.load()

        def draw() -> Tensor:
            sampling = attrs.evolve(context.sampling, steps=2)
            with torch.no_grad():
                return torch.cat(list(model.sample(
                    lambda *inputs: model.call(module, *inputs), seed=0, count=2, sampling=sampling,
                    device=torch.device("cpu"),
                )))  # fmt: skip

        images = draw()
        assert images.dtype == torch.uint8
        assert (images.shape[0], images.shape[3]) == (2, 3)
        assert torch.equal(images, draw())
