"""AWS on 127.0.0.1: moto's server, whose CloudFormation makes the resources of our templates with all their properties.

moto's own CloudFormation leaves most properties out, and some types altogether. Here a resource of a template becomes
the calls of the API that AWS would make, by boto3 against the same server, which checks their arguments. Two things
stay out: bucket policies (moto refuses by them without reading their conditions), and what really runs.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.cloudformation.models import ChangeSet, Stack
from moto.cloudformation.parsing import ResourceMap, clean_json, get_model_map, parse_and_update_resource
from moto.ecs.models import EC2ContainerServiceBackend
from moto.server import ThreadedMotoServer

REGION = "eu-central-1"
ACCOUNT = "123456789012"  # moto's
RESOLVED = re.compile(r"\{\{resolve:secretsmanager:(.+?):SecretString\}\}")
Properties = Mapping[str, Any]


class Made:
    """A resource of a stack: its name, its attributes, and how it is deleted.

    moto reads the first part of an attribute's name alone: Endpoint for Endpoint.Address.
    """

    def __init__(self, name: str, delete: Callable[[], object], **attributes: str) -> None:
        self.physical_resource_id = self.name = name
        self.attributes = attributes
        self._delete = delete

    def get_cfn_attribute(self, name: str) -> str:
        return self.attributes[name.partition(".")[0]]

    def delete(self, *_: str) -> None:
        self._delete()

    def is_created(self) -> bool:
        return True


Make = Callable[[str, Properties], Made]


def simulate(kind: str, make: Make, change: Callable[[Made, Properties], Made] | None = None) -> None:
    """Have moto's CloudFormation make the resources of a type so."""

    class Model:
        @staticmethod
        def cloudformation_type() -> str:
            return kind

        @staticmethod
        def has_cfn_attr(_: str) -> bool:
            return True

        @staticmethod
        def create_from_cloudformation_json(name: str, resource: Any, *_: str, **__: Any) -> Made:
            return make(name, resource.get("Properties", {}))

        @staticmethod
        def update_from_cloudformation_json(original_resource: Made, cloudformation_json: Any, **_: Any) -> Made:
            return change(original_resource, cloudformation_json["Properties"]) if change else original_resource

    get_model_map()[kind] = Model  # type: ignore[assignment]


def camel(value: Any) -> Any:
    """CloudFormation's names as ECS spells them; numbers, which a parameter makes text, are numbers again."""
    if isinstance(value, Mapping):
        return {key[0].lower() + key[1:]: camel(one) for key, one in value.items()}
    if isinstance(value, list):
        return [camel(one) for one in value]
    return value


