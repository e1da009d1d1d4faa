"""`cluster/`: each file is what Ray, the clouds and Kubernetes take, to the last key, and keeps its promises.

Ray checks the outer keys of a `ray up` file, nothing of a node's configuration, and of a Kubernetes resource
only what its autoscaler reads. The rest is checked here: by `shapes.yaml`, by botocore's model of EC2, by
Ray's own template for Azure, and in an account of moto's, where Ray itself prepares what the AWS file starts.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray._private.label_utils import validate_node_label_syntax
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from carl_ray import train
from carl_ray.config import Config
from carl_ray.data.sample import load_task_bytes, sample_bytes, sample_spec
from carl_ray.pipelines.plan import make_plan
from carl_ray.presets import PRESETS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
CLOUDS = ["aws", "gcp", "azure"]
KUBERNETES = ["kuberay/raycluster", "kuberay/rayjob"]
GIB = 2**30

# vCPUs, GiB and GPUs of the machines, from the providers' lists; moto's list of AWS is compared below.
MACHINES = {
    "m7i.xlarge": (4, 16, 0),
    "c7a.4xlarge": (16, 32, 0),
    "g6.4xlarge": (16, 64, 1),
    "n2-standard-4": (4, 16, 0),
    "c2d-highcpu-16": (16, 32, 0),
    "g2-standard-16": (16, 64, 1),
    "Standard_D4s_v5": (4, 16, 0),
    "Standard_F16s_v2": (16, 32, 0),
    "Standard_NC24ads_A100_v4": (24, 220, 1),
}

SHAPES = yaml.safe_load((Path(__file__).parent / "shapes.yaml").read_text())


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


# -------------------------------------------------------------------------------------- what a file may hold


def schema(shape: Any) -> dict[str, Any]:
    """A JSON schema of a shape, as the head of `shapes.yaml` describes them."""
    if isinstance(shape, dict):
        return {
            "type": "object",
            "properties": {key.removesuffix("*"): schema(value) for key, value in shape.items()},
            "required": [key for key in shape if not key.endswith("*")],
            "additionalProperties": False,
        }
    if isinstance(shape, list):
        return {"type": "array", "minItems": 1, "items": {"anyOf": [schema(item) for item in shape]}}
    if shape in ("string", "integer", "boolean", "object"):
        return {"type": shape}
    return {"type": "string", "pattern": f"^(?:{shape})$"}


@cache
def validator(name: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(schema(SHAPES[name]))


@cache
def run_instances() -> Any:
    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape


@cache
def azure_parameters() -> dict[str, Any]:
    """The parameters of Ray's template for a virtual machine that a node's configuration may set."""
    template = Path(ray.__file__).parent / "autoscaler/_private/_azure/azure-vm-template.json"
    parameters = json.loads(template.read_text())["parameters"]
    by_the_provider = {
        "vmName", "adminUsername", "publicKey", "vmTags", "vmCount", "provisionPublicIp",
        "msi", "nsg", "subnet", "zones",
    }  # fmt: skip
    types = {"string": "string", "int": "integer", "bool": "boolean", "object": "object"}
    return {
        "type": "object",
        "properties": {
            key: {"type": types[value["type"]]}
            for key, value in parameters.items()
            if key not in by_the_provider
        }
        | {"billingProfile": schema({"maxPrice": "integer"})},
        "required": ["vmSize", "imagePublisher", "imageOffer", "imageSku", "imageVersion"],
        "additionalProperties": False,
    }


def check_node_config(cloud: str, node_config: dict[str, Any]) -> None:
    match cloud:
        case "aws":
            request = node_config | {"MinCount": 1, "MaxCount": 1}
            report = ParamValidator().validate(request, run_instances())
            assert not report.has_errors(), report.generate_report()
            assert {"InstanceType", "ImageId", "LaunchTemplate", "IamInstanceProfile"} <= node_config.keys()
        case "gcp":
            validator("gcp_node_config").validate(node_config)
        case "azure":
            assert node_config.keys() == {"azure_arm_parameters"}
            jsonschema.validate(node_config["azure_arm_parameters"], azure_parameters())


def check_cloud(cloud: str, config: dict[str, Any]) -> None:
    """Raises where Ray or the cloud would not take the file, or would not look at a part of it."""
    validator("ray_up").validate(config)
    validator(f"{cloud}_provider").validate(config["provider"])
    for node_type in config["available_node_types"].values():
        check_node_config(cloud, node_type["node_config"])
    validate_config(prepare_config(copy.deepcopy(config)))


def check_kubernetes(name: str, resource: dict[str, Any]) -> None:
    validator("ray_cluster" if name.endswith("raycluster") else "ray_job").validate(resource)
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": resource["metadata"], "spec": resource["spec"].get("rayClusterSpec", resource["spec"])}
    )
    for node_type in config["available_node_types"].values():
        validate_node_label_syntax(node_type["labels"])


def check(name: str, content: dict[str, Any]) -> None:
    if name in CLOUDS:
        check_cloud(name, content)
    elif name in KUBERNETES:
        check_kubernetes(name, content)
    else:
        validator(name).validate(content)


FILES = [*CLOUDS, *KUBERNETES, "aws_account"]


def test_every_file_of_the_folder_is_checked() -> None:
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")} == {
        f"{name}.yaml" for name in FILES
    }
    assert not list(FOLDER.rglob("*.yml"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_valid(name: str) -> None:
    check(name, read(name))


@pytest.mark.parametrize("name", FILES)
def test_no_key_is_written_twice(name: str) -> None:
    # PyYAML takes the last of two equal keys, without a word.
    def walk(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"line {node.start_mark.line + 1}: {keys}"
        for child in node.value if isinstance(node.value, list) else []:
            for part in child if isinstance(child, tuple) else (child,):
                walk(part)

    walk(yaml.compose((FOLDER / f"{name}.yaml").read_text()))


def keys_of(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        if isinstance(content, dict):
            yield (*path, key)
        yield from keys_of(value, (*path, key))


def with_typo(content: Any, path: tuple[Any, ...], typo: Callable[[str], str]) -> Any:
    content = copy.deepcopy(content)
    at = content
    for key in path[:-1]:
        at = at[key]
    at[typo(path[-1])] = at.pop(path[-1])
    return content


@pytest.mark.parametrize("name", FILES)
def test_a_typo_in_any_key_is_found(name: str) -> None:
    content = read(name)
    paths = list(keys_of(content))
    assert len(paths) > 50
    missed = []
    for path in paths:
        for typo in (
            lambda key: key + key[-1],
            lambda key: key[:-1],
            lambda key: key[0].swapcase() + key[1:],
        ):
            if typo(path[-1]) == path[-1]:
                continue
            try:
                check(name, with_typo(content, path, typo))
            except (jsonschema.ValidationError, AssertionError):
                continue
            missed.append((*path[:-1], typo(path[-1])))
    assert not missed


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_itself_refuses_what_the_autoscaler_could_not_use(name: str) -> None:
    config = read(name)
    config["available_node_types"]["data"]["resources"]["CPU"] = 1.5
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config))
    config = read(name) | {"head_node_type": "haed"}
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(config))


# ---------------------------------------------------------------------------------------------- its promises


def groups(name: str) -> dict[str, dict[str, Any]]:
    """Head, data and train of a file as Ray's autoscaler reads them."""
    if name in CLOUDS:
        return prepare_config(read(name))["available_node_types"]
    resource = read(name)
    derived = _derive_autoscaling_config_from_ray_cr(
        {"metadata": resource["metadata"], "spec": cluster_spec(name)}
    )["available_node_types"]
    return {"head": derived.pop("headgroup"), **derived}


