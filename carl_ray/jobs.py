"""Chains of Ray jobs: pretrain, embed, evaluate, fine-tune, in one command that goes on where it ended.

    python -m carl_ray.jobs submit demo --folder /shared/demo --wait
    python -m carl_ray.jobs submit pouring --folder s3://bucket/pouring --set manifest=s3://bucket/pouring.parquet \
        --set train_options="--cluster.use_gpu true --cluster.num_workers 4" --set embed_options=--use-gpu
    python -m carl_ray.jobs status pouring --folder s3://bucket/pouring
    python -m carl_ray.jobs logs pouring --folder s3://bucket/pouring --follow
    python -m carl_ray.jobs stop pouring --folder s3://bucket/pouring

A chain runs on the cluster, as a job of its own, and each of its stages as another. Submitted again it goes on: stages
that are done are left out, one that is running is waited for, one that failed or was stopped is tried again, from
where it was. Chains are YAML files (see carl_ray/chains/chain.py); the shipped ones are demo, pouring, finegym99 and
kinetics400_to_penn_action; `submit --help` lists their parameters.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import runpy
import sys
import tempfile
import time
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from carl_ray import storage
from carl_ray.chains.chain import (
    CHAIN_JOB,
    Outline,
    Plan,
    check_runtime_env,
    outline_of,
    plan_chain,
    read_chain,
    shipped_chains,
    write_done,
)
from carl_ray.errors import RunError, UserError, one_line_errors
from carl_ray.options import OptionParser, print_next

_MOST_PACKAGE_BYTES = 100 * 2**20
"""Of the code that is sent, zipped: Ray's dashboard takes no longer request."""
_NUM_SHOWN = 3
_INPUTS = ("--data.manifest", "--manifest", "--model.weights", "--model.init_from", "--checkpoint")
_NO_FILES = ("random", "imagenet", "none")

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from carl_ray.chains.runner import ChainState


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; leaves with status 0 only when what was asked for is done."""
    with one_line_errors():
        given = sys.argv[1:] if arguments is None else arguments
        if given[:1] == ["stage"]:
            _stage(*given[1:])
        elif given[:1] == ["run"]:
            _run_chain(given[1:])
        else:
            _run(_parse(given))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OptionParser(
        prog="python -m carl_ray.jobs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("submit", "starts a chain, or goes on with it"),
        ("status", "says where its stages are"),
        ("logs", "shows the output of its stages"),
        ("stop", "stops it; training writes a checkpoint first"),
    ):
        command = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("chain", metavar="CHAIN", help=f"{', '.join(shipped_chains())}, or a YAML file")
        command.add_argument("--folder", required=True, metavar="URI", help="for all that the chain writes")
        command.add_argument(
            "--address", metavar="URL", help="of the cluster's dashboard, as RAY_API_SERVER_ADDRESS; none: this machine"
        )  # fmt: skip
        if name == "submit":
            _add_submit_options(command)
        elif name == "logs":
            command.add_argument(
                "--stage",
                metavar="NAME",
                help=f"default: the last one that was begun; {CHAIN_JOB}: what the chain itself says",
            )
            command.add_argument(
                "--follow", action="store_true", help="until it ends; without --stage, until the chain does"
            )
    return parser.parse_args(arguments)


def _add_submit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the chain; repeatedly. Paths from the root: jobs run in a folder of their own",
    )
    command.add_argument("--wait", action="store_true", help="for the end of the chain")
    command.add_argument(
        "--working-dir", metavar="FOLDER", default=".", help="checkout that is sent to the cluster, without data [.]"
    )  # fmt: skip
    command.add_argument(
        "--installed", action="store_true", help="send nothing: the cluster's nodes have carl_ray"
    )
    command.add_argument(
        "--runtime-env-json",
        metavar="JSON",
        help="more of Ray's runtime environment, such as env_vars, for all jobs; who may use the cluster can read it",
    )
    command.add_argument(
        "--python", metavar="PATH", default="python", help="interpreter on the head of the cluster [python]"
    )
    command.epilog = "parameters:\n" + "\n".join(
        f"  {chain}\n" + "\n".join(f"    {name}: {text}" for name, text in parameters.items())
        for chain in shipped_chains()
        if (parameters := read_chain(chain).parameters)
    )


def _run(options: argparse.Namespace) -> None:
    chain = read_chain(options.chain)
    outline = outline_of(chain, options.folder)
    match options.command:
        case "submit":
            values = dict(_name_and_value(text) for text in options.set)
            plan = plan_chain(chain, options.folder, values)
            runtime_env = _runtime_env(options)
            _check_inputs(plan)
            if all(plan.is_done(stage) for stage in plan.commands):
                shown = storage.public_uri(outline.folder)
                print(f"nothing to do: all {len(plan.commands)} stages are done in {shown}")
                return
            # Ray is imported late: help and mistakes on the command line answer at once.
            from carl_ray.chains.runner import submit_chain

            _check_package(runtime_env)

            client = _client(options.address)
            job = submit_chain(client, plan, options.python, runtime_env)
            print(f"job {job.id} runs the chain in {storage.public_uri(outline.folder)}", flush=True)
            if options.wait:
                _wait(client, outline)
            else:
                print_next("jobs", "status", options.chain, "--folder", options.folder)
        case "status":
            from carl_ray.chains.runner import chain_state

            print(_table(chain_state(_client(options.address), outline)))
        case "logs":
            _logs(_client(options.address), outline, options.stage, options.follow)
        case "stop":
            from carl_ray.chains.runner import stop_chain

            client = _client(options.address)
            if not stop_chain(client, outline, lambda text: print(text, flush=True)):
                print("nothing is running")


def _check_inputs(plan: Plan) -> None:
    """Raises `UserError` for an input that a job will not find, as far as this machine can tell."""
    for stage, command in plan.commands.items():
        for option, uri in pairwise(command):
            if option not in _INPUTS or uri in _NO_FILES or uri.startswith(plan.outline.folder):
                continue
            if storage.absolute(uri) != uri:
                raise UserError(
                    f"stage {stage}: {option} {uri}: a job runs in a folder of its own: name the full path, as its "
                    "node sees it, or a URI"
                )
            if storage.is_remote(uri) and not storage.exists(uri):
                raise UserError(f"stage {stage}: {option} {storage.public_uri(uri)}: nothing is there")


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set: expected NAME=VALUE, got {storage.public_uri(text)!r}")
    return name, value


def _runtime_env(options: argparse.Namespace) -> dict[str, Any]:
    """What the jobs get besides what the nodes have: the code, and what the user names."""
    try:
        runtime_env = json.loads(options.runtime_env_json or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"--runtime-env-json: not JSON ({error})") from None
    if not isinstance(runtime_env, dict):
        raise UserError('--runtime-env-json: expected an object, such as {"env_vars": {"NAME": "VALUE"}}')
    check_runtime_env(runtime_env)
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
    """Raises `UserError` where the code to send is more than Ray takes: it would answer with a broken connection."""
    folder = runtime_env.get("working_dir", "")
    if not Path(folder).is_dir():
        return
    # The function that Ray itself packs with: what .gitignore and .rayignore leave out need not be guessed.
    from ray._private.runtime_env.packaging import create_package

    quiet = logging.getLogger(f"{__name__}.package")
    quiet.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="carl_ray-package-") as temporary:
        package = Path(temporary) / "package.zip"
        create_package(
            folder, package, include_gitignore=True, excludes=runtime_env.get("excludes"), logger=quiet
        )
        size = package.stat().st_size
        if size <= _MOST_PACKAGE_BYTES:
            return
        sizes: Counter[str] = Counter()
        with zipfile.ZipFile(package) as file:
            for info in file.infolist():
                sizes["/".join(PurePosixPath(info.filename).parts[:2])] += info.compress_size
    largest = ", ".join(f"{name} ({count / 2**20:.0f} MiB)" for name, count in sizes.most_common(_NUM_SHOWN))
    raise UserError(
        f"{folder}: {size / 2**20:.0f} MiB to send, more than the {_MOST_PACKAGE_BYTES // 2**20} MiB that Ray takes; "
        f"largest: {largest}; name what the jobs do not need in {folder}/.rayignore"
    )


def _client(address: str | None) -> JobSubmissionClient:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if address is not None:
        # Ray takes the variable for more than what its caller names.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    import ray
    from ray.job_submission import JobSubmissionClient

    from carl_ray.session import reaching

    # They tell of every ignore file that they met, and of every connection.
    logging.getLogger("ray._private.runtime_env").setLevel(logging.ERROR)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    where = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    try:
        with reaching(where or "auto"):
            return JobSubmissionClient()
    except ray.exceptions.AuthenticationError:
        hint = "its dashboard wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token"
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        hint = f"{' '.join(str(error).split())}; name its dashboard, --address http://HOST:8265"
    where = where or "this machine"
    # An address may hold a password of a proxy, which Ray and its libraries quote.
    shown = storage.public_uri(where)
    raise RunError(f"could not reach the Ray cluster at {shown}: {hint.replace(where, shown)}")


def _wait(client: JobSubmissionClient, outline: Outline) -> None:
    """Shows the chain until it is done; raises `RunError` where its job ends before."""
    from carl_ray.chains.runner import SECONDS_BETWEEN_LOOKS, chain_state

    shown = ""
    while True:
        state = chain_state(client, outline)
        if (table := _table(state)) != shown:
            print(table, flush=True)
            shown = table
        if state.done:
            return
        if state.job is None or state.job.ended:
            if state.job is not None and state.job.status.value == "SUCCEEDED":
                raise RunError(
                    f"the job of the chain ended well, but its stages' markers are not to be seen from here: is "
                    f"{storage.public_uri(outline.folder)} the same folder on this machine?"
                )
            what = "is gone" if state.job is None else f"{state.job.status.value.lower()}: {state.job.reason}"
            raise RunError(f"the job of the chain {what}")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _table(state: ChainState) -> str:
    """A line for the chain and for each stage: its name, where it is, its job, and why that failed."""
    lines = []
    for name, done, job in [
        (CHAIN_JOB, state.done, state.job),
        *((stage.name, stage.done, stage.job) for stage in state.stages),
    ]:
        status = "done" if done else "not begun" if job is None else job.status.value.lower()
        reason = "" if done or job is None or not job.reason else f"  {job.reason}"
        lines.append(f"{name:<22}{status:<11}{job.id if job else ''}{reason}".rstrip())
    return "\n".join(lines)


def _logs(client: JobSubmissionClient, outline: Outline, stage: str | None, follow: bool) -> None:
    """Prints what jobs have put out; where it is followed without a stage, one job after the other."""
    from carl_ray.chains.runner import SECONDS_BETWEEN_LOOKS, chain_state, job_output

    if stage not in (None, CHAIN_JOB, *outline.stages):
        raise UserError(f"chain {outline.chain} has no stage {stage!r} (it has {', '.join(outline.stages)})")
    shown: set[str] = set()
    while True:
        state = chain_state(client, outline)
        if stage == CHAIN_JOB:
            jobs = [state.job]
        else:
            jobs = [state.job for state in state.stages if stage in (None, state.name)]
        begun = [job.id for job in jobs if job is not None]
        if not begun and not (follow and stage is None and state.job is not None):
            raise UserError(
                "the cluster knows of no such job: it was not begun, or its record died with its cluster"
            )
        if begun and begun[-1] not in shown:
            shown.add(begun[-1])
            for text in job_output(client, begun[-1], follow=follow):
                print(text, end="", flush=True)
        elif state.done or state.job is None or state.job.ended:
            return
        else:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if not follow or stage is not None:
            return


def _run_chain(arguments: list[str]) -> None:
    """What the job of a chain does."""
    from carl_ray.chains.runner import read_plan, run_chain

    parser = OptionParser(prog="python -m carl_ray.jobs run")
    parser.add_argument("--job-id", required=True)
    options = parser.parse_args(arguments)
    client = _client(None)
    plan, runtime_env = read_plan(client, options.job_id)
    run_chain(client, plan, runtime_env, lambda text: print(text, flush=True))


def _stage(marker: str, module: str, *arguments: str) -> None:
    """What the job of a stage does: runs its command in this process, and writes down that it is done."""
    started = time.monotonic()
    try:
        there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        raise UserError(
            f"no module {module} here: expected it in the working directory, or installed on the cluster"
        )
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        if left.code not in (None, 0):
            raise
    write_done(marker, [module, *arguments], time.monotonic() - started)


if __name__ == "__main__":
    main()
