"""``transferopt doctor``"""


def doctor() -> None:
    from rich.table import Table

    import tasks  # noqa: F401
    from flows.cli.show import console
    from tasks.health import CHECKS

    findings = [check() for check in CHECKS]
    table = Table("check", "found", "what to do")
    for f in findings:
        colour = "red" if f.fatal else "yellow" if f.remedy else "green"
        table.add_row(f"[{colour}]{f.check}[/]", f.found, f.remedy)
    console.print(table)
    if any(f.fatal for f in findings):
        raise RuntimeError("the installation does not work yet; see 'what to do'")
