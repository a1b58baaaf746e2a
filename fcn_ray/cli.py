"""`fcn-ray ...`: parse, call one function, print. No logic; the settings and their defaults are in fcn_ray.config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fcn_ray import __version__
from fcn_ray.errors import (
    EXIT_BAD_IMAGES,
    EXIT_COMPLETE,
    AuditError,
    DataError,
    IncompleteError,
)

app = typer.Typer(
    name="fcn-ray",
    help="Train fully convolutional networks on Ray Train and label image collections with Ray Data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with settings.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting by its dotted name; may be repeated."),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join (default: RAY_ADDRESS, else this machine).")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log lines of Ray and TensorFlow too.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fcn-ray {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Options of every command."""


@app.command(
    epilog="Examples:  fcn-ray demo   |   fcn-ray demo --out /data/demo",
)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo-out"),
    verbose: Verbose = False,
) -> int:
    """Train, segment and evaluate on synthetic street scenes: the whole job in a few minutes, and a page about it."""
    from fcn_ray.demo import demo as run
    from fcn_ray.reports.console import print_lines

    print_lines(run(str(out), verbose=verbose).lines())
    return EXIT_COMPLETE


@app.command(
    "import",
    epilog="Examples:  fcn-ray import voc VOCdevkit/VOC2012 data/voc   |   "
    "fcn-ray import folders photos data/photos --classes sky,road,car --val-fraction 0.1",
)
def import_dataset(
    format: Annotated[str, typer.Argument(help="folders, voc, camvid, cityscapes, ade20k or coco_stuff.")],
    source: Annotated[str, typer.Argument(help="Folder of the data set, as it is unpacked.")],
    out: Annotated[str, typer.Argument(help="Folder for the Parquet files: OUT/train, OUT/val...")],
    classes: Annotated[
        str | None, typer.Option(help="Names by id, with commas, or a file with one on each line.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only these splits, with commas.")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share for OUT/val, of data sets without splits.")] = 0.0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at an id or colour that is no class.")] = False,
    shard_bytes: Annotated[int | None, typer.Option(help="Bytes of images and masks in one file (500 MB).")] = None,
) -> int:
    """Turn a labelled data set into Parquet files that `fcn-ray train` takes, one folder for each split.

    Ids and colours that are no class become the ignore id, counted and named. Images and labels that cannot be used are
    left out, counted and named too; the command then ends with code 3.
    """
    from fcn_ray.datasets.importing import import_dataset as run
    from fcn_ray.reports.console import print_lines

    report = run(
        format,
        source,
        out,
        classes=classes,
        splits=split.split(",") if split else None,
        val_fraction=val_fraction,
        strict=strict,
        shard_bytes=shard_bytes,
    )
    print_lines(report.lines())
    return EXIT_BAD_IMAGES if report.refused else EXIT_COMPLETE


@app.command(
    epilog="Examples:  fcn-ray check train.parquet --val val.parquet   |   fcn-ray check data/voc/train",
)
def check(
    data: Annotated[str | None, typer.Argument(help="Training set: Parquet file or folder.")] = None,
    val: Annotated[str | None, typer.Option(help="Validation set, in the same form.")] = None,
    classes: Annotated[str | None, typer.Option(help="Names by id, with commas (default: as the files say).")] = None,
    config: ConfigFile = None,
    address: Address = None,
    settings: Settings = None,
    verbose: Verbose = False,
) -> int:
    """Look at every image and label before training on them: sizes, ids, class frequencies, void, copies, EXIF.

    Ends with code 2 when training would refuse something.
    """
    from fcn_ray.config import CheckConfig
    from fcn_ray.reports.console import print_lines
    from fcn_ray.training.check import check as run

    names = classes.split(",") if classes else None
    flags = {"data": data, "val": val, "classes": names, "address": address}
    report = run(_load(CheckConfig, config, settings, flags), verbose=verbose)
    print_lines(report.lines())
    return EXIT_COMPLETE if report.trainable else DataError.exit_code


