"""A model in which patients meet is refused by the name of the module; a safe one passes as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from fedward_client.dp.normalisation import frozen_batch_norm_folded, made_private
from fedward_client.dp.safety import checked, objections
from fedward_common.errors import StudyError, UnsafeModelError
from fedward_common.models import build_model
from tests.builders import small_study

PATIENTS = 4


def vectors(width: int = 6) -> tuple[torch.Tensor]:
    return (torch.randn(PATIENTS, width, generator=torch.Generator().manual_seed(0)),)


def pictures(channels: int = 3) -> tuple[torch.Tensor]:
    return (torch.randn(PATIENTS, channels, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Block(nn.Module):
    """A residual block, as a ResNet's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        found: torch.Tensor = (x + y).relu()
        return found


class ResNet(nn.Module):
    """A frozen backbone that has seen data, and a new head: what hospitals fine-tune."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layers = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.layers(self.stem(x)).mean(dim=(2, 3)))
        return found


def backbone() -> ResNet:
    torch.manual_seed(0)
    model = ResNet()
    model(*pictures())  # running statistics other than zero and one
    for parameter in [*model.stem.parameters(), *model.layers.parameters()]:
        parameter.requires_grad = False
    return model


class Lora(nn.Module):
    """A frozen layer and a trainable product of low rank beside it, which starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.base(x) + self.up(self.down(x))
        return found


class Calling(nn.Module):
    """Calls a function on what its one layer makes."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner or nn.Linear(6, 6)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.inner(x))


class BatchCentre(nn.Module):
    """Batch statistics under a name that does not say so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=0)


class PowerNorm(nn.Module):
    """A foreign normalisation, by patient, without a buffer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.square().mean(dim=1, keepdim=True).sqrt()


class RunningNorm(PowerNorm):
    """The same, with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))


class Remembering(nn.Module):
    """Keeps something of the batch: as a buffer, an attribute, or a new attribute."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        if where == "buffer":
            self.register_buffer("kept", torch.zeros(()), persistent=False)
        if where == "attribute":
            self.kept = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = x.mean()
        return x


# --------------------------------------------------------------------------------------------------- batch statistics
def test_frozen_backbone_in_training_mode_is_refused_by_each_module_s_name() -> None:
    found = objections(backbone(), pictures())
    assert [line.split(":")[0] for line in found] == [f"layers.{i}.bn{j}" for i in (0, 1) for j in (1, 2)]
    assert all("frozen, but in training mode" in line for line in found)


def test_frozen_backbone_really_mixes_patients_and_remembers_them() -> None:
    """The reason for the rule, which Opacus' validator does not have."""
    model, (batch,) = backbone(), pictures()
    other = torch.cat([batch[-1:], batch[1:]])
    held = model.layers[0].bn1.running_mean.clone()  # type: ignore[union-attr, operator]
    assert not torch.allclose(model(batch)[1:], model(other)[1:], atol=1e-4)
    assert not torch.equal(held, model.layers[0].bn1.running_mean)  # type: ignore[union-attr, arg-type]


def test_frozen_backbone_in_evaluation_mode_is_refused_too_and_passes_folded() -> None:
    model = backbone().eval()
    assert all("frozen_batch_norm_folded" in line for line in objections(model))
    assert len(objections(model)) == 4

    folded = frozen_batch_norm_folded(model)

    assert objections(folded) == []
    assert checked(folded.train(), pictures()) is folded
    assert torch.allclose(folded(*pictures()), model(*pictures()), atol=1e-6)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_every_batch_norm_is_refused(kind: type[nn.Module], options: dict[str, bool]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), kind(6, **options))
    for found in (objections(model), objections(model.eval()), objections(model, vectors())):
        assert [line[:3] for line in found] == ["1: "]


def test_a_trained_batch_norm_is_refused_for_its_batch() -> None:
    with pytest.raises(UnsafeModelError, match="0: BatchNorm1d normalises a patient by the others") as caught:
        checked(nn.Sequential(nn.BatchNorm1d(6)))
    assert isinstance(caught.value, StudyError)
    assert "made_private" in caught.value.remedy


