"""``transferopt sync``"""

from typing import Annotated

import typer


def sync(
    forget: Annotated[bool, typer.Option("--forget-refused", help="drop the records that MLflow refused")] = False,
    retry: Annotated[bool, typer.Option("--retry-refused", help="offer MLflow once more what it refused")] = False,
) -> None:
    import tasks  # noqa: F401
    from flows.cli.show import console
    from tasks import delivery, spool

    if retry:
        console.print(f"{spool.retry_refused()} refused records are offered again")
    done, left = delivery.deliver_all()
    console.print(f"{done} runs delivered, {left} records still waiting")
    lost = [(folder.name, entry) for folder in spool.folders() for entry in spool.refused(folder)]
    for run, entry in lost:
        record = entry["record"]
        names = ", ".join(
            [*(m[0] for m in record.get("metrics", [])), *record.get("params", {}), *record.get("tags", {})]
        )
        what = names or record.get("path") or record.get("name") or ""
        console.print(
            f"refused  {run[:12]}  {record['op']} {what[:200]}: {entry['error']}", markup=False, soft_wrap=True
        )
    if lost and forget:
        spool.forget_refused()
        console.print(f"{len(lost)} refused records dropped")
    elif lost:
        console.print(
            f"{len(lost)} records were refused and are kept; --retry-refused offers them again, "
            "--forget-refused drops them",
            soft_wrap=True,
        )
    if left:
        raise RuntimeError(
            "MLflow does not take everything yet, for the reasons above; mend them and call `transferopt sync` again "
            f"(a run whose folder in {spool.spool_root()} is removed gives up what it still has to say)"
        )
