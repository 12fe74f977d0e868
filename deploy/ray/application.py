"""The application that Ray Serve runs: `fuseline.deploy.ray:app`."""

from typing import Any

from ray import serve

from fuseline.deploy.ray.app_args import AppArgs
from fuseline.deploy.ray.autoscaling import QueuedRowsPolicy
from fuseline.deploy.ray.replica import Replica

DEPLOYMENT = "fuseline"
"""Name of the only deployment of an application."""

_DRAIN_LOOK_S = 0.2
"""Seconds between two looks of a replica that ends at whether its requests are answered."""

_STARTS = 3
"""Starts of a replica that may fail before the application is given up; a package that is broken stays broken."""

_RETRY_AFTER_S = 1.0


def app(args: AppArgs) -> serve.Application:
    """Return the application that serves `args.package`.

    Raises `InputError`: an argument is unknown, missing, or breaks a rule; the message names each.
    """
    return serve.deployment(Replica).options(**deployment_options(args)).bind(args)


def deployment_options(args: AppArgs) -> dict[str, Any]:
    """Return the options of the deployment, by Ray's names."""
    actor: dict[str, Any] = {"num_cpus": args.num_cpus, "num_gpus": args.num_gpus}
    if args.memory is not None:
        actor["memory"] = args.memory
    if args.accelerator_type is not None:
        actor["accelerator_type"] = args.accelerator_type
    options: dict[str, Any] = {
        "name": DEPLOYMENT,
        "ray_actor_options": actor,
        "max_ongoing_requests": args.ongoing_requests,
        "max_queued_requests": args.max_queued_requests,
        # As Fuseline's own refusals: 503 would have a load balancer take the node for one that is down.
        "backpressure_config": {"status_code": 429, "retry_after_s": _RETRY_AFTER_S},
        "graceful_shutdown_wait_loop_s": _DRAIN_LOOK_S,
        "graceful_shutdown_timeout_s": args.shutdown_timeout_s,
        "health_check_period_s": args.health_check_period_s,
        "health_check_timeout_s": args.health_check_timeout_s,
        "max_constructor_retry_count": _STARTS,
        "max_surge_percent": args.max_surge_percent,
    }
    if args.max_replicas is None or args.max_replicas == args.min_replicas:
        return options | {"num_replicas": args.min_replicas}
    return options | {
        "autoscaling_config": {
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "upscale_delay_s": args.upscale_delay_s,
            "downscale_delay_s": args.downscale_delay_s,
            "look_back_period_s": args.look_back_period_s,
            "metrics_interval_s": args.metrics_interval_s,
            "policy": {
                "policy_function": f"{QueuedRowsPolicy.__module__}:{QueuedRowsPolicy.__name__}",
                "policy_kwargs": {"target_wait_ms": args.target_wait_ms, "target_busy": args.target_busy},
            },
        }
    }
