"""The templates by themselves: the linter, least privilege, encryption, and where secrets are and are not."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.aws.stacks import TEMPLATE_LIMIT
from infra.aws.templates import HERE, read_template, write_template

PARTS = ("state", "services")
RESOURCES: dict[str, Any] = {name: one for part in PARTS for name, one in read_template(part)["Resources"].items()}
WILDCARD = re.compile(r"[\"':/*]\*|\*[\"']")  # "*", "s3:*", ".../*", "...:*"
REASON = re.compile(r"  # any: \S+ \S+")
SECRET = re.compile(r"PASSWORD|KEY$|LOCKS|TOKEN")


def of_kind(kind: str) -> dict[str, Any]:
    return {name: one["Properties"] for name, one in RESOURCES.items() if one["Type"] == kind}


def list_statements(value: Any) -> Iterator[dict[str, Any]]:
    """Every statement of a policy below a value."""
    if isinstance(value, dict):
        if {"Effect", "Action"} <= value.keys():
            yield value
        for one in value.values():
            yield from list_statements(one)
    elif isinstance(value, list):
        for one in value:
            yield from list_statements(one)


STATEMENTS = [(name, one) for name, resource in RESOURCES.items() for one in list_statements(resource)]


def texts(value: Any) -> list[str]:
    """What a value of a statement says, without CloudFormation's functions."""
    return re.findall(r"'([^']*)'", repr(value))


@pytest.mark.parametrize("part", PARTS)
def test_the_linter_finds_nothing(part: str) -> None:
    lint(HERE / f"{part}.yaml")


def lint(path: Path) -> None:
    code = "import sys; from cfnlint.runner import main; sys.exit(main())"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("part", PARTS)
def test_a_template_travels_with_its_request(part: str) -> None:
    assert len((HERE / f"{part}.yaml").read_bytes()) <= TEMPLATE_LIMIT


# --- least privilege


@pytest.mark.parametrize("part", PARTS)
def test_a_wildcard_has_its_reason_beside_it(part: str) -> None:
    lines = (HERE / f"{part}.yaml").read_text().splitlines()
    inside = [line for line in lines if re.match(r"\s+(Action|Resource|NotAction|NotResource):", line)]
    wild = [line for line in inside if WILDCARD.search(line)]
    assert wild
    assert [line.strip() for line in wild if not REASON.search(line)] == []


def test_every_wildcard_of_a_policy_is_on_a_line_that_the_test_above_reads() -> None:
    wild = [
        text
        for _, statement in STATEMENTS
        for key in ("Action", "Resource", "NotAction", "NotResource")
        for text in texts(statement.get(key, ""))
        if "*" in text
    ]
    lines = [line for part in PARTS for line in (HERE / f"{part}.yaml").read_text().splitlines() if REASON.search(line)]
    assert len(wild) >= 10
    assert [text for text in wild if not any(text.strip("'") in line for line in lines)] == []


def test_a_role_may_do_named_things_alone() -> None:
    actions = [text for name, one in STATEMENTS if name in of_kind("AWS::IAM::Role") for text in texts(one["Action"])]
    assert len(actions) > 30
    assert [action for action in actions if "*" in action] == []
    assert all("NotAction" not in one and "NotResource" not in one for _, one in STATEMENTS)


def test_a_wildcard_finds_an_offender() -> None:
    for line in ('    Action: "s3:*"', '    Resource: "*"', "    Action: [s3:Get*, 's3:*']"):
        assert WILDCARD.search(line)
        assert not REASON.search(line)


