"""A Trainer of Transformers: `main` trains once for each trial of study.toml.

`run` has every hyperparameter of the trial as an attribute. The optimizer is made by
`run.optimizer(model)`, or the Trainer's own, whose learning rate the study then sets; schedule and
clipping are the study's (`arguments`).

Needs: pip install 'tunewright[transformers]'
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from tunewright.integrations.transformers import Watch, arguments

WORDS, LENGTH, TEXTS = 32, 16, 512


def main(run):
    model = GPT2LMHeadModel(configuration(run.width))  # new parameters, nothing is downloaded
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, per_device_train_batch_size=run.batch_size, **arguments(run)
        )
        trainer = Trainer(
            model,
            args,
            train_dataset=texts(seed=0, count=TEXTS),
            eval_dataset=texts(seed=1, count=TEXTS // 4),
            optimizers=(run.optimizer(model), None),
        )
        trainer.add_callback(Watch(trainer, run))
        trainer.train()


def configuration(width):
    """YOUR MODEL: here a GPT-2 of one layer."""
    return GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=width,
        n_layer=1,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )


def texts(seed, count):
    """YOUR DATA: texts in which each word is the one before it plus 3, or, one time in four, any
    word.
    """
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, WORDS, (count, LENGTH), generator=generator)
    follows = torch.rand(count, LENGTH, generator=generator) < 0.75
    for place in range(1, LENGTH):
        next_words = (words[:, place - 1] + 3) % WORDS
        words[:, place] = torch.where(follows[:, place], next_words, words[:, place])
    return [{"input_ids": text, "labels": text} for text in words]
