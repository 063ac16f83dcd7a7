"""A small decoder-only transformer, arranged like GPT-2 (Radford et al., 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_INIT_STD = 0.02
"""Small enough that an untrained model is close to uniform: its loss starts at ln(vocab_size)."""


class GPT(nn.Module):
    """Token and learned position embeddings, pre-norm blocks, one linear layer to logits.

    Args:
        vocab_size: number of different tokens.
        block_size: the longest sequence, in tokens, that the model can read.
        num_layers: transformer blocks.
        num_heads: attention heads per block; has to divide `width`.
        width: size of the vector that stands for one token.
        dropout: probability for embeddings, attention weights and block outputs.

    Raises:
        ValueError: if `num_heads` does not divide `width`.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % num_heads != 0:
            raise ValueError(
                f"GPT: num_heads={num_heads} does not divide width={width}; change one of them"
            )
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(block_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(num_heads, width, dropout) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self._initialise(num_layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, time, vocab_size) of what follows each of `tokens` (batch, time).

        Raises:
            ValueError: for a sequence longer than `block_size`.
        """
        time = tokens.shape[1]
        if time > self.block_size:
            raise ValueError(
                f"GPT: a sequence of {time} tokens is longer than block_size={self.block_size}; "
                "shorten the data's windows or raise the model's block_size"
            )
        positions = torch.arange(time, device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits

    def _initialise(self, num_layers: int) -> None:
        """Normal weights, zero biases; what enters the residual stream is scaled by its depth.

        Each block adds twice to the stream, so 1/sqrt(2 * num_layers) keeps its variance.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=_INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("to_stream.weight"):
                nn.init.normal_(parameter, std=_INIT_STD / (2 * num_layers) ** 0.5)


class Block(nn.Module):
    """Attention, then a two-layer network; each reads a normed stream and adds to it."""

    def __init__(self, num_heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(num_heads, width, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and what stands before it."""

    def __init__(self, num_heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_query_key_value = nn.Linear(width, 3 * width)
        self.to_stream = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same shape."""
        batch, time, width = x.shape
        heads = self.to_query_key_value(x).view(batch, time, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attention_dropout = self.dropout.p if self.training else 0.0
        seen = F.scaled_dot_product_attention(
            query, key, value, dropout_p=attention_dropout, is_causal=True
        )
        merged = seen.transpose(1, 2).reshape(batch, time, width)
        added: Tensor = self.dropout(self.to_stream(merged))
        return added


class MLP(nn.Module):
    """Four times the width, GELU, and back."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(width, 4 * width)
        self.to_stream = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same shape."""
        added: Tensor = self.dropout(self.to_stream(F.gelu(self.to_hidden(x))))
        return added
