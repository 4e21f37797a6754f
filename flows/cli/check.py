"""``transferopt check TASK``"""

from pathlib import Path
from typing import Annotated, Any

import typer

TOKENIZER = "all-minilm-l6-v2"


def check(
    task: Annotated[str, typer.Argument(help="built-in task or path of a task file")],
    model: Annotated[str, typer.Option(help="whose tokenizer counts the truncated share (asset, folder, hub)")] = "",
    max_length: Annotated[int, typer.Option(help="length limit in tokens")] = 128,
    seed: Annotated[int, typer.Option(help="seed of the cuts that the task makes itself")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the report here (counts and hashes, no texts)")] = None,
) -> None:
    from core.data.check import check as look
    from core.data.tasks import load_task
    from core.state import write_json
    from flows.cli.parameters import writable_file
    from flows.cli.show import console

    writable_file(json)
    loaded = load_task(task)
    tokenizer = _tokenizer(model)
    report = look(loaded, tokenizer, max_length, seed)
    console.print("\n".join(report.lines()), soft_wrap=True, markup=False, highlight=False)
    if tokenizer is None and report.words:
        console.print(f"  truncated share: not counted; give --model, or fetch one with transferopt assets {TOKENIZER}")
    if json is not None:
        write_json(json, {k: v for k, v in report.as_dict().items() if k != "prompts"})


def _tokenizer(model: str) -> Any:
    """The tokenizer of ``model``; of the default encoder only where that is already here."""
    from core.data.assets import declared, resolve, state

    if not model and state(declared(TOKENIZER)) not in ("cached", "local"):
        return None
    from transformers import AutoTokenizer

    from core.models.folder import check_tokenizer
    from tasks.load_model import given_path

    path = given_path(model) if model else None
    folder = path if path is not None and path.exists() else resolve(model or TOKENIZER).path
    if folder.is_dir():
        check_tokenizer(folder)
    gguf = next(folder.glob("*.gguf"), None) if folder.is_dir() else folder
    return AutoTokenizer.from_pretrained(folder if gguf is None else gguf.parent, gguf_file=gguf and gguf.name)
