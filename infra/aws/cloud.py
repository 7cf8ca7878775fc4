"""cloud: `evergreen cloud up | status | down`, what evergreen needs on AWS.

Two stacks: <name>-state holds what must not be lost (state.yaml), <name>-services what runs (services.yaml).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import boto3
from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

from infra.aws import buckets, stacks
from infra.aws.stacks import Plan, Stack
from infra.aws.templates import read_template, write_template
from tasks import params

STATE, SERVICES = "state", "services"
PLAN_S = 300.0
BUCKETS = ("DataBucket", "ArtifactsBucket", "SharedBucket")  # outputs of state.yaml
MARKS = {"Add": "+", "Modify": "~", "Remove": "-"}
OWN = ("Name", "Vpc", "Subnets", "Budget", "BudgetEmail", "ImageTag")  # parameters that people give

app = App(name="cloud", help="What evergreen needs on AWS: make it, look at it, remove it.", version_flags=())
app.default_parameter = Parameter(negative="")


@app.command
def up(
    *,
    name: str = "evergreen",
    vpc: str | None = None,
    subnets: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    image_tag: str | None = None,
    budget: PositiveInt | None = None,
    budget_email: str | None = None,
    dry_run: bool = False,
    minutes: PositiveInt = 60,
) -> None:
    """Make or change what runs on AWS. What is not given stays as it is; a second time with nothing new does nothing.

    Args:
        name: Begins the names of the stacks and of all in them; the pool's name in prefect.yaml.
        vpc: The network, for a first time.
        subnets: Private ones of it, in two zones at least, for a first time.
        image_tag: Of the worker's image in the repository. Without one no server and no worker runs yet.
        budget: US dollars a month, above which mail comes.
        budget_email: Who gets that mail, for a first time.
        dry_run: Show what would change, and change nothing.
        minutes: How long a stack may take.
    """
    values = {"Name": name, "Vpc": vpc, "Subnets": ",".join(subnets), "Budget": budget and str(budget)}
    values |= {"BudgetEmail": budget_email, "ImageTag": image_tag}
    given = {key: value for key, value in values.items() if value}
    with stacks.word_errors():
        check_given(name, given)
        state = _put(name, STATE, given, dry_run=dry_run, seconds=60.0 * minutes)
        if state is None:
            print(f"{name}-{SERVICES}: stands on {name}-{STATE}, and is planned once that is there")
            return
        secrets, given = list_secrets(), {**state.outputs, **given}
        services = _put(name, SERVICES, given, dry_run=dry_run, seconds=60.0 * minutes, secrets=secrets)
        if services and not dry_run:
            print(describe_use(state, services, secrets))


def list_secrets() -> list[str]:
    """The variables that hold the secrets of the sources of params.yaml."""
    return sorted({name for source in params.load().sources.values() for name in source.secrets})


def check_given(name: str, given: Mapping[str, str]) -> None:
    """Raises ValueError for a parameter that a person must give the first time; before anything is made."""
    for part in (STATE, SERVICES):
        stack, template = stacks.read_stack(f"{name}-{part}"), read_template(part)
        present = stack.parameters if stack else {}
        needed = [key for key, one in template["Parameters"].items() if key in OWN and "Default" not in one]
        if lacking := [key for key in needed if key not in given and key not in present]:
            raise ValueError(f"the first time needs {', '.join(_spell_option(key) for key in lacking)}")


def _spell_option(parameter: str) -> str:
    return "-" + "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in parameter)


def _put(
    name: str, part: str, given: Mapping[str, str], *, dry_run: bool, seconds: float, secrets: Sequence[str] = ()
) -> Stack | None:
    """Bring a stack to its template. Returns it; None for one that is not made yet, in a dry run."""
    stack, declared = f"{name}-{part}", read_template(part)["Parameters"]
    present = stacks.read_stack(stack)
    values = {key: str(one["Default"]) for key, one in declared.items() if "Default" in one}
    values |= {**(present.parameters if present else {}), **given}
    plan = stacks.plan_change(
        stack,
        write_template(part, secrets),
        {key: value for key, value in values.items() if key in declared},
        tags={"evergreen:name": name, "evergreen:part": part},
        seconds=PLAN_S,
    )
    if plan is None:
        print(f"{stack}: nothing has changed")
        return stacks.read_stack(stack)
    print(describe_plan(plan), flush=True)
    if dry_run:
        stacks.discard_plan(plan)
        return None if plan.is_new else stacks.read_stack(stack)
    return stacks.apply_plan(plan, seconds=seconds)


def describe_plan(plan: Plan) -> str:
    """A line for the stack, and one for each resource that would change."""
    lines = [f"{plan.stack}: {'is made' if plan.is_new else 'changes'}, {len(plan.changes)} resources"]
    for change in plan.changes:
        note = " (replaced)" if change.replaced else ""
        lines.append(f"  {MARKS.get(change.action, change.action)} {change.resource} {change.kind}{note}")
    return "\n".join(lines)


def describe_use(state: Stack, services: Stack, secrets: Sequence[str] = ()) -> str:
    """What a person does next with what is there."""
    outputs = {**state.outputs, **services.outputs}
    lines = [
        f"DVC's remote: dvc remote add -d storage s3://{outputs['DataBucket']}/dvc, and commit .dvc/config",
        f"the image: docker push {outputs['Repository']}:TAG, then evergreen cloud up --image-tag TAG",
        f"inside the network: PREFECT_API_URL={outputs['PrefectApi']} MLFLOW_TRACKING_URI={outputs['MlflowUri']}",
    ]
    if secrets:
        values = ", ".join(f'"{name}": "…"' for name in secrets)
        lines.append(
            "the sources' secrets: aws secretsmanager put-secret-value --secret-id "
            f"{outputs['SourcesSecret']} --secret-string '{{{values}}}'"
        )
    pool = {"CLUSTER": outputs["Cluster"], "TASK": f"{outputs['Cluster']}-run"}
    pool |= {"SUBNETS": state.parameters["Subnets"], "GROUPS": outputs["RunGroupId"]}
    lines.append(f"to deploy from there: export {' '.join(f'POOL_{key}={value}' for key, value in pool.items())}")
    return "\n".join(lines)


@app.command
def status(*, name: str = "evergreen") -> None:
    """Show the stacks, what runs, and whether the buckets hold anything.

    Args:
        name: Of what was made with `evergreen cloud up --name`.
    """
    with stacks.word_errors():
        present = {part: stacks.read_stack(f"{name}-{part}") for part in (STATE, SERVICES)}
        for part, stack in present.items():
            print(f"{name}-{part}: {stack.status if stack else 'not there'}")
        if services := present[SERVICES]:
            for line in list_services(services.outputs.get("Cluster", name)):
                print(f"  {line}")
        if state := present[STATE]:
            for bucket, number in count_versions(state).items():
                print(f"  {bucket}: {spell_count(number)}")
            if services:
                print(describe_use(state, services, list_secrets()))


def list_services(cluster: str) -> list[str]:
    """A line for each service of a cluster: its tasks, and what ECS said last of it."""
    client = boto3.client("ecs")
    names = client.list_services(cluster=cluster)["serviceArns"]
    described = client.describe_services(cluster=cluster, services=names)["services"] if names else []
    lines = []
    for service in sorted(described, key=lambda one: str(one["serviceName"])):
        counts = f"{service['runningCount']} of {service['desiredCount']} running"
        events = service.get("events", ())
        lines.append(f"{service['serviceName']}: {counts}{', ' + events[0]['message'] if events else ''}")
    return lines


@app.command
def down(
    *, name: str = "evergreen", keep_data: bool = False, with_data: bool = False, minutes: PositiveInt = 60
) -> None:
    """Remove what runs on AWS, and what it has stored where that is empty or `--with-data` says so.

    Args:
        name: Of what was made with `evergreen cloud up --name`.
        keep_data: Remove what runs, and keep buckets, database and secrets.
        with_data: Delete all that the buckets hold. Nothing brings it back.
        minutes: How long a stack may take.
    """
    if keep_data and with_data:
        raise ValueError("--keep-data and --with-data say opposite things: give one of them")
    seconds = 60.0 * minutes
    with stacks.word_errors():
        state = stacks.read_stack(f"{name}-{STATE}")
        held = count_versions(state) if state else {}
        if any(held.values()) and not keep_data and not with_data:
            raise ValueError(f"nothing was removed: {word_refusal(held)}")
        _delete(f"{name}-{SERVICES}", seconds)
        if keep_data:
            print(f"kept: {name}-{STATE}, which is {', '.join(held) or 'not there'}, the database and the secrets")
            return
        for bucket in held:
            if number := buckets.empty_bucket(bucket):
                print(f"{bucket}: {number} versions deleted")
        if state and (database := state.outputs.get("DatabaseId")):
            allow_deletion(database)
        _delete(f"{name}-{STATE}", seconds)
        if state:
            key, pii_key = state.outputs.get("KeyArn"), state.outputs.get("PiiKeySecret")
            print(f"kept: the database's last snapshot, the key {key} that reads it, and the pseudonyms' key {pii_key}")


def count_versions(state: Stack) -> dict[str, int]:
    """Of each bucket the versions that it holds, counted up to a thousand."""
    return {state.outputs[key]: buckets.count_versions(state.outputs[key]) for key in BUCKETS if key in state.outputs}


def word_refusal(held: Mapping[str, int]) -> str:
    full = ", ".join(f"{bucket} ({spell_count(number)})" for bucket, number in held.items() if number)
    return f"{full} would be lost. `--keep-data` removes what runs, and keeps them; `--with-data` deletes them for good"


def spell_count(number: int) -> str:
    return "empty" if not number else f"{number}{' or more' if number >= buckets.PAGE else ''} versions"


def allow_deletion(database: str) -> None:
    """Take the protection off that keeps a database from being deleted by mistake."""
    client = boto3.client("rds")
    client.modify_db_instance(DBInstanceIdentifier=database, DeletionProtection=False, ApplyImmediately=True)


def _delete(stack: str, seconds: float) -> None:
    print(f"{stack}: {'removed' if stacks.delete_stack(stack, seconds=seconds) else 'was not there'}", flush=True)
