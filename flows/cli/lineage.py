"""``transferopt lineage RUN``"""

from typing import Annotated

import typer


def lineage(run: Annotated[str, typer.Argument(help="MLflow run id, or the id a run printed")]) -> None:
    from rich.markup import escape
    from rich.tree import Tree

    from flows.cli.show import console
    from tasks.lineage import Node, trace

    root = trace(run)

    def add(tree: Tree, node: Node) -> None:
        mark = {"intact": "[green]ok[/]", "damaged": "[red]DAMAGED[/]", "gone": "[yellow]gone[/]", "": ""}[node.state]
        branch = tree.add(f"{escape(node.title)}  [dim]{node.sha256[:12]}[/] {mark}  [dim]{node.run[:12]}[/]")
        for child in node.inputs:
            add(branch, child)

    tree = Tree(f"[bold]{root.name}[/] {root.run[:12]}")
    for child in root.unfolded().inputs:
        add(tree, child)
    console.print(tree)
    artifacts = {(n.run, n.path): n for n in root.walk() if n.path}  # one that many read is one
    bad = [n for n in artifacts.values() if n.state == "damaged"]
    if bad:
        raise RuntimeError(f"{len(bad)} of {len(artifacts)} artifacts do not match their hash: {bad[0].path}")
