"""Pipelines of Ray jobs: pretrain, embed, evaluate, fine-tune in one command that continues where it ended.

    python -m carl_ray.jobs submit demo --folder /shared/demo --wait
    python -m carl_ray.jobs submit pouring --folder s3://bucket/pouring --set manifest=s3://bucket/pouring.parquet \
        --set train_options="--cluster.use_gpu true --cluster.num_workers 4" --set embed_options=--use-gpu
    python -m carl_ray.jobs status pouring --folder s3://bucket/pouring
    python -m carl_ray.jobs logs pouring --folder s3://bucket/pouring --follow
    python -m carl_ray.jobs stop pouring --folder s3://bucket/pouring

A pipeline runs on the cluster as a job, and each of its stages as another. Submitted again it continues: stages that
are done are skipped, a running one is waited for, one that failed or was stopped is tried again, from where it was.
Pipelines are Python functions (see carl_ray/pipelines/shipped.py); `submit --help` lists the shipped ones and their
parameters.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
import tempfile
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from carl_ray import storage
from carl_ray.errors import RunError, UserError, note, one_line, one_line_errors
from carl_ray.options import OptionParser, json_object, name_and_value, print_next, uri_without_credentials
from carl_ray.pipelines.plan import PIPELINE_JOB, Plan, check_runtime_env, make_plan
from carl_ray.pipelines.shipped import SHIPPED

_MAX_PACKAGE_BYTES = 100 * 2**20
"""Of the zipped code: the limit of a request to Ray's dashboard."""
_NUM_LARGEST = 3
_FILLED = "--data.features"
"""A folder that a job fills where it is missing."""
_ENCODERS = {"--model.init_from", "--checkpoint"}
_INPUTS = {
    *("--data.manifest", "--data.keypoints", "--model.weights", "--manifest", "--features"),
    *_ENCODERS,
    _FILLED,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exit status 0 only when its work is done."""
    with one_line_errors():
        match sys.argv[1:] if arguments is None else arguments:
            case ["run", "--job-id", job_id]:  # The job of a pipeline.
                from carl_ray.pipelines.runner import PipelineJobs, read_plan

                client = _client(None)
                plan, runtime_env = read_plan(client, job_id)
                PipelineJobs(client, plan).run(runtime_env)
            case given:
                _run(_parse(given))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OptionParser(prog="python -m carl_ray.jobs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("submit", "start a pipeline, or continue it"),
        ("status", "print the state of its stages"),
        ("logs", "print its output, with that of its stages"),
        ("stop", "stop it; training writes a checkpoint first"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        add = command.add_argument
        add("pipeline", metavar="PIPELINE", help=f"{', '.join(SHIPPED)}, or FILE.py:FUNCTION")
        folder: Any = {"type": uri_without_credentials, "metavar": "URI"}
        add("--folder", required=True, **folder, help="for all that the pipeline writes")
        dashboard = "of the cluster's dashboard, as RAY_API_SERVER_ADDRESS; none: this machine"
        add("--address", metavar="URL", help=dashboard)
        if name == "logs":
            add("--stage", metavar="NAME", help="the output of the last attempt at it alone")
            add("--follow", action="store_true", help="until the job ends")
        if name != "submit":
            continue
        parameter = (
            "a parameter of the pipeline; repeatedly. Paths from the root: jobs run in a folder of their own"
        )
        value: Any = {"type": name_and_value, "metavar": "NAME=VALUE"}
        add("--set", action="append", default=[], **value, help=parameter)
        add("--wait", action="store_true", help="print the output until the pipeline ends")
        sent = "checkout that is sent to the cluster, without data [.]"
        add("--working-dir", metavar="FOLDER", default=".", help=sent)
        add("--installed", action="store_true", help="send nothing: the cluster's nodes have carl_ray")
        more = "more of Ray's runtime environment, such as env_vars, for all jobs; all users of the cluster can read it"
        add("--runtime-env-json", type=json_object, default={}, metavar="JSON", help=more)
        interpreter = "interpreter on the head of the cluster [python]"
        add("--python", metavar="PATH", default="python", help=interpreter)
        command.epilog = "\n\n".join(f"{name}: {inspect.getdoc(found)}" for name, found in SHIPPED.items())
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    plan = make_plan(options.pipeline, options.folder)
    if options.command == "submit":
        _submit(options, plan)
        return
    # Lazy import, as it imports Ray: --help and usage errors must be fast.
    from carl_ray.pipelines.runner import PipelineJobs

    jobs = PipelineJobs(_client(options.address), plan)
    match options.command:
        case "status":
            jobs.print_state()
        case "stop":
            if not jobs.stop():
                print("nothing is running")
        case "logs":
            if options.stage not in (None, PIPELINE_JOB, *plan.commands):
                stages = ", ".join(plan.commands)
                raise UserError(f"pipeline {plan.pipeline} has no stage {options.stage!r} (it has {stages})")
            job = jobs.latest().get(options.stage or PIPELINE_JOB)
            if job is None:
                raise UserError(
                    "the cluster knows no such job: it was not started, or its record ended with its cluster"
                )
            jobs.print_output(job.submission_id or "", follow=options.follow)


def _submit(options: argparse.Namespace, outline: Plan) -> None:
    plan = make_plan(options.pipeline, options.folder, dict(options.set))
    if list(plan.commands) != list(outline.commands):
        raise UserError(
            f"pipeline {plan.pipeline}: the names of its stages must not depend on its parameters"
        )
    runtime_env = _runtime_env(options)
    storage.check_bucket(plan.folder)
    _check_inputs(plan)
    shown = storage.public_uri(plan.folder)
    # Of all stages: each may have been done with another command.
    is_done = [plan.is_done(stage) for stage in plan.commands]
    if all(is_done):
        print(f"nothing to do: all {len(plan.commands)} stages are done in {shown}")
        return
    _check_package(runtime_env)
    from carl_ray.pipelines.runner import PipelineJobs, failure_reason

    jobs = PipelineJobs(_client(options.address), plan)
    job_id = jobs.submit(options.python, runtime_env)
    print(f"job {job_id} runs the pipeline in {shown}", flush=True)
    if not options.wait:
        print_next("jobs", "status", options.pipeline, "--folder", options.folder)
        return
    job = jobs.print_output(job_id)
    if job.status.value != "SUCCEEDED":
        raise RunError(f"the job of the pipeline {job.status.value.lower()}: {failure_reason(job)}")


def _check_inputs(plan: Plan) -> None:
    """Raise `UserError` for an input that a job will not find, as far as this machine can tell."""
    # Lazy import: other subcommands need no config.
    from carl_ray.config import PRETRAINED

    no_files, made_here = ("random", "none", *PRETRAINED), plan.folder.partition("?")[0].rstrip("/")
    for stage, command in plan.commands.items():
        for option, uri in pairwise(command):
            if option not in _INPUTS or uri in no_files:
                continue
            if option in _ENCODERS and storage.is_on_hub(uri):
                continue
            if f"{uri.partition('?')[0]}/".startswith(f"{made_here}/"):
                continue
            if "://" not in uri and storage.absolute(uri) != uri:
                raise UserError(
                    f"stage {stage}: {option} {uri}: a job runs in a folder of its own: name the full path, as its "
                    "node sees it, or a URI"
                )
            if option != _FILLED and storage.is_remote(uri) and not storage.exists(uri):
                raise UserError(f"stage {stage}: {option} {storage.public_uri(uri)}: nothing is there")


def _runtime_env(options: argparse.Namespace) -> dict[str, Any]:
    """Runtime environment of the jobs: the user's, and the code where the nodes do not have it."""
    runtime_env: dict[str, Any] = options.runtime_env_json
    check_runtime_env(runtime_env)
    variables = runtime_env.get("env_vars", {})
    if not isinstance(variables, dict):
        raise UserError(f"--runtime-env-json: env_vars: expected an object, got {type(variables).__name__}")
    for name, value in variables.items():
        if not isinstance(value, str):
            raise UserError(
                f"--runtime-env-json: env_vars.{name}: expected a text, got {type(value).__name__}"
            )
    if runtime_env:
        from ray.runtime_env import RuntimeEnv

        known = {*RuntimeEnv.known_fields, *inspect.signature(RuntimeEnv.__init__).parameters}
        for name in sorted(set(runtime_env) - known):
            note(
                f"warning: --runtime-env-json: Ray has no field {name!r}, unless a plugin of the cluster's has"
            )
    if options.installed or "working_dir" in runtime_env:
        return runtime_env
    if not (Path(options.working_dir) / "carl_ray" / "jobs.py").is_file():
        raise UserError(
            f"{options.working_dir}: expected a checkout with carl_ray in it, to send to the cluster: name it in "
            "--working-dir, or say --installed where the cluster's nodes have the package"
        )
    # Ray leaves out what .gitignore and .rayignore name: data, runs, environments.
    return {**runtime_env, "working_dir": options.working_dir}


def _check_package(runtime_env: dict[str, Any]) -> None:
    """Raise `UserError` for code larger than Ray accepts, for which it would only break the connection."""
    folder = runtime_env.get("working_dir", "")
    if not Path(folder).is_dir():
        return
    # The function that Ray itself packs with, ignore files included.
    from ray._private.runtime_env.packaging import create_package

    quiet = logging.getLogger(f"{__name__}.package")
    quiet.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="carl_ray-package-") as temporary:
        package = Path(temporary) / "package.zip"
        excludes = runtime_env.get("excludes")
        create_package(folder, package, include_gitignore=True, excludes=excludes, logger=quiet)
        size = package.stat().st_size
        if size <= _MAX_PACKAGE_BYTES:
            return
        sizes: Counter[str] = Counter()
        with zipfile.ZipFile(package) as file:
            for info in file.infolist():
                sizes["/".join(PurePosixPath(info.filename).parts[:2])] += info.compress_size
    largest = ", ".join(
        f"{name} ({count / 2**20:.0f} MiB)" for name, count in sizes.most_common(_NUM_LARGEST)
    )
    raise UserError(
        f"{folder}: {size / 2**20:.0f} MiB to send, more than the {_MAX_PACKAGE_BYTES // 2**20} MiB that Ray takes; "
        f"largest: {largest}; name what the jobs do not need in {folder}/.rayignore"
    )


def _client(address: str | None) -> Any:
    """Ray's job client of a cluster; raises `RunError` where it cannot be reached."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if address is not None:
        # For Ray the variable precedes an argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    import ray
    from ray.job_submission import JobSubmissionClient

    from carl_ray.session import reaching

    # They report every ignore file and every connection.
    logging.getLogger("ray._private.runtime_env").setLevel(logging.ERROR)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    where = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    try:
        with reaching(where or "auto"):
            return JobSubmissionClient()
    except ray.exceptions.AuthenticationError:
        hint = (
            "its dashboard requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        hint = f"{one_line(error)}; name its dashboard, --address http://HOST:8265"
    where = where or "this machine"
    # Ray quotes the address, which may hold the password of a proxy.
    shown = storage.public_uri(where)
    raise RunError(f"could not reach the Ray cluster at {shown}: {hint.replace(where, shown)}")


if __name__ == "__main__":
    main()
