"""When and whether things are done: the only place that knows Prefect. What is done stands in tasks."""
