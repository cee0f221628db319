"""Every fault on models as transformers saves them: made, reopened, loaded, judged by the invariants guard."""

from __future__ import annotations

import pytest
from fault_models import FAMILIES

from evpack.catalog.supported import FAULT_TENSORS
from evpack.checkpoint.loading import load_model
from evpack.checkpoint.reader import contents_of
from evpack.faults import SUPPORTED
from evpack.guards import invariants

STATUS = {"nan_injection": "fail", "inf_injection": "fail", "shape_mismatch": "fail", "missing_tensors": "fail"}
STATUS |= {"weight_tying_break": "warn"}
"""What the guard says; the others leave structure and finiteness alone."""
EXPECTED = {
    "nan_injection": {"non_finite_tensor"},
    "inf_injection": {"non_finite_tensor"},
    "shape_mismatch": {"tokenizer_mismatch"},
    "missing_tensors": {"missing_tensor", "layer_norm_missing", "config_changed"},
    "weight_tying_break": {"weight_tying_changed"},
}


@pytest.mark.parametrize("error_type", SUPPORTED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fault_is_made_loaded_and_judged(tiny, inject, text, family, error_type):
    import torch

    checkpoint = tiny(family)
    variant = inject(checkpoint, error_type, tokens=text)
    assert variant.variant.declaration is None and variant.variant.metadata["injected"] is True
    assert variant.digest() != checkpoint.digest()
    size = sum(file.stat().st_size for file in variant.path.iterdir())
    tensors = FAULT_TENSORS[error_type]
    stored = [checkpoint.info(name).nbytes for name in checkpoint.names()]
    assert size <= (sum(stored) if tensors is None else tensors * max(stored)) + 64_000  # as the planner reserves

    model, report = load_model(variant, torch.float32)
    assert report.unexplained == ()
    with torch.inference_mode():
        logits = model(torch.from_numpy(text).long(), use_cache=False).logits
    assert bool(logits.isfinite().all()) == (error_type not in ("nan_injection", "inf_injection"))
    assert logits.shape[-1] == (72 if error_type == "shape_mismatch" else 64)

    result = invariants.validate(variant, contents_of(checkpoint), None, unexplained_keys=report.unexplained)
    assert result.status == STATUS.get(error_type, "pass")
    assert {violation.type for violation in result.violations} == EXPECTED.get(error_type, set())


@pytest.mark.parametrize(("family", "mode"), [("llama_tied", "untie"), ("llama_untied", "tie"), ("gpt2", "untie")])
def test_tying_changes_in_the_loaded_model_too(tiny, inject, family, mode):
    import torch

    variant = inject(tiny(family), "weight_tying_break")
    model, _ = load_model(variant, torch.float32)
    assert variant.variant.metadata["mode"] == mode
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared == (mode == "tie")


def test_untying_by_a_copy_changes_no_number(tiny, inject, text):
    """Why the metric cannot see this fault, and the guard must."""
    import torch

    checkpoint = tiny("llama_tied")
    ids = torch.from_numpy(text).long()
    models = [load_model(c, torch.float32)[0] for c in (checkpoint, inject(checkpoint, "weight_tying_break"))]
    with torch.inference_mode():
        assert torch.equal(*(model(ids).logits for model in models))


def test_a_lost_block_really_is_gone(tiny, inject):
    import torch

    model, _ = load_model(inject(tiny("qwen2"), "missing_tensors"), torch.float32)
    assert model.config.num_hidden_layers == len(model.model.layers) == len(model.config.layer_types) == 2


@pytest.mark.parametrize(("family", "fused"), [("mixtral", False), ("gpt_oss", True)])
def test_the_explosion_goes_to_the_expert_that_most_tokens_reach(tiny, inject, text, family, fused):
    import torch

    checkpoint = tiny(family)
    variant = inject(checkpoint, "scale_explosion", tokens=text)
    metadata = variant.variant.metadata
    counts = metadata["routed_tokens"]
    model, _ = load_model(checkpoint, torch.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(text).long(), output_router_logits=True).router_logits[0]
    seen = torch.bincount(logits.reshape(48, 4).topk(2, dim=-1).indices.view(-1), minlength=4)
    assert counts == seen.tolist() and sum(counts) == 2 * metadata["text_tokens"] == 96
    expert = metadata["expert"]
    assert counts[expert] == max(counts)
    [name] = variant.variant.changed
    before, after = checkpoint.read(name), variant.read(name)
    assert name.endswith("experts.down_proj" if fused else f"experts.{expert}.w2.weight")
    if fused:
        others = [index for index in range(4) if index != expert]
        assert torch.equal(before[others], after[others])
        before, after = before[expert], after[expert]
    assert torch.equal(after, (before.float() * 100).bfloat16())


def test_without_a_text_no_expert_is_guessed(tiny, inject):
    from evpack.errors import CheckpointError

    with pytest.raises(CheckpointError, match="there is no text"):
        inject(tiny("mixtral"), "scale_explosion")


def test_moderate_faults_scale_all_experts_of_a_block(tiny, inject):
    variant = inject(tiny("mixtral"), "spectral_moderate_scale")
    assert {name.split(".")[2] for name in variant.variant.changed} == {"1"}
    assert len(variant.variant.changed) == 4