@app.command(
    epilog="Examples:  fcn-ray train --data train.parquet --val val.parquet --out runs/street   |   "
    "fcn-ray train -c train.yaml --set optimizer.learning_rate=5e-4 --resume",
)
def train(
    config: ConfigFile = None,
    data: Annotated[
        str | None, typer.Option(help="Training set: Parquet file or folder (image and mask columns).")
    ] = None,
    val: Annotated[str | None, typer.Option(help="Validation set, in the same form.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for checkpoints and the bundle.")] = None,
    variant: Annotated[str | None, typer.Option(help="32s, 16s or 8s.")] = None,
    weights: Annotated[
        str | None, typer.Option(help='Classifier weights: .npz, .h5, .keras, .safetensors or "imagenet".')
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in one step, over all workers.")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray Train workers.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPUs for each worker.")] = None,
    resume: Annotated[bool | None, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = None,
    address: Address = None,
    settings: Settings = None,
    verbose: Verbose = False,
) -> int:
    """Train an FCN on the workers of a Ray cluster; the best epoch becomes the bundle OUT/bundle."""
    from fcn_ray.config import TrainConfig
    from fcn_ray.reports.console import print_lines
    from fcn_ray.reports.training_lines import TrainingLines
    from fcn_ray.training.job import train as run

    flags = {
        "data": data,
        "val": val,
        "out": out,
        "model.variant": variant,
        "model.weights": weights,
        "epochs": epochs,
        "batch_size": batch_size,
        "workers.count": workers,
        "workers.gpus": gpus_per_worker,
        "resume": resume,
        "address": address,
    }
    loaded = _load(TrainConfig, config, settings, flags)
    print_lines(run(loaded, on_record=TrainingLines().hear, verbose=verbose).lines())
    return EXIT_COMPLETE


@app.command(
    epilog="Examples:  fcn-ray segment photos/ masks/ --model runs/street/bundle   |   "
    "fcn-ray segment images.parquet masks/ --model runs/street/bundle --actors 4 --gpus-per-actor 1   |   "
    "fcn-ray segment -c segment.yaml --dry-run",
)
def segment(
    input: Annotated[
        str | None,
        typer.Argument(help="Parquet, tar or image file, a folder with them, a 'pattern' in quotes, or @LIST."),
    ] = None,
    output: Annotated[str | None, typer.Argument(help="Folder for the masks.")] = None,
    model: Annotated[str | None, typer.Option(help="Bundle folder, as `fcn-ray train` leaves it.")] = None,
    config: ConfigFile = None,
    image_column: Annotated[str | None, typer.Option(help="Parquet column with the images.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Parquet column that names each image.")] = None,
    actors: Annotated[int | None, typer.Option(help="Actors that hold the network (0: by the cluster).")] = None,
    gpus_per_actor: Annotated[float | None, typer.Option(help="GPUs for each actor; may be a fraction.")] = None,
    max_bad_fraction: Annotated[float | None, typer.Option(help="More bad images than this end with code 3.")] = None,
    max_bad_consecutive: Annotated[int | None, typer.Option(help="So many in a row end it early, code 3.")] = None,
    since: Annotated[str | None, typer.Option(help="New inputs only since 2026-09-01, or 7d ago.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try errors again that may pass.")] = False,
    if_running: Annotated[str | None, typer.Option(help="When another job works here: join (warns) or fail.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and stop.")] = False,
    address: Address = None,
    settings: Settings = None,
    verbose: Verbose = False,
) -> int:
    """Give every image of a collection its mask, exactly once; run it again to go on or to take in new images."""
    from fcn_ray.config import SegmentConfig
    from fcn_ray.inference.job import segment as run
    from fcn_ray.reports.console import print_lines

    flags = {
        "input": input,
        "output": output,
        "model": model,
        "image_column": image_column,
        "id_column": id_column,
        "predict.actors": actors,
        "predict.gpus": gpus_per_actor,
        "max_bad_fraction": max_bad_fraction,
        "max_bad_consecutive": max_bad_consecutive,
        "since": since,
        "retry_failed": "passing" if retry_failed else None,
        "if_running": if_running,
        "address": address,
    }
    report = run(_load(SegmentConfig, config, settings, flags), dry_run=dry_run, verbose=verbose)
    print_lines(report.lines())
    return EXIT_BAD_IMAGES if report.too_bad else EXIT_COMPLETE


