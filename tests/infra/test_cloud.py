"""`evergreen cloud` against a simulated AWS: made, left alone, changed, taken down, and nothing lost by mistake."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.cloudformation.models import cloudformation_backends

from infra.aws import buckets, cloud, stacks
from tests.infra.conftest import read_outputs
from tests.simulator import ACCOUNT, REGION, make_network

ROOT = Path(__file__).parents[2]
Make = Callable[[str], dict[str, str]]
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(make_stacks: Make) -> dict[str, str]:
    """For tests that look, and change nothing."""
    return make_stacks("seen")


def stack_of(name: str) -> Any:
    """moto's own, whose status a test can set."""
    return next(one for one in cloudformation_backends[ACCOUNT][REGION].stacks.values() if one.name == name)


def put(bucket: str, *keys: str) -> None:
    for key in keys:
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b"x")


# --- what is made


@pytest.mark.parametrize("output", cloud.BUCKETS)
def test_a_bucket_is_versioned_encrypted_private_and_tiered(made: dict[str, str], output: str) -> None:
    s3, bucket = boto3.client("s3"), made[output]
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    (rule,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": made["KeyArn"]}
    assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    (tiers,) = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert tiers["Transitions"] == [{"StorageClass": "INTELLIGENT_TIERING", "Days": 30}]
    assert tiers["NoncurrentVersionExpiration"]["NoncurrentDays"] >= 30


def test_the_database_is_encrypted_private_and_backed_up(made: dict[str, str]) -> None:
    (database,) = boto3.client("rds").describe_db_instances(DBInstanceIdentifier=made["DatabaseId"])["DBInstances"]
    assert (database["Engine"], database["StorageEncrypted"], database["KmsKeyId"]) == (
        "postgres",
        True,
        made["KeyArn"],
    )
    assert (database["PubliclyAccessible"], database["DeletionProtection"]) == (False, True)
    assert database["BackupRetentionPeriod"] >= 7
    assert database["MasterUserSecret"]["SecretArn"] == made["MasterSecret"]


def test_the_locks_have_an_address_with_the_password_of_their_own_user(made: dict[str, str]) -> None:
    client = boto3.client("secretsmanager")
    password = client.get_secret_value(SecretId=made["LocksPasswordSecret"])["SecretString"]
    address = client.get_secret_value(SecretId=made["LocksSecret"])["SecretString"]
    assert address == f"postgresql://locks:{password}@{made['DatabaseHost']}:5432/locks?sslmode=require"
    assert password.isalnum()
    assert len(password) == 40


def test_a_cluster_has_spot_and_the_log_ends(made: dict[str, str]) -> None:
    (cluster,) = boto3.client("ecs").describe_clusters(clusters=[made["Cluster"]])["clusters"]
    assert {"FARGATE", "FARGATE_SPOT"} <= set(cluster["capacityProviders"])
    (log,) = boto3.client("logs").describe_log_groups(logGroupNamePrefix="/seen/")["logGroups"]
    assert log["retentionInDays"] == 365


def test_nobody_from_outside_gets_in(made: dict[str, str]) -> None:
    ec2 = boto3.client("ec2")
    (run,) = ec2.describe_security_groups(GroupIds=[made["RunGroupId"]])["SecurityGroups"]
    groups = ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [run["VpcId"]]}])["SecurityGroups"]
    rules = [rule for group in groups if group["GroupName"] != "default" for rule in group["IpPermissions"]]
    assert sorted({rule["FromPort"] for rule in rules}) == [4200, 5000, 5432]
    assert [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]] == []
    assert run["IpPermissions"] == []


def test_money_has_an_alarm(made: dict[str, str]) -> None:  # noqa: ARG001
    budget = boto3.client("budgets").describe_budget(AccountId=ACCOUNT, BudgetName="seen-monthly")["Budget"]
    assert float(budget["BudgetLimit"]["Amount"]) == 50
    assert "CostFilters" not in budget  # the whole account's, so that it counts whatever is tagged


def test_both_stacks_carry_the_tags_of_their_costs(made: dict[str, str]) -> None:  # noqa: ARG001
    for part in (cloud.STATE, cloud.SERVICES):
        (stack,) = boto3.client("cloudformation").describe_stacks(StackName=f"seen-{part}")["Stacks"]
        assert {tag["Key"]: tag["Value"] for tag in stack["Tags"]} == {"evergreen:name": "seen", "evergreen:part": part}


# --- up, again and with a change


