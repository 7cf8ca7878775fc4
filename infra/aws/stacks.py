"""stacks: a CloudFormation stack is planned, changed, awaited, read and deleted.

Credentials, region and the address of the API are what boto3 finds: variables, a profile, the machine's role.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import boto3
from botocore.exceptions import BotoCoreError, ClientError

TEMPLATE_LIMIT = 51_200  # bytes of a template that travels with the request
POLL_S = 5.0
UNCHANGED = ("didn't contain changes", "No updates are to be performed")
DEAD = {"ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"}  # these can only be deleted
NEW = "REVIEW_IN_PROGRESS"  # planned once, never made


@dataclass(frozen=True)
class Stack:
    """A stack as it is. `parameters` and `outputs` by name."""

    name: str
    status: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """What would become of one resource. `action` is CloudFormation's: Add, Modify, Remove."""

    action: str
    resource: str
    kind: str
    replaced: bool


@dataclass(frozen=True)
class Plan:
    """A change set: what a template would change, before it does."""

    stack: str
    change_set: str
    is_new: bool
    changes: tuple[Change, ...]


@contextmanager
def word_errors() -> Iterator[None]:
    """AWS's refusals, and what boto3 lacks, as a RuntimeError of one line."""
    try:
        yield
    except ClientError as error:
        told = error.response.get("Error", {})
        raise RuntimeError(f"AWS refused {error.operation_name}: {told.get('Code')}: {told.get('Message')}") from error
    except BotoCoreError as error:
        hint = "boto3 takes credentials and region from variables, a profile or the machine's role"
        raise RuntimeError(f"AWS was not asked: {error} ({hint})") from error


def read_stack(name: str) -> Stack | None:
    """A stack; None where there is none."""
    try:
        (answer,) = boto3.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    return Stack(
        name=name,
        status=answer["StackStatus"],
        parameters={one["ParameterKey"]: one["ParameterValue"] for one in answer.get("Parameters", ())},
        outputs={one["OutputKey"]: one["OutputValue"] for one in answer.get("Outputs", ())},
    )


def plan_change(
    name: str, template: str, parameters: Mapping[str, str], *, tags: Mapping[str, str], seconds: float
) -> Plan | None:
    """What a template would change; None for nothing. Nothing is changed yet.

    Args:
        parameters: all of the template's, by name.
        tags: of the stack, which CloudFormation puts on its resources.

    Raises:
        ValueError: the template is too long, or the stack is in a state that cannot be changed.
        RuntimeError: CloudFormation refuses the template.
        TimeoutError: it has not planned in so many seconds.
    """
    size = len(template.encode())
    if size > TEMPLATE_LIMIT:
        raise ValueError(f"the template of {name} has {size} bytes, and CloudFormation takes {TEMPLATE_LIMIT}")
    stack = read_stack(name)
    check_changeable(name, stack)
    is_new = stack is None or stack.status == NEW
    client, change_set = boto3.client("cloudformation"), f"evergreen-{uuid4().hex}"
    client.create_change_set(
        StackName=name,
        ChangeSetName=change_set,
        ChangeSetType="CREATE" if is_new else "UPDATE",
        TemplateBody=template,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in sorted(parameters.items())],
        Tags=[{"Key": key, "Value": value} for key, value in sorted(tags.items())],
        Capabilities=["CAPABILITY_IAM"],
    )
    answer = _wait_for_plan(name, change_set, seconds)
    reason = answer.get("StatusReason") or ""
    if answer["Status"] == "CREATE_COMPLETE":
        return Plan(name, change_set, is_new, tuple(_read_changes(name, change_set)))
    client.delete_change_set(StackName=name, ChangeSetName=change_set)
    if any(words in reason for words in UNCHANGED):
        return None
    raise RuntimeError(f"the change of {name} was refused: {reason}")


def check_changeable(name: str, stack: Stack | None) -> None:
    """Raises ValueError for a stack that is being changed, or whose creation has failed."""
    if stack is None or stack.status == NEW:
        return
    if stack.status in DEAD:
        raise ValueError(f"{name} is {stack.status}: `evergreen cloud down` removes it, then it can be made again")
    if stack.status.endswith("_IN_PROGRESS"):
        raise ValueError(f"{name} is {stack.status}: somebody is changing it. Wait, and see `evergreen cloud status`")


