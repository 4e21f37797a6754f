"""``transferopt sync``"""


def sync() -> None:
    import tasks  # noqa: F401
    from flows.cli.show import console
    from tasks.spool import deliver_all

    done, left = deliver_all()
    console.print(f"{done} runs delivered, {left} records still waiting")
    if left:
        raise RuntimeError(
            "MLflow does not take everything yet; check MLFLOW_TRACKING_URI and call `transferopt sync` again"
        )
