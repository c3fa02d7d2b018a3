"""Two examples of each verb, which end its `--help`. They run as printed, in a folder with such pictures and runs."""

from __future__ import annotations

from collections.abc import Mapping

HELP_EXAMPLES: Mapping[str, tuple[str, str]] = {
    "demo": ("rootstock demo", "rootstock demo seeds=5 run.dir=runs/demo5"),
    "run": ("rootstock run simclr_probe", "rootstock run demo seeds=3 stages.simclr.optim.duration=20ep"),
    "attribute": ("rootstock attribute attribute_digits", "rootstock attribute attribute_digits seeds=5"),
    "sweep": ("rootstock sweep digits_m", "rootstock sweep digits_m trials=20 --workers 2"),
    "pretrain": (
        "rootstock pretrain small data.train=folder:photos",
        "rootstock pretrain digits_simclr optim.duration=20ep seed=1 run.dir=runs/first",
    ),
    "probe": (
        "rootstock probe small data.train=folder:labelled backbone.weights=runs/small_pretrained",
        "rootstock probe digits backbone.name=pixels evaluate.linear=null run.dir=runs/pixels",
    ),
    "finetune": (
        "rootstock finetune small data.train=folder:labelled backbone.weights=runs/small_pretrained",
        "rootstock finetune digits optim.duration=5ep run.dir=runs/scratch",
    ),
    "adapt": (
        "rootstock adapt small data.source=folder:labelled data.target=folder:sketches",
        "rootstock adapt digits_dann method.reversal=0 run.dir=runs/control",
    ),
    "launch": (
        "rootstock launch --nproc 2 pretrain digits_simclr",
        "rootstock launch --nproc 2 --dry-run adapt digits_dann optim.batch_size=128",
    ),
    "try": (
        "rootstock try folder:photos folder:sketches",
        "rootstock try folder:unlabeled folder:photos folder:sketches --minutes 30",
    ),
    "data": (
        "rootstock data folder:photos",
        "rootstock data folder:photos --pack packs/photos --format jpeg --short 128",
    ),
    "import": (
        "rootstock import resnet50.pth --to runs/imported",
        "rootstock import mae_pretrain_vit_base.pth --from mae --to runs/mae",
    ),
    "predict": (
        "rootstock predict runs/small_finetuned folder:photos --out labels.csv",
        "rootstock predict runs/small folder:sketches --top 3 --out labels.csv",
    ),
    "embed": (
        "rootstock embed runs/small_pretrained folder:photos --out features.npz",
        "rootstock embed runs/small_pretrained folder:photos --tap pooled --tap tokens --out features.npz",
    ),
    "export": (
        "rootstock export runs/small_pretrained --to exported",
        "rootstock export runs/small_finetuned --to exported --onnx --uint8",
    ),
    "compress": (
        "rootstock compress runs/small_finetuned --size 2MB --test folder:labelled",
        "rootstock compress runs/small --latency 5ms --threads 2 --no-int8 --test folder:labelled optim.duration=10ep",
    ),
    "distill": (
        "rootstock distill runs/small_finetuned --student mobilenetv3_small_050",
        "rootstock distill runs/small --student mobilenetv3_small_050 optim.duration=20ep run.dir=runs/edge",
    ),
    "measure": (
        "rootstock measure runs/small_finetuned",
        "rootstock measure runs/small_finetuned exported --batch 16 --out costs.md",
    ),
    "quantize": (
        "rootstock quantize runs/small_finetuned --to quantized --calibrate folder:labelled",
        "rootstock quantize runs/small_finetuned --to quantized --calibrate folder:labelled --pictures 64 --uint8",
    ),
    "explain": (
        "rootstock explain runs/small_finetuned folder:photos",
        "rootstock explain runs/small_finetuned folder:photos --method grad-cam --class label --out explained",
    ),
    "prune": (
        "rootstock prune runs/small_finetuned --macs 0.5",
        "rootstock prune runs/small_finetuned --macs 0.25 --rounds 3 optim.duration=5ep run.dir=runs/quarter",
    ),
    "report": ("rootstock report runs/small", "rootstock report runs/small runs/control --out comparison.html"),
    "runs": ("rootstock runs", "rootstock runs runs --json"),
    "verify": ("rootstock verify runs", "rootstock verify exported packs/photos"),
    "score": (
        "rootstock validators score runs",
        "rootstock validators score runs --validator snd --out scores.md",
    ),
    "doctor": ("rootstock doctor", "rootstock doctor --distributed --nproc 2"),
    "schema": ("rootstock schema", "rootstock schema > schema.json"),
    "help": ("rootstock help optim.lr", "rootstock help method.simclr.temperature"),
}


def epilog(verb: str) -> str:
    """The end of a verb's help. The first line keeps the lines below it as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in HELP_EXAMPLES[verb])])