@app.command(epilog="Example:  fcn-ray benchmark photos/ trial/ --model runs/street/bundle --gpus-per-actor 1")
def benchmark(
    input: Annotated[str | None, typer.Argument(help="What `fcn-ray segment` takes.")] = None,
    output: Annotated[str | None, typer.Argument(help="New folder for the masks.")] = None,
    model: Annotated[str | None, typer.Option(help="Bundle folder, as `fcn-ray train` leaves it.")] = None,
    config: ConfigFile = None,
    actors: Annotated[int | None, typer.Option(help="Actors that hold the network (0: by the cluster).")] = None,
    gpus_per_actor: Annotated[float | None, typer.Option(help="GPUs for each actor; may be a fraction.")] = None,
    address: Address = None,
    settings: Settings = None,
    verbose: Verbose = False,
) -> int:
    """Label a collection, then run the network alone on as many actors: how much of the hardware the job used."""
    from fcn_ray.config import SegmentConfig
    from fcn_ray.inference.benchmark import benchmark as run
    from fcn_ray.reports.console import print_lines

    flags = {
        "input": input,
        "output": output,
        "model": model,
        "predict.actors": actors,
        "predict.gpus": gpus_per_actor,
        "address": address,
    }
    report = run(_load(SegmentConfig, config, settings, flags), verbose=verbose)
    print_lines(report.lines())
    return EXIT_BAD_IMAGES if report.job.too_bad else EXIT_COMPLETE


@app.command(
    epilog="Examples:  fcn-ray evaluate masks/ val.parquet (after: fcn-ray segment val.parquet masks/ ...)   |   "
    "fcn-ray evaluate masks/ labels/ --json scores.json"
)
def evaluate(
    masks: Annotated[str, typer.Argument(help="Output folder of `fcn-ray segment`, one run=... in it, or PNG masks.")],
    labels: Annotated[str, typer.Argument(help="Parquet file or folder with a mask column, or a folder of PNGs.")],
    mask_column: Annotated[str, typer.Option(help="Column of the labels.")] = "mask",
    classes: Annotated[str | None, typer.Option(help="Names by id, with commas; only for PNGs on both sides.")] = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Write the scores to this file too.")] = None,
) -> int:
    """Score masks against labels: IoU of every class and the four FCN metrics. Void is never counted."""
    from fcn_ray.evaluation import evaluate as run
    from fcn_ray.evaluation import format_table, write_scores
    from fcn_ray.reports.console import print_lines

    names = classes.split(",") if classes else None
    evaluation = run(masks, labels, mask_column=mask_column, classes=names)
    print_lines(format_table(evaluation).splitlines())
    if json_file:
        write_scores(evaluation, json_file)
    return EXIT_COMPLETE


@app.command(epilog="Examples:  fcn-ray audit masks/   |   fcn-ray audit masks/ --source")
def audit(
    output: Annotated[str, typer.Argument(help="Output folder of `fcn-ray segment`, or one run=... in it.")],
    source: Annotated[bool, typer.Option("--source", help="Measure every image of the input too: it is read.")] = False,
) -> int:
    """Prove that every image of the plan has exactly one whole, unchanged result row."""
    from fcn_ray.reports.console import print_lines
    from fcn_ray.tables.audit import audit as run

    report = run(output, source)
    print_lines(report.lines())
    if report.n_findings:
        return AuditError.exit_code
    return IncompleteError.exit_code if report.incomplete else EXIT_COMPLETE