def test_instance_norm_passes_unless_it_tracks() -> None:
    assert objections(nn.Sequential(nn.InstanceNorm2d(3, affine=True)), pictures()) == []
    (found,) = objections(nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True)), pictures())
    assert found.startswith("0: InstanceNorm2d keeps running statistics")


def test_a_lazy_module_is_refused_before_its_first_input_only() -> None:
    model = nn.Sequential(nn.LazyLinear(2))
    assert [line.split(":")[0] for line in objections(model)] == ["0.weight", "0.bias"]
    model(*vectors())
    assert objections(model) == []


# ----------------------------------------------------------------------------------------------- foreign modules, state
def test_a_hidden_batch_statistic_is_found_by_experiment_and_named() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Tanh(), BatchCentre()), nn.Linear(6, 1))
    assert objections(model) == []
    (found,) = objections(model, vectors())
    assert found.startswith("1.1: a patient's values depend on the other patients")


def test_zero_weights_do_not_hide_a_batch_statistic() -> None:
    head = nn.Linear(6, 1)
    nn.init.zeros_(head.weight)
    (found,) = objections(nn.Sequential(BatchCentre(), head), vectors())
    assert found.startswith("0: ")


def test_attention_over_patients_instead_of_positions_is_found() -> None:
    def layer(*, batch_first: bool) -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=batch_first)

    batch = (torch.randn(PATIENTS, 5, 8, generator=torch.Generator().manual_seed(0)),)
    assert objections(layer(batch_first=True), batch) == []
    (found,) = objections(layer(batch_first=False), batch)
    assert found.startswith("self_attn: a patient's values depend")


def test_an_unknown_normalisation_needs_an_example() -> None:
    model = nn.Sequential(nn.Linear(6, 6), PowerNorm())
    (found,) = objections(model)
    assert found.startswith("1: PowerNorm is an unknown normalisation; an example")
    assert objections(model, vectors()) == []


def test_an_unknown_normalisation_with_buffers_is_refused_even_with_an_example() -> None:
    (found,) = objections(nn.Sequential(nn.Linear(6, 6), RunningNorm()), vectors())
    assert found.startswith("1: RunningNorm is an unknown normalisation that keeps buffers")


@pytest.mark.parametrize("where", ["buffer", "attribute", "new attribute"])
def test_a_module_that_remembers_the_batch_is_refused(where: str) -> None:
    (found,) = objections(nn.Sequential(nn.Linear(6, 6), Remembering(where)), vectors())
    assert found == "1: its kept changes with the batch"


def test_a_constant_buffer_passes_with_an_example_only() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    model[0].register_buffer("positions", torch.arange(6))
    (found,) = objections(model)
    assert found.startswith("0: holds the buffers positions")
    assert objections(model, vectors()) == []


def test_dropout_is_allowed() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 1), nn.Dropout(0.3))
    assert objections(model, vectors()) == []


def test_an_output_that_is_not_by_patient_is_refused() -> None:
    (found,) = objections(Calling(torch.sum), vectors())
    assert found == "the model: the first dimension of its output is not the patients"


def test_a_path_that_depends_on_the_patients_is_refused() -> None:
    inner = nn.Linear(6, 6)
    batch = (torch.cat([torch.full((1, 6), 5.0), torch.zeros(3, 6)]),)

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner(x) if x.max() > 1 else x
            return found

    (found,) = objections(Choosing(), batch)
    assert found == "the model: which modules run depends on the patients"


