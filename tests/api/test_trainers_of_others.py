"""Lightning's and Hugging Face's trainers run nk.OptimizerInBackward unchanged."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import noprop_kernels as nk
from support.in_backward import assert_close, network
from support.linear import rows

# their own deprecations are no matter of ours
pytestmark = pytest.mark.filterwarnings("ignore")
X, STEPS = rows(36, 7), 4  # of 9 rows each


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    reason = f"{', '.join(missing)} is not installed: pip install '.[integrations]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


def optimizer_of(model, ours):
    torchs = torch.optim.AdamW(model.parameters(), lr=0.01)
    return nk.OptimizerInBackward(model, torchs) if ours else torchs


def schedule_of(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=STEPS + 1)


def lightning_ends(folder, ours):
    import lightning

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch, _):
            return self.network(batch).square().mean()

        def configure_optimizers(self):
            optimizer = optimizer_of(self, ours)
            scheduler = {"scheduler": schedule_of(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    model = Model()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, DataLoader(X, batch_size=9))
    assert trainer.global_step == STEPS
    return model, torch.load(next(folder.rglob("*.ckpt")), weights_only=False)


@needs("lightning")
def test_lightning_s_trainer_with_automatic_optimisation(tmp_path):
    (model, saved), (twin, want) = (
        lightning_ends(tmp_path / str(ours), ours) for ours in (True, False)
    )
    assert_close(model, twin)
    for name, value in want["optimizer_states"][0]["state"][0].items():
        torch.testing.assert_close(
            saved["optimizer_states"][0]["state"][0][name], value, rtol=1e-4, atol=1e-6
        )


class Loss(nn.Module):
    """A model in the form of Hugging Face's trainer."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        return {"loss": self.network(x).square().mean()}


@needs("transformers", "accelerate")
def test_hugging_face_s_trainer_without_clipping_and_accumulation(tmp_path):
    from transformers import Trainer, TrainingArguments

    ends = []
    for ours in (True, False):
        model = Loss()
        optimizer = optimizer_of(model, ours)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=9, num_train_epochs=1,
            max_grad_norm=0, gradient_accumulation_steps=1, use_cpu=True, report_to=[],
            save_strategy="no", disable_tqdm=True, seed=3, remove_unused_columns=False,
        )  # fmt: skip
        data = [{"x": x} for x in X]
        trainer = Trainer(
            model, arguments, train_dataset=data, optimizers=(optimizer, schedule_of(optimizer))
        )
        trainer.train()
        assert trainer.state.global_step == STEPS
        ends.append(model)
    ends[1].zero_grad()
    before = Loss().state_dict()
    assert not torch.equal(before["network.0.weight"], ends[0].network[0].weight)
    assert_close(*ends)
