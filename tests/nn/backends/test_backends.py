"""The one place that asks which backend suits."""

import pytest
import torch

from shd_bids.nn import backends
from shd_bids.nn.backends import CPU, CUDA, EAGER, backend_for, cpu, cuda


@pytest.fixture
def there(monkeypatch):
    """Make both kinds of kernel available, for float32 and for float16."""
    monkeypatch.setattr(cpu, "suits", lambda *tensors: all(t.dtype == torch.float32 for t in tensors))
    monkeypatch.setattr(cuda, "suits", lambda *tensors: all(t.dtype == torch.float16 for t in tensors))


def test_each_backend_is_taken_where_it_suits(there):
    single, half = torch.zeros(1), torch.zeros(1, dtype=torch.float16)
    assert backend_for(single, single) is CPU
    assert backend_for(half) is CUDA
    assert backend_for(single, half) is EAGER


def test_a_compiler_is_given_operators_and_pytorch(there, monkeypatch):
    monkeypatch.setattr(backends.torch.compiler, "is_compiling", lambda: True)
    backend = backend_for(torch.zeros(1))
    assert backend.operator is cpu.operator
    assert backend.rectify is EAGER.rectify
    assert not backend.in_slabs
    assert backend_for(torch.zeros(1, dtype=torch.float16)).operator is cuda.operator


@pytest.mark.skipif(cpu.library() is None, reason="no compiled kernel and no compiler")
def test_only_what_the_cpu_kernel_can_do_is_given_to_it():
    assert cpu.suits(torch.zeros(1), torch.zeros(1))
    assert not cpu.suits(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
    assert not cpu.suits(torch.zeros(1, device="meta"))