def make_bucket(name: str, given: Properties) -> Made:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration=given["VersioningConfiguration"])
    s3.put_bucket_ownership_controls(Bucket=name, OwnershipControls=given["OwnershipControls"])
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=given["PublicAccessBlockConfiguration"])
    rules = [
        {
            "ApplyServerSideEncryptionByDefault": rule["ServerSideEncryptionByDefault"],
            "BucketKeyEnabled": rule["BucketKeyEnabled"],
        }
        for rule in given["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    ]
    s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration={"Rules": rules})
    lifecycle = [
        {
            "ID": rule["Id"],
            "Status": rule["Status"],
            "Filter": {"Prefix": ""},
            "Transitions": [
                {"StorageClass": one["StorageClass"], "Days": one["TransitionInDays"]} for one in rule["Transitions"]
            ],
            "NoncurrentVersionExpiration": rule["NoncurrentVersionExpiration"],
            "AbortIncompleteMultipartUpload": rule["AbortIncompleteMultipartUpload"],
        }
        for rule in given["LifecycleConfiguration"]["Rules"]
    ]
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": lifecycle})
    return Made(name, lambda: s3.delete_bucket(Bucket=name), Arn=f"arn:aws:s3:::{name}")


def make_policy(name: str, given: Properties) -> Made:
    assert boto3.client("s3").head_bucket(Bucket=given["Bucket"])
    return Made(name, lambda: None)


def make_database(name: str, given: Properties) -> Made:
    rds, identifier = boto3.client("rds"), name.lower()[:40].rstrip("-")
    plain = {key: value for key, value in given.items() if key not in ("VPCSecurityGroups", "MasterUserSecret")}
    plain |= {"VpcSecurityGroupIds": given["VPCSecurityGroups"]}
    plain |= {"MasterUserSecretKmsKeyId": given["MasterUserSecret"]["KmsKeyId"]}
    for key in ("DBSubnetGroupName", "DBParameterGroupName"):  # moto's own models, which have a name and no id
        plain[key] = plain[key].name
    for key in ("AllocatedStorage", "MaxAllocatedStorage", "Port", "BackupRetentionPeriod"):
        plain[key] = int(plain[key])
    rds.create_db_instance(DBInstanceIdentifier=identifier, **plain)
    (made,) = rds.describe_db_instances(DBInstanceIdentifier=identifier)["DBInstances"]

    def delete() -> None:
        rds.delete_db_instance(DBInstanceIdentifier=identifier, FinalDBSnapshotIdentifier=f"{identifier}-last")

    return Made(
        identifier,
        delete,
        Endpoint=made["Endpoint"]["Address"],
        MasterUserSecret=made["MasterUserSecret"]["SecretArn"],
    )


def make_secret(name: str, given: Properties) -> Made:
    client = boto3.client("secretsmanager")
    value = RESOLVED.sub(
        lambda found: str(client.get_secret_value(SecretId=found[1])["SecretString"]), given.get("SecretString", "")
    )
    if "GenerateSecretString" in given:
        value = client.get_random_password(**given["GenerateSecretString"])["RandomPassword"]
    extra = {"SecretString": value} if value else {}
    arn = client.create_secret(Name=name, Description=given["Description"], KmsKeyId=given["KmsKeyId"], **extra)["ARN"]
    return Made(arn, lambda: client.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True))


def make_cluster(name: str, given: Properties) -> Made:
    ecs, plain = boto3.client("ecs"), camel(given)
    plain["settings"] = plain.pop("clusterSettings")
    arn = ecs.create_cluster(**plain)["cluster"]["clusterArn"]
    return Made(name, lambda: ecs.delete_cluster(cluster=name), Arn=arn)


def make_definition(_: str, given: Properties) -> Made:
    ecs, plain = boto3.client("ecs"), camel(given)
    if disk := plain.get("ephemeralStorage"):
        disk["sizeInGiB"] = int(disk["sizeInGiB"])
    arn = ecs.register_task_definition(**plain)["taskDefinition"]["taskDefinitionArn"]
    return Made(arn, lambda: ecs.deregister_task_definition(taskDefinition=arn))


def change_definition(before: Made, given: Properties) -> Made:
    before.delete()
    return make_definition(before.name, given)


def make_service(_: str, given: Properties) -> Made:
    ecs, plain = boto3.client("ecs"), camel(given)
    arn = ecs.create_service(**plain)["service"]["serviceArn"]
    cluster = plain["cluster"]
    return Made(arn, lambda: ecs.delete_service(cluster=cluster, service=arn, force=True))


def change_service(before: Made, given: Properties) -> Made:
    plain = camel(given)
    taken = {key: plain[key] for key in ("cluster", "taskDefinition", "desiredCount")}
    boto3.client("ecs").update_service(service=before.name, **taken)
    return before


def make_namespace(_: str, given: Properties) -> Made:
    client = boto3.client("servicediscovery")
    client.create_private_dns_namespace(**given)
    (made,) = (one for one in client.list_namespaces()["Namespaces"] if one["Name"] == given["Name"])
    return Made(made["Id"], lambda: client.delete_namespace(Id=made["Id"]), Arn=made["Arn"])


def make_name(_: str, given: Properties) -> Made:
    client = boto3.client("servicediscovery")
    made = client.create_service(**given)["Service"]
    return Made(made["Id"], lambda: client.delete_service(Id=made["Id"]), Arn=made["Arn"])


