"""``unibrain-rt export-features``."""

from __future__ import annotations

from pathlib import Path

import click

from unibrain_rt.cli.messages import Command

#: As in `extractors.NAMES`, which takes torch to ask.
NAMES = ("alexnet2", "alexnet5", "inception", "efficientnet", "swav", "clip")
_path = click.Path(path_type=Path)


@click.command("export-features", cls=Command, short_help="Turn a judge's weights into a feature network.")
@click.argument("name", type=click.Choice(NAMES), metavar="NAME")
@click.option(
    "--weights",
    type=_path,
    required=True,
    help="Weight file of torchvision's; for clip, transformers' folder.",
)
@click.option("--out", type=_path, required=True, help="Folder for NAME.onnx and NAME.json.")
@click.option("--overwrite", is_flag=True, help="Replace a network that is there.")
def command(name: str, weights: Path, out: Path, overwrite: bool) -> None:
    """Export a network whose features the field compares pictures by, for `evaluate --features`.

    \b
    NAME          what is compared                       weights that it takes
    alexnet2      Alex(2), identification                torchvision's AlexNet
    alexnet5      Alex(5), identification                torchvision's AlexNet
    inception     Inception v3 avgpool, identification   torchvision's Inception v3
    efficientnet  EffNet-B1 avgpool, distance            torchvision's EfficientNet-B1
    swav          ResNet-50 avgpool, distance            SwAV's ResNet-50
    clip          image embedding, identification        CLIP ViT-L/14 (config.json, model.safetensors)

    The weights have to be here already: nothing is downloaded.
    """
    from unibrain_rt.export.judges.extractors import export_features

    click.echo(f"{export_features(name, weights, out, overwrite=overwrite)}: written")
