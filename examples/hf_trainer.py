"""Hugging Face's Trainer, on pixels and on embedded tokens. GUARD is one line of compute_loss.

python examples/hf_trainer.py --steps 3
"""

import argparse
import tempfile

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from robust import CurvatureRegularizedLoss, logits_of

guard = CurvatureRegularizedLoss(weight=1.0, h=3.0)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 4}


class GuardTrainer(Trainer):
    """A Trainer with GUARD's loss; the evaluation has the model's default loss."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a batch mean; Trainer divides by the accumulation steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss of a batch; the model may be wrapped for several processes."""
        if return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "pixel_values" in inputs:
            network, x = logits_of(model), inputs["pixel_values"]
        else:  # integer tokens have no gradient: the loss takes embeddings, and h is a length in their space
            network = logits_of(model, argument="inputs_embeds", attention_mask=inputs["attention_mask"])
            x = self.accelerator.unwrap_model(model).get_input_embeddings()(inputs["input_ids"])
        return guard(network, x, inputs["labels"])  # GUARD, was: super().compute_loss(model, inputs)


def small_example(text: bool) -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """Return a small model and 64 generated examples, of texts or images."""
    labels = torch.arange(64) % 4
    if text:
        model = BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL))
        tokens = torch.randint(10, 50, (64, 12)).index_copy(1, torch.tensor([1]), labels[:, None])
        whole = torch.ones(12, dtype=torch.long)
        rows = [{"input_ids": t, "attention_mask": whole, "labels": y} for t, y in zip(tokens, labels, strict=True)]
        return model, rows
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **SMALL))
    images = torch.randn(64, 3, 16, 16) + labels.view(-1, 1, 1, 1) - 1.5
    return model, [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]


def train(steps: int, text: bool) -> None:
    """Train on generated examples."""
    torch.manual_seed(0)
    model, data = small_example(text)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=16, gradient_accumulation_steps=2, learning_rate=1e-3,
            logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = GuardTrainer(model, arguments, train_dataset=data, eval_dataset=data)
        trainer.train()
        trainer.evaluate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps
    train(steps, text=False)
    train(steps, text=True)
