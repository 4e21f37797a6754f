"""What a user triggers: one file a flow, parameters as a frozen model (the form in the Prefect UI)."""
