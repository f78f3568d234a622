"""Stage 3: a reward model from compared answers (Ouyang et al. 2022, step 2; Stiennon et al. 2020).

Is my reward model good? Four things to look at, all in eval.json and the last lines of the log:

1. Held-out pair accuracy, against what people reach with one another: 73% agreement among the labellers of InstructGPT,
   whose reward model had 69.6% on new labellers' pairs. On pairs that differ in something a program can check, as the
   world's do, it can be far higher; 50% is a coin.
2. Accuracy by kind of fault. A high mean may hide a fault that is never seen: a policy will find it.
3. Accuracy where the better answer is the shorter one, beside where it is the longer one: a model that has learnt
   "long is good" has a gap there (Singhal et al. 2023), and a policy trained on it rambles.
4. Calibration (calibration.png): of the pairs it is 80% sure of, are 80% right? Over-sure rewards have steep slopes
   that a policy climbs beyond what was ever compared.

And what no held-out pair can tell: pairs come from other models than the policy it will judge. Only the true reward of
the trained policy, beside this model's score, says whether it still holds there (`python -m instructgpt ledger`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instructgpt.data.comparisons import ComparisonBatch, ComparisonStream
from instructgpt.evaluation.rewards import PairReport, compare_pairs
from instructgpt.figures import write_json
from instructgpt.model.heads import RewardModel
from instructgpt.objectives.lm import Loss
from instructgpt.objectives.preference import reward_loss
from instructgpt.stages.adapting import adapted, adapter_record
from instructgpt.stages.common import Machine, build_model, fitting_row_length, require, train
from instructgpt.stages.comparisons import ComparisonConfig, comparisons, validation
from instructgpt.training.checkpoint import RunDirectory, load_settled
from instructgpt.training.loop import FitResult


@dataclass(frozen=True)
class RewardConfig(ComparisonConfig):
    """Trains a model to tell the better of two answers: a number for each, higher for the better one."""


def run(config: RewardConfig) -> FitResult:
    """Makes a reward model of the model in --init and leaves its run directory."""
    require(config.data, "--data", "name the preference files, or `world`")
    require(config.init, "--init", "name the run directory to start from, an instruction-tuned model at best")
    require(config.out, "--out", "name the run directory to write")
    machine = Machine.of(config)

    # Section 3.5: "starting from the SFT model with the final unembedding layer removed", a scalar comes in its place.
    language_model, tokenizer = load_settled(config.init, machine.device, config.backend)
    model = build_model(config, machine, lambda: RewardModel(adapted(language_model, adapter_record(config))))
    context = fitting_row_length(config, model.config)
    source, held_out = comparisons(config, tokenizer, context)

    def rewards(batch: ComparisonBatch) -> Tensor:
        """r(x, y) of each answer (S,), read at its last token."""
        return model(batch.rows.ids, batch.last, batch.rows.positions, batch.rows.documents)

    # Equation 1, all K answers of a prompt in one batch.
    def loss(batch: ComparisonBatch) -> Loss:
        return reward_loss(rewards(batch), batch.pairs)

    batches = held_out.batches(context, config.prompts)
    stream = ComparisonStream(source, context, config.prompts)
    validate = validation(loss, batches, machine.device)
    result = train(
        "reward", config, machine, model, tokenizer, stream, loss, validate, sequences=2 * config.prompts,
        held_out=held_out.records,
    )  # fmt: skip
    if not (batches and machine.ranks.is_first):
        return result

    # "Since the RM loss is invariant to shifts in reward, we normalize the reward model using a bias": here so that the
    # better answers of the held-out pairs have 0 on average.
    with machine.precision.context(machine.device), torch.inference_mode():
        chosen = torch.cat([rewards(b := batch.to(machine.device))[b.pairs.better] for batch in batches])
    with torch.no_grad():
        model.head.bias.sub_(chosen.mean())
    run_directory = RunDirectory(config.out)
    run_directory.save_model(model)

    with machine.precision.context(machine.device):
        report = compare_pairs(rewards, batches, held_out.pair_kinds, machine.device)
    _leave(run_directory, report)
    return result


def _leave(run_directory: RunDirectory, report: PairReport) -> None:
    """Prints the report and puts it into the run directory."""
    print(report.plain(), flush=True)
    write_json(run_directory.path / "eval.json", {**run_directory.read_eval(), "pairs": report.to_json()})
    report.plot(Path(run_directory.path) / "calibration.png")