@app.command(
    epilog="Examples:  fcn-ray export runs/street/bundle street.onnx   |   "
    "fcn-ray export runs/street/bundle street.keras   |   fcn-ray export runs/street/bundle street-savedmodel"
)
def export(
    bundle: Annotated[str, typer.Argument(help="Bundle folder, as `fcn-ray train` leaves it.")],
    out: Annotated[
        str, typer.Argument(help="File that ends in .keras or .onnx, or a new folder for a TensorFlow SavedModel.")
    ],
    format: Annotated[
        str | None, typer.Option(help="keras, onnx or savedmodel, whatever the name of OUT ends like.")
    ] = None,
) -> int:
    """Write a bundle's network for other programs: raw RGB in, logits out, checked against the bundle.

    It takes float32 images (N, H, W, 3) of 0..255, any size, as "image"; the normalisation is inside. It gives float32
    "logits" (N, H, W, classes). Class names, palette and ignore id are in labels.json inside, or ONNX's metadata.

    .keras needs `import fcn_ray.models.fcn` before keras.models.load_model. The others need no fcn_ray; .onnx needs
    pip install "fcn_ray[onnx]" to be written.
    """
    from fcn_ray.inference.export import export as run
    from fcn_ray.reports.console import print_lines

    print_lines(run(bundle, out, format=format).lines())
    return EXIT_COMPLETE


config_app = typer.Typer(help="Settings: what there is, and what a job would use.", no_args_is_help=True)
app.add_typer(config_app, name="config")


@config_app.command("show", epilog="Examples:  fcn-ray config show train   |   fcn-ray config show segment -c job.yaml")
def config_show(
    job: Annotated[str, typer.Argument(help="train, segment or check.")],
    config: ConfigFile = None,
    settings: Settings = None,
) -> int:
    """Print every setting of a job with its default and meaning, or the resolved settings of a file."""
    from fcn_ray.config import CheckConfig, Section, SegmentConfig, TrainConfig
    from fcn_ray.config_text import describe_config, dump_config
    from fcn_ray.errors import ConfigError
    from fcn_ray.reports.console import print_settings

    kinds: dict[str, type[Section]] = {"train": TrainConfig, "segment": SegmentConfig, "check": CheckConfig}
    if job not in kinds:
        raise ConfigError(f"config show {job!r}: expected one of {', '.join(kinds)}")
    if config or settings:
        print(dump_config(_load(kinds[job], config, settings, {})), end="")
    else:
        print_settings(describe_config(kinds[job]))
    return EXIT_COMPLETE


@config_app.command(
    "network",
    epilog="Examples:  fcn-ray config network runs/street/bundle   |   "
    "fcn-ray config network --set geometry=paper --set variant=32s --classes 21 --size 500x500",
)
def config_network(
    bundle: Annotated[str | None, typer.Argument(help="Bundle folder; by default the network of --set.")] = None,
    settings: Settings = None,
    classes: Annotated[int, typer.Option(help="Number of classes, without a bundle.")] = 21,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the image that is counted.")] = "500x500",
) -> int:
    """Count a network: its parameters, its multiply-adds, how far it sees, the margin of its tiles."""
    from fcn_ray.bundle import load_bundle
    from fcn_ray.config import ModelSpec
    from fcn_ray.config_text import parse_size
    from fcn_ray.models.summary import summarize
    from fcn_ray.reports.console import print_facts

    width, height = parse_size(size)
    spec = load_bundle(bundle).spec if bundle else _load(ModelSpec, None, settings, {"num_classes": classes})
    print_facts(summarize(spec, height, width))
    return EXIT_COMPLETE


def _load(kind: Any, file: Path | None, settings: list[str] | None, flags: dict[str, Any]) -> Any:
    from fcn_ray.config_text import load_config

    return load_config(kind, str(file) if file else None, settings or (), flags)