def test_a_role_is_for_tasks_of_this_account_alone() -> None:
    for role in of_kind("AWS::IAM::Role").values():
        (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
        assert trust["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
        assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}
        assert "ManagedPolicyArns" not in role


def test_the_worker_passes_two_roles_to_tasks_and_starts_one_definition() -> None:
    statements = {repr(one["Action"]): one for one in list_statements(RESOURCES["Worker"])}
    passing = statements["'iam:PassRole'"]
    assert passing["Resource"] == [{"Fn::GetAtt": ["Run", "Arn"]}, {"Fn::GetAtt": ["RunStart", "Arn"]}]
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
    assert "task-definition/${Name}-run:*" in repr(statements["'ecs:RunTask'"]["Resource"])


def test_only_what_starts_the_servers_may_read_the_masters_password() -> None:
    readers = {name for name, one in STATEMENTS if "MasterSecret" in repr(one)}
    assert readers == {"ServerStart"}


# --- nothing unencrypted, nothing public


def test_no_store_is_unencrypted() -> None:
    key = {"Fn::GetAtt": ["Key", "Arn"]}
    for bucket in of_kind("AWS::S3::Bucket").values():
        (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert rule["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    (database,) = of_kind("AWS::RDS::DBInstance").values()
    assert (database["StorageEncrypted"], database["KmsKeyId"]) == (True, key)
    assert database["PerformanceInsightsKMSKeyId"] == database["MasterUserSecret"]["KmsKeyId"] == key
    for secret in of_kind("AWS::SecretsManager::Secret").values():
        assert secret["KmsKeyId"] == key
    (repository,) = of_kind("AWS::ECR::Repository").values()
    assert repository["EncryptionConfiguration"] == {"EncryptionType": "KMS", "KmsKey": key}
    (log,) = of_kind("AWS::Logs::LogGroup").values()
    assert log["KmsKeyId"] == {"Ref": "KeyArn"}
    stores = {"AWS::S3::Bucket", "AWS::RDS::DBInstance", "AWS::SecretsManager::Secret", "AWS::ECR::Repository"}
    stores |= {"AWS::Logs::LogGroup"}
    keepers = re.compile(
        r"S3::Bucket$|RDS::DB(Instance|Cluster)$|Secret$|Repository$|LogGroup$|Queue$|Topic$|FileSystem$|Table$"
    )
    assert {one["Type"] for one in RESOURCES.values() if keepers.search(one["Type"])} == stores


def test_a_bucket_is_reached_by_tls_alone() -> None:
    buckets, policies = of_kind("AWS::S3::Bucket"), of_kind("AWS::S3::BucketPolicy")
    assert len(buckets) == 3
    assert {one["Bucket"]["Ref"] for one in policies.values()} == set(buckets)
    for policy in policies.values():
        (statement,) = policy["PolicyDocument"]["Statement"]
        assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        assert statement["Resource"][0] == {"Fn::GetAtt": [policy["Bucket"]["Ref"], "Arn"]}


def test_the_database_takes_tls_alone() -> None:
    (settings,) = of_kind("AWS::RDS::DBParameterGroup").values()
    assert settings["Parameters"]["rds.force_ssl"] == "1"


def test_no_rule_lets_an_address_in_and_no_task_has_a_public_one() -> None:
    rules = [
        one for group in of_kind("AWS::EC2::SecurityGroup").values() for one in group.get("SecurityGroupIngress", ())
    ]
    rules += of_kind("AWS::EC2::SecurityGroupIngress").values()
    assert rules
    assert [rule for rule in rules if {"CidrIp", "CidrIpv6", "SourcePrefixListId"} & rule.keys()] == []
    for service in of_kind("AWS::ECS::Service").values():
        assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"


# --- secrets


def list_containers() -> list[dict[str, Any]]:
    return [one for task in of_kind("AWS::ECS::TaskDefinition").values() for one in task["ContainerDefinitions"]]


def test_a_task_gets_its_secrets_as_references() -> None:
    plain = [line["Name"] for one in list_containers() for line in one.get("Environment", ())]
    assert plain
    assert [name for name in plain if SECRET.search(name)] == []
    (run,) = of_kind("AWS::ECS::TaskDefinition")["RunTask"]["ContainerDefinitions"]
    assert {line["Name"] for line in run["Secrets"]} == {"EVERGREEN_PII_KEY", "EVERGREEN_LOCKS"}


def test_a_run_gets_the_secrets_of_the_sources_by_name(tmp_path: Path) -> None:
    names = ["PGPASSWORD", "SHOP_TOKEN"]
    plain, written = (list_run_secrets(read_template("services", secrets)) for secrets in ([], names))
    assert written[: len(plain)] == plain
    assert written[len(plain) :] == [
        {"Name": name, "ValueFrom": {"Fn::Sub": f"${{SourcesSecret}}:{name}::"}} for name in names
    ]
    path = tmp_path / "services.yaml"
    path.write_text(write_template("services", names))
    lint(path)


def list_run_secrets(template: Any) -> list[Any]:
    (run,) = template["Resources"]["RunTask"]["Properties"]["ContainerDefinitions"]
    return list(run["Secrets"])


def test_no_secret_is_written_in_a_template() -> None:
    for name, secret in of_kind("AWS::SecretsManager::Secret").items():
        given = secret.get("SecretString", {"Fn::Sub": "{{resolve:secretsmanager:"})
        assert "{{resolve:secretsmanager:" in given["Fn::Sub"], name
    (database,) = of_kind("AWS::RDS::DBInstance").values()
    assert database["ManageMasterUserPassword"] is True
    assert "MasterUserPassword" not in database


def test_what_the_services_need_of_the_state_is_what_it_gives() -> None:
    outputs, needed = read_template("state")["Outputs"], read_template("services")["Parameters"]
    assert {name for name, one in needed.items() if one == {"Type": "String"}} <= outputs.keys()


def test_the_lock_of_the_checks_is_pinned_by_hash_and_names_no_index() -> None:
    text = (HERE.parent / "cloud.lock").read_text()
    assert "://" not in text
    pins = re.findall(r"^[a-z0-9]\S*==\S+", text, re.MULTILINE | re.IGNORECASE)
    assert len(pins) > 100
    assert all(re.search(rf"^{re.escape(pin)}.*\\\n +--hash=", text, re.MULTILINE) for pin in pins)
