"""`carl_ray.data.view_pair`: a pair survives its row of an Arrow table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from carl_ray.config import AugmentConfig, Config, ModelConfig
from carl_ray.data.view_pair import ViewPair, array_types, from_columns, to_columns


@pytest.mark.parametrize("pixels", ["rgb", "yuv420"])
def test_pairs_survive_the_table(pixels: str) -> None:
    model = ModelConfig(num_frames=3, backbone="small", weights="random")
    config = Config(preset="test", augment=AugmentConfig(image_size=8, pixels=pixels), model=model)
    rng = np.random.default_rng(0)
    pairs: list[ViewPair | None] = [
        ViewPair(**{n: rng.integers(0, 2, shape).astype(t) for n, (t, shape) in array_types(config).items()})
        for _ in range(3)
    ]
    pairs.insert(1, None)
    table = pa.concat_tables([pa.table(to_columns(pair, config)) for pair in pairs])
    for whole in (table, table.combine_chunks(), table.combine_chunks().slice(1)):
        for index, pair in enumerate(pairs[len(pairs) - whole.num_rows :]):
            read = from_columns(whole, index, config)
            assert (read is None) == (pair is None)
            for name, value in vars(pair).items() if pair else ():
                np.testing.assert_array_equal(getattr(read, name), value, strict=True)
