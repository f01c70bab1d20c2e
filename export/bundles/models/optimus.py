"""Optimus, the sentence autoencoder (arXiv 2004.04092): BERT → latent → GPT-2, both from transformers.

GPT-2 takes the latent twice: ``linear_emb`` adds it to every token's embedding, and ``linear`` gives each
layer one extra slot whose key equals its value and which all tokens may attend to. Positions of tokens
therefore start at 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, DynamicCache, GPT2Config, GPT2Model

from unibrain_rt.export.bundles.architecture import OptimusConfig


class OptimusEncode(nn.Module):
    """BERT token ids (N, L), 0 where padded → mean of the latent's posterior, (N, D)."""

    def __init__(self, config: OptimusConfig) -> None:
        super().__init__()
        self.bert = BertModel(BertConfig(**_known(config.encoder)))
        self.linear = nn.Linear(self.bert.config.hidden_size, 2 * config.latent_size, bias=False)

    def posterior(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, each (N, D)."""
        output = self.bert(input_ids=input_ids, attention_mask=(input_ids > 0).long())
        mean, log_variance = self.linear(output.pooler_output).chunk(2, dim=-1)
        return mean, log_variance

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.posterior(input_ids)[0]


class OptimusDecoder(nn.Module):
    """GPT-2 with the latent in its embeddings and in its memory."""

    def __init__(self, config: OptimusConfig) -> None:
        super().__init__()
        # n_ctx is what old configurations call n_positions.
        sizes = {
            key: value
            for key, value in config.decoder.items()
            if key not in ("hidden_size", "n_ctx", "latent_size")
        }
        self.transformer = GPT2Model(GPT2Config(**sizes))
        sizes_read = self.transformer.config
        self.linear = nn.Linear(config.latent_size, sizes_read.n_layer * sizes_read.n_embd, bias=False)
        self.linear_emb = nn.Linear(config.latent_size, sizes_read.n_embd, bias=False)
        self.lm_head = nn.Linear(sizes_read.n_embd, sizes_read.vocab_size, bias=False)

    @property
    def sizes(self) -> GPT2Config:
        return self.transformer.config

    def memory(self, latent: Tensor) -> Tensor:
        """Latent (N, D) → the extra slot of every layer, (layers, N, heads, 1, width)."""
        slot = self.linear(latent).unflatten(-1, (self.sizes.n_layer, self.sizes.n_head, 1, -1))
        return slot.movedim(1, 0)

    def forward(self, latent: Tensor, input_ids: Tensor) -> Tensor:
        """Logits of every next token: latent (N, D), ids (N, L) → (N, L, vocabulary)."""
        cache = DynamicCache()
        for layer, slot in enumerate(self.memory(latent)):
            cache.update(slot, slot, layer)
        embeddings = self.transformer.wte(input_ids) + self.linear_emb(latent)[:, None]
        output = self.transformer(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        return self.lm_head(output.last_hidden_state)


class OptimusStep(nn.Module):
    """One token through GPT-2 with a fixed key/value cache: the graph ``optimus_decode``.

    The caches hold ``slots`` tokens; the token at ``position`` p (1, 2, …) is written at index p − 1. The
    latent's own slot is computed here and never stored.
    """

    def __init__(self, decoder: OptimusDecoder, slots: int) -> None:
        super().__init__()
        self.decoder, self.slots = decoder, slots

    def forward(
        self, latent: Tensor, token: Tensor, position: Tensor, key_cache: Tensor, value_cache: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Latent (1, D), token (1,), position (1,), caches (layers, heads, slots, width).

        Returns logits (1, vocabulary), both caches with this token in them, the next position, and the likeliest
        next token (1,), the lowest of equals.
        """
        gpt2, sizes = self.decoder.transformer, self.decoder.sizes
        memory = self.decoder.memory(latent)[:, 0]
        index = torch.arange(self.slots, dtype=position.dtype, device=position.device)
        here = (index == position - 1)[None, :, None]
        # The latent's slot comes first and is always seen; tokens after this one are not.
        unseen = torch.cat([torch.zeros_like(index[:1]) > 0, index > position - 1])
        bias = torch.where(unseen, float("-inf"), 0.0).to(latent.dtype)[None, None]
        h = gpt2.wte(token) + gpt2.wpe(position) + self.decoder.linear_emb(latent)
        keys_out, values_out = [], []
        for layer, block in enumerate(gpt2.h):
            attention = block.attn
            query, key, value = attention.c_attn(block.ln_1(h)).unflatten(-1, (3, sizes.n_head, -1)).unbind(1)
            keys = torch.where(here, key.transpose(0, 1), key_cache[layer])
            values = torch.where(here, value.transpose(0, 1), value_cache[layer])
            slot = memory[layer]
            all_keys, all_values = torch.cat([slot, keys], dim=1), torch.cat([slot, values], dim=1)
            scores = query.transpose(0, 1) @ all_keys.transpose(1, 2) * all_keys.shape[-1] ** -0.5
            mixed = torch.softmax(scores + bias, dim=-1) @ all_values
            h = h + attention.c_proj(mixed.transpose(0, 1).flatten(1))
            h = h + block.mlp(block.ln_2(h))
            keys_out.append(keys)
            values_out.append(values)
        logits = self.decoder.lm_head(gpt2.ln_f(h))
        likeliest = logits.argmax(dim=-1)
        return logits, torch.stack(keys_out), torch.stack(values_out), position + 1, likeliest


def _known(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if key != "num_labels"}


def encoder_key(key: str) -> str:
    """The published checkpoint's key (below ``vae.text.encoder.``) for a key of ``OptimusEncode``."""
    return key.removeprefix("bert.")


def decoder_key(key: str) -> str:
    """The published checkpoint's key (below ``vae.text.decoder.``) for a key of ``OptimusDecoder``."""
    return key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"
