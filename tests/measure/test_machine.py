from __future__ import annotations

import json

import torch

from turnout.measure.machine import describe


def test_description_is_json_and_says_where():
    found = describe()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"] and found["cores"] >= 1 and found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
