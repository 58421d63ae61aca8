import pytest
import torch


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    torch.set_num_threads(request.param)  # the fixture same_threads restores it
    return request.param
