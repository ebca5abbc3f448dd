"""The loss: exact in every way it is computed, and never more logits than labels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tasks import losses

FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 3.0},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 5.0},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TRANSFORMS_ITS_LOGITS = {"gemma2", "granite", "cohere"}


def model(kind: str, vocabulary: int = 50):
    from transformers import AutoConfig

    sizes = FAMILIES[kind] | ({} if kind in ("t5", "bart", "gpt2") else SIZES)
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes)
    torch.manual_seed(0)
    return (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config).eval()


def batch(kind: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Two rows of nine tokens, of which seven are supervised."""
    ids = torch.randint(2, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if kind in ("t5", "bart") else {})
    supervised = torch.zeros(2, 9, dtype=torch.bool)
    supervised[0, 3:8] = supervised[1, :2] = True
    return inputs, supervised, torch.tensor([5, 9, 2, 49, 7, 3, 11])


def by_hand(made, inputs, supervised, targets, smoothing: float = 0.0) -> torch.Tensor:
    """All logits, then -(1 - e) log p(target) - e / C times the sum of log p, in double precision."""
    log_p = made(**inputs, use_cache=False).logits[supervised].double().log_softmax(-1)
    chosen = log_p.gather(1, targets.unsqueeze(1)).squeeze(1)
    return -((1 - smoothing) * chosen + smoothing * log_p.mean(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("kind", FAMILIES)
def test_loss_and_gradients_are_those_of_all_logits(kind, smoothing, monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_IN_CHUNK", 2 * 50)  # chunks of two tokens, the last of one
    made, (inputs, supervised, targets) = model(kind), batch(kind)
    expected = by_hand(made, inputs, supervised, targets, smoothing).sum() / 7
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in made.named_parameters() if parameter.grad is not None}
    made.zero_grad(set_to_none=True)
    loss = losses.summed_loss(made, inputs, supervised, targets, smoothing) / 7
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    found = {name: parameter.grad for name, parameter in made.named_parameters() if parameter.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_loss_of_each_token(kind, monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_IN_CHUNK", 3 * 50)
    made, (inputs, supervised, targets) = model(kind), batch(kind)
    found = losses.token_losses(made, inputs, supervised, targets)
    torch.testing.assert_close(found.double(), by_hand(made, inputs, supervised, targets), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_logits_are_made_for_supervised_tokens_only(kind):
    made, (inputs, supervised, targets) = model(kind), batch(kind)
    losses.summed_loss(made, inputs, supervised, targets)  # it has looked whether the model transforms its logits
    sizes = []
    made.get_output_embeddings().register_forward_hook(lambda _, __, output: sizes.append(output.shape[:-1].numel()))
    losses.summed_loss(made, inputs, supervised, targets)
    assert sizes == [7 if kind in TRANSFORMS_ITS_LOGITS else 0]


def test_a_bias_of_the_output_layer_has_its_gradient():
    made, (inputs, supervised, targets) = model("llama"), batch("llama")
    made.lm_head = torch.nn.Linear(16, 50, bias=True)
    expected = by_hand(made, inputs, supervised, targets, 0.1).sum()
    expected.backward()
    gradient = made.lm_head.bias.grad.clone()
    made.zero_grad(set_to_none=True)
    losses.summed_loss(made, inputs, supervised, targets, 0.1).backward()
    torch.testing.assert_close(made.lm_head.bias.grad, gradient, atol=1e-5, rtol=1e-4)


def test_nothing_supervised_is_a_loss_of_nothing():
    made, (inputs, supervised, _) = model("llama"), batch("llama")
    loss = losses.summed_loss(made, inputs, torch.zeros_like(supervised), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert losses.token_losses(made, inputs, torch.zeros_like(supervised), torch.zeros(0, dtype=torch.int64)).shape == (
        0,
    )


def test_frozen_weights_get_no_gradient():
    made, (inputs, supervised, targets) = model("llama"), batch("llama")
    made.lm_head.weight.requires_grad_(False)
    losses.summed_loss(made, inputs, supervised, targets).backward()
    assert made.lm_head.weight.grad is None
    assert made.model.layers[0].mlp.up_proj.weight.grad is not None


def test_looking_at_the_model_disturbs_neither_its_mode_nor_random_numbers():
    made, (inputs, supervised, targets) = model("llama").train(), batch("llama")
    state = torch.get_rng_state()
    losses.token_losses(made, inputs, supervised, targets)
    assert made.training and torch.equal(torch.get_rng_state(), state)


def test_bf16_autocast_is_kept_in_the_output_layer(monkeypatch):
    made, (inputs, supervised, targets) = model("llama"), batch("llama")
    seen = []
    honest = losses._logits
    monkeypatch.setattr(
        losses,
        "_logits",
        lambda hidden, weight, bias: seen.append((hidden.dtype, weight.dtype)) or honest(hidden, weight, bias),
    )
    exact = losses.summed_loss(made, inputs, supervised, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses.summed_loss(made, inputs, supervised, targets)
    assert seen == [(torch.float32,) * 2, (torch.bfloat16,) * 2]
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 12),
    st.integers(2, 40),
    st.integers(1, 6),
    st.floats(0, 0.9),
    st.integers(1, 200),
    st.integers(0, 9999),
)
def test_any_shape_any_chunk(tokens, vocabulary, width, smoothing, in_chunk, seed):
    """The function alone, in double precision, against torch's own cross-entropy."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    expected = functional.cross_entropy(hidden @ weight.T, targets, label_smoothing=smoothing, reduction="sum")
    wanted = torch.autograd.grad(expected, (hidden, weight))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "LOGITS_IN_CHUNK", in_chunk)
        found = losses.ChunkedCrossEntropy.apply(hidden, weight, None, targets, smoothing, torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(found, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_label_smoothing_by_hand():
    """Three classes, e = 0.3: the target gets 0.7 + 0.1, the others 0.1 each (Szegedy et al. 2016)."""
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    log_p = logits[0] - logits[0].exp().sum().log()
    expected = -(0.8 * log_p[1] + 0.1 * log_p[0] + 0.1 * log_p[2])
    found = losses.ChunkedCrossEntropy.apply(logits, torch.eye(3), None, torch.tensor([1]), 0.3, torch.float32)
    torch.testing.assert_close(found, expected)


def test_the_peak_of_memory_is_a_chunk_not_all_logits(monkeypatch):
    """512 tokens of a vocabulary of 20,000 would be 41 MB of logits; a chunk holds 1 MB."""
    monkeypatch.setattr(losses, "LOGITS_IN_CHUNK", 2**18)
    hidden, weight = torch.randn(512, 8, requires_grad=True), torch.randn(20_000, 8, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, given=(), named=None):
            nonlocal largest
            made = function(*given, **named or {})
            if isinstance(made, torch.Tensor):
                largest = max(largest, made.numel())
            return made

    with Watch():
        losses.ChunkedCrossEntropy.apply(hidden, weight, None, torch.zeros(512, dtype=torch.int64), 0.1, torch.float32)
    assert largest <= 2**18