def test_a_second_up_changes_nothing_and_says_so(make_stacks: Make, capsys: Output) -> None:
    before = make_stacks("again")
    capsys.readouterr()
    cloud.up(name="again")
    printed = capsys.readouterr().out
    assert "again-state: nothing has changed" in printed
    assert "again-services: nothing has changed" in printed
    assert read_outputs("again") == before
    sets = boto3.client("cloudformation").list_change_sets(StackName="again-state")["Summaries"]
    assert [one for one in sets if one["StackName"] == "again-state" and one["Status"] == "FAILED"] == []


def test_the_secrets_of_the_sources_are_variables_of_each_run(
    make_stacks: Make, capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stacks("secrets")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["sources"]["planes"] = {"address": "https://example.org/planes.csv", "headers": {"X-Key": "SHOP_KEY"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    cloud.up(name="secrets")
    outputs = read_outputs("secrets")
    definition = boto3.client("ecs").describe_task_definition(taskDefinition=outputs["RunDefinition"])["taskDefinition"]
    given = {line["name"]: line["valueFrom"] for line in definition["containerDefinitions"][0]["secrets"]}
    assert given["SHOP_KEY"] == f"{outputs['SourcesSecret']}:SHOP_KEY::"
    printed = capsys.readouterr().out
    assert f'--secret-id {outputs["SourcesSecret"]} --secret-string \'{{"SHOP_KEY": "…"}}\'' in printed


def test_an_image_starts_the_servers_and_the_worker(make_stacks: Make, capsys: Output) -> None:
    before = make_stacks("image")
    ecs = boto3.client("ecs")
    assert running(ecs) == {"prefect": 0, "mlflow": 0, "worker": 0}
    capsys.readouterr()
    cloud.up(name="image", image_tag="4b62e5d")
    printed = capsys.readouterr().out
    assert "image-state: nothing has changed" in printed
    assert "image-services: changes" in printed
    assert running(ecs) == {"prefect": 1, "mlflow": 1, "worker": 1}
    after = read_outputs("image")
    assert after["RunDefinition"] != before["RunDefinition"]
    definition = ecs.describe_task_definition(taskDefinition=after["RunDefinition"])["taskDefinition"]
    assert definition["containerDefinitions"][0]["image"] == f"{after['Repository']}:4b62e5d"


def running(ecs: Any) -> dict[str, int]:
    services = ecs.describe_services(cluster="image", services=["prefect", "mlflow", "worker"])["services"]
    return {service["serviceName"]: service["desiredCount"] for service in services}


def test_a_dry_run_makes_nothing(aws: str, capsys: Output) -> None:  # noqa: ARG001
    vpc, subnets = make_network()
    cloud.up(name="dry", vpc=vpc, subnets=tuple(subnets), budget_email="who@example.org", dry_run=True)
    assert "+ Database AWS::RDS::DBInstance" in capsys.readouterr().out
    assert stacks.read_stack("dry-state") is None
    assert [one for one in boto3.client("s3").list_buckets()["Buckets"] if one["Name"].startswith("dry-")] == []


def test_what_a_first_time_lacks_is_named_before_anything_is_made(aws: str) -> None:  # noqa: ARG001
    with pytest.raises(ValueError, match="the first time needs --vpc, --subnets"):
        cloud.up(name="lacking")
    vpc, subnets = make_network()
    with pytest.raises(ValueError, match="the first time needs --budget-email"):
        cloud.up(name="lacking", vpc=vpc, subnets=tuple(subnets))
    assert stacks.read_stack("lacking-state") is None


@pytest.mark.parametrize(
    ("status", "words"),
    [("UPDATE_IN_PROGRESS", "somebody is changing it"), ("ROLLBACK_COMPLETE", "`evergreen cloud down` removes it")],
)
def test_a_stack_that_cannot_be_changed_says_what_to_do(
    make_stacks: Make, monkeypatch: pytest.MonkeyPatch, status: str, words: str
) -> None:
    name = status.split("_")[0].lower()
    make_stacks(name)
    monkeypatch.setattr(stack_of(f"{name}-state"), "status", status)
    with pytest.raises(ValueError, match=f"{name}-state is {status}: .*{words}"):
        cloud.up(name=name, image_tag="new")


def test_waiting_ends(made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(stack_of("seen-state"), "status", "UPDATE_IN_PROGRESS")
    with pytest.raises(TimeoutError, match="seen-state is still UPDATE_IN_PROGRESS after 0 s; it goes on at AWS"):
        stacks.wait_for_stack("seen-state", seconds=0.1)


def test_a_failed_change_names_the_resource_that_failed_first(
    made: dict[str, str],  # noqa: ARG001
) -> None:
    stack = stack_of("seen-services")
    stack._add_stack_event("UPDATE_IN_PROGRESS", resource_status_reason="User Initiated")
    for resource, reason in (("RunTask", "no such image"), ("Worker", "Resource creation cancelled")):
        event = stack.events[-1].__class__(
            stack_id=stack.stack_id,
            stack_name=stack.name,
            logical_resource_id=resource,
            physical_resource_id="",
            resource_type="AWS::ECS::TaskDefinition",
            resource_status="UPDATE_FAILED",
            resource_status_reason=reason,
            resource_properties=None,
        )
        stack.events.append(event)
    assert stacks.read_failure("seen-services") == "RunTask: no such image"


# --- down


def test_down_refuses_while_a_bucket_holds_versions(make_stacks: Make) -> None:
    made = make_stacks("full")
    put(made["DataBucket"], "a", "a")
    boto3.client("s3").delete_object(Bucket=made["DataBucket"], Key="a")  # a mark more, and all still there
    with pytest.raises(ValueError, match=rf"nothing was removed: {made['DataBucket']} \(3 versions\) would be lost"):
        cloud.down(name="full")
    assert read_outputs("full") == made


def test_down_with_data_removes_all_and_says_what_it_keeps(
    make_stacks: Make, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "PAGE", 10)
    made = make_stacks("gone")
    put(made["DataBucket"], *(f"{number}" for number in range(buckets.PAGE + 5)))
    capsys.readouterr()
    cloud.down(name="gone", with_data=True)
    printed = capsys.readouterr().out
    assert f"{made['DataBucket']}: {buckets.PAGE + 5} versions deleted" in printed
    assert (stacks.read_stack("gone-state"), stacks.read_stack("gone-services")) == (None, None)
    kept = printed.splitlines()[-1]
    assert "the database's last snapshot" in kept
    assert made["KeyArn"] in kept
    assert made["PiiKeySecret"] in kept
    (snapshot,) = boto3.client("rds").describe_db_snapshots(DBInstanceIdentifier=made["DatabaseId"])["DBSnapshots"]
    assert snapshot["Encrypted"]
    assert boto3.client("secretsmanager").get_secret_value(SecretId=made["PiiKeySecret"])["SecretString"]
    cloud.down(name="gone")  # which finds nothing more
    assert "gone-state: was not there" in capsys.readouterr().out


def test_down_that_keeps_the_data_can_be_followed_by_up(make_stacks: Make) -> None:
    made = make_stacks("paused")
    put(made["SharedBucket"], "a")
    cloud.down(name="paused", keep_data=True)
    assert stacks.read_stack("paused-services") is None
    assert buckets.count_versions(made["SharedBucket"]) == 1
    state = stacks.read_stack("paused-state")
    assert state
    vpc, subnets = state.parameters["Vpc"], tuple(state.parameters["Subnets"].split(","))
    cloud.up(name="paused", vpc=vpc, subnets=subnets, budget_email="who@example.org")
    assert read_outputs("paused")["DatabaseId"] == made["DatabaseId"]


def test_both_kinds_of_down_at_once_are_refused(aws: str) -> None:  # noqa: ARG001
    with pytest.raises(ValueError, match="--keep-data and --with-data say opposite things"):
        cloud.down(name="any", keep_data=True, with_data=True)


# --- the command


def test_status_tells_of_what_is_there_and_what_is_not(made: dict[str, str], capsys: Output) -> None:
    cloud.status(name="seen")
    printed = capsys.readouterr().out
    assert "seen-state: CREATE_COMPLETE" in printed
    assert "prefect: 0 of 0 running" in printed
    assert f"{made['DataBucket']}: empty" in printed
    assert re.search(
        rf"POOL_CLUSTER=seen POOL_TASK=seen-run POOL_SUBNETS=subnet-\w+,subnet-\w+ POOL_GROUPS={made['RunGroupId']}",
        printed,
    )
    cloud.status(name="nothing")
    assert capsys.readouterr().out == "nothing-state: not there\nnothing-services: not there\n"


def test_the_command_finds_aws_by_the_environment(made: dict[str, str]) -> None:  # noqa: ARG001
    command = [sys.executable, "-m", "flows.cli", "cloud", "status", "--name", "seen"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "seen-state: CREATE_COMPLETE" in done.stdout


def test_without_credentials_the_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    command = [sys.executable, "-m", "flows.cli", "cloud", "status"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("evergreen: AWS was not asked: Unable to locate credentials")
    assert done.stderr.count("\n") == 1