def cluster_spec(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("name", [*CLOUDS, *KUBERNETES])
def test_the_head_runs_nothing_and_workers_start_from_none(name: str) -> None:
    types = groups(name)
    assert set(types) == {"head", "data", "train"}
    assert (types["head"]["resources"]["CPU"], types["head"]["resources"]["GPU"]) == (0, 0)
    assert types["head"]["max_workers"] == 0
    for role in ("data", "train"):
        assert types[role]["labels"] == {"role": role}
        assert types[role]["min_workers"] == 0 < types[role]["max_workers"]
        assert 60 <= types[role]["idle_timeout_s"] <= 900
        assert all(type(value) is int for value in types[role]["resources"].values())
    assert "GPU" not in types["data"]["resources"]
    assert types["train"]["resources"]["GPU"] == 1


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_starts_ray_without_cpus_and_every_node_with_a_token(name: str) -> None:
    config = read(name)
    assert config["max_workers"] >= sum(
        t["max_workers"] for t in prepare_config(config)["available_node_types"].values()
    )
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    head, worker = [command for command in starts if "ray start" in command]
    assert {"--head", "--num-cpus=0", "--num-gpus=0", "--dashboard-host=127.0.0.1"} <= set(shlex.split(head))
    for command in (head, worker):
        assert command.startswith("export RAY_AUTH_MODE=token")
    # The token is a file of the laptop, not a word of this one.
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert all(not Path(local).is_absolute() for local in config["file_mounts"].values())
    local = [path for path in config["file_mounts"].values() if not path.startswith("~")]
    assert all((ROOT / path).exists() for path in local)


@pytest.mark.parametrize("name", KUBERNETES)
def test_every_pod_has_a_token_and_no_service_faces_the_world(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["enableInTreeAutoscaling"] is True


@pytest.mark.parametrize("name", [*CLOUDS, *KUBERNETES])
def test_memory_fits_the_blocks_of_the_longest_views_and_the_machine(name: str) -> None:
    longest = PRESETS["finegym99"]()
    assert sample_bytes(sample_spec(longest)) == pytest.approx(72e6, rel=0.01)
    for role, group in groups(name).items():
        if role == "head":
            continue
        if name in CLOUDS:
            resources = group["resources"]
            heap, store = resources["memory"], resources["object_store_memory"]
            node = group["node_config"]
            machine = (
                node.get("InstanceType") or node.get("machineType") or node["azure_arm_parameters"]["vmSize"]
            )
            cpus, gib, gpus = MACHINES[machine]
            assert (resources["CPU"], resources.get("GPU", 0)) == (cpus, gpus)
            assert heap + store <= 0.8 * gib * GIB
            assert "sudo mount -o remount,size=50% /dev/shm" in read(name)["initialization_commands"]
            shared = 0.5 * gib * GIB
        else:
            pod = next(g for g in cluster_spec(name)["workerGroupSpecs"] if g["groupName"] == role)
            heap, store = (int(pod["rayStartParams"][key]) for key in ("memory", "object-store-memory"))
            shared = check_pod(pod["template"]["spec"], heap + store)
        assert store <= 0.95 * shared
        if role == "data":
            # A block in the making and six more for each task.
            assert store >= group["resources"]["CPU"] * 7 * sample_bytes(sample_spec(longest))
            assert heap >= group["resources"]["CPU"] * load_task_bytes(sample_spec(longest))


def check_pod(pod: dict[str, Any], ray_bytes: int) -> int:
    """The bytes of a pod's /dev/shm, which count against its limit of memory together with all else."""
    container, volume = pod["containers"][0], pod["volumes"][0]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert ray_bytes <= 0.9 * int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * GIB
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
    return int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * GIB


def test_a_node_takes_the_size_of_its_object_store_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    node_type = groups("aws")["data"]
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps(node_type["resources"]))
    monkeypatch.setenv("RAY_OVERRIDE_LABELS", json.dumps(node_type["labels"]))
    node = ResourceAndLabelSpec().resolve(is_head=False, node_ip_address="10.0.0.1")
    assert (node.num_cpus, node.memory, node.object_store_memory) == (16, 16 * GIB, 8 * GIB)
    assert node.labels["role"] == "data"


def test_data_nodes_are_spot_and_train_nodes_are_not() -> None:
    data, train_ = (
        {cloud: groups(cloud)[role]["node_config"] for cloud in CLOUDS} for role in ("data", "train")
    )
    assert data["aws"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert data["gcp"]["scheduling"]["provisioningModel"] == "SPOT"
    assert data["azure"]["azure_arm_parameters"]["priority"] == "Spot"
    assert "InstanceMarketOptions" not in train_["aws"]
    assert "provisioningModel" not in train_["gcp"]["scheduling"]
    assert "priority" not in train_["azure"]["azure_arm_parameters"]
    pools = (FOLDER / "kuberay/gke_account.sh").read_text().split("node-pools create ")[1:]
    assert ["--spot" in pool for pool in pools] == [True, False]
    for name in KUBERNETES:
        labels = [
            group["template"]["spec"]["nodeSelector"] for group in cluster_spec(name)["workerGroupSpecs"]
        ]
        assert labels == [{"carl-ray/nodes": "spot-cpu"}, {"carl-ray/nodes": "gpu"}]
        for label, pool in zip(labels, pools, strict=True):
            assert f"--node-labels=carl-ray/nodes={label['carl-ray/nodes']} " in pool


def test_the_cluster_of_the_job_is_the_cluster() -> None:
    assert cluster_spec("kuberay/rayjob") == cluster_spec("kuberay/raycluster")


def test_the_clouds_differ_only_where_they_must() -> None:
    first, *others = (read(cloud) for cloud in CLOUDS)
    for other in others:
        assert {key for key in first if first[key] != other[key]} == {
            "provider", "available_node_types", "head_setup_commands",
        }  # fmt: skip


def test_the_versions_of_ray_are_one() -> None:
    texts = {
        path: path.read_text()
        for path in FOLDER.rglob("*")
        if path.suffix in (".yaml", "") and path.is_file()
    }
    found = {
        version
        for text in texts.values()
        for version in re.findall(r"(?:RAY=|rayVersion: |tune\]==)(\d+\.\d+\.\d+)", text)
    }
    assert len(found) == 1


# ------------------------------------------------------------------------------------ open ports and secrets

OPEN = re.compile(r"0\.0\.0\.0|::/0|LoadBalancer|NodePort|--source(-address)?-(ranges|prefixes)[= ]'?\*")
SECRET = re.compile(
    r"AKIA[0-9A-Z]{12}|-----BEGIN|\b[0-9a-fA-F]{32,}\b|[A-Za-z0-9+]{40,}"
    r"|(?i:password|secret|api_?key|access_?key|auth_token)[\"']?\s*[:=]\s*[\"']?(?!~)\w"
)


def test_nothing_is_open_and_nothing_is_secret() -> None:
    for path in FOLDER.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not OPEN.search(text), (path, OPEN.search(text))
            assert not SECRET.search(text), (path, SECRET.search(text))


@pytest.mark.parametrize(
    "planted",
    [
        "aws_secret_access_key: wJalrXUtnFEMI",
        "RAY_AUTH_TOKEN=" + "0123456789abcdef" * 2,
        "AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN RSA PRIVATE KEY-----",
        "password = hunter2",
    ],
)
def test_a_planted_secret_is_found(planted: str) -> None:
    assert SECRET.search(planted)


@pytest.mark.parametrize(
    "planted",
    [
        "CidrIp: 0.0.0.0/0",
        "--dashboard-host=0.0.0.0",
        "--source-address-prefixes '*'",
        "serviceType: LoadBalancer",
    ],
)
def test_a_planted_open_port_is_found(planted: str) -> None:
    assert OPEN.search(planted)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """boto3, with an account of moto's that is empty but for the default network."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.utils import resource_cache

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes its ssh key there
    resource_cache.cache_clear()
    with mock_aws():
        yield boto3
    resource_cache.cache_clear()


def bootstrapped() -> dict[str, Any]:
    """aws.yaml as `ray up` has it when it starts the head."""
    from ray.autoscaler._private.aws.config import bootstrap_aws

    return bootstrap_aws(prepare_config(read("aws")))


def test_aws_nodes_have_the_network_and_the_rights_of_the_stack_and_no_others(account: Any) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    address, region = "198.51.100.7/32", "us-west-2"
    account.client("cloudformation", region).create_stack(
        StackName="carl-ray",
        TemplateBody=(FOLDER / "aws_account.yaml").read_text(),
        Parameters=[
            {"ParameterKey": "Bucket", "ParameterValue": "videos"},
            {"ParameterKey": "Address", "ParameterValue": address},
        ],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    ec2, iam = account.client("ec2", region), account.client("iam", region)
    groups_before = ec2.describe_security_groups()["SecurityGroups"]
    config = bootstrapped()
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node_type in config["available_node_types"].items():
        tags = {"ray-node-name": name, "ray-node-type": "head" if name == "head" else "worker"}
        provider.create_node(node_type["node_config"], tags, 1)
    reservations = ec2.describe_instances()["Reservations"]
    nodes = {node["InstanceType"]: node for each in reservations for node in each["Instances"]}
    assert {kind: node.get("InstanceLifecycle") for kind, node in nodes.items()} == {
        "m7i.xlarge": None,
        "c7a.4xlarge": "spot",
        "g6.4xlarge": None,
    }
    assert {node["Placement"]["AvailabilityZone"] for node in nodes.values()} == {"us-west-2a"}

    # Ray would otherwise have made a group that opens port 22 to the world.
    assert ec2.describe_security_groups()["SecurityGroups"] == groups_before
    [group] = {group["GroupId"] for node in nodes.values() for group in node["SecurityGroups"]}
    [rules] = [each["IpPermissions"] for each in groups_before if each["GroupId"] == group]
    assert [
        (rule["FromPort"], rule["ToPort"], [each["CidrIp"] for each in rule["IpRanges"]])
        for rule in rules
        if rule["IpRanges"]
    ] == [(22, 22, [address])]
    assert [pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]] == [group]

    # Ray would otherwise have made a role with all of EC2 and S3.
    assert {kind: node["IamInstanceProfile"]["Arn"].rpartition("/")[2] for kind, node in nodes.items()} == {
        "m7i.xlarge": "carl-ray-head",
        "c7a.4xlarge": "carl-ray-node",
        "g6.4xlarge": "carl-ray-node",
    }
    assert len(iam.list_roles()["Roles"]) == 2
    sizes = ec2.describe_instance_types(InstanceTypes=list(nodes))["InstanceTypes"]
    for size in sizes:
        cpus, gib, _ = MACHINES[size["InstanceType"]]
        assert size["VCpuInfo"]["DefaultVCpus"] == cpus
        assert size["MemoryInfo"]["SizeInMiB"] == gib * 1024
    assert len(sizes) == 3


def test_without_the_stack_ray_up_fails_instead_of_opening_ssh_to_the_world(account: Any) -> None:
    ec2 = account.client("ec2", "us-west-2")
    before = ec2.describe_security_groups()["SecurityGroups"]
    with pytest.raises(Exception, match=r"LaunchTemplate"):
        bootstrapped()
    assert ec2.describe_security_groups()["SecurityGroups"] == before


def test_azure_finds_the_network_that_the_script_made() -> None:
    provider, script = read("azure")["provider"], (FOLDER / "azure_account.sh").read_text()
    template = Path(ray.__file__).parent / "autoscaler/_private/_azure/azure-config-template.json"
    names = json.loads(template.read_text())["variables"]
    cluster_id = f"{read('azure')['cluster_name']}-{provider['unique_id']}"
    for option, variable in (("--name", "vnetName"), ("--subnet-name", "subnetName")):
        [(prefix, suffix)] = re.findall(
            r"^\[concat\('(.*)', parameters\('clusterId'\), '(.*)'\)\]$", names[variable]
        )
        assert f"{option} {prefix}{cluster_id}{suffix} " in script
    assert script.count(f"{provider['subnet_mask']} ") == 2
    assert (
        f"az identity create --resource-group {provider['msi_resource_group']} --name {provider['msi_name']}"
        in script
    )


def service_accounts(script: str) -> list[str]:
    [names] = re.findall(r"for account in (.*); do", script)
    return names.split()


def test_the_scripts_and_the_files_name_the_same_things() -> None:
    script = (FOLDER / "gcp_account.sh").read_text()
    config = read("gcp")
    assert f"region={config['provider']['region']}\n" in script
    for node_type in config["available_node_types"].values():
        node = node_type["node_config"]
        account = node["serviceAccounts"][0]["email"].partition("@")[0]
        assert account in service_accounts(script)
        subnet = node["networkInterfaces"][0]["subnetwork"]
        assert subnet == f"regions/{config['provider']['region']}/subnetworks/carl-ray"
        assert node["disks"][0]["initializeParams"]["diskType"].startswith(
            f"zones/{config['provider']['availability_zone']}/"
        )
    made = (FOLDER / "kuberay/gke_account.sh").read_text()
    for name in KUBERNETES:
        spec, space = cluster_spec(name), read(name)["metadata"]["namespace"]
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            account = group["template"]["spec"]["serviceAccountName"]
            assert account in service_accounts(made)
        assert f"--namespace {space}\n" in made


# ------------------------------------------------------------------------------------- the commands in words


def commands() -> Iterator[list[str]]:
    """Arguments of every `python -m carl_ray.train` in the folder, and the options that stand alone."""
    yield shlex.split(read("kuberay/rayjob")["spec"]["entrypoint"])[3:]
    readme = (FOLDER / "README.md").read_text().replace("\\\n", " ")
    for line in re.findall(r"-- python -m carl_ray\.train (.*)|^(--cluster\..*)", readme, re.MULTILINE):
        yield shlex.split("".join(line))


def submitted() -> Iterator[list[str]]:
    """Arguments of the trainings of every pipeline in the folder."""
    readme = (FOLDER / "README.md").read_text().replace("\\\n", " ")
    for line in re.findall(r"^python -m carl_ray\.jobs submit (.*)", readme, re.MULTILINE):
        words = shlex.split(line)
        values = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "--set")
        folder = words[words.index("--folder") + 1]
        for module, *arguments in make_plan(words[0], folder, values).commands.values():
            if module == "carl_ray.train":
                yield arguments


def parsed(arguments: list[str]) -> Config:
    # --resume would look for the run.
    return train._choose(*train._parse([word for word in arguments if word != "--resume"]))[0]


def test_the_commands_place_ray_data_and_ray_train_on_their_nodes() -> None:
    trainings = list(submitted())
    assert trainings
    found = [parsed(arguments) for arguments in (*commands(), *trainings)]
    assert len(found) > len(CLOUDS) + len(trainings)
    for config in found:
        assert config.cluster.data_node_labels == {"role": "data"}
        assert config.cluster.train_node_labels == {"role": "train"}
        assert config.cluster.use_gpu
        assert config.cluster.max_workers <= 4
