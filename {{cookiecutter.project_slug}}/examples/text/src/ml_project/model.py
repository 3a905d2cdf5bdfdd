"""The model: plain PyTorch, tokens in, scores of each next token out.

Legend: B batch, T tokens, D width, H heads, E width of a head, K different tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GPT(nn.Module):
    """A transformer that sees the tokens before a place, and scores what comes next (Radford et al. 2019).

    Args:
        num_tokens: K.
        context: T at most.
        width: D, of the vector that stands for a token; a multiple of `heads`.
        depth: how many blocks.
        heads: H, of the attention in each block.
        dropout: share of what a block adds that is dropped in training.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(self, num_tokens: int, context: int, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        if min(width, depth, heads) < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, both and depth >= 1, got {width}, {heads}, {depth}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be >= 0 and < 1, got {dropout}.")
        self.token, self.position = nn.Embedding(num_tokens, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_tokens)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits, float32, B T K: for each place the scores of the token after it."""
        places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        hidden_BTD = self.blocks(self.token(tokens_BT) + self.position(places_T))
        logits_BTK: Tensor = self.head(self.norm(hidden_BTD))
        return logits_BTK


class Block(nn.Module):
    """Each token looks at those before it, then thinks by itself; both add to what it was."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD + self.drop(self.attend(self.norm_1(hidden_BTD)))
        hidden_BTD = hidden_BTD + self.drop(self.think(self.norm_2(hidden_BTD)))
        return hidden_BTD

    def attend(self, hidden_BTD: Tensor) -> Tensor:
        query_BHTE, key_BHTE, value_BHTE = (
            part_BTD.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part_BTD in self.query_key_value(hidden_BTD).chunk(3, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        seen_BHTE = F.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, dropout_p=dropout, is_causal=True)
        mixed_BTD: Tensor = self.mix(seen_BHTE.transpose(1, 2).flatten(2))
        return mixed_BTD
