"""curves.png from metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from instructgpt.atomic import replacing
from instructgpt.training.metrics import read_metrics


def plot_curves(runs: dict[str, Path], path: Path) -> bool:
    """Draws loss and validation loss, learning rate, gradient norm and what a policy earns, one colour a run.

    `runs`: metrics.jsonl by title. Returns False, and draws nothing, where matplotlib (extra `plot`) is missing or
    there is nothing to draw.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    records = {title: read_metrics(file) for title, file in runs.items()}
    panels = [("loss", "loss (nats a token)"), ("learning_rate", "learning rate"), ("gradient_norm", "gradient norm")]
    panels += [(name, name.replace("_", " ")) for name in ("reward", "true_reward", "kl", "entropy")]
    panels = [p for p in panels if any(r.get(p[0]) is not None for rows in records.values() for r in rows)]
    if not panels:
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False, layout="constrained")
    for number, (title, rows) in enumerate(records.items()):
        colour = f"C{number}"
        for axis, (name, label) in zip(axes[0], panels):
            points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
            if points:
                axis.plot(*zip(*points), color=colour, alpha=0.8, linewidth=1.2, label=title)
            axis.set(xlabel="step", ylabel=label)
        held_out = [(r["step"], r["val_loss"]) for r in rows if r.get("val_loss") is not None]
        if held_out:
            axes[0][0].plot(*zip(*held_out), "o--", color=colour, markersize=4, label=f"{title}, held out")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
    return True
