"""The two feed-forward layers: GELU with biases (GPT-2) and SwiGLU without (Qwen, Llama).

They act on each token alone; attention is where tokens meet. A mixture of experts, `moe.py`,
stands in the same place.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class GeluMLP(nn.Module):
    """Widen, apply GELU, narrow: down(gelu(up(x))), with biases and GPT-2's tanh form of GELU.

    Args:
        dim: C, width in and out.
        mlp_dim: width in between; 4 * dim in GPT-2.

    Paper: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.

    Example:
        >>> import torch
        >>> GeluMLP(dim=8, mlp_dim=32)(torch.zeros(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, *, dim: int, mlp_dim: int):
        super().__init__()
        self.up_proj = nn.Linear(dim, mlp_dim)
        self.down_proj = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """A gate that decides how much of each hidden unit passes: down(silu(gate(x)) * up(x)), without biases.

    Args:
        dim: C, width in and out.
        mlp_dim: width in between; about 8/3 * dim costs as much as a GELU layer of 4 * dim.

    Paper: Shazeer 2020, arXiv:2002.05202, eq. 6.

    Example:
        >>> import torch
        >>> SwiGLU(dim=8, mlp_dim=24)(torch.zeros(2, 3, 8)).abs().max() == 0
        tensor(True)
    """

    def __init__(self, *, dim: int, mlp_dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.up_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.down_proj = nn.Linear(mlp_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