def make_budget(_: str, given: Properties) -> Made:
    client, budget = boto3.client("budgets"), dict(given["Budget"])
    budget["BudgetLimit"] = {**budget["BudgetLimit"], "Amount": str(budget["BudgetLimit"]["Amount"])}
    notifications = given["NotificationsWithSubscribers"]
    client.create_budget(AccountId=ACCOUNT, Budget=budget, NotificationsWithSubscribers=notifications)
    name = budget["BudgetName"]
    return Made(name, lambda: client.delete_budget(AccountId=ACCOUNT, BudgetName=name))


def apply_change_set(self: ChangeSet) -> None:
    """Instead of moto's, which changes no resource whose parameters alone have changed, and leaves the outputs out."""
    stack, resources = self.stack, self.stack.resource_map
    before = {name: repr(clean_json(resources._resource_json_map[name], resources)) for name in resources.resources}
    resources.update(self.template_dict, self.parameters)
    for name, was in before.items():
        resource = resources._resource_json_map.get(name)
        if resource and was != repr(clean_json(resource, resources)):
            changed = parse_and_update_resource(name, resource, resources, ACCOUNT, REGION)
            resources._parsed_resources[name] = changed or resources._parsed_resources[name]
    stack.template, stack.parameters = self.template, self.parameters
    stack._parse_template()
    stack.output_map = stack._create_output_map()


def delete_resources(self: ResourceMap) -> None:
    """Instead of moto's, which deletes in no order: what stands on others comes first."""
    for name in reversed([*self._parsed_resources]):
        resource = self._resource_json_map.get(name)
        if resource and resource.get("DeletionPolicy") != "Retain":
            self._delete_resource(self._parsed_resources.pop(name), resource)


def list_parameters(self: Stack) -> list[dict[str, str]]:
    """As AWS spells them; moto writes a list as Python does."""
    values = self.resource_map.resolved_parameters.items()
    return [
        {"ParameterKey": key, "ParameterValue": ",".join(value) if isinstance(value, list) else str(value)}
        for key, value in values
    ]


def simulate_all() -> None:
    Stack.parameter_list = property(list_parameters)  # type: ignore[assignment]
    ChangeSet.apply = apply_change_set  # type: ignore[method-assign]
    ResourceMap.delete = delete_resources  # type: ignore[method-assign]
    # moto adds up what containers ask for; on Fargate it is the task that asks, and they need not.
    nothing = {"CPU": 0, "MEMORY": 0, "PORTS": [], "PORTS_UDP": []}
    count = "_calculate_task_resource_requirements"
    setattr(EC2ContainerServiceBackend, count, staticmethod(lambda _: dict(nothing)))
    simulate("AWS::S3::Bucket", make_bucket)
    simulate("AWS::S3::BucketPolicy", make_policy)
    simulate("AWS::RDS::DBInstance", make_database)
    simulate("AWS::SecretsManager::Secret", make_secret)
    simulate("AWS::ECS::Cluster", make_cluster)
    simulate("AWS::ECS::TaskDefinition", make_definition, change_definition)
    simulate("AWS::ECS::Service", make_service, change_service)
    simulate("AWS::ServiceDiscovery::PrivateDnsNamespace", make_namespace)
    simulate("AWS::ServiceDiscovery::Service", make_name)
    simulate("AWS::Budgets::Budget", make_budget)


@contextmanager
def run_aws() -> Iterator[str]:
    """AWS for the block, and for boto3 in this process and in its children; yields its address."""
    simulate_all()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "made")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.delenv("AWS_PROFILE", raising=False)
        yield address
    server.stop()


def make_network() -> tuple[str, list[str]]:
    """A network with two subnets, as an account has one. Returns their ids."""
    ec2 = boto3.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})  # as names of the network's own need
    zones = ((f"{REGION}a", "10.0.1.0/24"), (f"{REGION}b", "10.0.2.0/24"))
    subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=zone) for zone, cidr in zones]
    return vpc, [subnet["Subnet"]["SubnetId"] for subnet in subnets]
