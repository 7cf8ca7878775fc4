"""What is done to the data, in the order it passes through: plain functions that know nothing of Prefect."""