# ------------------------------------------------------------------------------------------------ tied, parametrised
class Language(nn.Module):
    """An embedding whose weights are its output layer's, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.embedding(x))
        return found


def test_tied_weights_are_refused_by_both_names_unless_frozen() -> None:
    model = Language()
    (found,) = objections(model)
    assert found.startswith("head.weight: is the same tensor as embedding.weight")
    words = (torch.arange(8).reshape(PATIENTS, 2),)
    assert objections(model.requires_grad_(requires_grad=False), words) == []


def test_weights_tied_by_memory_are_refused_also_when_one_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first, second = model
    second.weight = nn.Parameter(first.weight.data.T, requires_grad=False)  # type: ignore[arg-type]
    (found,) = objections(model)
    assert found.startswith("1.weight: is the same tensor as 0.weight")


def test_one_module_under_two_names_is_tied() -> None:
    layer = nn.Linear(6, 6)
    found = objections(nn.Sequential(layer, nn.ReLU(), layer))
    assert [line.split(":")[0] for line in found] == ["2.weight", "2.bias"]


@pytest.mark.parametrize("rule", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights_are_refused_until_they_are_plain(rule: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(6, 6), rule(nn.Linear(6, 6)))
    for found in (objections(model), objections(model, vectors())):
        assert [line.split(" is ")[0] for line in found] == ["1: its weight"]
    parametrize.remove_parametrizations(model[1], "weight")
    assert objections(model, vectors()) == []


def test_a_frozen_spectral_norm_is_refused_for_its_state() -> None:
    model = nn.Sequential(
        nn.Linear(6, 6), parametrizations.spectral_norm(nn.Linear(6, 6)).requires_grad_(requires_grad=False)
    )
    found = objections(model, vectors())
    assert any(line.startswith("1.parametrizations.weight.0: its _u changes") for line in found)


def test_what_trains_without_being_registered_is_refused() -> None:
    loose, hidden = nn.Linear(6, 6), nn.Linear(6, 6)
    loose.shift = torch.zeros(6, requires_grad=True)
    hidden.extra = {"layers": [nn.Linear(6, 6)]}  # type: ignore[assignment]
    listed = nn.Linear(6, 6)
    listed.scales = [nn.Parameter(torch.ones(6))]  # type: ignore[assignment]
    found = objections(nn.Sequential(loose, hidden, listed), vectors())
    assert found == [
        "0: its attribute shift is trained, but no registered parameter",
        "1: its attribute extra holds a module that is not registered",
        "2: its attribute scales is trained, but no registered parameter",
    ]


# ------------------------------------------------------------------------------------------------------- what is safe
@pytest.mark.parametrize(
    ("model", "example"),
    [
        (build_model(small_study()), (torch.randn(PATIENTS, 3, 7),)),
        (nn.Sequential(Lora(nn.Linear(6, 6)), nn.LayerNorm(6), nn.Linear(6, 1)), vectors()),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.Flatten(), nn.Linear(288, 1)), pictures()),
        (nn.Sequential(nn.Embedding(10, 4), nn.RMSNorm(4)), (torch.arange(8).reshape(PATIENTS, 2),)),
    ],
    ids=["study", "lora", "convolutions", "words"],
)
def test_a_safe_model_passes_as_it_is(model: nn.Module, example: tuple[torch.Tensor, ...]) -> None:
    assert checked(model) is model
    assert checked(model, example) is model


def test_a_recurrent_network_that_mixes_nobody_passes() -> None:
    class Recurrent(nn.Module):
        def __init__(self, *, batch_first: bool) -> None:
            super().__init__()
            self.rnn = nn.GRU(6, 4, batch_first=batch_first)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.rnn(x)[0]
            return found

    example = (torch.randn(PATIENTS, 3, 6, generator=torch.Generator().manual_seed(0)),)
    assert objections(Recurrent(batch_first=True), example) == []
    assert len(objections(Recurrent(batch_first=False), example)) == 1


def test_the_experiment_leaves_model_mode_and_generators_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), Remembering("buffer"))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = model[2].kept.clone()  # type: ignore[operator]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    objections(model, vectors())

    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(kept, model[2].kept)  # type: ignore[arg-type]
    assert [module.training for module in model] == [True, False, True]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("batch", [torch.ones(1, 6), torch.ones(3, 6)], ids=["one patient", "equal patients"])
def test_an_example_that_shows_nothing_is_refused(batch: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="two patients"):
        objections(nn.Linear(6, 1), (batch,))


def test_made_private_backbone_passes() -> None:
    assert objections(made_private(backbone()), pictures()) == []