def _wait_for_plan(name: str, change_set: str, seconds: float) -> dict[str, Any]:
    client, until = boto3.client("cloudformation"), time.monotonic() + seconds
    while True:
        answer: dict[str, Any] = client.describe_change_set(StackName=name, ChangeSetName=change_set)
        if answer["Status"] in ("CREATE_COMPLETE", "FAILED"):
            return answer
        if time.monotonic() > until:
            raise TimeoutError(f"the change of {name} is still {answer['Status']} after {seconds:.0f} s")
        time.sleep(min(POLL_S, seconds))


def _read_changes(name: str, change_set: str) -> Iterator[Change]:
    pages = boto3.client("cloudformation").get_paginator("describe_change_set")
    for page in pages.paginate(StackName=name, ChangeSetName=change_set):
        for line in page.get("Changes", ()):
            change = line["ResourceChange"]
            is_replaced = change.get("Replacement") == "True"
            yield Change(change["Action"], change["LogicalResourceId"], change["ResourceType"], is_replaced)


def discard_plan(plan: Plan) -> None:
    """Forget a plan, and the empty stack that CloudFormation made for that of a new one."""
    client = boto3.client("cloudformation")
    client.delete_change_set(StackName=plan.stack, ChangeSetName=plan.change_set)
    if plan.is_new:
        client.delete_stack(StackName=plan.stack)


def apply_plan(plan: Plan, *, seconds: float) -> Stack:
    """Make the change, and wait for its end. Returns the stack as it is then.

    Raises:
        RuntimeError: it failed and was rolled back; names the first resource that failed, and why.
        TimeoutError: it has not ended in so many seconds; it goes on at AWS.
    """
    boto3.client("cloudformation").execute_change_set(StackName=plan.stack, ChangeSetName=plan.change_set)
    stack = wait_for_stack(plan.stack, seconds=seconds)
    wanted = "CREATE_COMPLETE" if plan.is_new else "UPDATE_COMPLETE"
    if stack is None or stack.status != wanted:
        status = stack.status if stack else "gone"
        raise RuntimeError(f"{plan.stack} is {status}: {read_failure(plan.stack)}")
    return stack


def delete_stack(name: str, *, seconds: float) -> bool:
    """Delete a stack, and wait until it is gone. False where there was none.

    Raises:
        RuntimeError: something could not be deleted; names it, and why.
        TimeoutError: it has not ended in so many seconds; it goes on at AWS.
    """
    if read_stack(name) is None:
        return False
    boto3.client("cloudformation").delete_stack(StackName=name)
    stack = wait_for_stack(name, seconds=seconds)
    if stack is not None and stack.status != "DELETE_COMPLETE":
        raise RuntimeError(f"{name} is {stack.status}: {read_failure(name)}")
    return True


def wait_for_stack(name: str, *, seconds: float) -> Stack | None:
    """Wait until nobody changes a stack. Returns it as it is then; None when it is gone. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while (stack := read_stack(name)) and stack.status.endswith("_IN_PROGRESS"):
        if time.monotonic() > until:
            way_out = "it goes on at AWS: `evergreen cloud status` tells how"
            raise TimeoutError(f"{name} is still {stack.status} after {seconds:.0f} s; {way_out}")
        time.sleep(min(POLL_S, seconds))
    return stack


def read_failure(name: str) -> str:
    """Which resource failed first in the newest change, and why."""
    events = boto3.client("cloudformation").describe_stack_events(StackName=name)["StackEvents"]
    failed = ""
    for event in events:  # the newest first
        if (
            event["ResourceType"] == "AWS::CloudFormation::Stack"
            and event.get("ResourceStatusReason") == "User Initiated"
        ):
            break
        if event["ResourceStatus"].endswith("_FAILED"):
            failed = f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason') or event['ResourceStatus']}"
    return failed or "CloudFormation names no resource that failed"
